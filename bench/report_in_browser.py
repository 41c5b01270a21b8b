"""How soon a report of 200 points can be used in a browser: headless Chromium, network off. Figures: docs/report.md.

    .venv/bin/python bench/report_in_browser.py        needs chromium, chromedriver and the developers' selenium

Opens the page five times and prints one JSON object with the medians: seconds from navigation to the page's scripts
having run (its filters answer) and to the last figure drawn. The run is planted, not measured.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from report_runs import Recipe, plant
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from qwenbench.analysis.run import load_run
from qwenbench.report.page import build_report

OPENINGS = 5
RECIPE = Recipe(captures=(8, 16, 32, 64, 128), concurrencies=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128))
DRAWN = "return document.documentElement.dataset.ready === 'yes' ? performance.now() : 0"
USABLE = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def browser() -> Any:
    """Headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{switch}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def main() -> None:
    """Plants, builds, opens, prints."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(build_report(load_run(plant(Path(folder) / "run", RECIPE))), encoding="utf-8")
        driver = browser()
        usable, drawn = [], []
        for _ in range(OPENINGS):
            driver.get(page.as_uri())
            found = WebDriverWait(driver, 60, poll_frequency=0.01).until(lambda now: now.execute_script(DRAWN))
            drawn.append(found / 1000)
            usable.append(driver.execute_script(USABLE) / 1000)
        driver.quit()
        megabytes = page.stat().st_size / 1e6
    figures = {"usable_s": statistics.median(usable), "drawn_s": statistics.median(drawn), "megabytes": megabytes}
    print(json.dumps({"points": 200, **{name: round(value, 2) for name, value in figures.items()}}))


if __name__ == "__main__":
    main()
