"""Why a server failed, told from what it printed and how it ended. Unknown text is shown, not guessed at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenbench.engine.failure_cases import (
    CAPTURED,
    CAPTURING,
    DOCKER_CASES,
    DYING,
    OOM_ADVICE,
    OUT_OF_MEMORY,
    READY,
    STOPPING,
    VLLM_CASES,
    Case,
)
from qwenbench.engine.log_sink import LogReader
from qwenbench.masking import Masker

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ACCESS = re.compile(r'"(?:GET|POST|HEAD) \S+ HTTP/')
_POST = re.compile(r'"POST /v1/\S+ HTTP/[\d.]+" 200')
_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)*(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+[\d-]+ [\d:]+ \[[^\]]*\]\s?)?")
_EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b(?:: .*)?$|^(?:\S+: )?error: .+"
    r"|^(?:Value|Assertion) error, .+",  # pydantic: the reason stands in the line after `1 validation error for ...`
    re.IGNORECASE,
)
_SECONDHAND = re.compile(
    r"EngineDeadError|See (?:root cause|stack trace|the stack trace)|Engine core initialization failed"
)
_NOISE = re.compile(r"nanobind:|leaked |resource_tracker|destroy_process_group|^\s*\^+\s*$|^\s*$")
_DOCKER = re.compile(
    r"docker: |Error response from daemon: |Cannot connect to the Docker daemon|error during connect: "
    r"|(?:Got )?permission denied while trying to connect to the|failed to connect to the docker API"
)
_LONGEST = 600
_LAST_LINES = 5
_KILLED = (-9, 137)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a server failed: failure.json."""

    kind: str
    """A class of failure, e.g. `oom_graph_capture`, `port_taken`, `unknown`."""
    evidence: str
    """The line of the log or the message that says so, as printed (secrets masked)."""
    advice: str
    """What to do about it; empty when the text is unknown: it is shown, not guessed at."""
    exit_code: int | None = None
    phase: str = "start"
    """`start`, `load` or `stop`."""

    def to_json(self) -> dict[str, Any]:
        """The object that failure.json holds."""
        return {
            "class": self.kind,
            "evidence": self.evidence,
            "advice": self.advice,
            "exit_code": self.exit_code,
            "phase": self.phase,
        }


class LaunchError(Exception):
    """A server did not start, or did not get ready."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.evidence}" + (f" ({failure.advice})" if failure.advice else ""))
        self.failure = failure


class DeathWatch:
    """Follows a growing log and knows when the engine has reported its own death."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._died = False
        self._stopping = False

    def died(self) -> bool:
        """Whether a fatal error of the engine was printed, other than in the course of an ordinary stop."""
        for line in self._reader.new_lines():
            if STOPPING.search(line):
                self._stopping = True
            elif not self._stopping and DYING.search(line):
                self._died = True
        return self._died


def explain(text: str, exit_code: int | None, *, oom_killed: bool = False, phase: str = "start") -> Failure:
    """Why a server failed.

    `text` is its whole output (or the message of the docker command line), `exit_code` negative for a signal
    or 128 + signal as containers say it, `oom_killed` what the host or Docker says. What the docker command line
    said comes before what vLLM said. Secrets are masked in the evidence.
    """
    lines = _meaningful(text)
    kind, evidence, advice = _explain(lines, exit_code, oom_killed)
    mask = Masker.from_environment()
    return Failure(kind, mask(evidence)[:_LONGEST], advice, exit_code, phase)


def _explain(lines: list[str], exit_code: int | None, oom_killed: bool) -> tuple[str, str, str]:
    if any(_DOCKER.match(line) for line in lines) and (case := _first(DOCKER_CASES, lines)):
        return case
    before_stop = _before_stop(lines)
    if memory := _out_of_memory(before_stop):
        return memory
    if case := _first((*VLLM_CASES, *DOCKER_CASES), before_stop):
        return case
    if oom_killed:
        return (
            "oom_killed",
            f"killed by the host for lack of memory (exit code {exit_code})",
            "The host ran out of main memory: give the server more (Docker Desktop and WSL limit it), "
            "or end what else needs it.",
        )
    if any(DYING.search(line) for line in before_stop):
        return "engine_died", _root_cause(before_stop), ""
    if exit_code in _KILLED:
        return "killed", _with_last_line("killed by signal 9", before_stop), ""
    if not lines:
        code = "unknown" if exit_code is None else exit_code
        return (
            "silent_exit",
            f"it ended without a word (exit code {code})",
            "Run the launch line by hand to see more; launch.json holds it.",
        )
    return "unknown", _root_cause(before_stop), ""


