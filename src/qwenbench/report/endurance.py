"""What was asked of a server beside its load points: the price of a prompt by its length, long prompts, a soak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwenbench.analysis.run import Run
from qwenbench.report.document import Block, Bullets, Config, Fold, Inline, Number, Paragraph, Picture, Row, Table
from qwenbench.report.page_data import PageData
from qwenbench.report.svg import SERIES, Drawing, on_page
from qwenbench.runfolder.damage import object_or_none
from qwenbench.runfolder.names import RunPaths

Found = dict[str, Mapping[str, Any]]
"""config_id -> what a file of its folder holds."""


def _files(run: Run, name: str) -> Found:
    found: Found = {}
    for file in sorted(RunPaths(run.path).servers.glob(f"*/{name}")):
        value = object_or_none(file, f"what {name} says is missing")
        if value is not None:
            found[file.parent.name] = value
    return found


def prompt_price(run: Run, data: PageData, chosen: str | None) -> Iterator[Block]:
    """Whose time a step with a prompt is: a sentence for each configuration that tells another story, and a figure."""
    costs = {config: cost for config, cost in _files(run, "prefill.json").items() if cost.get("sentence")}
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
        place = next((index for index, view in enumerate(data.configs) if view.id == shown), 0)
        wide, narrow = (
            _draw(points, costs[shown].get("floor_ms"), f"s{place % SERIES}", shown, width, data.simulated).svg()
            for width in (560.0, 358.0)
        )
        yield Picture(wide, f"TTFT at one stream against the prompt's length, {shown}", narrow, small=True)


def endurance(run: Run) -> Iterator[Block]:
    """Long prompts one and two at a time, and how memory went while the heaviest load was held."""
    items: list[Inline] = []
    for config, soak in _files(run, "soak.json").items():
        held = f", {soak.get('load')} held for {float(soak.get('minutes') or 0):.0f} min"
        verdicts = [str(growth.get("verdict")) for growth in soak.get("growth") or () if isinstance(growth, Mapping)]
        failed = soak.get("requests_failed")
        words = "; ".join([*verdicts, *([f"{failed:,} requests failed"] if isinstance(failed, int) and failed else [])])
        items.append((Config(config), f"{held}: {words}"))
    if items:
        yield Paragraph("Under a load that was held:")
        yield Bullets(items)
    for config, ladder in _files(run, "ladder.json").items():
        rungs = [rung for rung in ladder.get("rungs") or () if isinstance(rung, Mapping)]
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


def _draw(
    points: Sequence[tuple[float, float]], floor: float | None, series: str, config: str, width: float, simulated: bool
) -> Drawing:
    """TTFT against the prompt's length, both from zero, and the floor as a line."""
    drawing = Drawing(width, on_page(), size=12.5)
    left, right, top, bottom = 52.0, width - 12, 34.0, 178.0
    longest, slowest = max(x for x, _ in points), max(y for _, y in points)

    def at(tokens: float, ms: float) -> tuple[float, float]:
        return left + (right - left) * tokens / longest, bottom - (bottom - top) * ms / slowest

    drawing.text(0, 14, f"TTFT at one stream, ms ({config})", size=12.5, bold=True)
    if simulated:
        drawing.simulated(width, 14)
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
    return drawing
