"""The page of `compare --html` in a real browser with its network off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_runs import HOSTILE, Recipe, plant
from selenium.webdriver.support.ui import Select, WebDriverWait

from qwenbench.analysis.compare import compare
from qwenbench.analysis.run import load_run
from qwenbench.report.page import build_comparison_page


def opened(driver: Any, tmp_path: Path, recipe: dict[str, Any]) -> Any:
    """The page of two planted runs; both logs of the browser are emptied before."""
    runs = [
        load_run(plant(tmp_path / n, Recipe(run_id=n, seed=i, **recipe))) for i, n in enumerate(("before", "after"))
    ]
    file = tmp_path / "comparison.html"
    file.write_text(build_comparison_page(compare(runs)), encoding="utf-8")
    driver.get_log("browser"), driver.get_log("performance")
    driver.get(file.as_uri())
    WebDriverWait(driver, 60).until(lambda d: d.execute_script("return document.documentElement.dataset.ready"))
    return driver


def test_curves_of_both_runs_are_drawn_in_silence(driver: Any, tmp_path: Path) -> None:
    page = opened(driver, tmp_path, {"captures": (16, 32), "scenarios": ("math", "code"), "repeats": 3})
    names = page.execute_script("return document.getElementById('figure-0').data.map(t => t.name)")
    assert len(names) == 4 and sum(name.startswith("after") for name in names) == 2
    assert page.execute_script("return document.querySelectorAll('figure.plot svg.main-svg').length") >= 2
    Select(page.find_element("id", "metric")).select_by_value("ttft_p50")
    title = page.execute_script("return document.getElementById('figure-0').layout.yaxis.title.text")
    assert title == "TTFT p50, ms"
    bars = page.execute_script("return document.getElementById('figure-0').data[0].error_y.array")
    assert all(bar > 0 for bar in bars)
    stamps = page.execute_script("return document.getElementById('figure-1').layout.annotations.map(a => a.text)")
    assert "<b>SIMULATED</b>" in stamps
    assert [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_nothing_of_a_run_becomes_markup(driver: Any, tmp_path: Path) -> None:
    page = opened(driver, tmp_path, {"captures": (16,), "scenarios": (HOSTILE,), "repeats": 2})
    assert page.execute_script("return window.hacked") is None
    assert HOSTILE.split("<")[1] in page.execute_script("return document.body.textContent")


def test_the_verdict_comes_first_and_the_page_follows_the_systems_theme(driver: Any, tmp_path: Path) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    page = opened(driver, tmp_path, {"captures": (16, 32), "repeats": 3})
    first = page.execute_script("return document.querySelector('main section .answer-line').textContent")
    assert "shown" in first
    assert page.execute_script("return document.documentElement.dataset.theme") == "dark"
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 23, 26)"
    page.execute_script("document.getElementById('theme').click()")
    assert page.execute_script("return document.documentElement.dataset.theme") == "light"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_hundreds_of_rows_are_folded_and_no_toolbar_stands_in_the_way(driver: Any, tmp_path: Path) -> None:
    page = opened(driver, tmp_path, {"repeats": 3})
    page.set_window_size(1280, 1000)
    rows = "return [...document.querySelectorAll('#changes tbody tr')]"
    assert len(page.execute_script(rows)) > 200
    assert page.execute_script(f"{rows}.filter(r => r.checkVisibility()).length") == 36
    assert page.execute_script("return document.documentElement.scrollHeight") < 8000
    assert page.execute_script("return document.querySelectorAll('.modebar').length") == 0
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    WebDriverWait(page, 20).until(lambda d: d.execute_script("return document.documentElement.scrollWidth") <= 390)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
