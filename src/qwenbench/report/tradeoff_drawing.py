"""The trade-off figure as SVG: a row per configuration, four columns, each of them from zero.

KV cache; concurrency (pale: requests that fit, full: what runs at once, black: the captured size above which a token
gets slower); output tokens/s and median TTFT at the load in question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qwenbench.report.document import Number, Picture
from qwenbench.report.points import Estimate
from qwenbench.report.svg import LIGHT, NARROW, WIDE, Drawing, on_page, shortened, text_width, wrapped
from qwenbench.report.tradeoff import Lane, Tradeoff

_ROW, _BAR, _VALUE = 40.0, 14.0, 66.0
"""Height of a row and of a bar, and room for the figure behind a bar."""
_GAP = 26.0
_SHARES = (0.20, 0.36, 0.22, 0.22)
"""Of the width that the names leave: KV cache, concurrency, tokens/s, TTFT."""


def picture(tradeoff: Tradeoff) -> Picture:
    """The figure for a page, in both widths."""
    return Picture(_wide(tradeoff, on_page()).svg(), tradeoff.title, _narrow(tradeoff, on_page()).svg())


def file_svg(tradeoff: Tradeoff, theme: Mapping[str, str] = LIGHT) -> str:
    return _wide(tradeoff, theme, margin=24.0).svg(background=True)


@dataclass(frozen=True, slots=True)
class _Scale:
    left: float
    width: float
    most: float

    def __call__(self, value: float) -> float:
        return self.left + self.width * min(1.0, value / self.most)


_Scales = tuple[_Scale, _Scale, _Scale, _Scale]


def _scales(tradeoff: Tradeoff, columns: Sequence[tuple[float, float]]) -> _Scales:
    """An axis for each column (left, width), for all panels alike."""
    lanes = [lane for panel in tradeoff.panels for lane in panel.lanes]
    seqs = (lane.config.max_num_seqs for lane in lanes)
    most = (
        _most(lane.kv_gib for lane in lanes),
        _most((*(lane.fits for lane in lanes), *seqs, tradeoff.asked)),
        _most(_top(lane.rate) for lane in lanes),
        _most(_top(lane.ttft) for lane in lanes),
    )
    kv, held, rate, ttft = (_Scale(left, width - _VALUE, m) for (left, width), m in zip(columns, most, strict=True))
    return kv, held, rate, ttft


def _most(values: Iterable[float | None]) -> float:
    return max((value for value in values if value is not None and value > 0), default=1.0)


def _top(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate[2] or estimate[0]


def _wide(tradeoff: Tradeoff, theme: Mapping[str, str], margin: float = 0.0) -> Drawing:
    drawing = Drawing(WIDE + 2 * margin, theme)
    left, right = margin, WIDE + margin
    y = _heading(drawing, tradeoff, left, right, margin + 2, 19) + 6
    ids = [lane.config.id for panel in tradeoff.panels for lane in panel.lanes]
    names = min(230.0, max(116.0, *(text_width(name, 13, bold=True) + 32 for name in ids)))
    room, at, columns = right - left - names - 4 * _GAP, left + names + _GAP, []
    for share in _SHARES:
        columns.append((at, room * share))
        at += room * share + _GAP
    scales = _scales(tradeoff, columns)
    at_load = f"at {tradeoff.load}"
    heads = (("KV cache", "GiB"), ("Concurrency", "requests"), ("Output tokens/s", at_load), ("TTFT p50, ms", at_load))
    for panel in tradeoff.panels:
        y += 20
        drawing.text(left, y, shortened(panel.title, names, 13, bold=True), bold=True)
        for (start, width), (head, below) in zip(columns, heads, strict=True):
            drawing.text(start, y, shortened(head, width, 12.5, bold=True), size=12.5, bold=True)
            drawing.text(start, y + 16, shortened(below, width, 12), colour="soft", size=12)
        y += 24
        bottom = y + _ROW * len(panel.lanes)
        drawing.line(left, y, right, y, colour="rule")
        for scale in scales:
            drawing.line(scale.left, y + 4, scale.left, bottom - 2, colour="faint")
        if tradeoff.asked is not None:
            x = scales[1](tradeoff.asked)
            drawing.line(x, y + 2, x, bottom, colour="accent", width=1.4, dash="4 3")
            drawing.text(x, bottom + 12, f"{tradeoff.asked:,} users", colour="accent", size=11.5, anchor="middle")
        for lane in panel.lanes:
            middle = y + _ROW / 2
            drawing.group(config=lane.config.id, workload=panel.title or None)
            _name(drawing, lane, lane.config.id == tradeoff.chosen, left, names, middle)
            _bars(drawing, scales, lane, (middle,) * 4)
            drawing.end(_hint(lane, tradeoff))
            y += _ROW
        y += 14 if tradeoff.asked is not None else 0
    drawing.height = _key(drawing, tradeoff, left, right, y + 22) + margin
    return drawing


def _narrow(tradeoff: Tradeoff, theme: Mapping[str, str]) -> Drawing:
    """For a telephone: the four bars stand below each configuration's name."""
    drawing = Drawing(NARROW, theme, size=12.5)
    y = _heading(drawing, tradeoff, 0, NARROW, 2, 16) + 16
    drawing.text(0, y, f"tokens/s and TTFT p50: at {tradeoff.load}", colour="soft", size=12)
    scales = _scales(tradeoff, [(84.0, NARROW - 84.0)] * 4)
    heads = ("KV GiB", "fits, runs", "tokens/s", "TTFT ms")
    for panel in tradeoff.panels:
        if panel.title:
            y += 30
            drawing.text(0, y, shortened(panel.title, NARROW, 13.5, bold=True), size=13.5, bold=True)
        for lane in panel.lanes:
            drawing.group(config=lane.config.id, workload=panel.title or None)
            y += 28
            _name(drawing, lane, False, 0, NARROW - 90, y)
            if lane.config.id == tradeoff.chosen:
                drawing.text(NARROW, y + 4.5, "recommended", colour="accent", size=11.5, anchor="end")
            middles = (y + 24, y + 46, y + 68, y + 90)
            if lane.rate is not None:
                for head, middle in zip(heads, middles, strict=True):
                    drawing.text(12, middle + 4.5, head, colour="soft", size=12)
            _bars(drawing, scales, lane, middles)
            drawing.end(_hint(lane, tradeoff))
            y = (middles[-1] if lane.rate is not None else middles[0]) + 8
    drawing.height = _key(drawing, tradeoff, 0, NARROW, y + 30)
    return drawing


