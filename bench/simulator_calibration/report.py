"""What the calibration found, as Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwenbench.simulator.recorded import LIMITS, Comparison, Load, judged, one_off_stalls
from simulator_calibration.startup import Phases

NAMES = {"itl_p50_ms": "ITL p50", "tokens_per_s": "tokens/s", "ttft_p50_ms": "TTFT p50"}


def residual_table(comparisons: Sequence[Comparison]) -> str:
    """Recorded against simulated of the loads that are beyond an aim; the summary counts the others."""
    lines = ["| server and load | ITL p50 ms | tokens/s | TTFT p50 ms | stall share |", "|---|---|---|---|---|"]
    for item in comparisons:
        if not item.beyond:
            continue
        cells = [
            _cell(item, key, digits) for key, digits in (("itl_p50_ms", 2), ("tokens_per_s", 0), ("ttft_p50_ms", 0))
        ]
        shares = [figures.stall_share for figures in (item.recorded, item.simulated)]
        stalls = "-" if None in shares else " → ".join(f"{share:.0%}" for share in shares)
        lines.append(f"| {item.load.name} | {' | '.join(cells)} | {stalls} |")
    return "\n".join(lines)


def summary_table(rows: Sequence[tuple[str, Sequence[Comparison]]]) -> str:
    """Per way of judging: the spread of the residuals, and how many lie within the limit."""
    lines = [
        "| judged by | figure | loads | median | 90 % within | worst | within the aim |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, comparisons in rows:
        for key, limit in LIMITS.items():
            values = [value for item in comparisons if (value := item.residual(key)) is not None]
            if values:
                off = np.abs(values)
                within = int((off <= limit).sum())
                lines.append(
                    f"| {name} | {NAMES[key]} | {len(values)} | {np.median(values):+.1%} | "
                    f"{np.percentile(off, 90):.1%} | {values[int(off.argmax())]:+.0%} | "
                    f"{within} of {len(values)} within {limit:.0%} |"
                )
    return "\n".join(lines)


def left_out_table(loads: Sequence[Load]) -> str:
    """Loads with one-off stalls, and what became of them."""
    lines = ["| load | stalls, s | judged |", "|---|---|---|"]
    for load in loads:
        stalls = one_off_stalls(load.requests)
        if stalls:
            how = {True: "from after its first wave", None: "left out"}[judged(load) or None]
            lines.append(f"| {load.name} | {', '.join(f'{seconds:.1f}' for _, seconds in stalls[:4])} | {how} |")
    return "\n".join(lines)


def times_table(calibration: Mapping[str, Any]) -> str:
    """The hosts' numbers side by side."""
    hosts = calibration["hosts"]
    fields = list(next(iter(hosts.values()))["times"])
    lines = ["| host | " + " | ".join(hosts) + " |", "|---" * (len(hosts) + 1) + "|"]
    for field in fields:
        lines.append(f"| {field} | " + " | ".join(f"{host['times'][field]:g}" for host in hosts.values()) + " |")
    return "\n".join(lines)


def _cell(item: Comparison, key: str, digits: int) -> str:
    residual = item.residual(key)
    if residual is None:
        return "-"
    recorded, simulated = getattr(item.recorded, key), getattr(item.simulated, key)
    mark = " **beyond**" if key in item.beyond else ""
    return f"{recorded:.{digits}f} → {simulated:.{digits}f} ({residual:+.0%}){mark}"


def startup_table(starts: list[Phases], typical: dict[str, dict[str, float]]) -> str:
    """Each recorded start by phase, and what the simulator takes for cold and warm."""
    keys = list(typical["cold"])
    lines = [
        "| start | " + " | ".join(key.removesuffix("_s") for key in keys) + " | all |",
        "|---" * (len(keys) + 2) + "|",
    ]
    rows = [(f"{start.name} ({'cold' if start.cold else 'warm'})", start.seconds) for start in starts]
    rows += [(f"**simulated {label}**", seconds) for label, seconds in typical.items()]
    for name, seconds in rows:
        cells = " | ".join(f"{seconds[key]:.1f}" for key in keys)
        lines.append(f"| {name} | {cells} | {sum(seconds.values()):.1f} |")
    return "\n".join(lines)


def put_between_markers(path: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a Markdown file."""
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path}: no <!-- {name} --> ... <!-- /{name} --> to write into")
    path.write_text(pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")
