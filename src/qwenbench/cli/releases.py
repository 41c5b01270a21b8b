"""`qwenbench releases --images V,V,...`: the same campaign per engine version, and where figures first changed."""

from __future__ import annotations

import contextlib
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qwenbench.cli.option_parameters import takes_options
from qwenbench.cli.runs import (
    RUN,
    UNDECIDED,
    EverythingOption,
    JsonOption,
    MarkdownOption,
    NoReportOption,
    OutOption,
    option,
    print_compared,
    write,
)  # fmt: skip
from qwenbench.errors import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qwenbench.analysis.releases import Releases

VERSIONS = "Versions"
DEFAULT_REPEATS = 3
"""Where nothing else is asked for: one repeat tells no change from noise."""


@takes_options("sweep", without=("image", "vllm_command"))
def command(
    given: dict[str, Any],
    images: Annotated[
        str | None,
        option(
            "docker: images or tags of the deployment's, the oldest first; sim: the simulator's versions",
            panel=VERSIONS,
            metavar="V,V,..",
        ),
    ] = None,
    vllm_command: Annotated[
        list[str] | None,
        option("process: what to run, once per version, the oldest first", panel=VERSIONS, metavar="CMD"),
    ] = None,
    gate: Annotated[
        str | None, option("Exit 1 where a version breaks it against the first, 3 where nothing can be judged")
    ] = None,
    out: OutOption = "results",
    run_id: Annotated[
        str | None, option("Begins the names of the runs (default: the time); given again, goes on", panel=RUN)
    ] = None,
    dry_run: Annotated[bool, option("Print each version's plan, start nothing", "--dry-run", panel=RUN)] = False,
    no_report: NoReportOption = False,
    everything: EverythingOption = False,
    markdown: MarkdownOption = False,
    as_json: JsonOption = False,
) -> int:
    """Run the same campaign per vLLM version; show each figure over versions and where it first changed.

    Launches take turns: each version once, then each again, so that drift hits all alike. Exit status: 0 done; 1 a
    version failed in part or whole, or the gate is broken; 2 bad usage or nothing could run; 3 the gate cannot be
    judged; 130 interrupted (the same line with --run-id goes on).
    """
    from qwenbench.analysis.compare import parse_gate
    from qwenbench.analysis.releases import Release, over_releases
    from qwenbench.analysis.run import load_run
    from qwenbench.cli.sweep_run import FAILED, INTERRUPTED, note
    from qwenbench.report.page import build_releases_page
    from qwenbench.report.releases import releases_blocks
    from qwenbench.runfolder.names import check_name

    if as_json and markdown:
        raise UsageError("--json and --markdown: give one of them.")
    rules = parse_gate(gate) if gate is not None else ()
    fields = dict(given)
    if not {"repeats", "relaunch_repeats", "until_ci"} & fields.keys():
        fields["repeats"] = DEFAULT_REPEATS
    versions = _versions(fields, images, vllm_command or ())
    base = check_name(run_id, "--run-id") if run_id is not None else datetime.now().strftime("%Y%m%d-%H%M%S")
    runs = {name: Path(out) / check_name(f"{base}-{name}", "--run-id") for name in versions}
    # what is told while it runs is no part of the answer
    with contextlib.redirect_stdout(sys.stdout if dry_run else sys.stderr):
        statuses, refused = _measure(versions, runs, dry_run=dry_run, build_report=not no_report)
    if dry_run:
        return 0
    if INTERRUPTED in statuses.values():
        note(f"interrupted. To go on: the same line with --run-id {shlex.quote(base)}")
        return INTERRUPTED
    begun = [Release(name, load_run(folder)) for name, folder in runs.items() if (folder / "run.json").exists()]
    found = over_releases(begun, rules, refused)
    print_compared(found, releases_blocks(found, everything), as_json=as_json, markdown=markdown)
    if not no_report and found.comparison is not None:
        target = Path(out) / f"{base}-releases.html"
        write(target, build_releases_page(found))
        note(f"report: {target}")
    if not found.compared:
        note("no version could be measured")
        return 2
    status = FAILED if found.failed or any(statuses.values()) else 0
    return max(status, _gate_status(found)) if gate is not None and status == 0 else status


