"""report.html: one self-contained file. Nothing in it is fetched, and its policy forbids fetching."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

import orjson

from qwenbench import __version__
from qwenbench.analysis.candidates import Question
from qwenbench.analysis.columns import POINT_COLUMNS
from qwenbench.report import sections
from qwenbench.report.answer import answer_section, question_of
from qwenbench.report.collect import build_document
from qwenbench.report.document import Document
from qwenbench.report.markup import Html, fill, join, swatch, tag, text
from qwenbench.report.points import quick_to_filter
from qwenbench.report.prices import price_table
from qwenbench.runfolder.run import Run

_SCRIPTS = ("format.js", "style.js", "figures.js", "page.js")
"""In the order in which they build on each other; page.js starts it all."""


def build_report(run: Run, question: Question | None = None) -> str:
    """The whole page as text, with the run's figures as JSON and plotly.js in it.

    `question` is what its answer is for; the sweep's own limits when left out.
    """
    run = replace(run, points=quick_to_filter(run.points))
    document = build_document(run)
    script = "\n".join(asset(name) for name in _SCRIPTS)
    library = plotly_js()
    return fill(
        asset("page.html"),
        {
            "policy": content_policy(library, script),
            "title": text(f"{'SIMULATED · ' if run.simulated else ''}qwenbench {run.run_id}"),
            "style": asset("report.css"),
            "body_class": "simulated" if run.simulated else "measured",
            "masthead": _masthead(run, document),
            "filters": _filters(document),
            "answer": answer_section(run, question or question_of(run)),
            "configurations": sections.configurations(document),
            "points": sections.points(document),
            "price": price_table(document.prices),
            "bounds": sections.bounds(document),
            "failures": sections.failures(run),
            "conditions": sections.conditions(run),
            "definitions": sections.definitions(),
            "version": text(__version__),
            "data": embedded(document),
            "terms": embedded({column.name: _term(column) for column in POINT_COLUMNS}),
            "library": library,
            "script": script,
        },
    )


@cache
def asset(name: str) -> str:
    """A file of report/assets as text."""
    return resources.files("qwenbench.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """plotly.js as the plotly package ships it, fit to stand inside a script element."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script")


def content_policy(*scripts: str) -> str:
    """Only these scripts may run, and nothing may be fetched: markup that slipped through would be dead."""
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return orjson.dumps(value).decode().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _term(column: Any) -> str:
    return f"{column.definition} [{column.unit}]" if column.unit else str(column.definition)


def _masthead(run: Run, document: Document) -> Html:
    versions = run.meta.get("versions")
    vllm = versions.get("vllm") if isinstance(versions, dict) else None
    vllm = vllm or next((ledger["vllm_version"] for ledger in run.ledgers.values() if ledger.get("vllm_version")), None)
    facts = [
        *_models(run),
        document.card_name or "card not known",
        f"vLLM {vllm}" if vllm else "vLLM version not known",
        _count(len(document.configs), "configuration"),
        _count(len(document.workloads), "scenario"),
        _count(len(run.points), "point"),
    ]
    banner = (
        tag("p", tag("strong", "SIMULATED."), " No GPU was measured: every figure comes from a model.", class_="banner")
        if run.simulated
        else Html("")
    )
    return join((tag("h1", run.run_id), tag("p", join(facts, " · "), class_="facts"), banner))


def _models(run: Run) -> list[str]:
    """The models that were served, as their launches name them."""
    servers = (launch.get("server") for launch in run.launches.values())
    return list(dict.fromkeys(str(s["model"]) for s in servers if isinstance(s, dict) and s.get("model")))


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _filters(document: Document) -> Html:
    workloads = (_chip("workload", name, text(name)) for name in document.workloads)
    configs = (_chip("config", view.id, join((swatch(view.id), view.id))) for view in document.configs)
    return join(
        (
            tag("fieldset", tag("legend", "Scenario"), *workloads, class_="chips"),
            tag("fieldset", tag("legend", "Configuration"), *configs, class_="chips"),
        )
    )


def _chip(kind: str, value: str, label: Html) -> Html:
    box = Html(f'<input type="checkbox" checked data-filter="{kind}" value="{text(value)}">')
    return tag("label", box, tag("span", label), class_="chip")
