"""Predicted beside measured: a run's first configuration calibrates, the others are predicted and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwenbench.capacity.cards import Card
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.plan_config import plan_config
from qwenbench.engine.config import FlagValue, ServerConfig
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError


@dataclass(frozen=True, slots=True)
class PlanCheck:
    """One configuration's KV cache as predicted from the first one's log, and as its own log says."""

    config_id: str
    probe_id: str
    predicted_gib: float | None
    predicted_low_gib: float | None
    predicted_high_gib: float | None
    predicted_blocks: int | None
    measured_gib: float | None
    measured_blocks: int | None
    basis: str

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1, in GiB; None where either is not known."""
        if self.predicted_gib is None or not self.measured_gib:
            return None
        return self.predicted_gib / self.measured_gib - 1

    @property
    def within(self) -> bool | None:
        """Whether the measured value lies in the predicted interval."""
        if self.predicted_low_gib is None or self.predicted_high_gib is None or self.measured_gib is None:
            return None
        return self.predicted_low_gib <= self.measured_gib <= self.predicted_high_gib


def check_plans(
    logs: Mapping[str, StartupLog],
    blocks: Mapping[str, int | None],
    shape: ModelShape,
    *,
    cuda_total_gib: float,
    card: Card | None = None,
    platform: str = "linux",
) -> list[PlanCheck]:
    """Predicts every configuration after the first one that can calibrate, in the order of `logs`.

    `blocks` are the measured ones (memory.json). Configurations whose log says no version, and all of them when no
    log can calibrate, are left out.
    """
    probe_id: str | None = None
    checks = []
    for config_id, log in logs.items():
        if log.vllm_version is None:
            continue
        try:
            plan = plan_config(
                config_of_log(log),
                shape,
                version=log.vllm_version,
                card=card,
                platform=platform,
                cuda_total_gib=cuda_total_gib,
                probe=logs[probe_id or config_id],
            )
        except UsageError:
            continue
        if probe_id is None:
            probe_id = config_id
            continue
        predicted = plan.prediction
        if predicted is None:
            continue
        checks.append(
            PlanCheck(
                config_id=config_id,
                probe_id=probe_id,
                predicted_gib=predicted.kv_cache_gib,
                predicted_low_gib=predicted.kv_cache_gib_low,
                predicted_high_gib=predicted.kv_cache_gib_high,
                predicted_blocks=predicted.kv_cache_blocks,
                measured_gib=log.kv_cache_gib,
                measured_blocks=blocks.get(config_id),
                basis=predicted.basis,
            )
        )
    return checks


def config_of_log(log: StartupLog) -> ServerConfig:
    """The configuration that a log repeats in its non-default arguments."""
    flags: dict[str, FlagValue] = {}
    for name, value in log.requested.items():
        flag = name.replace("_", "-")
        if value is True:
            flags[flag] = None
        elif value is False:
            flags[f"no-{flag}"] = None
        elif isinstance(value, str | int | float):
            flags[flag] = str(value)
    if flags.get("max-model-len") == "-1":
        flags["max-model-len"] = "auto"
    if "kv-cache-dtype" not in flags and log.kv_cache_dtype is not None:
        flags["kv-cache-dtype"] = log.kv_cache_dtype
    applied = log.graphs_estimate_applied
    env = {} if applied is None else {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": str(int(applied))}
    return ServerConfig(model=str(log.requested.get("model", "")), flags=flags, env=env)
