"""The report in a real browser with its network off: it is drawn, it filters, it stays silent and it stays safe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, Recipe, plant

from qwenbench.analysis.run import load_run
from qwenbench.report.answer import answered, question_of
from qwenbench.report.export import FIGURES as FIGURES_EXPORTED
from qwenbench.report.export import figure_images
from qwenbench.report.summary import card_facts, card_svg

Open = Callable[..., Any]

FIGURES = {
    "f-throughput", "f-latency", "f-pareto", "f-memory", "f-prediction", "f-price", "f-timeline",
}  # fmt: skip


def test_every_figure_is_drawn_without_a_word_or_a_request(report: Open) -> None:
    page = report()
    assert page.figures() == dict.fromkeys(FIGURES, "yes")
    assert all(page.js("return document.querySelectorAll('#' + arguments[0] + ' svg').length", f) for f in FIGURES)
    page.shoot("light")
    assert page.errors() == []
    assert page.asked_network() == []


def test_axes_carry_their_units(report: Open) -> None:
    page = report()
    titles = page.js("return [...document.querySelectorAll('.infolayer text')].map(e => e.textContent)")
    for unit in ("GiB", "tok/s", ", ms", "Client streams", "Seconds"):
        assert any(unit in title for title in titles), unit


def test_simulated_is_written_across_every_figure(report: Open) -> None:
    page = report()
    for figure in FIGURES:
        texts = page.js("return document.getElementById(arguments[0]).layout.annotations.map(a => a.text)", figure)
        assert "<b>SIMULATED</b>" in texts, figure
    measured = report(simulated=False)
    assert "SIMULATED" not in measured.js("return document.body.innerText")


def test_filters_drive_every_figure_and_table(report: Open) -> None:
    page = report()
    page.press('input[data-filter="config"][value="cap32-seq32"]')
    for figure in FIGURES - {"f-memory", "f-prediction", "f-timeline"}:
        assert not any(name and name.startswith("cap32") for name in page.traces(figure)), figure
    for figure in ("f-memory", "f-prediction"):
        assert "cap32-seq32" not in page.js("return document.getElementById(arguments[0]).data[0].y", figure)
    shown = page.js("return [...document.querySelectorAll('#tradeoff tbody tr')].filter(r => r.offsetParent).length")
    assert shown == 2
    page.press('input[data-filter="workload"][value="math"]')
    panels = page.js(
        "return Object.keys(document.getElementById('f-throughput').layout).filter(k => /^xaxis/.test(k)).length"
    )
    assert panels == 3
    points = page.js("return [...document.getElementById('pick').options].map(o => o.text)")
    assert points and not any("math" in text or "cap32" in text for text in points)
    page.press("#reset")
    assert page.figures() == dict.fromkeys(FIGURES, "yes")
    assert page.errors() == []


def test_nothing_selected_leaves_words_instead_of_broken_figures(report: Open) -> None:
    page = report(captures=(16,), scenarios=("math",))
    page.press('input[data-filter="workload"]')
    assert page.figures()["f-throughput"] == "empty"
    page.press('input[data-filter="workload"]')
    assert page.figures()["f-throughput"] == "yes"
    assert page.errors() == []


def test_the_metric_menus_and_the_time_line_redraw(report: Open) -> None:
    page = report()
    change = (
        "const e = document.querySelector(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))"
    )
    page.js(change, "#m-latency", "tpot_p90")
    page.settle()
    assert page.js("return document.getElementById('f-latency').layout.yaxis.title.text") == "TPOT p90, ms"
    before = page.js("return document.getElementById('f-timeline').data[0].y")
    page.js(change, "#pick", "0")
    page.settle()
    assert page.js("return document.getElementById('f-timeline').data[0].y") != before


def test_repeats_have_error_bars_and_invalid_points_are_hollow(report: Open) -> None:
    page = report(repeats=3, invalid_concurrency=8)
    trace = page.js(
        "const t = document.getElementById('f-throughput').data[0]; return [t.error_y.array, t.marker.symbol]"
    )
    assert max(trace[0]) > 0
    assert trace[1][1].endswith("-open") and not trace[1][0].endswith("-open")


def test_dark_and_narrow_and_paper(report: Open) -> None:
    page = report(width=400, mobile=True)
    page.press("#theme")
    assert page.js("return document.documentElement.dataset.theme") == "dark"
    assert page.js("return document.documentElement.scrollWidth") <= 400
    page.shoot("dark-narrow")
    page.js("window.dispatchEvent(new Event('beforeprint'))")
    assert page.js("return document.getElementById('f-pareto').layout.width") == 680
    assert page.js("return document.documentElement.dataset.theme") == "light"
    page.js("window.dispatchEvent(new Event('afterprint'))")
    page.settle()
    assert page.js("return document.documentElement.dataset.theme") == "dark"
    page.press("#theme")
    assert page.errors() == []


def test_definitions_show_on_focus_and_go_with_escape(report: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    page = report(captures=(16,), scenarios=("math",))
    page.js("document.querySelector('.term').focus()")
    assert not page.js("return document.getElementById('tip').hidden")
    assert len(page.js("return document.getElementById('tip').textContent")) > 20
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert page.js("return document.getElementById('tip').hidden")


def test_filters_answer_to_the_keyboard(report: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    page = report(captures=(16, 32), scenarios=("math",))
    page.js("document.querySelector('input[data-filter=config]').focus()")
    page.driver.switch_to.active_element.send_keys(Keys.SPACE)
    page.settle()
    assert page.traces("f-throughput") == ["cap32-seq32"]


def test_the_line_to_deploy_comes_first_and_can_be_copied(report: Open) -> None:
    page = report()
    assert page.js("return document.querySelector('main section').id") == "answer"
    assert page.js("return document.getElementById('text-0').textContent").startswith("docker run")
    page.js("document.querySelector('[data-copy]').click()")
    page.wait("document.querySelector('[data-copy]').textContent === 'Copied'", "the copy button said nothing")
    page.js("document.querySelectorAll('[data-tab]')[1].click()")
    assert page.js("return document.getElementById('line-0').hidden") is True


def test_the_answer_is_seen_whole_on_a_telephone(report: Open) -> None:
    page = report(width=390, mobile=True)
    settings = page.js("return [...document.querySelectorAll('.settings code')].map(e => e.textContent)")
    assert "--max-cudagraph-capture-size 64" in settings and "--max-num-seqs 64" in settings
    right = page.js(
        "return Math.max(...[...document.querySelectorAll('.settings code')].map(e => e.getBoundingClientRect().right))"
    )
    assert right <= 390
    # nothing of the docker line is cut off: neither to the right nor below
    hidden = "const p = document.getElementById('text-0'); return [p.scrollWidth - p.clientWidth, "
    assert page.js(f"{hidden} p.scrollHeight - p.clientHeight]") == [0, 0]
    page.shoot("390")


def test_the_filters_take_one_line_once_the_page_is_scrolled(report: Open) -> None:
    page = report(captures=tuple(range(8, 136, 8)), width=768)
    before = page.js("return document.getElementById('filters').offsetHeight")
    page.js("window.scrollTo(0, 2500)")
    page.wait("document.getElementById('filters').classList.contains('stuck')", "the filters stayed large")
    assert page.js("return document.getElementById('filters').offsetHeight") <= 48 < before


def test_the_trade_off_is_there_before_any_script_and_its_rows_are_filtered(report: Open) -> None:
    page = report()
    lanes = "document.querySelectorAll('#tradeoff .wide g[data-config]')"
    assert page.js(f"return {lanes}.length") == 3
    page.press('input[data-filter="config"][value="cap32-seq32"]')
    assert page.js(f"return [...{lanes}].filter(g => getComputedStyle(g).display !== 'none').length") == 2
    assert page.js("return document.querySelector('#tradeoff .narrow').checkVisibility()") is False


@pytest.mark.parametrize("failed", [(), (16, 32, 64)], ids=["points", "failures only"])
def test_hostile_names_and_logs_are_text(report: Open, failed: tuple[int, ...]) -> None:
    page = report(
        scenarios=(HOSTILE,), run_id=HOSTILE, failed=failed, failure_text=HOSTILE * 20, meta={HOSTILE: HOSTILE}
    )
    assert page.js("return window.hacked") is None
    assert page.js("return document.querySelectorAll('img').length") == 0
    page.shoot("failures" if failed else "points")
    assert page.errors() == []
    assert page.asked_network() == []
    assert HOSTILE.split("<img")[0] in page.js("return document.body.textContent")


def test_failures_only(report: Open) -> None:
    page = report(failed=(16, 32, 64))
    assert page.js("return document.querySelectorAll('#failures .failure').length") == 3
    assert set(page.figures().values()) == {"empty"}
    page.shoot("whole")
    assert page.errors() == []


def test_a_thousand_points(report: Open) -> None:
    page = report(
        captures=(8, 16, 24, 32, 48, 64, 96, 128, 192, 256),
        utilizations=(0.9, 0.95),
        concurrencies=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128),
        scenarios=("conversation", "math", "code", "multilingual", "synthetic"),
        sampled_cells=200,
    )
    assert page.js("return JSON.parse(document.getElementById('data').textContent).points.length") == 1000
    assert set(page.figures().values()) == {"yes"}
    page.shoot("whole")
    assert page.errors() == []


@pytest.mark.parametrize("format", ["png", "svg"])
def test_figures_are_exported_as_images_that_say_simulated(tmp_path: Path, format: str) -> None:
    run = load_run(plant(tmp_path / "run", Recipe()))
    images, missing = figure_images(run, format)  # type: ignore[arg-type] # one of the two
    assert missing is None and set(images) == {"tradeoff", *(str(figure["name"]) for figure in FIGURES_EXPORTED)}
    for name, image in images.items():
        if format == "png":
            assert image.startswith(b"\x89PNG\r\n"), name
        else:
            assert image.startswith(b"<svg") and b"SIMULATED" in image, name


def test_nothing_on_the_card_is_cut_off_or_lies_on_another_text(driver: Any, tmp_path: Path) -> None:
    for number, recipe in enumerate((Recipe(repeats=3), Recipe(simulated=False, run_id="a-long-name-" * 6))):
        run = load_run(plant(tmp_path / f"run-{number}", recipe))
        file = tmp_path / f"card-{number}.svg"
        answer = answered(run, question_of(run, 64))
        assert not isinstance(answer, str)
        file.write_text(card_svg(card_facts(run, answer)), encoding="utf-8")
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1200, "height": 630, "deviceScaleFactor": 1, "mobile": False},
        )
        driver.get(file.as_uri())
        boxes = driver.execute_script(
            "return [...document.querySelectorAll('text')].map(t => { const b = t.getBBox(); "
            "return [t.textContent, b.x, b.y, b.x + b.width, b.y + b.height]; })"
        )
        assert len(boxes) > 12
        for index, (word, left, top, right, bottom) in enumerate(boxes):
            assert left >= 0 and top >= 0 and right <= 1200 and bottom <= 630, word
            for other, x1, y1, x2, y2 in boxes[index + 1 :]:
                # lines of one paragraph may touch by the room above their letters
                across = left < x2 and x1 < right and top + 6 < y2 and y1 + 6 < bottom
                assert not across, (word, other)
