"""Scenarios, what a load point sends, as YAML files that users write; and token lengths, drawn from a seed, with texts
of a length without a tokenizer.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qwenbench.errors import UsageError
from qwenbench.workload.profiles import REQUEST_PROFILES
from qwenbench.yaml_reader import named_file, names_in, parse_yaml_model, read_yaml_text

_RANGE = re.compile(r"(\d+)(?:-(\d+))?\Z")


class Lengths(BaseModel):
    """A number of tokens: fixed (`128`), uniform (`64-256`), or log-normal around a median.

    Real output lengths are close to log-normal: many short answers, a long tail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(ge=1, description="Smallest length in tokens.")
    max: int = Field(ge=1, le=1_000_000, description="Largest length in tokens.")
    median: int | None = Field(default=None, ge=1, description="Median of a log-normal; unset: uniform over min..max.")
    sigma: float = Field(default=0.6, gt=0, le=3, description="Standard deviation of the logarithm.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if isinstance(value, str):
            match = _RANGE.match(value.strip())
            if match is None:
                raise ValueError("give N or MIN-MAX, e.g. 128 or 64-256")
            return {"min": int(match[1]), "max": int(match[2] or match[1])}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Lengths:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        if self.median is not None and not self.min <= self.median <= self.max:
            raise ValueError(f"median {self.median} lies outside {self.min}..{self.max}")
        return self

    def draw(self, random: np.random.Generator) -> int:
        """One length in tokens, within min..max."""
        if self.median is None:
            return int(random.integers(self.min, self.max + 1))
        drawn = self.median * math.exp(self.sigma * random.standard_normal())
        return int(min(max(round(drawn), self.min), self.max))


def parse_lengths(text: str, option: str) -> Lengths:
    """Reads N or MIN-MAX from a command line. Raises UsageError that names the option."""
    try:
        return Lengths.model_validate(text)
    except ValueError:
        raise UsageError(f"{option} {text!r}: give N or MIN-MAX in tokens, from 1, e.g. 128 or 64-256.") from None


CHARS_PER_TOKEN = 4.0
"""English text under a Qwen tokenizer; a sweep measures the server's own ratio with /tokenize and passes it on."""

# Plain words, so that a synthetic prompt tokenizes like text and no two of them share a prefix.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education river garden window paper letter music"
).split()

_BACKGROUND = "Background notes, for reference:\n"
_TASK = "\n\nWith these notes in mind:\n"


def plain_words(tokens: int, random: np.random.Generator) -> str:
    """About so many tokens of plain words (nearly all of them are one token with their blank)."""
    return " ".join(_WORDS[index] for index in random.integers(0, len(_WORDS), max(tokens, 1)))


def stretched(text: str, tokens: int, random: np.random.Generator, chars_per_token: float = CHARS_PER_TOKEN) -> str:
    """The text with notes put before it, or cut at its end, so that it has about `tokens` tokens."""
    wanted = max(1, round(tokens * chars_per_token))
    missing = wanted - len(text) - len(_BACKGROUND) - len(_TASK)
    if missing <= 0:
        return text[:wanted]
    # one word and its blank come to one token, whatever the characters per token of the set are
    return _BACKGROUND + plain_words(round(missing / chars_per_token), random) + _TASK + text


M = TypeVar("M", bound=BaseModel)
_REQUESTS = re.compile(r"\d+(?:\.\d+)?x?\Z")


class Scenario(BaseModel):
    """One scenario file. Options of the command line override it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$", description="Name in results.")
    description: str = Field(default="", description="One line for people.")
    prompts: str | None = Field(default=None, description="Prompt set (JSONL), relative to this file.")
    profile: str = Field(default="instruct-general", description="Sampling profile.")
    output_tokens: Lengths = Field(description="Output length per request, drawn from the seed.")
    input_tokens: Lengths | None = Field(default=None, description="Stretch prompts to this length in tokens.")
    requests: str = Field(default="4x", description="Requests per load point: N, or Nx times the concurrency.")
    min_requests: int = Field(default=16, ge=1, description="At least so many requests with Nx.")
    think_time_s: float = Field(default=0.0, ge=0, le=3600, description="Pause between the turns of a session.")
    replay: Literal["recorded", "live"] = Field(
        default="recorded", description="recorded: replay the recorded answers; live: feed the server's own back."
    )
    seed: int = Field(default=0, ge=0, description="Seed of this scenario's draws.")

    @field_validator("requests", mode="before")
    @classmethod
    def _request_count(cls, value: Any) -> str:
        text = str(value)
        if not _REQUESTS.match(text) or float(text.rstrip("x")) <= 0 or ("x" not in text and "." in text):
            raise ValueError("give N or Nx, e.g. 200 or 4x")
        return text

    @field_validator("profile")
    @classmethod
    def _known_profile(cls, value: str) -> str:
        if value not in REQUEST_PROFILES:
            raise ValueError(f"unknown profile; one of {', '.join(REQUEST_PROFILES)}")
        return value

    def request_count(self, concurrency: int) -> int:
        if self.requests.endswith("x"):
            return max(self.min_requests, round(float(self.requests[:-1]) * concurrency))
        return int(self.requests)


@dataclass(frozen=True)
class ScenarioFile:
    """A scenario with where it came from: text and hash go into run.json."""

    scenario: Scenario
    path: Path | None
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def prompts_path(self) -> Path | None:
        """The prompt set's file, or None for synthetic prompts."""
        if self.scenario.prompts is None:
            return None
        given = Path(self.scenario.prompts)
        return given if given.is_absolute() or self.path is None else self.path.parent / given


def scenario_folder() -> Path:
    """The scenarios that come with qwenbench: in a checkout the top-level folder, in a wheel inside the package."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "scenarios"
    return shipped if shipped.is_dir() else package.parents[1] / "scenarios"


def shipped_scenarios() -> list[str]:
    """Names of the scenarios that come with qwenbench."""
    return names_in(scenario_folder())


def load_scenario(name_or_path: str) -> ScenarioFile:
    """A scenario by its name in scenarios/ or by its path.

    Raises UsageError: unknown name (with the near miss), unreadable file, malformed YAML (file, line, field).
    """
    given = Path(name_or_path)
    if given.suffix == ".jsonl":
        return _of_prompt_set(given)
    path = named_file(
        name_or_path, scenario_folder(), "--scenario", others=("synthetic",),
        otherwise="the path of a .yaml scenario or a .jsonl prompt set",
    )  # fmt: skip
    text = read_yaml_text(path, "scenario")
    return ScenarioFile(parse_yaml_model(Scenario, text, f"scenario {path}"), path, text)


def _of_prompt_set(path: Path) -> ScenarioFile:
    """A prompt set by itself: answers as long as in chat, everything else a scenario's default."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:40] or "prompts"
    lengths = Lengths(median=120, sigma=0.7, min=16, max=512)
    scenario = Scenario(name=name, prompts=str(path.absolute()), output_tokens=lengths)
    return ScenarioFile(scenario, None, scenario.model_dump_json(exclude={"prompts"}))


def synthetic_scenario(input_tokens: Lengths, output_tokens: Lengths) -> ScenarioFile:
    """Prompts made of plain words, of given lengths."""
    scenario = Scenario(name="synthetic", input_tokens=input_tokens, output_tokens=output_tokens)
    return ScenarioFile(scenario, None, scenario.model_dump_json())
