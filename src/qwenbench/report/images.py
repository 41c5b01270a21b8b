"""Figures as PNG or SVG.

The trade-off figure is drawn here and needs nothing. The others are drawn by the page's own code, run once in an
installed Chromium without a network.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.run import Run
from qwenbench.errors import RunError
from qwenbench.report.answer import answered, question_of
from qwenbench.report.html_writer import fill
from qwenbench.report.page import asset, content_policy, embedded, plotly_js
from qwenbench.report.page_data import page_data
from qwenbench.report.subject import subject_of
from qwenbench.report.svg import css_variables, to_png
from qwenbench.report.tradeoff import tradeoff_of
from qwenbench.report.tradeoff_drawing import file_svg

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
        page.write_text(_page(run, format), encoding="utf-8")
        dom = _dump_dom(browser, page, timeout_s)
    if "<title>done</title>" not in dom:
        raise RunError(f"{browser} did not finish drawing within {timeout_s:g} s; report.html has the same figures.")
    return images | {name: _bytes(unescape(address)) for name, address in _OUTPUT.findall(dom)}, None


def tradeoff_image(run: Run, format: ImageFormat, question: Question | None = None) -> bytes | None:
    """The trade-off figure alone, which needs no browser; None without a valid point."""
    answer = answered(run, question or question_of(run))
    tradeoff = tradeoff_of(page_data(run, samples=False), subject_of(run), answer)
    if tradeoff is None:
        return None
    svg = file_svg(tradeoff)
    return to_png(svg) if format == "png" else svg.encode()


def _page(run: Run, format: ImageFormat) -> str:
    library, script = plotly_js(), "\n".join(asset(name) for name in _SCRIPTS)
    wanted: Mapping[str, Any] = {"format": format, "width": WIDTH, "figures": FIGURES}
    slots = {
        "policy": content_policy(library, script),
        "style": css_variables() + asset("report.css"),
        "data": embedded(page_data(run)),
        "wanted": embedded(wanted),
        "library": library,
        "script": script,
    }
    return fill(asset("export.html"), slots)


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
