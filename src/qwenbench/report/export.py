"""A run's points, ledgers, figures or a Markdown summary as files.

The trade-off figure is drawn here and needs nothing. The others are drawn by the page's own code, run once in an
installed Chromium without a network.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
from html import unescape
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote_to_bytes

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.run import Run, records
from qwenbench.errors import RunError, UsageError
from qwenbench.report.answer import answered, question_of
from qwenbench.report.page import embedded, self_contained
from qwenbench.report.page_data import page_data
from qwenbench.report.summary import run_summary
from qwenbench.report.svg import to_png
from qwenbench.report.text_writers import to_markdown
from qwenbench.report.tradeoff import tradeoff_of
from qwenbench.report.tradeoff_drawing import file_svg
from qwenbench.runfolder.files import write_bytes

ImageFormat = Literal["png", "svg"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FIGURES: tuple[dict[str, str | None], ...] = (
    {"name": "throughput", "figure": "curve", "metric": "output_tokens_per_s"},
    {"name": "ttft-p50", "figure": "curve", "metric": "ttft_p50"},
    {"name": "tpot-p50", "figure": "curve", "metric": "tpot_p50"},
    {"name": "pareto", "figure": "pareto", "metric": None},
    {"name": "memory", "figure": "memory", "metric": None},
    {"name": "prediction", "figure": "prediction", "metric": None},
    {"name": "price", "figure": "price", "metric": None},
    {"name": "timeline", "figure": "timeline", "metric": None},
)
"""File name -> what assets/figures.js draws for it in a browser. A figure without data is left out."""
WIDTH = 1100
_SCRIPTS = ("format.js", "style.js", "figures.js", "export.js")
_OUTPUT = re.compile(r'<output data-name="([a-z0-9-]+)">(data:image/[^<]+)</output>')


NO_BROWSER = (
    "the other figures are drawn by a Chromium, and none is installed here: install one (Debian: chromium), or print "
    "report.html."
)


def figure_images(
    run: Run, format: ImageFormat, question: Question | None = None, *, timeout_s: float = 120.0
) -> tuple[dict[str, bytes], str | None]:
    """Figure name -> the image's bytes, and why some are missing (None: all are there).

    Raises UsageError where PNG finds no font, RunError when the browser draws nothing.
    """
    tradeoff = tradeoff_image(run, format, question)
    images = {} if tradeoff is None else {"tradeoff": tradeoff}
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        return images, NO_BROWSER
    with tempfile.TemporaryDirectory(prefix="qwenbench-export-", ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "export.html"
        wanted = {"format": format, "width": WIDTH, "figures": FIGURES}
        slots = {"data": embedded(page_data(run)), "wanted": embedded(wanted)}
        page.write_text(self_contained("export.html", _SCRIPTS, slots), encoding="utf-8")
        dom = _dump_dom(browser, page, timeout_s)
    if "<title>done</title>" not in dom:
        raise RunError(f"{browser} did not finish drawing within {timeout_s:g} s; report.html has the same figures.")
    return images | {name: _bytes(unescape(address)) for name, address in _OUTPUT.findall(dom)}, None


def tradeoff_image(run: Run, format: ImageFormat, question: Question | None = None) -> bytes | None:
    """The trade-off figure alone, which needs no browser; None without a valid point."""
    answer = answered(run, question or question_of(run))
    tradeoff = tradeoff_of(page_data(run, samples=False), answer)
    svg = file_svg(tradeoff) if tradeoff is not None else None
    return None if svg is None else to_png(svg) if format == "png" else svg.encode()


def _dump_dom(browser: str, page: Path, timeout_s: float) -> str:
    """The page's DOM once its scripts are through: virtual time passes only while nothing is left to do."""
    command = [browser, "--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={page.parent / 'profile'}", "--proxy-server=127.0.0.1:9"]
    # Chromium's sandbox refuses to run as root; the page is our own file, and nothing else is loaded
    command += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command += [f"--virtual-time-budget={int(timeout_s * 1000)}", "--dump-dom", page.as_uri()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise RunError(f"{browser} did not answer within {timeout_s:g} s.") from None
    return output.decode("utf-8", "replace")


def _bytes(address: str) -> bytes:
    head, _, body = address.partition(",")
    return base64.b64decode(body) if head.endswith(";base64") else unquote_to_bytes(body)


Format = Literal["csv", "parquet", "json", "png", "svg", "markdown"]
FORMATS: tuple[str, ...] = get_args(Format)


def export_run(run: Run, format: Format, out: Path) -> tuple[list[Path], str | None]:
    """Writes the run in this format into the folder `out`; returns the files, and what is missing where some are.

    csv, parquet, json: points and ledgers. png, svg: one file per figure. markdown: summary.md.
    Files of a simulated run carry the word in their content (a column, a key, a watermark, a line).
    Raises UsageError when the folder cannot be written or PNG finds no font, RunError when drawing fails.
    """
    missing = None
    if format in ("png", "svg"):
        images, missing = figure_images(run, format)
        files = {f"{name}.{format}": image for name, image in images.items()}
    else:
        files = _data(run, format)
    try:
        for name, data in files.items():
            write_bytes(out / name, data)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}.") from error
    return [out / name for name in files], missing


def _data(run: Run, format: Format) -> dict[str, bytes]:
    if format == "markdown":
        return {"summary.md": to_markdown(run_summary(run)).encode()}
    if format == "json":
        head = {"run_id": run.run_id, "simulated": run.simulated}
        return {
            "points.json": _json({**head, "points": records(run.points)}),
            "ledgers.json": _json({**head, "ledgers": run.ledgers}),
        }
    tables = {"points": run.points, "ledgers": ledger_table(run)}
    write = _parquet if format == "parquet" else lambda table: table.to_csv(index=False).encode()
    return {f"{name}.{format}": write(table) for name, table in tables.items()}


def ledger_table(run: Run) -> pd.DataFrame:
    """One row per configuration: config_id, simulated, then memory.json's keys; lists are joined by line ends."""

    def cell(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return "\n".join(item if isinstance(item, str) else orjson.dumps(item).decode() for item in value)

    return pd.DataFrame(
        [
            {"config_id": name, "simulated": run.simulated, **{key: cell(value) for key, value in ledger.items()}}
            for name, ledger in run.ledgers.items()
        ]
    )


def _json(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _parquet(table: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink, compression="zstd")
    return sink.getvalue()
