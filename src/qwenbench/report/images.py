"""Figures as PNG or SVG: the report's own drawing code, run once in an installed Chromium without a network."""

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

from qwenbench.analysis.run import Run
from qwenbench.errors import RunError, UsageError
from qwenbench.report.html_writer import fill
from qwenbench.report.page import asset, content_policy, embedded, plotly_js
from qwenbench.report.page_data import page_data

ImageFormat = Literal["png", "svg"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FIGURES: tuple[dict[str, str | None], ...] = (
    {"name": "tradeoff", "figure": "tradeoff", "metric": None},
    {"name": "throughput", "figure": "curve", "metric": "output_tokens_per_s"},
    {"name": "ttft-p50", "figure": "curve", "metric": "ttft_p50"},
    {"name": "tpot-p50", "figure": "curve", "metric": "tpot_p50"},
    {"name": "pareto", "figure": "pareto", "metric": None},
    {"name": "memory", "figure": "memory", "metric": None},
    {"name": "prediction", "figure": "prediction", "metric": None},
    {"name": "price", "figure": "price", "metric": None},
    {"name": "timeline", "figure": "timeline", "metric": None},
)
"""File name -> what assets/figures.js draws for it. A figure without data is left out."""
WIDTH = 1100
_SCRIPTS = ("format.js", "style.js", "figures.js", "export.js")
_OUTPUT = re.compile(r'<output data-name="([a-z0-9-]+)">(data:image/[^<]+)</output>')


def find_browser() -> str:
    """An installed Chromium. Raises UsageError when there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise UsageError(
            "PNG and SVG are drawn by a Chromium, and none is installed here. Install one (Debian: chromium), or open "
            "report.html and print it, or take --format csv, parquet, json or markdown."
        )
    return found


def figure_images(run: Run, format: ImageFormat, *, timeout_s: float = 120.0) -> dict[str, bytes]:
    """Figure name -> the image's bytes. Raises UsageError without a browser, RunError when it draws nothing."""
    browser = find_browser()
    with tempfile.TemporaryDirectory(prefix="qwenbench-export-", ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "export.html"
        page.write_text(_page(run, format), encoding="utf-8")
        dom = _dump_dom(browser, page, timeout_s)
    if "<title>done</title>" not in dom:
        raise RunError(f"{browser} did not finish drawing within {timeout_s:g} s; report.html has the same figures.")
    return {name: _bytes(unescape(address)) for name, address in _OUTPUT.findall(dom)}


def _page(run: Run, format: ImageFormat) -> str:
    library, script = plotly_js(), "\n".join(asset(name) for name in _SCRIPTS)
    wanted: Mapping[str, Any] = {"format": format, "width": WIDTH, "figures": FIGURES}
    slots = {
        "policy": content_policy(library, script),
        "style": asset("report.css"),
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
