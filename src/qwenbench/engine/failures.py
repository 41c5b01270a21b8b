"""Why a server failed, told from what it printed and how it ended. Unknown text is shown, not guessed at."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qwenbench.engine import failure_rules as rules
from qwenbench.engine.log_lines import Line, LogReader, Process, is_access_log, taken_apart
from qwenbench.masking import Masker

_POST = re.compile(r'"POST /v1/\S+ HTTP/[\d.]+" 200')
_EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|OutOfResources)\b(?:\([^)]*\))?(?:: .*)?$"
    r"|^(?:[A-Za-z_]\w*\.)+[A-Z]\w*(?:\([^)]*\))?: .+|^(?:\S+: )*error: .+"
    r"|^(?:Value|Assertion) error, .+|^Assertion failed, .+",  # pydantic: after `1 validation error for ...`
    re.IGNORECASE,
)
_WITHOUT_WORDS = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)\s*$")
"""An exception that says nothing: the code that raised it does (`assert param_data.shape == loaded_weight.shape`)."""
_NOISE = re.compile(
    r"nanobind:|leaked |resource_tracker|destroy_process_group|^\s*[\^~]+\s*$|^\s*$|^usage: "
    r"|exited with code|^\s*sys\.exit\(main\(\)\)"
)
_NO_ERROR = re.compile(
    r"^\[?[IW]\d{4} [\d:.]+ |(?:it/s|s/it)\]\s*$|\b(?:User|Future|Deprecation)Warning\b|warnings\.warn\("
)
"""Torch's own notes and warnings, Python's, progress bars: they have no level of vLLM's."""
_DOCKER = re.compile(
    r"docker: |Error response from daemon: |Cannot connect to the Docker daemon|error during connect: "
    r"|(?:Got )?permission denied while trying to connect to the|failed to connect to the docker API"
)
_TOLD_ELSEWHERE = ("unknown", "engine_died", "engine_died_silently")
_SAMPLER = re.compile(r"warming up sampler|_dummy_sampler_run")
_CAPTURING = re.compile(r"\bcapture_model\b|\bcapture_end\b|torch\.cuda\.graph\(")
_LONGEST = 600
_LAST_LINES = 5
_TO_END = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
_CORE_KILLED = re.compile(r"Failed core proc\(s\): \{[^}]*: -9\b")

Phase = Literal["start", "profiling", "graph_capture", "sampler_warm_up", "load", "stop"]
_MARKS: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    ("profiling", re.compile(r"Model loading took|Loading model weights took")),
    ("graph_capture", re.compile(r"Capturing CUDA graphs?|Profiling CUDA graph memory")),
    ("sampler_warm_up", re.compile(r"Graph capturing finished")),
    ("load", re.compile(r"Application startup complete")),
)
"""The line with which each phase of a start begins, in their order."""


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
    """How far it came: `start` (to the weights), `profiling`, `graph_capture`, `sampler_warm_up`, `load`, `stop`."""

    def to_json(self) -> dict[str, Any]:
        return {"class": self.kind, **{name: value for name, value in asdict(self).items() if name != "kind"}}


def failure_of(told: Mapping[str, Any]) -> Failure:
    """The failure that `Failure.to_json` told."""
    return Failure(told["class"], told["evidence"], told["advice"], told["exit_code"], told["phase"])


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
            if not self._stopping and rules.DYING.search(line):
                self._died = True
            elif rules.STOPPING.search(line):
                self._stopping = True
        return self._died


def explain(
    text: str, exit_code: int | None, *, oom_killed: bool = False, phase: str = "start", log_path: Path | None = None
) -> Failure:
    """Why a server failed.

    `text` is its whole output (or the message of the docker command line), `exit_code` negative for a signal
    or 128 + signal as containers say it, `oom_killed` what the host or Docker says. What the docker command line
    said comes before what vLLM said. A failure in a `start` is placed by how far the log shows it to have come.
    Secrets are masked in the evidence; where no rule knows the text, the advice names `log_path`.
    """
    log = _Log(text)
    kind, evidence, advice = _explain(log, exit_code, oom_killed)
    if kind in _TOLD_ELSEWHERE and log_path is not None:
        ended = "" if exit_code is None else f"It ended with exit status {exit_code}. "
        advice = f"{advice} {ended}The whole log: {log_path}".strip()
    reached = log.phase if phase == "start" else phase
    return Failure(kind, Masker.from_environment()(evidence)[:_LONGEST], advice, exit_code, reached)


