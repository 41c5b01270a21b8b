"""report.html and the page of a comparison: self-contained files that fetch nothing, and whose policy forbids it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

import orjson

from qwenbench import __version__
from qwenbench.analysis.candidates import Question
from qwenbench.analysis.columns import METRICS, POINT_COLUMNS, Column
from qwenbench.analysis.compare import Comparison
from qwenbench.analysis.recommend import Answer
from qwenbench.analysis.releases import Releases
from qwenbench.analysis.run import Run, level_of
from qwenbench.report import sections
from qwenbench.report.answer import answered, page_answer, question_of
from qwenbench.report.comparison import comparison_head, comparison_page
from qwenbench.report.course import course, search_path
from qwenbench.report.document import Block, Paragraph, counted, titled
from qwenbench.report.html_writer import Html, HtmlWriter, fill, join, swatch, tag, text
from qwenbench.report.page_data import PageData, page_data
from qwenbench.report.points import quick_to_filter, short_estimate
from qwenbench.report.releases import releases_head, releases_rows
from qwenbench.report.svg import css_variables
from qwenbench.report.time_use import endurance, prompt_price, time_use
from qwenbench.report.tradeoff import tradeoff_of
from qwenbench.report.tradeoff_drawing import picture


def build_report(run: Run, question: Question | None = None) -> str:
    """The whole page as text, with the run's figures as JSON and plotly.js in it.

    `question` is what its answer is for; the sweep's own limits when left out.
    """
    run = replace(run, points=quick_to_filter(run.points))
    data = page_data(run)
    write = HtmlWriter().write
    answer = answered(run, question or question_of(run))
    chosen = answer.config_id if isinstance(answer, Answer) else None
    found = tradeoff_of(data, answer)
    return self_contained(
        "page.html",
        ("format.js", "style.js", "theme.js", "figures.js", "page.js"),
        {
            "title": text(f"{'SIMULATED · ' if run.simulated else ''}{data.subject.title} · qwenbench"),
            "body_class": "simulated" if run.simulated else "measured",
            "masthead": _masthead(data, len(run.points)),
            "filters": join(_fieldsets(data)),
            "answer": write(page_answer(run, answer)),
            "tradeoff": write(
                [picture(found) if found else Paragraph("No valid point: there is nothing to draw.", "quiet")]
            ),
            "configurations": write(sections.configurations(data)),
            "points": write(sections.points(data)),
            "time": join((write(time_use(run, data, chosen)), write(prompt_price(run, data, chosen)))),
            "endurance": write(endurance(run)),
            "course": write([*search_path(run), *course(run, data)]),
            "speed": join((write(sections.speed_settings(data)), write(sections.profile_price_table(run)))),
            "price": write(sections.prices(data)),
            "bounds": write(sections.bounds(data)),
            "failures": write(sections.failures(run)),
            "conditions": write(sections.conditions(run)),
            "definitions": write(sections.definitions()),
            "data": embedded(data),
            "terms": embedded({column.name: _definition(column) for column in POINT_COLUMNS}),
        },
    )


def build_releases_page(releases: Releases) -> str:
    """A campaign over engine versions as a page of its own. Raises ValueError where nothing could be compared."""
    if releases.comparison is None:
        raise ValueError("fewer than two releases could be measured")
    names = " → ".join(release.name for release in releases.compared)
    return _comparison_page(releases.comparison, names, releases_head(releases), releases_rows(releases))


def build_comparison_page(comparison: Comparison) -> str:
    """A comparison as a page of its own: the verdict, the curves of all runs, and the changes."""
    title = " against ".join(comparison.runs)
    return _comparison_page(comparison, title, comparison_head(comparison), comparison_page(comparison))


def _comparison_page(comparison: Comparison, title: str, head: Iterable[Block], rows: Iterable[Block]) -> str:
    write = HtmlWriter().write
    return self_contained(
        "comparison.html",
        ("format.js", "style.js", "theme.js", "comparison.js"),
        {
            "title": text(f"{'SIMULATED · ' if comparison.simulated else ''}{title}"),
            "heading": text(title),
            "head": write(head),
            "rows": write(rows),
            "data": embedded(_curves(comparison)),
        },
    )


def _curves(comparison: Comparison) -> Mapping[str, Any]:
    points = []
    for run, table in zip(comparison.runs, comparison.tables, strict=True):
        for index, point in enumerate(table.load_points):
            known = {key: e for key, e in table.estimates(index).items() if e.value is not None}
            points.append(
                {
                    "run": run,
                    "config": str(point["config_id"]),
                    "workload": f"{point['scenario']} ({point['profile']})",
                    "level": level_of(point),
                    "figures": {key: short_estimate(e.value or 0.0, e.low, e.high) for key, e in known.items()},
                }
            )
    titles = {key: titled(key) for key in METRICS}
    return {"simulated": comparison.simulated, "runs": list(comparison.runs), "metrics": titles, "points": points}


def self_contained(template: str, scripts: Sequence[str], slots: Mapping[str, str]) -> str:
    """A template with these scripts (each builds on those before it, the last one starts it all), styles and plotly.js
    in it, and a policy by which only they run and nothing is fetched: markup that slipped through would be dead."""
    library, script = plotly_js(), "\n".join(asset(name) for name in scripts)
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in (library, script)
    )
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
    style = css_variables() + asset("report.css")
    common = {"policy": policy, "style": style, "library": library, "script": script, "version": text(__version__)}
    return fill(asset(template), {**common, **slots})


@cache
def asset(name: str) -> str:
    return resources.files("qwenbench.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """plotly.js as the plotly package ships it, fit to stand inside a script element."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")


def embedded(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return orjson.dumps(value).decode().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _definition(column: Column) -> str:
    return f"{column.definition} [{column.unit}]" if column.unit else column.definition


def _masthead(data: PageData, points: int) -> Html:
    subject = data.subject
    facts = [
        f"run {subject.run_id}",
        subject.started and subject.started[:16].replace("T", " "),
        subject.driver and f"driver {subject.driver}",
        counted(len(data.configs), "configuration"),
        counted(len(data.workloads), "scenario"),
        counted(points, "point"),
    ]
    words = f" No GPU was measured: every figure comes from a model. {subject.interval or ''}".rstrip()
    banner = tag("p", tag("strong", "SIMULATED."), words, class_="banner") if subject.simulated else Html("")
    return join((tag("h1", subject.title), tag("p", join(filter(None, facts), " · "), class_="facts"), banner))


def _fieldsets(data: PageData) -> Iterator[Html]:
    workloads = (_chip("workload", name, text(name)) for name in data.workloads)
    configs = (_chip("config", view.id, join((swatch(view.id), view.id))) for view in data.configs)
    yield tag("fieldset", tag("legend", "Scenario"), *workloads, class_="chips")
    yield tag("fieldset", tag("legend", "Configuration"), *configs, class_="chips")


def _chip(kind: str, value: str, words: Html) -> Html:
    box = Html(f'<input type="checkbox" checked data-filter="{kind}" value="{text(value)}">')
    return tag("label", box, tag("span", words), class_="chip")
