"""The `qwenbench` command: finds each command's module only when it is called, so that --help is fast."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qwenbench import __version__
from qwenbench.errors import RunError, UsageError, near_miss

if TYPE_CHECKING:
    import typer

COMMANDS: dict[str, str] = {
    "sweep": "Sweep vLLM configurations x load points: the main job.",
    "bench": "Load points against a server that runs already.",
    "tune": "The configuration to serve with, found in few launches.",
    "plan": "What a configuration will hold, before any launch.",
    "report": "(Re)build the HTML report of a run.",
    "recommend": "Which line to deploy for so many users and these limits.",
    "compare": "Two runs side by side; --gate for CI.",
    "releases": "The same campaign per vLLM version: which one changed what; --gate for CI.",
    "merge": "Runs of one plan, measured on several hosts, as one run.",
    "export": "A run's points, ledgers, figures or a Markdown summary as files.",
    "card": "One picture of a run to post, and results.json of the same.",
    "ledger": "Read a vLLM start-up log that is already there.",
    "prompts": "List, show and import prompt sets.",
    "deployment": "Show a deployment as a docker line or a compose file.",
    "simulate": "The stand-in server alone (SIMULATED).",
    "proxy": "The four Qwen3.5 profiles as virtual model names.",
    "doctor": "Docker, GPU, driver, image, port, cache: what is missing and what to do.",
}
"""Command -> the line that --help shows for it. Its module is qwenbench.cli.NAME, with a function `command`."""
_SHARED = {
    **dict.fromkeys(("report", "recommend", "compare", "merge", "export", "card"), "runs"),
    **dict.fromkeys(("simulate", "proxy", "doctor"), "servers"),
}
"""Commands that share a module: it has a function of the command's name."""

HELP = {"help_option_names": ["-h", "--help"]}
_FURTHER = {"ignore_unknown_options": True, "allow_extra_args": True}
_SETTINGS: dict[str, dict[str, Any]] = {"plan": _FURTHER, "simulate": {**_FURTHER, "help_option_names": []}}
"""Commands that read further arguments themselves, as they stand (flags of vLLM)."""
_VALUES_LEFT_OUT = {"--resume": ""}
"""Options that may stand without a value: --resume alone means the newest run."""

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def _top_help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "Usage: qwenbench COMMAND [OPTIONS]",
        "",
        "Throughput, latency and KV-cache benchmark for vLLM on one card.",
        "",
        "Commands:",
        *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        "`qwenbench COMMAND --help` (or -h) shows a command's options; `qwenbench --version` the version.",
        "`qwenbench --install-completion` teaches your shell to complete commands and options.",
        "Start here: qwenbench sweep --launcher sim --capture 16,32,64   (no GPU needed, SIMULATED)",
    ]
    return "\n".join(lines)


def _run(name: str, arguments: list[str]) -> int:
    """Runs one command with typer and returns its exit status."""
    arguments = _with_left_out_values(arguments)
    result = _app_of(name)(args=arguments, prog_name=f"qwenbench {name}", standalone_mode=False)
    return result if isinstance(result, int) else 0


def module_of(name: str) -> str:
    """The module of qwenbench.cli that holds a command."""
    return _SHARED.get(name, name)


def _loaded(name: str) -> tuple[ModuleType, Callable[..., Any] | None]:
    """A command's module, and its function unless it has subcommands (an `app` of its own)."""
    module = importlib.import_module(f"qwenbench.cli.{module_of(name)}")
    return module, getattr(module, name if name in _SHARED else "command", None)


def _app_of(name: str) -> typer.Typer:
    """A command as a typer app: its module's own where it has subcommands, else one made of its function."""
    import typer

    module, command = _loaded(name)
    if command is None:
        own: typer.Typer = module.app
        own.info.context_settings = HELP
        return own
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name=name, context_settings={**HELP, **_SETTINGS.get(name, {})})(command)
    return app