def _heading(drawing: Drawing, tradeoff: Tradeoff, left: float, right: float, y: float, size: float) -> float:
    """Title, subtitle and the mark of a simulated run; returns the last base line."""
    narrow, mark = right - left < 500, 0
    if tradeoff.simulated:
        drawing.simulated(right, y + 15)
        y, mark = (y + 24, 0) if narrow else (y, 100)
    y += size
    for line in wrapped(tradeoff.title, right - left - mark, size, bold=True):
        drawing.text(left, y, line, size=size, bold=True)
        y += size * 1.3
    for line in wrapped(tradeoff.subtitle, right - left, 13):
        drawing.text(left, y, line, colour="soft", size=13)
        y += 18
    return y - 18


def _name(drawing: Drawing, lane: Lane, chosen: bool, left: float, width: float, middle: float) -> None:
    drawing.rect(left, middle - 7, 4, 14, colour=lane.colour, radius=1)
    base = middle + (0 if chosen else 4.5)
    words = shortened(lane.config.id, width - 32, 13, bold=True)
    drawing.text(left + 12, base, words, size=13, bold=lane.frontier)
    if lane.frontier:
        drawing.star(left + 12 + text_width(words, 13, bold=True) + 8, base - 4.5, 6, colour="accent")
    if chosen:
        drawing.text(left + 12, middle + 14, "recommended", colour="accent", size=11.5)


