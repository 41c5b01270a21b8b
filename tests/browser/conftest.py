"""A headless Chromium without a network, and planted reports opened in it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from report_runs import Recipe, plant

from qwenbench.analysis.run import load_run
from qwenbench.report.page import build_report

webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium, or tests/browser/run.sh")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("no chromium with its driver: tests/browser/run.sh installs them", allow_module_level=True)

SCREENSHOTS = Path(__file__).resolve().parents[2] / ".cache" / "browser"


class Page:
    """A report in the browser."""

    def __init__(self, driver: Any, name: str) -> None:
        self.driver = driver
        self._name = name

    def js(self, script: str, *arguments: Any) -> Any:
        """The value of a function body that is run in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str, what: str) -> None:
        """Waits until a JavaScript expression holds."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: self.js(f"return {condition}"), what)

    def settle(self) -> None:
        """Waits until every figure is drawn."""
        self.wait("document.documentElement.dataset.ready === 'yes'", "the figures were not all drawn")

    def figures(self) -> dict[str, str]:
        """Figure -> yes (drawn), empty (nothing to draw) or missing."""
        return dict(
            self.js(
                "return [...document.querySelectorAll('figure.plot')].map(f => [f.id, f.dataset.drawn || 'missing'])"
            )
        )

    def traces(self, figure: str) -> list[str]:
        """Names of the figure's traces."""
        return list(self.js("return (document.getElementById(arguments[0]).data || []).map(t => t.name)", figure))

    def press(self, selector: str) -> None:
        """Clicks an element wherever it is on the page, and waits for the figures."""
        self.js("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def shoot(self, name: str) -> None:
        """Keeps a screenshot of the whole page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True}
        )
        import base64

        (SCREENSHOTS / f"{self._name}-{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def errors(self) -> list[str]:
        """What the console logged as an error or warning since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def asked_network(self) -> list[str]:
        """Addresses other than the page's own file that were asked for since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:", "about:")):
                    found.append(url)
        return found


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """One browser for all tests, with its network switched off."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1000")
    for switch in (*switches, "proxy-server=127.0.0.1:9", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield browser
    browser.quit()


@pytest.fixture
def report(driver: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Page]:
    """`report(captures=(16, 32), ...)`: a planted run's report, opened, with every figure drawn."""

    def open_page(*, width: int = 1280, mobile: bool = False, **recipe: Any) -> Page:
        number = len(list(tmp_path.iterdir()))
        folder = plant(tmp_path / f"run-{number}", Recipe(**recipe))
        file = tmp_path / f"report-{number}.html"
        file.write_text(build_report(load_run(folder)), encoding="utf-8")
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": mobile}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page = Page(driver, request.node.name.split("[")[0].removeprefix("test_"))
        page.errors(), page.asked_network()
        driver.get(file.as_uri())
        page.settle()
        return page

    return open_page
