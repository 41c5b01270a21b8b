"""Qwen3.5's four sampling profiles, as the reverse proxy of the model card's authors sends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.errors import UsageError

# the values of iguanesolutions/qwen35-rp, the profile proxy named by the model card ig1/Qwen3.5-9B-NVFP4


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class SamplingProfile:
    """Sampling parameters of one profile. All are sent, zeros included, so that no server default fills in."""

    name: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    repetition_penalty: float
    enable_thinking: bool
    note: str = ""

    def sampling(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SAMPLING}

    def request_fields(self) -> dict[str, Any]:
        """All seven parameters as they stand in a chat request body."""
        return {**self.sampling(), "chat_template_kwargs": {"enable_thinking": self.enable_thinking}}


_OTHER_COPIES = "The model card calls it Instruct Creative; other copies give 1.0/1.0/40/0/2.0/1.0."

PROFILES: Mapping[str, SamplingProfile] = {
    profile.name: profile
    for profile in (
        SamplingProfile("thinking-general", 1.0, 0.95, 20, 0.0, 1.5, 1.0, True),
        SamplingProfile("thinking-coding", 0.6, 0.95, 20, 0.0, 0.0, 1.0, True),
        SamplingProfile("instruct-general", 0.7, 0.8, 20, 0.0, 1.5, 1.0, False),
        SamplingProfile("instruct-reasoning", 1.0, 0.95, 20, 0.0, 1.5, 1.0, False, _OTHER_COPIES),
    )
}


@dataclass(frozen=True, slots=True)
class NoProfile:
    """`none`: no sampling field is sent, so the server's defaults hold. What a profile costs is held against it."""

    name: str = "none"
    enable_thinking: bool = False

    def sampling(self) -> dict[str, Any]:
        return {}

    def request_fields(self) -> dict[str, Any]:
        return {}


REQUEST_PROFILES: Mapping[str, SamplingProfile | NoProfile] = {**PROFILES, "none": NoProfile()}
"""What the requests of a load point may carry."""


def find_profile(name: str) -> SamplingProfile | NoProfile:
    """The profile of this name. Raises UsageError that lists them."""
    if name not in REQUEST_PROFILES:
        known = ", ".join(REQUEST_PROFILES)
        raise UsageError(f"--profile {name!r}: unknown. Profiles: {known}, or `all` for the four in turn.")
    return REQUEST_PROFILES[name]