def port_taken(message: str) -> Failure:
    """A port that answers before the launch."""
    return Failure("port_taken", message, "Stop what runs there, or choose another port with --port.")


def never_healthy(timeout_s: float, seen: str, log_tail: Sequence[str]) -> Failure:
    """A server that still runs but was not ready in time; shows where it stood."""
    last = next((line for line in reversed(_meaningful("\n".join(log_tail)))), "")
    evidence = f"not ready after {timeout_s:g} s ({seen})" + (f"; its last line: {_stripped(last)}" if last else "")
    advice = "See server.log for what it was doing; a first start downloads and compiles: raise --startup-timeout."
    return Failure("never_healthy", Masker.from_environment()(evidence)[:_LONGEST], advice)


def wrong_model(wanted: str, served: Sequence[str]) -> Failure:
    """A server that got ready but serves something else."""
    evidence = f"it serves {', '.join(served)}, not {wanted}"
    return Failure("wrong_model", evidence, "Set --served-model-name to what the command serves.")


def _meaningful(text: str) -> list[str]:
    lines = re.split(r"[\r\n]+", _ANSI.sub("", text))
    return [line.rstrip() for line in lines if _stripped(line) and not _NOISE.search(line) and not _is_access(line)]


def _is_access(line: str) -> bool:
    # requests that were answered tell apart an engine that never served from one that had
    return _ACCESS.search(line) is not None and _POST.search(line) is None


def _before_stop(lines: list[str]) -> list[str]:
    """What was printed before an ordinary stop began; everything when there was none, or a death before it."""
    for at, line in enumerate(lines):
        if STOPPING.search(line):
            return lines[:at] or lines
    return lines


def _first(cases: Sequence[Case], lines: list[str]) -> tuple[str, str, str] | None:
    text = "\n".join(lines)
    for case in cases:
        found = case.pattern.search(text)
        if found:
            return case.kind, _line_around(text, found.start()), case.advice
    return None


def _line_around(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return _stripped(text[start : end if end >= 0 else None])


def _out_of_memory(lines: list[str]) -> tuple[str, str, str] | None:
    at = next((i for i, line in enumerate(lines) if OUT_OF_MEMORY.search(line) and " INFO " not in line), None)
    if at is None:
        return None
    before = lines[:at]
    if any(READY.search(line) for line in before):
        answered = sum(1 for line in before if _POST.search(line))
        # the status line of a stream is printed when it begins: one of them may be the request that failed
        kind = "oom_load" if answered > 1 else "oom_first_request"
    elif any(CAPTURING.search(line) for line in before) and not any(CAPTURED.search(line) for line in before):
        kind = "oom_graph_capture"
    else:
        kind = "oom_start"
    return kind, _stripped(lines[at]), OOM_ADVICE[kind]


def _root_cause(lines: list[str]) -> str:
    """The last exception that is not merely a report of another one; else the last lines."""
    stripped = [_stripped(line) for line in lines]
    causes = [line for line in stripped if _EXCEPTION.match(line) and not _SECONDHAND.search(line)]
    dying = next((i for i, line in enumerate(stripped) if DYING.search(line)), None)
    if dying is not None:
        # the first exception told after the first fatal line is the cause, later ones pass it on
        after = [line for line in stripped[dying:] if _EXCEPTION.match(line) and not _SECONDHAND.search(line)]
        if after:
            return after[0]
    if causes:
        return causes[-1]
    return "\n".join(line for line in stripped[-_LAST_LINES:] if line)


def _with_last_line(said: str, lines: list[str]) -> str:
    return f"{said}; its last line: {_stripped(lines[-1])}" if lines else said


def _stripped(line: str) -> str:
    return _PREFIX.sub("", line, count=1).strip()