def _with_left_out_values(arguments: list[str], defaults: Mapping[str, str] = _VALUES_LEFT_OUT) -> list[str]:
    """Options that may stand without a value (`--resume` alone) get their default one."""
    given: list[str] = []
    for position, argument in enumerate(arguments):
        follows = arguments[position + 1] if position + 1 < len(arguments) else "--"
        given.append(
            f"{argument}={defaults[argument]}" if argument in defaults and follows.startswith("-") else argument
        )
    return given


def _complete(arguments: list[str]) -> int:
    """Shell completion, by typer: `--install-completion`, `--show-completion`, and what the shell asks then."""
    import typer

    app = typer.Typer(name="qwenbench", no_args_is_help=True, pretty_exceptions_enable=False)
    for name, told in COMMANDS.items():
        module, command = _loaded(name)
        if command is None:
            app.add_typer(module.app, name=name, help=told)
        else:
            app.command(name=name, help=told, context_settings=_SETTINGS.get(name))(command)
    app(args=arguments, prog_name="qwenbench", standalone_mode=False)
    return 0


_LONGEST_MESSAGE = 2000


def _one_line(text: str) -> str:
    """One line without secrets, in which a server's control characters are seen and not obeyed."""
    from qwenbench.masking import Masker
    from qwenbench.server_words import visible

    shown = visible(Masker.from_environment()(" ".join(text.split())))
    return shown if len(shown) <= _LONGEST_MESSAGE else f"{shown[:_LONGEST_MESSAGE]} ..."


class _OnceOnStderr(logging.Handler):
    """Warnings of the rooms, each a line, and the same one once a command."""

    def __init__(self, command: str) -> None:
        super().__init__(logging.WARNING)
        self._command = command
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"qwenbench {self._command}: {_one_line(record.getMessage())}"
        if line not in self._shown:
            self._shown.add(line)
            print(line, file=sys.stderr)


@contextmanager
def _warnings_on_stderr(command: str) -> Iterator[None]:
    handler, log = _OnceOnStderr(command), logging.getLogger("qwenbench")
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def dispatch(arguments: list[str]) -> int:
    """Runs `qwenbench` with these arguments; returns the exit status and prints errors as one line on stderr."""
    if "_QWENBENCH_COMPLETE" in os.environ or arguments[:1] in (["--install-completion"], ["--show-completion"]):
        return _complete(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_top_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"qwenbench {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        hint = near_miss(name, COMMANDS)
        print(f"qwenbench: no command {name!r}.{hint} `qwenbench --help` lists them.", file=sys.stderr)
        return EXIT_USAGE
    try:
        with _warnings_on_stderr(name):
            return _run(name, rest)
    except (UsageError, RunError) as error:
        print(f"qwenbench {name}: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        print(f"qwenbench {name}: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        # a file's trouble (no room, no right, a folder in its place) names the file; any other is a fault of ours
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = error.filename2 or error.filename or "the disk"
        print(f"qwenbench {name}: {_one_line(f'{where}: {error.strerror}')}.", file=sys.stderr)
        return EXIT_FAILED
    except MemoryError:
        print(f"qwenbench {name}: no memory is left (or `ulimit -v` allows no more).", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:
        usage = _typer_usage_message(error)
        if usage is None:
            raise
        print(f"qwenbench {name}: {_one_line(usage)} `qwenbench {name} --help` lists the options.", file=sys.stderr)
        return EXIT_USAGE


def _typer_usage_message(error: Exception) -> str | None:
    """The text of an error of typer's own parser (unknown option, bad number); None for any other."""
    format_message = getattr(error, "format_message", None)
    return str(format_message()) if callable(format_message) else None


def _open_closed_streams() -> None:
    """Whoever starts us with stdin, stdout or stderr closed would find sockets in their places."""
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            name = ("stdin", "stdout", "stderr")[number]
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - kept open for good


def main() -> None:
    _open_closed_streams()
    try:
        status = dispatch(sys.argv[1:])
        sys.stdout.flush()  # here and not at the interpreter's end, where a broken pipe could not be caught
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != errno.ENOSPC:
            raise
        # the reader (head, less) went away: nothing is wrong, and nothing more can be said; or there is no room
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0 if isinstance(error, BrokenPipeError) else EXIT_FAILED
    sys.exit(status)
