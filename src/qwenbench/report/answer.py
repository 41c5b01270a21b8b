"""The answer: which line to deploy, what to expect of it, how sure that is, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwenbench.analysis.candidates import OBJECTIVES, Question
from qwenbench.analysis.columns import METRICS, label
from qwenbench.analysis.deciding import MissingPoints
from qwenbench.analysis.limits import parse_point_limits
from qwenbench.analysis.recommend import Answer, recommend
from qwenbench.analysis.run import Run
from qwenbench.errors import UsageError
from qwenbench.report.document import (
    SIMULATED,
    Block,
    Bullets,
    Choice,
    Code,
    Config,
    Fold,
    Inline,
    Number,
    Paragraph,
    Row,
    Span,
    Table,
    Tiles,
    number,
    term,
)
from qwenbench.report.text_writers import plain
from qwenbench.runfolder.damage import mapping

_EXPECTED = (
    "output_tokens_per_s", "output_tokens_per_s_per_user", "ttft_p50", "ttft_p99", "tpot_p50", "itl_p99", "e2e_p50",
    "goodput_rps", "energy_j_per_output_token", "requests_that_fit", "kv_cache_gib", "vram_peak_mib", "startup_s",
)  # fmt: skip
"""Figures of an answer, in their order; --json has all."""
_TILES = frozenset(_EXPECTED) - {"itl_p99", "e2e_p50", "goodput_rps", "energy_j_per_output_token"}
"""Those that a page or a summary shows large."""
SHELLS = {"bash": "sh", "powershell": "powershell", "compose": "yaml"}
"""How a deployment can be written -> the language of that block."""
_SHELL_LABELS = {"bash": "bash", "powershell": "PowerShell", "compose": "compose"}


def question_of(run: Run, users: int | None = None, slo: str | None = None) -> Question:
    """What a page answers: the given users and limits, else what a search sought, or the limits of the sweep.

    Raises UsageError for a limit that is none.
    """
    if slo is not None:
        return Question(users=users, limits=parse_point_limits(slo))
    sought = run.part("tune")
    limits = mapping(sought.get("limits") if sought else run.part("options").get("slo"))
    given = ",".join(f"{name}={limits[name]}" for name in limits)
    return Question(users=users or sought.get("users"), limits=parse_point_limits(given) if given else ())


def answered(run: Run, question: Question) -> Answer | str:
    try:
        return recommend(run, question)
    except UsageError as error:
        return str(error)


def page_answer(run: Run, answer: Answer | str) -> Iterator[Block]:
    if isinstance(answer, str):
        yield Paragraph(f"No recommendation: {answer}", "quiet")
        return
    yield from _headline(answer)
    if answer.config_id is not None:
        yield from _settings(run.launches.get(answer.config_id, {}))
        yield from _lines(answer, run.launches.get(answer.config_id, {}))
        yield _tiles(answer)
        yield from _reasons(answer)
    yield from _excluded(answer)
    asking: Inline = ("For other users or limits: ", Span("qwenbench recommend RUN --users N --slo ...", "code"))
    yield Paragraph(asking, "quiet")


def printed_answer(answer: Answer, shell: str = "bash") -> Iterator[Block]:
    """What `qwenbench recommend` prints, the line to deploy in this shell."""
    if answer.simulated:
        yield Paragraph(SIMULATED, "warning")
    yield from _headline(answer)
    if answer.config_id is not None:
        yield from _lines(answer, {}, shell)
        rows = [Row((label(key), value)) for key, value in _figures(answer, _EXPECTED)]
        yield Table((), rows, caption="Expected (95 % interval where there is one)", numbers_to=2)
        yield from _reasons(answer)
    yield from _excluded(answer)


_REASONS_SHOWN = 4


def closing_answer(answer: Answer) -> Iterator[Block]:
    """What a sweep ends with: what to deploy, what to expect, what is still open, and the docker line."""
    yield from _headline(answer)
    if answer.config_id is None:
        why = list(answer.excluded.items())
        more = [f"and {len(why) - _REASONS_SHOWN} more: qwenbench recommend"] if len(why) > _REASONS_SHOWN else []
        yield Bullets([*(f"{name}: {reason}" for name, reason in why[:_REASONS_SHOWN]), *more])
        return
    words = {"output_tokens_per_s": "", "ttft_p50": "TTFT p50 ", "tpot_p50": "TPOT p50 ", "kv_cache_gib": "KV cache "}
    figures = [words[key] + plain(value) for key, value in _figures(answer, tuple(words))]
    yield Paragraph(f"Expect {', '.join(figures)}.")
    if answer.command:
        doubt = f"Open: {answer.doubts[0]}. " if answer.doubts else ""
        yield Paragraph(f"{doubt}To decide it:")
        yield Code(answer.command, "sh", "to decide")
    elif answer.risks:
        yield Paragraph((Span("Risk: ", "bad"), answer.risks[0]))
    else:
        yield Paragraph("Decided by what was measured." if answer.decided else "Not decided yet.")
    if answer.lines.bash:
        yield Code(answer.lines.bash, "sh", "bash")


def short_answer(answer: Answer | str) -> Iterator[Block]:
    """Headline and line to deploy, for the description of a pull request."""
    if isinstance(answer, str):
        return
    yield from _headline(answer)
    if answer.config_id is not None:
        yield from _lines(answer, {})
        yield Bullets([*(("Risk: ", risk, ".") for risk in answer.risks)]) if answer.risks else _tiles(answer)


def _asked(question: Question) -> str:
    parts = [] if question.users is None else [f"{question.users:,} users"]
    parts += [str(limit) for limit in question.limits]
    parts += [] if question.context is None else [f"{question.context:,} tokens in one request"]
    return ", ".join(parts)


def _headline(answer: Answer) -> Iterator[Block]:
    asked = _asked(answer.question)
    if answer.config_id is None:
        if not answer.nearest_miss:
            what = "No configuration of this run has a valid point" + (f" to answer {asked} by." if asked else ".")
        else:
            what = f"No configuration of this run meets {asked}."
        yield Paragraph(Span(what), "answer")
        if answer.nearest_miss:
            yield Paragraph((Span("Closest: "), answer.nearest_miss))
        return
    users = "" if answer.users is None else f" at {answer.users:,} client streams"
    goal = OBJECTIVES[answer.question.objective].words
    sure: Inline = "" if answer.decided else (" ", Span("not decided yet", "badge"))
    words = (Span(("Deploy ", answer.config_id)), f": {goal}{users}", f", for {asked}" if asked else "", ".", sure)
    yield Paragraph(words, "answer")


_ANSWER_FLAGS = ("max-cudagraph-capture-size", "max-num-seqs", "gpu-memory-utilization")


def asked_flags(launch: Mapping[str, Any]) -> Mapping[str, Any]:
    """What launch.json holds of the flags that were asked for."""
    return mapping(launch.get("requested") or mapping(launch.get("server")).get("flags"))


def _settings(launch: Mapping[str, Any]) -> Iterator[Block]:
    """The flags that are the answer, before the long line that holds them."""
    flags = asked_flags(launch)
    shown = [f"--{name} {flags[name]}" for name in _ANSWER_FLAGS if flags.get(name)]
    if shown:
        words: list[Inline] = [part for flag in shown for part in (Span(flag, "code"), " ")]
        yield Paragraph(words, "settings")


def _lines(answer: Answer, launch: Mapping[str, Any], first: str = "bash") -> Iterator[Block]:
    written = {"bash": answer.lines.bash, "powershell": answer.lines.powershell, "compose": answer.lines.compose}
    names = [first, *(name for name in written if name != first)]
    blocks = [Code(words, SHELLS[name], _SHELL_LABELS[name]) for name in names if (words := written[name])]
    if blocks:
        yield Choice(blocks)
        return
    argv = launch.get("shown_argv") or launch.get("argv") or ()
    if argv:
        yield Code(" ".join(map(str, argv)), "sh", "launch line")
    else:
        yield Paragraph("The run does not tell how this server was started.", "quiet")


def _figures(answer: Answer, keys: Sequence[str]) -> Iterator[tuple[str, Number]]:
    for key in keys:
        estimate = answer.expected.get(key)
        if estimate is not None and estimate.value is not None:
            yield key, number(key, estimate.value, estimate.low, estimate.high)


def _tiles(answer: Answer) -> Tiles:
    keys = [key for key in _EXPECTED if key in _TILES]
    return Tiles([(term(key, label(key)), value) for key, value in _figures(answer, keys)])


def _reasons(answer: Answer) -> Iterator[Block]:
    items: list[Inline] = [(Span("Risk: ", "bad"), risk) for risk in answer.risks]
    if answer.runner_up is not None:
        second = answer.runner_up
        items.append((Span("Runner-up: "), Config(second.config_id), f". For it to win, {second.to_win}."))
    items += answer.notes
    room = _headroom(answer)
    items += [(Span("Headroom: "), room)] if room else []
    if items:
        yield Bullets(items)
    if answer.would_decide:
        names = MissingPoints.__slots__
        rows = [Row([_shown(getattr(point, name)) for name in names]) for point in answer.would_decide]
        head = [name.replace("_", " ") for name in names]
        if answer.command:
            yield Paragraph("What would decide it:")
            yield Code(answer.command, "sh", "to decide")
        yield Fold("Points that would decide it (repeats and launches in all)", [Table(head, rows, numbers_from=99)])


def _shown(value: object) -> Inline:
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _headroom(answer: Answer) -> str:
    parts = []
    for key, room in answer.headroom.items():
        if key in METRICS:
            parts.append(f"{label(key)} is {abs(room):.0%} {'under' if room >= 0 else 'over'} its limit")
        elif room >= 0:
            parts.append(f"the KV cache holds {room:,.0f} requests more")
    return "; ".join(parts)


def _excluded(answer: Answer) -> Iterator[Block]:
    if answer.excluded:
        rows = [Row((Config(name), reason), config=name) for name, reason in answer.excluded.items()]
        inner = Table(("Configuration", "Why it is out"), rows, numbers_from=99)
        yield Fold("Configurations left out", [inner], count=len(rows), open=len(rows) <= 6)
