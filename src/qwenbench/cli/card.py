"""`qwenbench card RUN`: one picture of a run to post, and results.json of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwenbench.cli.runs import RunArgument, chosen_run
from qwenbench.errors import RunError, UsageError


def command(
    run: RunArgument = None,
    users: Annotated[int | None, typer.Option(min=1, help="Concurrent users that the figures are for.")] = None,
    slo: Annotated[str | None, typer.Option(help="Limits, e.g. ttft_p99=1000ms,tpot_p50=25ms.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write into; the run's own when left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print results.json instead of the files' names.")] = False,
) -> None:
    """card.png and card.svg (1200 x 630): configuration, versions, card and five figures; results.json of the same."""
    import orjson

    from qwenbench.analysis.run import load_run
    from qwenbench.report.answer import answered, question_of
    from qwenbench.report.summary import card_facts, card_svg, results_json
    from qwenbench.report.svg import to_png
    from qwenbench.runfolder.files import write_bytes

    folder = chosen_run(run, "card")
    loaded = load_run(folder)
    answer = answered(loaded, question_of(loaded, users, slo))
    if isinstance(answer, str):
        raise RunError(answer)
    facts = card_facts(loaded, answer)
    svg = card_svg(facts)
    results = orjson.dumps(results_json(facts), option=orjson.OPT_INDENT_2) + b"\n"
    target = out or folder
    try:
        for name, data in (("results.json", results), ("card.svg", svg.encode()), ("card.png", to_png(svg, 1.0))):
            write_bytes(target / name, data)
            if not json:
                print(target / name)
    except OSError as error:
        raise UsageError(f"--out {target}: cannot be written: {error.strerror or error}.") from error
    if json:
        print(results.decode(), end="")