class _Log:
    """A log as its failure is looked for: lines taken apart, and what is no evidence left out."""

    def __init__(self, text: str) -> None:
        lines = [taken_apart(line) for line in re.split(r"[\r\n]+", text)]
        # up to where an ordinary stop began, if anything stands before it
        lines = lines[
            : next((at for at, line in enumerate(lines) if rules.STOPPING.search(line.text)), 0) or len(lines)
        ]
        self.phase = _phase_of(lines)
        self.answered = sum(1 for line in lines if _POST.search(line.text))
        """Requests that were answered."""
        self.lines = [line for line in lines if line.text.strip() and not _NOISE.search(line.text)]
        at_work = {line.process: number for number, line in enumerate(self.lines) if _is_progress(line)}
        frames = _frames_of(self.lines)
        self.frames = [self.lines[number].text for number in frames]
        self.evident = [
            (number, f"{line.text.strip()}: {self.lines[number - 1].text.strip()}" if bare else line.text)
            for number, line in enumerate(self.lines)
            if number not in frames and _may_be_evidence(line)
            for bare in [number - 1 in frames and _WITHOUT_WORDS.match(line.text)]
        ]
        """What could say why it failed, with its place."""
        self.final = [
            (number, text) for number, text in self.evident if number > at_work.get(self.lines[number].process, -1)
        ]
        """Of it the errors after which their process went no further: they were not handled."""

    def known(self) -> tuple[str, str, str] | None:
        """The first cause that a rule knows: of the final errors; of earlier ones when no final one tells a cause."""
        told = any(_is_cause(text) for _, text in self.final)
        for found in (self.final,) if told else (self.final, self.evident):
            case = (
                _first("causes", found) or self._out_of_memory(found) or _first("consequences", found)
                or _first("docker", found)
            )  # fmt: skip
            if case is not None:
                return case
        return None

    def _out_of_memory(self, found: Sequence[tuple[int, str]]) -> tuple[str, str, str] | None:
        at = next((place for place, (_, text) in enumerate(found) if rules.OUT_OF_MEMORY.search(text)), None)
        if at is None:
            return None
        text = found[at][1]
        kind = self._memory_kind([line for _, line in found[at:]])
        advice = rules.advice_on(kind)
        if "CUDA driver error" in text or "AcceleratorError" in text or any("WSL" in line.text for line in self.lines):
            advice += " " + rules.advice_on("oom_wsl")
        if others := rules.OTHERS_MEMORY.search(text):
            advice += f" Another process on the card holds {others['size']}."
        return kind, text.strip(), advice

    def _memory_kind(self, said: Sequence[str]) -> str:
        """By what it was about: as its own words and the traceback say, else as far as the log had come."""
        if any(_SAMPLER.search(text) for text in (*said, *self.frames)):
            return "oom_sampler_warm_up"
        if self.phase == "load":
            # the status line of a stream is printed when it begins: one of them may be the request that failed
            return "oom_load" if self.answered > 1 else "oom_first_request"
        if self.phase == "sampler_warm_up":
            return "oom_warm_up"
        if self.phase == "graph_capture" or any(_CAPTURING.search(text) for text in self.frames):
            return "oom_graph_capture"
        return "oom_profiling" if self.phase == "profiling" else "oom_start"

    @property
    def died(self) -> str | None:
        """vLLM's words for the death of its engine; None when it did not report any."""
        return next((line.text.strip() for line in self.lines if rules.DYING.search(line.text)), None)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, or who sent that signal, ended its first process: its last error says so."""
        return bool(self.evident) and self.evident[-1][1].strip() == "KeyboardInterrupt"

    def innermost_error(self) -> str | None:
        """The exception that the others pass on: the first after the engine reported its death, else the first that
        was not handled, else the last that was printed; None when there is none that is told first hand."""
        dying = next((number for number, line in enumerate(self.lines) if rules.DYING.search(line.text)), None)
        exceptions = [(number, text.strip()) for number, text in self.evident if _is_cause(text)]
        if dying is not None:
            after = next((text for number, text in exceptions if number > dying), None)
            if after is not None:
                return after
        unhandled = next((text.strip() for _, text in self.final if _is_cause(text)), None)
        if unhandled is not None or exceptions:
            return unhandled or exceptions[-1][1]
        reports = [text.strip() for _, text in self.final if _EXCEPTION.match(text.strip())]
        return reports[0] if reports and self.died is None else None


def _phase_of(lines: Sequence[Line]) -> Phase:
    reached: Phase = "start"
    order = [phase for phase, _ in _MARKS]
    for line in lines:
        for phase, mark in _MARKS:
            if (reached == "start" or order.index(phase) > order.index(reached)) and mark.search(line.text):
                reached = phase
    return reached


def _is_progress(line: Line) -> bool:
    """Whether a process was still at work: it went on after what it had printed before."""
    if line.level != "INFO" or is_access_log(line.text):
        return False
    return not rules.STOPPING.search(line.text) and "throughput:" not in line.text


def _may_be_evidence(line: Line) -> bool:
    """An INFO line, a warning, a request's or a route's line never says why something failed."""
    if line.level in ("INFO", "DEBUG", "WARNING") or _NO_ERROR.search(line.text):
        return False
    return not is_access_log(line.text) and " NCCL INFO " not in line.text


def _frames_of(lines: Sequence[Line]) -> set[int]:
    """Which lines are a traceback's head and frames: files and the code in them name errors that did not happen."""
    found: set[int] = set()
    inside: set[Process] = set()
    for number, line in enumerate(lines):
        text = line.text
        if text.startswith("Traceback (most recent") or (text.startswith(" ") and text.lstrip().startswith('File "')):
            inside.add(line.process)
            found.add(number)
        elif line.process in inside:
            if line.text.startswith("    "):
                found.add(number)
            else:
                inside.discard(line.process)
    return found


