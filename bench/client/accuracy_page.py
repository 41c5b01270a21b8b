"""docs/client-accuracy.md and its figure, made from bench/client/results.jsonl."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from run import RESULTS
from trials import HERE

DOCS = HERE.parents[1] / "docs"
FIGURE = "client-accuracy.svg"
BUSY = HERE / "results-busy.jsonl"
SCALE = HERE / "results-scale.jsonl"
SCALE_GOALS = (
    (200, "cpu_us_per_token", 10.0, "at most 10 us of CPU a token"),
    (1000, "ttft_error_mean", 0.05, "mean TTFT error of at most 0.05 ms"),
)
LATE_LIMIT_MS = 2.0
"""A trial whose truth server was later than this on average says little about the client."""
COLOURS = {
    "qwenbench": "#0b6e4f",
    "vllm-rs": "#c1440e",
    "vllm-rs warm": "#e8a87c",
    "vLLM Python": "#3d5a98",
    "AIPerf": "#76b900",
    "GuideLLM": "#8e5ea2",
}
COLUMNS = (
    ("ttft_error_mean", "TTFT error mean", 2),
    ("ttft_error_p99", "TTFT error p99", 2),
    ("itl_p99_error", "ITL p99 error", 2),
    ("itl_std", "ITL std", 2),
    ("share_percent", "of ideal tok/s", 1),
    ("cpu_us_per_token", "CPU us/token", 1),
)

MAIN = ("main", "thousand", "heavy")
"""Blocks of the same streams."""

Trial = dict[str, Any]


def read(path: Path) -> tuple[list[Trial], list[Trial]]:
    """The lines of the runs themselves and their trials, with the derived numbers filled in."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    runs = [one for one in lines if "about" in one]
    trials = [one for one in lines if "about" not in one]
    for trial in trials:
        if "failure" in trial:
            continue
        trial["share_percent"] = 100 * trial["tokens_share"]
        known = trial["itl_p99"] is not None
        trial["itl_p99_error"] = trial["itl_p99"] - trial["itl_true_p99"] if known else None
    return runs, trials


def starved(trial: Trial) -> bool:
    """Whether the truth server itself was late."""
    return "failure" not in trial and trial["server_late_mean"] > LATE_LIMIT_MS


def middle(trials: Iterable[Trial], key: str) -> float | None:
    """Median over repeats; None when the client does not tell."""
    values = [trial[key] for trial in trials if trial.get(key) is not None]
    return median(values) if values else None


