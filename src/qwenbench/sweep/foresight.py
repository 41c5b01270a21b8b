"""Before a launch: what the configuration will hold, whether it can start at all, and what is known to go wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.plan_config import ConfigPlan, plan_config
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.server import Failure
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.known_bad import Problem, known_problems
from qwenbench.sweep.plan import Plan

SIMULATED_VERSION = "0.20.2"
_IMAGE_VERSION = re.compile(r":v?(\d+\.\d+\.\d+)")


@dataclass(frozen=True)
class Outlook:
    """What is known of a configuration before it is launched."""

    prediction: Mapping[str, Any] | None
    """prediction.json: the keys of `plan --json`; None where card or model are not known."""
    problems: tuple[Problem, ...]
    cannot_start: str | None

    def refusal(self) -> Failure | None:
        """Why it is not launched without --force, or None."""
        if self.cannot_start is not None:
            advice = "Change the configuration, or start it all the same with --force."
            return Failure("cannot_start", self.cannot_start, advice, phase="plan")
        refused = next((problem for problem in self.problems if problem.severity == "refuse"), None)
        if refused is None:
            return None
        return Failure(refused.rule, refused.text, f"Source: {refused.source}. --force starts it.", phase="plan")


class Foresight:
    """Looks ahead from the last server that was seen to start (the probe); the first launch has none."""

    def __init__(self, plan: Plan, launcher: str, hardware: Hardware, shape: ModelShape | None) -> None:
        self._plan = plan
        self._launcher = launcher
        self._hardware = hardware
        self._shape = shape
        self._probe: StartupLog | None = None

    def learn(self, startup: StartupLog) -> None:
        """Keeps the first start that gives memory figures as the probe for those that follow."""
        if self._probe is None and startup.recognised and startup.kv_cache_gib is not None:
            self._probe = startup

    def look(self, server: ServerConfig) -> Outlook:
        """The outlook of one configuration, as it will be launched."""
        version = self._version(server)
        planned = self._planned(server, version)
        problems = known_problems(
            server,
            vllm_version=version,
            concurrencies=[point.concurrency for point in self._plan.points if point.concurrency is not None],
            profiles=sorted({point.profile for point in self._plan.points}),
            hybrid=self._shape.hybrid if self._shape else False,
            largest_context=planned.prediction.kv_cache_tokens if planned and planned.prediction else None,
        )
        return Outlook(
            prediction=planned.prediction.to_json() if planned and planned.prediction else None,
            problems=tuple(problems),
            cannot_start=planned.cannot_start if planned else None,
        )

    def _version(self, server: ServerConfig) -> str | None:
        if self._probe is not None and self._probe.vllm_version:
            return self._probe.vllm_version
        if self._launcher == "sim":
            return SIMULATED_VERSION
        tag = _IMAGE_VERSION.search(server.docker.image) if self._launcher == "docker" else None
        return tag[1] if tag else None

    def _planned(self, server: ServerConfig, version: str | None) -> ConfigPlan | None:
        if self._shape is None or version is None or self._launcher == "url":
            return None
        total = self._hardware.cuda_total_gib()
        try:
            return plan_config(
                server,
                self._shape,
                version=version,
                card=self._hardware.real_card,
                platform=self._hardware.platform,
                cuda_total_gib=total,
                probe=self._probe if total is not None else None,
                on_gpu=total is not None,
            )
        except UsageError:
            return None  # e.g. a dtype that the arithmetic does not know: vLLM itself will say