def _is_cause(text: str) -> bool:
    return _EXCEPTION.match(text.strip()) is not None and rules.SECONDHAND.search(text) is None


def _first(table: rules.Table, found: Sequence[tuple[int, str]]) -> tuple[str, str, str] | None:
    for rule in rules.rules(table):
        for _, text in found:
            if rule.pattern.search(text):
                return rule.kind, text.strip(), rule.advice
    return None


def _explain(log: _Log, exit_code: int | None, oom_killed: bool) -> tuple[str, str, str]:
    if any(_DOCKER.match(text) for _, text in log.evident) and (case := _first("docker", log.evident)):
        return case
    if case := log.known():
        return case
    if oom_killed:
        return (
            "oom_killed",
            f"killed by the host for lack of memory (exit code {exit_code})",
            "The host ran out of main memory: give the server more (Docker Desktop and WSL limit it), "
            "or end what else needs it.",
        )
    cause, name = log.innermost_error(), _signal_name(exit_code)
    if log.died is not None and cause is not None:
        return "engine_died", cause, ""
    if log.died is not None:
        if any(_CORE_KILLED.search(line.text) for line in log.lines):
            return "killed", log.died, rules.advice_on("killed")
        return "engine_died_silently", log.died, rules.advice_on("silent")
    if log.interrupted or (cause is None and name in _TO_END):
        return (
            "terminated",
            _with_last_line(f"told to end by {name if name in _TO_END else 'SIGINT'}", log),
            rules.advice_on("terminated"),
        )
    if name == "SIGKILL":
        return "killed", _with_last_line("killed by signal 9", log), rules.advice_on("killed")
    if cause is not None:
        return "unknown", cause, ""
    if name in _CRASHES:
        return "crashed", _with_last_line(f"ended by {name}", log), rules.advice_on("silent")
    if log.evident:
        return "unknown", "\n".join(text.strip() for _, text in log.evident[-_LAST_LINES:]), ""
    code = "unknown" if exit_code is None else exit_code
    return (
        "silent_exit",
        _with_last_line(f"it ended without an error (exit code {code})", log),
        "Run the launch line by hand to see more; launch.json holds it.",
    )


def _signal_name(exit_code: int | None) -> str | None:
    """SIGSEGV and the like, from a negative or shell-style exit code; None when no signal ended it."""
    if exit_code is None:
        return None
    number = -exit_code if exit_code < 0 else exit_code - 128
    return next((known.name for known in signal.Signals if known.value == number), None)


def _with_last_line(said: str, log: _Log) -> str:
    last = next((line.text.strip() for line in reversed(log.lines) if not line.text.startswith("Traceback (")), None)
    return said if last is None else f"{said}; its last line: {last}"


def port_taken(port: int, by: int | None = None) -> Failure:
    """Somebody else listens where the server should; `by` is his process, where it is known."""
    who = "" if by is None else f" It belongs to pid {by}."
    said = f"Port {port} answers already, before anything was launched.{who}"
    return Failure("port_taken", said, "Stop what runs there, or choose another port with --port.")


def never_healthy(timeout_s: float, seen: str, log_tail: Sequence[str]) -> Failure:
    """A server that still runs but was not ready in time; shows where it stood."""
    log = _Log("\n".join(log_tail))
    evidence = _with_last_line(f"not ready after {timeout_s:g} s ({seen})", log)
    advice = "See server.log for what it was doing; a first start downloads and compiles: raise --startup-timeout."
    return Failure("never_healthy", Masker.from_environment()(evidence)[:_LONGEST], advice, phase=log.phase)


def no_answer(limit_s: float, when: str) -> Failure:
    """A server that is there and gave nothing whole for so long."""
    evidence = f"no whole answer to a request for tokens within {limit_s:.3g} s, {when}"
    advice = "It hangs or is too slow for the limit: raise --timeout (before the load also --startup-timeout)."
    return Failure("no_answer", evidence, advice, phase="load")


def wrong_model(wanted: str, served: Sequence[str]) -> Failure:
    """A server that got ready but serves something else."""
    evidence = f"it serves {', '.join(served)}, not {wanted}"
    return Failure("wrong_model", evidence, "Set --served-model-name to what the command serves.")