def table(trials: list[Trial]) -> list[str]:
    """One row per concurrency and client: medians over the repeats."""
    lines = [
        "| streams | client | trials | " + " | ".join(title for _, title, _ in COLUMNS) + " | failed |",
        "|---|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for concurrency in sorted({trial["concurrency"] for trial in trials}):
        for client in COLOURS:
            mine = [one for one in trials if (one["concurrency"], one["client"]) == (concurrency, client)]
            good = [one for one in mine if "failure" not in one]
            if not mine:
                continue
            cells = [number(middle(good, key), places) for key, _, places in COLUMNS]
            failed = sum(one["failed"] for one in good) if good else "did not run"
            lines.append(f"| {concurrency} | {client} | {len(good)} | {' | '.join(cells)} | {failed} |")
    return lines


def number(value: float | None, places: int) -> str:
    """A table cell."""
    return "" if value is None else f"{value:.{places}f}"


def targets(trials: list[Trial]) -> list[str]:
    """The goals that were set, and what was reached."""
    lines = ["| goal | streams | qwenbench | vllm-rs | reached |", "|---|---|---|---|---|"]
    for key, title, fraction in (
        ("ttft_error_mean", "mean TTFT error at most 1/4 of vllm-rs's", 0.25),
        ("ttft_error_p99", "p99 TTFT error at most 1/3 of vllm-rs's", 1 / 3),
        ("itl_p99_error", "ITL p99 error no larger than vllm-rs's", 1.0),
    ):
        for concurrency in (50, 200, 400):
            ours, theirs = (middle(pick(trials, client, concurrency), key) for client in ("qwenbench", "vllm-rs"))
            if ours is None or theirs is None:
                continue
            reached = abs(ours) <= fraction * abs(theirs)
            lines.append(f"| {title} | {concurrency} | {ours:.2f} ms | {theirs:.2f} ms | {yes(reached)} |")
    for key, title, concurrency, limit, below in (
        ("itl_std", "ITL standard deviation under 0.3 ms", 50, 0.3, True),
        ("share_percent", "at least 99 % of the ideal tokens/s", 200, 99.0, False),
        ("share_percent", "at least 97 % of the ideal tokens/s", 400, 97.0, False),
        ("cpu_us_per_token", "at most 16 us of CPU a token", 200, 16.0, True),
    ):
        ours, theirs = (middle(pick(trials, client, concurrency), key) for client in ("qwenbench", "vllm-rs"))
        if ours is None:
            continue
        reached = ours <= limit if below else ours >= limit
        lines.append(f"| {title} | {concurrency} | {ours:.2f} | {number(theirs, 2)} | {yes(reached)} |")
    return lines


def pick(trials: list[Trial], client: str, concurrency: int) -> list[Trial]:
    """The trials of one client at one concurrency that ran."""
    return [
        one for one in trials if one["client"] == client and one["concurrency"] == concurrency and "failure" not in one
    ]


def yes(reached: bool) -> str:
    """A table cell."""
    return "yes" if reached else "no"


def figure(trials: list[Trial]) -> str:
    """Mean TTFT error against streams, both logarithmic, one line per client, as SVG."""
    streams = sorted({trial["concurrency"] for trial in trials})
    width, height, left, right, top, bottom = 760, 420, 70, 150, 40, 50
    low, high = 0.01, 3000.0

    def x_of(concurrency: int) -> float:
        span = math.log(streams[-1] / streams[0]) or 1.0
        return left + (width - left - right) * math.log(concurrency / streams[0]) / span

    def y_of(value: float) -> float:
        part = math.log(min(max(abs(value), low), high) / low) / math.log(high / low)
        return height - bottom - (height - top - bottom) * part

    title = "|Mean TTFT error| in ms against concurrent streams (lower is better)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="20" font-size="15">{title}</text>',
    ]
    for exponent in range(-2, 4):
        y = y_of(10.0**exponent)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>')
    for concurrency in streams:
        x = x_of(concurrency)
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 20}" text-anchor="middle">{concurrency}</text>')
    labels: list[tuple[float, str, str]] = []
    for client, colour in COLOURS.items():
        points = [
            (x_of(concurrency), y_of(value))
            for concurrency in streams
            if (value := middle(pick(trials, client, concurrency), "ttft_error_mean")) is not None
        ]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        labels.append((points[-1][1], client, colour))
    y = 0.0
    for wanted, client, colour in sorted(labels):
        y = max(wanted, y + 15)
        parts.append(f'<text x="{width - right + 10}" y="{y + 4:.1f}" fill="{colour}">{client}</text>')
    return "\n".join([*parts, "</svg>", ""])


def document(runs: list[Trial], trials: list[Trial]) -> str:
    """The whole page."""
    main = [one for one in trials if one["block"] in MAIN]
    kept = [one for one in main if not starved(one) or one["concurrency"] >= 1000]
    thrown = [one for one in main if starved(one) and one["concurrency"] < 1000]
    about = runs[0]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# How accurate the client is",
        "",
        "<!-- made by bench/client/accuracy_page.py from bench/client/results.jsonl; do not edit -->",
        "",
        f"Measured on {about['cores']} cores ({about['machine']}, Linux {about['kernel']}), which the truth server",
        f"and the client share; {versions}. Runs:",
        "",
        *(f"- {run['when']}: `{run['command']}`" for run in runs),
        "",
        "Every block of trials is from one run; the first run's blocks replaced those of later lines.",
        "",
        "The truth server (bench/client/truth_server.rs) sends every chunk at an absolute deadline counted from",
        "the kernel's stamp of the request's arrival, and keeps when it really sent. **Error** is what a client",
        "reports minus what the server really did, so the server's own lateness is no client's fault. Clients are",
        "interleaved; each figure is the median over its trials, in ms.",
        '"vllm-rs warm" sends as many warm-up requests as streams first, so that its connections are open;',
        "qwenbench opens its connections before a point starts, always.",
        "",
        f"![Mean TTFT error against streams]({FIGURE})",
        "",
        "## 50 ms to the first token, 10 ms a token, 100 tokens",
        "",
        *table(kept),
        "",
        "CPU: user and system time of the client process(es) during the load divided by the tokens; for vllm-rs its",
        "start is included. Empty: the client does not tell, or it cannot be kept apart.",
        "At 1,000 streams two cores are too few for server and client alike: those rows show who breaks, no more.",
        "",
        "## The goals that were set",
        "",
        *targets(kept),
        "",
        "## Other streams",
        "",
    ]
    for block in dict.fromkeys(one["block"] for one in trials):
        if block in MAIN:
            continue
        some = [one for one in trials if one["block"] == block]
        good = [one for one in some if not starved(one)]
        thrown += [one for one in some if starved(one)]
        lines += [f"### {some[0]['shape']}", "", *table(good), ""]
    lines += [
        "## Trials that were left out",
        "",
        f"{len(thrown)} of {len(trials)} trials: the truth server itself was more than {LATE_LIMIT_MS:g} ms late on",
        "average (server and client starve each other, or something else ran). What they showed:",
        "",
        *(table(thrown) if thrown else ["None."]),
        "",
        *scale_section(),
        *busy_section(),
        "Rerun: `make bench-client` (installs the peers under ~/.cache/qwenbench/bench-client).",
        "",
    ]
    return "\n".join(lines)