def _versions(fields: dict[str, Any], images: str | None, commands: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name of a version -> its sweep's fields. Raises UsageError for what names fewer than two."""
    from qwenbench.engine.deployments import find_deployment
    from qwenbench.engine.launchers import version_of_command
    from qwenbench.runfolder.names import slug

    launcher = fields.get("launcher", "process" if commands else "docker")
    option = "--vllm-command" if launcher == "process" else "--images"
    named = list(commands) if launcher == "process" else [word.strip() for word in (images or "").split(",")]
    other = images if launcher == "process" else commands
    if other:
        raise UsageError(f"--launcher {launcher} takes its versions from {option}.")
    named = [word for word in named if word]
    if len(named) < 2:
        how = " once per version" if launcher == "process" else " v0.30.0,v0.31.0: two or more"
        raise UsageError(f"give the versions, the oldest first: {option}{how}.")
    versions: dict[str, dict[str, Any]] = {}
    own: dict[str, Any]
    for word in named:
        if launcher == "process":
            name, own = version_of_command(word) or "command", {"vllm_command": word}
        elif launcher == "sim":
            argument = f"--sim-vllm-version={word.removeprefix('v')}"
            name, own = word, {"vllm_arg": (*fields.get("vllm_arg", ()), argument)}
        else:
            image = word
            if not {":", "/", "@"} & set(word):
                repository = find_deployment(fields.get("deployment", "generic")).docker.image.partition("@")[0]
                image = f"{repository.rpartition(':')[0] or repository}:{word}"
            name, own = word.rpartition("/")[2].rpartition(":")[2], {"image": image}
        name, number = slug(name)[:40], 2
        unique = name
        while unique in versions:
            unique, number = f"{name}-{number}", number + 1
        versions[unique] = {**fields, "launcher": launcher, **own}
    return versions


def _measure(
    versions: dict[str, dict[str, Any]], runs: dict[str, Path], *, dry_run: bool, build_report: bool
) -> tuple[dict[str, int], dict[str, str]]:
    """Version -> its sweep's exit status, and why it could not be begun. Raises UsageError for a plan that is wrong,
    before anything is started."""
    from qwenbench.cli.sweep_run import INTERRUPTED, RunRequest, note, run_one
    from qwenbench.sweep.options import checked_options
    from qwenbench.sweep.plan import make_plan

    for fields in versions.values():
        make_plan(checked_options(fields))
    launches = 1 if dry_run else next(iter(versions.values())).get("relaunch_repeats", 1)
    statuses, refused = dict.fromkeys(versions, 0), {}
    for launch in range(1, launches + 1):
        for name, fields in versions.items():
            folder = runs[name]
            begun = (folder / "run.json").exists()
            if begun and _has_launch(folder, launch):
                continue
            note(f"releases: {name}" + (f", launch {launch} of {launches}" if launches > 1 else ""))
            own = fields if dry_run else {**fields, "relaunch_repeats": launch}
            try:
                resume = str(folder) if begun and not dry_run else None
                report = build_report and launch == launches
                request = RunRequest(own, str(folder.parent), folder.name, resume, dry_run, report)
                statuses[name] = run_one(request)
            except UsageError as error:  # a version that cannot even be begun is a finding; the others are measured
                note(f"{name}: {error}")
                statuses[name], refused[name] = 2, str(error)
            if statuses[name] == INTERRUPTED:
                return statuses, refused
    return statuses, refused


def _has_launch(folder: Path, launch: int) -> bool:
    """Whether a run has finished every cell of so many launches."""
    from qwenbench.runfolder.journal import Journal
    from qwenbench.runfolder.names import RunPaths
    from qwenbench.sweep.extension import known_configurations, stored_options
    from qwenbench.sweep.plan import make_plan

    options = stored_options(folder)
    if options.until_ci is not None:
        return False  # its sweep knows whether another repeat is due
    cells = make_plan(options, known_configurations(folder)).cells()
    done = {entry.cell for entry in Journal(RunPaths(folder).journal).entries()}
    planned = [cell for cell in cells if cell.launch <= launch]
    return max(cell.launch for cell in cells) >= launch and all(cell.cell_id in done for cell in planned)


def _gate_status(releases: Releases) -> int:
    """0 passed; UNDECIDED where it cannot be judged. Raises RunError for a broken gate, with the first version."""
    gated = releases.comparison.gate if releases.comparison is not None else None
    if gated is None or gated.outcome == "undecided":
        print("the gate is undecided: measure again with --repeats 3 and --relaunch-repeats 2.", file=sys.stderr)
        return UNDECIDED
    if gated.outcome == "broken":
        places = [release.run.run_id for release in releases.compared]
        first = min(gated.broken, key=lambda change: places.index(change.run))
        raise RunError(f"the gate is broken in {len(gated.broken)} places, first at {releases.named(first.run)}.")
    return 0
