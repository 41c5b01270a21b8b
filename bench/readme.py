"""Puts a run's picture, answer and tables into README.md, so that what stands there is what the commands print.

    .venv/bin/python bench/readme.py            with the run that README.md names now
    .venv/bin/python bench/readme.py RUN        with another of results/ (also rewrites the names)

`tests/integration/test_readme.py` fails when README.md and the commands part.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

from qwenbench.analysis.run import load_run
from qwenbench.cli.main import dispatch
from qwenbench.report.answer import question_of
from qwenbench.report.export import tradeoff_image
from qwenbench.report.summary import example_tables
from qwenbench.report.text_writers import to_markdown
from qwenbench.simulator.uncertainty import uncertainty_of

ROOT = Path(__file__).resolve().parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "images" / "trade-off.png"
_ANSWER = re.compile(r"<!-- answer: (qwenbench recommend [^\n]*?) -->\n```\n.*?```\n", re.S)
_SIMULATED = re.compile(r"<!-- simulated: (\S+) -->\n[^\n]*\n")
_TABLES = re.compile(r"<!-- tables: (\S+) -->\n.*?(?=\n<!-- end of tables -->)", re.S)


def printed(command: str) -> str:
    """What a command, or `COMMAND | head -N`, prints on stdout. Raises SystemExit when it fails."""
    command, _, most = command.partition(" | head -")
    out = io.StringIO()
    with redirect_stdout(out):
        status = dispatch(shlex.split(command)[1:])
    if status:
        raise SystemExit(f"{command}: exit status {status}")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(lines[: int(most)] if most else lines) + "\n"


def filled(text: str) -> str:
    """README.md's text with what its commands print now."""

    def answer(match: re.Match[str]) -> str:
        return f"<!-- answer: {match[1]} -->\n```\n{printed(match[1])}```\n"

    def tables(match: re.Match[str]) -> str:
        return f"<!-- tables: {match[1]} -->\n{to_markdown(example_tables(load_run(ROOT / 'results' / match[1])))}"

    def simulated(match: re.Match[str]) -> str:
        return f"<!-- simulated: {match[1]} -->\n  {uncertainty_of(match[1]).text()}\n"

    return _SIMULATED.sub(simulated, _TABLES.sub(tables, _ANSWER.sub(answer, text)))


def main() -> None:
    """Rewrites README.md and the picture."""
    text = README.read_text(encoding="utf-8")
    found = _TABLES.search(text)
    assert found, "README.md has no tables"
    run = sys.argv[1] if len(sys.argv) > 1 else found[1]
    text = text.replace(found[1], run)
    README.write_text(filled(text), encoding="utf-8")
    command = _ANSWER.search(text)
    assert command, "README.md has no answer"
    users, slo = re.search(r"--users (\d+)", command[1]), re.search(r"--slo (\S+)", command[1])
    loaded = load_run(ROOT / "results" / run)
    question = question_of(loaded, int(users[1]) if users else None, slo[1] if slo else None)
    image = tradeoff_image(loaded, "png", question)
    assert image, f"{run} has nothing to draw"
    PICTURE.write_bytes(image)


if __name__ == "__main__":
    main()