def busy_section() -> list[str]:
    """The same trials while other programs held both cores, where such a run was kept."""
    if not BUSY.exists():
        return []
    _, trials = read(BUSY)
    ran = [one for one in trials if "failure" not in one]
    loads = sorted(one["load_average"] for one in ran)
    return [
        "## On a machine that is busy with something else",
        "",
        f"An earlier, interrupted run ({BUSY.name}, {len(trials)} trials; some clients had one trial) while other",
        f"programs kept both cores busy (load average {loads[0]:.0f} to {loads[-1]:.0f}). No client is to be trusted",
        "then; qwenbench marks such points invalid (self-check, loop lag with merged reads, CPU share).",
        "",
        *table(ran),
        "",
    ]


def scale_section(path: Path = SCALE) -> list[str]:
    """Many streams with cores of their own for server and client (bench/client/scale.py), where such a run was kept."""
    if not path.exists():
        return []
    about, *trials = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        "## Many streams",
        "",
        f"Server and client pinned to cores of their own ({about['cores']} cores, {about['machine']};",
        f"{about['when']}); two requests a stream. Medians over the trials, ms; memory: the client processes' peak.",
        "",
        "| streams | load | trials | TTFT error mean | TTFT error p99 | server late mean / p99 | CPU us/token "
        "| KiB a stream | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for streams in sorted({trial["streams"] for trial in trials}):
        same = [trial for trial in trials if trial["streams"] == streams]

        def of(key: str, same: list[Trial] = same) -> float:
            return median(trial[key] for trial in same)

        lines.append(
            f"| {streams} | {same[0]['shape']} | {len(same)} "
            f"| {of('ttft_error_mean'):.2f} | {of('ttft_error_p99'):.2f} | "
            f"{of('server_late_mean'):.2f} / {of('server_late_p99'):.2f} | {of('cpu_us_per_token'):.1f} | "
            f"{of('kib_per_stream'):.0f} | {sum(trial['failed'] for trial in same)} |"
        )
    lines += ["", "| goal | reached |", "|---|---|"]
    for streams, key, limit, title in SCALE_GOALS:
        value = median(trial[key] for trial in trials if trial["streams"] == streams)
        lines.append(f"| {title} at {streams} streams | {value:.2f}: {yes(abs(value) <= limit)} |")
    return [*lines, "", "Rerun: `python bench/client/scale.py` (3 minutes, on an idle machine).", ""]


def write(data: Path = RESULTS, docs: Path = DOCS) -> None:
    """Write the page and the figure."""
    runs, trials = read(data)
    (docs / "client-accuracy.md").write_text(document(runs, trials))
    drawn = [one for one in trials if one["block"] in MAIN]
    kept = [one for one in drawn if not starved(one) or one["concurrency"] >= 1000]
    (docs / FIGURE).write_text(figure(kept))


def main() -> None:
    """Write them where the options say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    write(options.data, options.docs)


if __name__ == "__main__":
    main()
