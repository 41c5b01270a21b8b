"""Where the time goes: stalls, the server's own clock, the GPU's part, throttling, what a drafter gained, prompts by
length; and what was asked beside the load points: long prompts, a soak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qwenbench.analysis.bounds import ADVICE
from qwenbench.analysis.price import break_evens, pays_up_to
from qwenbench.analysis.run import Run, columns_of, files_of, grouped, level_of, mean_of, records, valid_rows
from qwenbench.report.document import Block, Bullets, Config, Fold, Inline, Number, Paragraph, Row, Span, Table, counted
from qwenbench.report.page_data import PageData
from qwenbench.report.points import workload_names
from qwenbench.report.svg import Drawing, picture, shortened, text_width
from qwenbench.runfolder.damage import mapping

_CLOCKS = {
    "itl_ms_p50": ("ITL p50, ms", 1),
    "itl_stall_share": ("stalls, % of the time between tokens", 0),
    "itl_stall_ms_p50": ("median stall, ms", 0),
    "server_tokens_per_step": ("tokens a step", 1),
    "server_prefill_step_share": ("steps with a prompt, % at least", 0),
    "server_queue_ms_mean": ("queue, ms", 0),
    "server_prefill_ms_mean": ("queue to first token, ms", 0),
    "gpu_util_mean": ("GPU busy, %", 0),
}
"""Column -> its head and decimal places; shares as percent."""
_NOTABLE = 0.05
"""Share of samples from which on clocks that are held back are told."""
MOST_ROWS = 24
"""Rows of the figure."""


@dataclass(frozen=True, slots=True)
class Use:
    """One load of one configuration, mean over scenarios, repeats and launches. None: not known."""

    config: str
    load: str
    level: float
    stalls: float | None
    """Share of the time between tokens, 0 to 1."""
    stall_ms: float | None
    gpu: float | None
    """Share of the window in which any kernel ran, 0 to 1."""


def uses_of(run: Run) -> list[Use]:
    """Every load of every configuration, in their order; empty where nothing of it is known."""
    rows = records(valid_rows(run.points))
    if all(row["itl_stall_share"] is None for row in rows):
        return []
    rates = all(row["concurrency"] is None for row in rows)
    found = []
    for (config, level), own in grouped(rows, columns_of("config_id", "rate" if rates else "concurrency")).items():
        if level is not None:
            load = f"{level:g}/s" if rates else counted(level, "stream")
            stalls, stall_ms = mean_of(own, "itl_stall_share"), mean_of(own, "itl_stall_ms_p50")
            gpu = mean_of(own, "gpu_util_mean")
            found.append(Use(str(config), load, float(level), stalls, stall_ms, None if gpu is None else gpu / 100))
    order = {config: index for index, config in enumerate(dict.fromkeys(use.config for use in found))}
    return sorted(found, key=lambda use: (order[use.config], use.level))


def time_use(run: Run, data: PageData, chosen: str | None) -> Iterator[Block]:
    """Sentence, figure and table for the page; `chosen` is the recommended configuration."""
    uses = [use for use in uses_of(run) if use.stalls is not None]
    if uses:
        yield Paragraph(sentence(uses, chosen))
        shown = [use for use in uses if use.config == chosen] if chosen else []
        shown = shown or uses
        drawn = (uses if len(uses) <= MOST_ROWS else shown)[:MOST_ROWS]
        yield picture("Where the time between tokens goes", partial(_draw, drawn, data), simulated=data.simulated)
        if "prefill" in set(run.points["bound"].dropna()):
            yield Paragraph((Span("What was measured to help: "), ADVICE["prefill"], "."), "quiet")
        rows = list(_rows(run))
        table = Table(
            ("Configuration", "Scenario", "Load", *(head for head, _ in _CLOCKS.values())), rows, numbers_from=3
        )
        yield Fold("Client's and server's clocks, point by point", (table,), count=len(rows))
    else:
        yield Paragraph("Stalls were not measured in this run.", "quiet")
    yield from _drafting(run)
    yield from _throttling(run)


def sentence(uses: Sequence[Use], chosen: str | None) -> str:
    """The figure in words: of the recommended configuration at its highest load."""
    own = [use for use in uses if use.config == chosen] or uses
    use = max(own, key=lambda use: use.level)
    assert use.stalls is not None
    stall = "" if use.stall_ms is None else f" (a stall takes {use.stall_ms:,.0f} ms at the median)"
    words = f"Under {use.load}, {use.config} spent {use.stalls:.0%} of the time between tokens in stalls{stall}: "
    words += "steps that carry other requests' prompts, or wait for the host."
    if use.gpu is not None:
        words += f" The GPU was idle {1 - use.gpu:.0%} of that time."
    return words


def _rows(run: Run) -> Iterator[Row]:
    points = valid_rows(run.points)
    rows = records(points.assign(_workload=workload_names(points)))
    for (config, workload, level), own in grouped(
        rows, lambda row: (str(row["config_id"]), str(row["_workload"]), level_of(row))
    ).items():
        cells = [_cell(own, column, digits) for column, (_, digits) in _CLOCKS.items()]
        if level is not None and any(cell.value is not None for cell in cells[1:]):
            yield Row((Config(config), workload, f"{level:g}", *cells), config, workload)


def _cell(rows: Sequence[Mapping[str, Any]], column: str, digits: int) -> Number:
    value = mean_of(rows, column)
    return Number(100 * value if value is not None and column.endswith("_share") else value, digits=digits)


def _drafting(run: Run) -> Iterator[Block]:
    """What a drafter gained, and where the run tells it, what it had to gain."""
    drafted = [
        row for row in records(run.points) if row["acceptance_length"] is not None and row["concurrency"] is not None
    ]
    if not drafted:
        return
    even = {(found.config_id, found.level): found for found in break_evens(run)}
    table = []
    for (config, load), own in grouped(drafted, columns_of("config_id", "concurrency")).items():
        found = even.get((config, load))
        share = mean_of(own, "acceptance_rate")
        cells: list[Inline] = [
            Config(config),
            f"{load:g}",
            Number(None if share is None else 100 * share, digits=0),
            Number(mean_of(own, "acceptance_length"), digits=2),
        ]
        if even:
            cells += [
                Number(found.needed if found else None, digits=2),
                Number(found.step_ms if found else None, digits=1),
                Number(found.step_without_ms if found else None, digits=1),
                None if found is None else found.pays,
            ]
        table.append(Row(cells, config=config))
    head = ["Configuration", "Load", "accepted, % of the drafted", "tokens gained a step"]
    head += ["needed to pay", "a step, ms", "without, ms", "pays"] if even else []
    yield Table(head, table, caption="Drafter", numbers_to=7)
    for config, own_levels in grouped(even.values(), lambda each: each.config_id).items():
        most = pays_up_to(own_levels)
        if most is not None:
            words = f"pays up to {counted(most, 'stream')}" if most else "pays at no measured load"
            yield Paragraph((Config(config), f": the drafter {words}."))


def _throttling(run: Run) -> Iterator[Block]:
    held = [row for row in records(run.points) if (row["throttled_share"] or 0.0) > _NOTABLE]
    items: list[Inline] = []
    for config, rows in grouped(held, lambda row: str(row["config_id"])).items():
        reasons = "; ".join(dict.fromkeys(str(row["throttle_reasons"]) for row in rows if row["throttle_reasons"]))
        share = max(row["throttled_share"] for row in rows)
        items.append((Config(config), f": clocks held back in up to {share:.0%} of a point's samples ({reasons})"))
    if items:
        yield Bullets(items)


def _draw(uses: Sequence[Use], data: PageData, drawing: Drawing) -> None:
    """A bar a load: the share of stalls, and the share of the time in which the GPU was busy as a tick."""
    width, narrow = drawing.width, drawing.width < 500
    names = 0.0 if narrow else min(220.0, max(text_width(use.config, 13, bold=True) for use in uses) + 16)
    left = names + 92
    right = width - 52
    y = 26.0
    for before, use in zip([None, *uses[:-1]], uses, strict=True):
        drawing.group(config=use.config)
        if before is None or before.config != use.config:
            y += 6 if before is not None else 0
            drawing.text(
                0, y + 12, shortened(use.config, width if narrow else names - 8, 13, bold=True), size=13, bold=True
            )
            y += 20 if narrow else 0
        drawing.text(left - 8, y + 12, use.load, colour="soft", size=12, anchor="end")
        drawing.rect(left, y + 2, right - left, 13, colour="wash")
        stalls = use.stalls or 0.0
        drawing.rect(left, y + 2, (right - left) * stalls, 13, colour=data.colour(use.config), opacity=0.85)
        if use.gpu is not None:
            at = left + (right - left) * min(1.0, use.gpu)
            drawing.line(at, y - 1, at, y + 18, colour="ink", width=2)
        drawing.text(right + 8, y + 13, f"{stalls:.0%}", size=12.5, bold=True)
        drawing.end()
        y += 22
    drawing.line(left, y, right, y, colour="rule")
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        drawing.text(left + (right - left) * share, y + 15, f"{share:.0%}", colour="soft", size=12, anchor=anchor)
    y += 38
    drawing.entry(0, y, "stalls, share of the time between tokens", opacity=0.85)
    if any(use.gpu is not None for use in uses):
        y += 19
        drawing.line(8, y - 11, 8, y + 3, colour="ink", width=2)
        drawing.text(24, y, "GPU busy, share of the time", colour="soft", size=12)
    drawing.height = y + 8


def prompt_price(run: Run, data: PageData, chosen: str | None) -> Iterator[Block]:
    """Whose time a step with a prompt is: a sentence for each configuration that tells another story, and a figure."""
    costs = {config: cost for config, cost in files_of(run, "prefill.json").items() if cost.get("sentence")}
    shown = chosen if chosen in costs else next(iter(costs), None)
    if shown is None:
        return
    words = str(costs[shown]["sentence"])
    others = {config: str(cost["sentence"]) for config, cost in costs.items() if cost["sentence"] != words}
    of: Inline = (" (", shown, ")") if others else ""
    yield Paragraph((words[:1].upper() + words[1:], of, "."))
    if others:
        items: list[Inline] = [(Config(config), f": {sentence}") for config, sentence in others.items()]
        yield Fold("The other configurations", (Bullets(items),), count=len(items))
    points = [
        (float(length), float(ttft))
        for length, ttft in zip(costs[shown].get("lengths") or (), costs[shown].get("ttft_ms") or (), strict=False)
    ]
    if len(points) > 1:
        draw = partial(_draw_prompts, points, costs[shown].get("floor_ms"), data.colour(shown), shown)
        words = f"TTFT at one stream against the prompt's length, {shown}"
        yield picture(words, draw, simulated=data.simulated, wide=560.0, small=True)


def endurance(run: Run) -> Iterator[Block]:
    """Long prompts one and two at a time, and how memory went while the heaviest load was held."""
    items: list[Inline] = []
    for config, soak in files_of(run, "soak.json").items():
        held = f", {soak.get('load')} held for {float(soak.get('minutes') or 0):.0f} min"
        verdicts = [str(growth.get("verdict")) for growth in map(mapping, soak.get("growth") or ())]
        failed = soak.get("requests_failed")
        words = "; ".join([*verdicts, *([f"{failed:,} requests failed"] if isinstance(failed, int) and failed else [])])
        items.append((Config(config), f"{held}: {words}"))
    if items:
        yield Paragraph("Under a load that was held:")
        yield Bullets(items)
    for config, ladder in files_of(run, "ladder.json").items():
        rungs = [mapping(rung) for rung in ladder.get("rungs") or ()]
        if rungs:
            head = ("Prompt, tokens", "at once", "TTFT, ms", "VRAM peak, GiB", "answered")
            table = Table(head, [_rung(rung) for rung in rungs], numbers_from=0, numbers_to=4)
            died = not all(rung.get("ok") for rung in rungs)
            yield Fold(("Long prompts, ", Config(config)), (table,), count=len(rungs), open=died)


def _rung(rung: Mapping[str, Any]) -> Row:
    vram, error = rung.get("vram_peak_mib"), rung.get("error")
    return Row(
        (
            Number(rung.get("counted_tokens") or rung.get("prompt_tokens"), digits=0),
            Number(rung.get("together"), digits=0),
            Number(rung.get("ttft_ms"), digits=0),
            Number(None if vram is None else vram / 1024, digits=2),
            "yes" if rung.get("ok") else f"no: {error or 'no reason given'}",
        )
    )


def _draw_prompts(
    points: Sequence[tuple[float, float]], floor: float | None, series: str, config: str, drawing: Drawing
) -> None:
    """TTFT against the prompt's length, both from zero, and the floor as a line."""
    left, right, top, bottom = 52.0, drawing.width - 12, 34.0, 178.0
    longest, slowest = max(x for x, _ in points), max(y for _, y in points)

    def at(tokens: float, ms: float) -> tuple[float, float]:
        return left + (right - left) * tokens / longest, bottom - (bottom - top) * ms / slowest

    drawing.text(0, 14, f"TTFT at one stream, ms ({config})", size=12.5, bold=True)
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        drawing.line(left, y, right, y, colour="grid" if share else "faint")
        drawing.text(left - 8, y + 4, f"{slowest * share:,.0f}", colour="soft", size=12, anchor="end")
    if floor is not None:
        _, y = at(0, floor)
        drawing.line(left, y, right, y, colour="accent", width=1.4, dash="4 3")
    drawing.path([at(*point) for point in points], colour=series, width=2)
    for point in points:
        drawing.circle(*at(*point), 3.5, colour=series)
    for tokens, anchor in ((0.0, "start"), (longest / 2, "middle"), (longest, "end")):
        drawing.text(at(tokens, 0)[0], bottom + 17, f"{tokens:,.0f}", colour="soft", size=12, anchor=anchor)
    drawing.text((left + right) / 2, bottom + 36, "prompt, tokens", colour="soft", size=12, anchor="middle")
    drawing.height = bottom + 44
