"""The first thing on the page: which line to deploy, what to expect of it, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.limits import parse_point_limits
from qwenbench.analysis.recommend import Answer, recommend
from qwenbench.analysis.statistics import Estimate
from qwenbench.errors import UsageError
from qwenbench.report.markup import Html, Row, join, number, swatch, table, tag, term, text
from qwenbench.runfolder.run import Run

_TILES: Mapping[str, tuple[str, str, int, float]] = {
    "output_tokens_per_s": ("Output tokens/s", "output_tokens_per_s", 0, 1),
    "ttft_p50": ("TTFT p50, ms", "ttft_ms_p50", 0, 1),
    "ttft_p99": ("TTFT p99, ms", "ttft_ms_p99", 0, 1),
    "tpot_p50": ("TPOT p50, ms", "tpot_ms_p50", 1, 1),
    "requests_that_fit": ("Requests that fit", "requests_that_fit", 0, 1),
    "kv_cache_gib": ("KV cache, GiB", "kv_cache_gib", 2, 1),
    "vram_peak_mib": ("VRAM peak, GiB", "vram_peak_mib", 2, 1024),
    "startup_s": ("Start-up, s", "startup_s", 1, 1),
}
"""Key of Answer.expected -> label, column that defines it, digits, divisor."""
_OBJECTIVES = {
    "tokens": "the most output tokens per second",
    "latency": "the shortest requests",
    "context": "the longest context",
    "energy": "the least energy per token",
}


def question_of(run: Run, users: int | None = None, slo: str | None = None) -> Question:
    """What the page answers: the given users and limits, else the limits that the sweep was run with.

    Raises UsageError for a limit that is none.
    """
    if slo is not None:
        return Question(users=users, limits=parse_point_limits(slo))
    options = run.meta.get("options")
    limits = options.get("slo") if isinstance(options, Mapping) else None
    if not isinstance(limits, Mapping) or not limits:
        return Question(users=users)
    return Question(users=users, limits=parse_point_limits(",".join(f"{name}={limits[name]}" for name in limits)))


def answer_section(run: Run, question: Question) -> Html:
    """The answer as markup; says why where there is none."""
    try:
        answer = recommend(run, question)
    except UsageError as error:
        return tag("p", f"No recommendation: {error}", class_="quiet")
    if answer.config_id is None:
        return join((_nothing(answer), _excluded(answer)))
    other = tag(
        "p", "For other users or limits: ", tag("code", "qwenbench recommend RUN --users N --slo ..."), class_="quiet"
    )
    return join((_headline(answer), _lines(run, answer), _tiles(answer), _reasons(answer), _excluded(answer), other))


def _asked(question: Question) -> str:
    parts = [] if question.users is None else [f"{question.users:,} users"]
    parts += [str(limit) for limit in question.limits]
    parts += [] if question.context is None else [f"{question.context:,} tokens in one request"]
    return ", ".join(parts)


def _headline(answer: Answer) -> Html:
    asked = _asked(answer.question)
    users = "" if answer.users is None else f" at {answer.users:,} client streams"
    goal = _OBJECTIVES.get(answer.question.objective, answer.question.objective)
    sure = "" if answer.decided else tag("span", "not decided yet", class_="badge")
    return tag(
        "p", "Deploy ", tag("b", answer.config_id), f": {goal}{users}", f", for {asked}" if asked else "", ". ", sure,
        class_="answer-line",
    )  # fmt: skip


def _nothing(answer: Answer) -> Html:
    asked = _asked(answer.question)
    near = tag("p", tag("strong", "Closest: "), answer.nearest_miss) if answer.nearest_miss else Html("")
    what = f"No configuration of this run meets {asked}." if asked else "No configuration of this run can be deployed."
    return join((tag("p", what, class_="answer-line"), near))


def _lines(run: Run, answer: Answer) -> Html:
    lines = answer.lines
    shown = {"bash": lines.bash, "PowerShell": lines.powershell, "compose": lines.compose}
    known = {name: value for name, value in shown.items() if value}
    if not known:
        launch = run.launches.get(answer.config_id or "", {})
        argv = launch.get("shown_argv") or launch.get("argv") or ()
        known = {"launch line": " ".join(map(str, argv))} if argv else {}
    if not known:
        return tag("p", "The run does not tell how this server was started.", class_="quiet")
    tabs = [
        tag(
            "button",
            name,
            type="button",
            class_="plain",
            data_tab=f"line-{index}",
            aria_pressed=str(not index).lower(),
        )
        for index, name in enumerate(known)
    ]
    blocks = [
        tag(
            "div",
            tag("pre", value, id=f"text-{index}"),
            tag("button", "Copy", type="button", class_="plain", data_copy=f"text-{index}"),
            id=f"line-{index}",
            class_="command",
            hidden="" if index else None,
        )
        for index, (name, value) in enumerate(known.items())
    ]
    return join((tag("div", *tabs, class_="tabs") if len(tabs) > 1 else Html(""), *blocks))


def _tiles(answer: Answer) -> Html:
    tiles = []
    for key, (label, column, digits, scale) in _TILES.items():
        estimate = answer.expected.get(key)
        if estimate is None or estimate.value is None:
            continue
        value = tag("span", number(estimate.value / scale, digits), class_="value")
        tiles.append(tag("li", value, _range(estimate, digits, scale), tag("span", term(label, column), class_="what")))
    return tag("ul", *tiles, class_="tiles")


def _range(estimate: Estimate, digits: int, scale: float) -> Html:
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return Html("")
    low, high = number(estimate.low / scale, digits), number(estimate.high / scale, digits)
    return tag("span", low, " to ", high, class_="range", title="95 % interval")


def _reasons(answer: Answer) -> Html:
    items = [tag("li", tag("strong", "Risk: "), risk, class_="bad") for risk in answer.risks]
    second = answer.runner_up
    if second is not None:
        words = (tag("strong", "Runner-up: "), swatch(second.config_id), second.config_id, ". For it to win, ")
        items.append(tag("li", *words, second.to_win, "."))
    items += [tag("li", note) for note in answer.notes]
    room = _headroom(answer)
    items += [tag("li", tag("strong", "Headroom: "), room)] if room else []
    return join((tag("ul", *items, class_="reasons"), _would_decide(answer.would_decide)))


def _headroom(answer: Answer) -> str:
    parts = []
    for key, room in answer.headroom.items():
        if key in METRICS:
            parts.append(f"{room:.0%} under the limit on {key}" if room >= 0 else f"{-room:.0%} over {key}")
        else:
            parts.append(f"the KV cache holds {room:,.0f} requests more" if room >= 0 else "")
    return "; ".join(part for part in parts if part)


def _would_decide(points: Sequence[Mapping[str, object]]) -> Html:
    if not points:
        return Html("")
    names = list(dict.fromkeys(name for point in points for name in point))
    rows = [Row([_shown(point.get(name)) for name in names]) for point in points]
    inner = table([name.replace("_", " ") for name in names], rows, numbers_from=99)
    return tag("details", tag("summary", "Points that would decide it"), inner)


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _excluded(answer: Answer) -> Html:
    if not answer.excluded:
        return Html("")
    rows = [Row((join((swatch(name), text(name))), reason), config=name) for name, reason in answer.excluded.items()]
    inner = table(("Configuration", "Why it is out"), rows, numbers_from=99)
    summary = tag("summary", "Configurations left out ", tag("span", f"{len(rows)}", class_="count"))
    return tag("details", summary, inner, open="" if len(rows) <= 6 else None)
