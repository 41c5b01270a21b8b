"""The `qwenbench` command itself: fast help, one line for what is wrong, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenbench import __version__
from qwenbench.cli import main
from qwenbench.errors import RunError, UsageError

HEAVY = ("pandas", "numpy", "plotly", "pyarrow", "aiohttp", "pydantic", "typer", "rich", "pynvml", "yaml")


def loaded_by(code: str) -> set[str]:
    """The heavy packages that are imported after this code ran in a new interpreter."""
    script = f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_and_version_import_nothing_heavy() -> None:
    """This, not a stop watch, keeps `qwenbench --help` fast."""
    assert loaded_by("from qwenbench.cli.main import dispatch; dispatch(['--help']); dispatch(['--version'])") == set()


def test_no_commands_help_imports_tables_or_figures() -> None:
    code = f"from qwenbench.cli.main import dispatch\nfor name in {[*main.COMMANDS]}: dispatch([name, '--help'])"
    assert not loaded_by(code) & {"pandas", "plotly", "pyarrow", "aiohttp", "pynvml"}


def test_a_client_process_and_a_simulated_server_start_with_what_they_need() -> None:
    """pandas would be 0.3 s and some 40 MB in every client, at the end of its first load point."""
    table = "worker._leave_pandas_out(); from qwenbench.load.records import to_table; to_table([])"
    assert loaded_by(f"from qwenbench.load import worker; {table}") == {"numpy", "pyarrow"}
    assert not loaded_by("import qwenbench.simulator.__main__") & {"pandas", "numpy", "pyarrow", "aiohttp"}


@pytest.mark.parametrize("name", [*main.COMMANDS])
def test_every_command_is_there_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (Path(main.__file__).with_name(f"{main.module_of(name)}.py")).exists()
    assert main.dispatch([name, "--help"]) == 0
    # `simulate` hands everything to the simulator, which has vLLM's flags
    assert f"qwenbench {name}" in capsys.readouterr().out.replace("qwenbench.simulator", "qwenbench simulate")


@pytest.mark.parametrize("name", [*main.COMMANDS])
def test_every_command_takes_h(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.dispatch([name, "-h"]) == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_a_shell_can_complete_commands_and_options(tmp_path: Path) -> None:
    def completed(words: str, at: int) -> list[str]:
        env = {**os.environ, "_QWENBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        done = subprocess.run([sys.executable, "-m", "qwenbench"], env=env, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert completed("qwenbench sw", 1) == ["sweep"]
    assert "--capture" in completed("qwenbench sweep --cap", 2)
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    # the shell is the nearest one that started it, which must not depend on who started the tests
    line = ["bash", "-c", '"$0" -m qwenbench --install-completion; exit $?', sys.executable]
    assert subprocess.run(line, env=env, capture_output=True, check=False).returncode == 0
    assert list(tmp_path.rglob("qwenbench.sh"))


def test_resume_alone_means_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--resume"], ["--resume", "--dry-run"]):
        assert main.dispatch(["sweep", *words]) == 2
        assert "--resume: no run in results yet" in capsys.readouterr().err


def test_the_top_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main.dispatch(arguments) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in main.COMMANDS)
    assert main.dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"qwenbench {__version__}\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("two\nlines"), 2),
        (RunError("two\nlines"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_run", fail)
    assert main.dispatch(["sweep"]) == status
    seen = capsys.readouterr()
    assert len(seen.err.splitlines()) == 1
    assert seen.err.startswith("qwenbench sweep: ")
    assert seen.out == ""


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, arguments: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(main, "_run", fail)
    with pytest.raises(ZeroDivisionError):
        main.dispatch(["sweep"])


@pytest.mark.parametrize("arguments", ["--help", "sweep --help", "prompts list"])
def test_a_reader_that_goes_away_is_no_error(arguments: str) -> None:
    """`qwenbench --help | head -1` ends without a traceback."""
    command = f"{sys.executable} -m qwenbench {arguments} | true; test ${{PIPESTATUS[0]}} -le 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_module_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "qwenbench", "swep"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean 'sweep'?" in done.stderr


def test_both_spellings_of_a_shorter_option_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for option in ("--capture", "--max-cudagraph-capture-size"):
        assert main.dispatch(["sweep", "--launcher", "sim", "--dry-run", option, "16,32", "--out", str(tmp_path)]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "cap16-seq16" in shown[0]


@pytest.mark.parametrize(
    ("streams", "status"), [(">&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 1), ("| head -c1", 0)], ids=repr
)
def test_output_that_cannot_be_written_is_no_traceback(streams: str, status: int) -> None:
    line = f"set -o pipefail; {sys.executable} -m qwenbench --help {streams}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (status, "")
