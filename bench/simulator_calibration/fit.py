"""Fits the step times to recorded loads by comparing whole loads: what is simulated beside what was recorded.

START holds where each number begins and comes from; `fit` then changes one number after the other as long as the
loads on which it has any bearing come nearer (coordinate descent; the sum of squares of log(simulated / recorded)
over its limit, growing only linearly beyond it, so that one odd load does not rule). Numbers that no load shows are
not fitted: START's stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwenbench.simulator.recorded import Load, compare, distance, judged, strangeness
from qwenbench.simulator.steptime import GpuTimes, HostTimes, StepModel

Path = tuple[str | int, ...]
"""Where a number stands in the calibration."""

_H100 = {
    "decode_rows": [1, 16, 32, 64, 128, 256],
    "decode_ms": [4.75, 5.72, 6.4, 8.85, 14.5, 26.0],
    "fixed_ms": 2.0,
    "prefill_first_ms": 6.3,
    "prefill_token_ms": 0.038,
    "prefill_row_ms": 0.04,
    "prefill_context_ms": 2.0e-7,
    "context_token_ms": 1.45e-5,
    "filter_first_ms": 2.65,
    "filter_row_ms": 0.019,
    "filter_few_row_ms": 0.2,
    "flashinfer_row_ms": 0.0,
    "penalty_row_ms": 0.012,
    "draft_first_ms": 1.8,
    "draft_row_ms": 0.055,
    "jitter": 0.02,
}
_HOST = {
    "graph_ms": 4.0,
    "piecewise_ms": 47.0,
    "launch_ms": 65.0,
    "eager_ms": 40.0,
    "row_ms": 0.2,
    "mixed_ms": 6.0,
    "serial_ms": 2.0,
    "serial_row_ms": 0.045,
    "frontend_ms": 10.0,
    "frontend_token_ms": 0.0035,
    "frontend_stream_ms": 0.5,
    "jitter": 0.15,
    "point_spread": 0.2,
    "launch_spread": 0.2,
}
START: Mapping[str, Any] = {
    "cards": {
        "h100": _H100,
        "h200": {
            **_H100,
            "decode_ms": [4.4, 5.09, 5.79, 7.83, 13.0, 23.33],
            "context_token_ms": 1.0e-5,
            "filter_row_ms": 0.0135,
        },
    },
    "versions": {"0.20": {"prefill_first_ms": 18.2, "prefill_token_ms": 0.0293, "prefill_row_ms": 0.30}},
}
"""Decode curves: medians of steps in a row at a load's full batch, contexts taken off. Prefill on the GPU:
trace-steps.csv (0.26), steps that use the whole token budget (0.20.2). Contexts: the step's growth between prompts of
250 and of 5,600 tokens. Sampling: ITL p50 with fields less without. 128 and 256 rows: a server that captured 128
took 13 ms on an H200; extrapolated beyond. Hosts all begin at the same middle values."""

_HOST_FIELDS = (
    *("launch_ms", "piecewise_ms", "mixed_ms", "row_ms", "frontend_ms", "frontend_stream_ms", "eager_ms"),
    *("serial_ms", "serial_row_ms"),
)
EVERYTHING = "*"
"""In a host's path: all of its times together."""
_GPU_FIELDS = (
    *("prefill_row_ms", "filter_first_ms", "filter_row_ms", "penalty_row_ms", "draft_first_ms", "draft_row_ms"),
)
"""Prefill's line is not among them: the trace shows the GPU's time alone, where whole loads mix it with the host's."""
_DECODE_POINTS = 4
"""Of the decode table so many rows are shown by loads."""
STEPS = (1.3, 1.12, 1.05)
"""Factors by which a number is changed, round by round."""
HOST_STEPS = (1.1,)
"""The same for one machine that is added to a calibration."""


def start(loads: Iterable[Load]) -> dict[str, Any]:
    """The calibration before anything was fitted, with a host for each machine."""
    calibration: dict[str, Any] = copy.deepcopy(dict(START))
    calibration["hosts"] = {load.server.machine: {"times": dict(_HOST)} for load in loads}
    return calibration


def model_for(calibration: Mapping[str, Any], load: Load, machine: str | None = None) -> StepModel:
    """The step model of a load's card, version and machine."""
    release = ".".join(load.server.version.split(".")[:2])
    gpu = {**calibration["cards"][load.server.card], **calibration["versions"].get(release, {})}
    name = machine or load.server.machine
    host = {"name": name, **calibration["hosts"][name]["times"]}
    return StepModel(GpuTimes.from_json(gpu), HostTimes.from_json(host))