def _bars(drawing: Drawing, scales: _Scales, lane: Lane, middles: Sequence[float]) -> None:
    """A configuration's four bars, each at its own height."""
    if lane.rate is None:
        words = "did not start, or nothing valid was measured"
        x, width = scales[0].left + 8, text_width(words, 12.5)
        drawing.rect(x - 4, middles[0] - 10, width + 8, 20, colour="paper")
        drawing.text(x, middles[0] + 4.5, words, colour="warn", size=12.5)
        return
    kv, held, rate, ttft = scales
    _bar(drawing, kv, lane.kv_gib, middles[0], lane.colour, digits=2)
    _concurrency(drawing, held, lane, middles[1])
    _bar(drawing, rate, lane.rate[0], middles[2], lane.colour, lane.rate)
    _bar(drawing, ttft, lane.ttft[0] if lane.ttft else None, middles[3], lane.colour, lane.ttft)


def _bar(
    drawing: Drawing, scale: _Scale, value: float | None, middle: float, colour: str,
    interval: Estimate | None = None, digits: int = 0,
) -> None:  # fmt: skip
    end = scale.left
    if value is not None:
        end = scale(value)
        drawing.rect(scale.left, middle - _BAR / 2, end - scale.left, _BAR, colour=colour, opacity=0.85)
    if interval is not None and interval[1] is not None and interval[2] is not None:
        low, high = scale(max(0.0, interval[1])), scale(interval[2])
        drawing.line(low, middle, high, middle, colour="ink", width=1.4)
        for x in (low, high):
            drawing.line(x, middle - 4, x, middle + 4, colour="ink", width=1.4)
        end = max(end, high)
    drawing.text(end + 7, middle + 4.5, _shown(value, digits), bold=True)


def _concurrency(drawing: Drawing, scale: _Scale, lane: Lane, middle: float) -> None:
    colour, seqs, fits = lane.colour, lane.config.max_num_seqs, lane.fits
    at_once = min((value for value in (seqs, fits) if value is not None), default=None)
    end = scale.left
    for value, opacity in ((fits, 0.22), (at_once, 0.85)):
        if value is not None:
            drawing.rect(scale.left, middle - _BAR / 2, scale(value) - scale.left, _BAR, colour=colour, opacity=opacity)
            end = max(end, scale(value))
    if lane.captured:
        x = scale(lane.captured)
        drawing.line(x, middle - 11, x, middle + 11, colour="ink", width=2)
    drawing.text(end + 7, middle + 4.5, f"{_shown(fits, 0)} fit", bold=True)


def _shown(value: float | None, digits: int) -> str:
    return str(Number(value, digits=digits))


def _hint(lane: Lane, tradeoff: Tradeoff) -> str:
    def words(estimate: Estimate | None, unit: str) -> str:
        value, *bounds = estimate or (None, None, None)
        shown = Number(value, unit, 0, *bounds)
        return f"{shown} (95 %: {shown.interval})" if shown.interval else str(shown)

    return "\n".join(
        (
            lane.config.id,
            f"KV cache {_shown(lane.kv_gib, 2)} GiB, {_shown(lane.fits, 0)} requests fit",
            f"max-num-seqs {_shown(lane.config.max_num_seqs, 0)}, captured size {_shown(lane.captured, 0)}",
            f"at {tradeoff.load}: {words(lane.rate, 'output tokens/s')}, TTFT p50 {words(lane.ttft, 'ms')}",
        )
    )


_KEY = (
    ("pale", "requests that fit in the KV cache"),
    ("full", "run at once (max-num-seqs)"),
    ("tick", "captured size: above it a token gets slower"),
    ("star", "frontier: none holds as much and is as fast"),
)


def _key(drawing: Drawing, tradeoff: Tradeoff, left: float, right: float, y: float) -> float:
    """What the signs mean, in as many lines as it takes; returns where it ends."""
    if tradeoff.left_out:
        drawing.text(left, y, f"{tradeoff.left_out} more configurations are in the table.", colour="soft", size=12)
        y += 19
    x = left
    for sign, words in _KEY:
        width = 24 + text_width(words, 12)
        if x > left and x + width > right:
            x, y = left, y + 19
        if sign == "tick":
            drawing.line(x + 8, y - 11, x + 8, y + 3, colour="ink", width=2)
        elif sign == "star":
            drawing.star(x + 8, y - 4, 6, colour="accent")
        opacity = {"pale": 0.22, "full": 0.85}.get(sign, 0.0)
        drawing.entry(x, y, words, opacity=opacity)
        x += width + 20
    return y + 8