def fit(
    loads: Sequence[Load],
    begin: Mapping[str, Any] | None = None,
    *,
    steps: Sequence[float] = STEPS,
    hosts_only: bool = False,
) -> dict[str, Any]:
    """The calibration that fits the loads. `hosts_only`: cards and versions keep their numbers."""
    used = [load for load in loads if judged(load) is not None]
    calibration = copy.deepcopy(dict(begin)) if begin is not None else start(loads)
    centre = copy.deepcopy(calibration["hosts"])
    distances = {id(load): distance(compare(load, model_for(calibration, load))) for load in used}
    for factor in steps:
        for path in _paths(used, hosts_only=hosts_only):
            touched = [load for load in used if _bears_on(path, load)]
            _improve(calibration, path, touched, distances, factor, centre)
    return calibration


def fit_host(calibration: Mapping[str, Any], loads: Sequence[Load], machine: str) -> dict[str, Any]:
    """One machine's times, fitted to its own loads from the middle values on; cards and versions keep their numbers."""
    begin = {**calibration, "hosts": {machine: {"times": dict(_HOST)}}}
    own = [load for load in loads if load.server.machine == machine]
    fitted: dict[str, Any] = fit(own, begin, steps=HOST_STEPS, hosts_only=True)["hosts"][machine]
    return fitted


def _paths(loads: Sequence[Load], *, hosts_only: bool) -> list[Path]:
    paths: list[Path] = []
    for machine in sorted({load.server.machine for load in loads}):
        paths += [("hosts", machine, "times", field) for field in (EVERYTHING, *_HOST_FIELDS)]
    if hosts_only:
        return paths
    for card in sorted({load.server.card for load in loads}):
        paths += [("cards", card, "decode_ms", at) for at in range(_DECODE_POINTS)]
        paths += [("cards", card, field) for field in _GPU_FIELDS]
    for release, fields in START["versions"].items():
        if any(load.server.version.startswith(f"{release}.") for load in loads):
            paths += [("versions", release, field) for field in fields]
    return paths


def _bears_on(path: Path, load: Load) -> bool:
    server, settings = load.server, load.server.settings
    if path[0] == "versions":
        return server.version.startswith(f"{path[1]}.")
    if path[0] == "hosts":
        if server.machine != path[1]:
            return False
        if str(path[3]).startswith("serial"):
            return not settings.async_scheduling
        if path[3] == "eager_ms":
            most = min(load.concurrency, server.max_num_seqs) * (1 + settings.drafted)
            return most > settings.captured_piecewise
        if path[3] == "piecewise_ms":
            return min(request.planned.prompt_tokens for request in load.requests) <= settings.captured_piecewise
        return True
    if server.card != path[1]:
        return False
    field = str(path[2])
    if field.startswith("draft"):
        return settings.drafted > 0
    if field.startswith(("filter", "penalty")):
        sample = load.requests[0].planned
        return sample.filtered if field.startswith("filter") else sample.penalised
    return True


def _improve(
    calibration: dict[str, Any],
    path: Path,
    loads: Sequence[Load],
    distances: dict[int, float],
    factor: float,
    centre: Mapping[str, Any],
) -> None:
    """Changes one number by the factor, either way, as often as that helps (at most three times).

    A host pays for leaving `centre`, where the fit began (`strangeness`).
    """
    machine = str(path[1]) if path[0] == "hosts" else None

    def total() -> float:
        off = sum(distances[id(load)] for load in loads)
        return off + (strangeness(calibration["hosts"][machine]["times"], centre[machine]["times"]) if machine else 0.0)

    for change in (factor, 1 / factor):
        improved = False
        for _ in range(3):
            least, before = total(), dict(distances)
            _change(calibration, path, change)
            distances.update({id(load): distance(compare(load, model_for(calibration, load))) for load in loads})
            if total() >= least - 1e-9:
                _change(calibration, path, 1 / change)
                distances.update(before)
                break
            improved = True
        if improved:
            return


def _change(calibration: dict[str, Any], path: Path, factor: float) -> None:
    holder: Any = calibration
    for name in path[:-1]:
        holder = holder[name]
    names = [name for name in holder if str(name).endswith("_ms")] if path[-1] == EVERYTHING else [path[-1]]
    for name in names:
        holder[name] *= factor


def rounded(values: Any) -> Any:
    """Numbers with four digits, at any depth."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if isinstance(values, float) else values
