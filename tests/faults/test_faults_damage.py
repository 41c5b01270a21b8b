"""Damaged run folders: every kind of damage x every command that reads a run. A sentence each, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_runs import QUICK, free_port, qwenbench

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two configurations at two loads."""
    out = tmp_path_factory.mktemp("whole")
    arguments = ("--launcher", "sim", "--capture", "16,32", "--concurrency", "2,4", "--port", str(free_port()))
    ended = qwenbench("sweep", *arguments, *QUICK, "--out", str(out), "--run-id", "r")
    assert ended.status == 0, ended.err
    return out / "r"


def _cut(share: float) -> Damage:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def _middle(junk: bytes) -> Damage:
    def damage(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + junk + data[len(data) // 2 + len(junk) :])

    return damage


def _written(data: bytes) -> Damage:
    return lambda file: (file.write_bytes(data), None)[1]


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": _cut(0),
    "cut at half": _cut(0.5),
    "cut near its end": _cut(0.97),
    "zeros": _written(bytes(4096)),
    "junk in the middle": _middle(b"\x00\xff\xfe garbage \x80"),
    "html": _written(b"<html><body>502 Bad Gateway</body></html>"),
    "null": _written(b"null"),
    "a list": _written(b"[1]\n"),
    "an empty object": _written(b"{}\n"),
    "deep": _written(b"[" * 200_000),
    "a folder": _folder,
    "a pipe": _pipe,
}
FILES = (
    "run.json",
    "journal.jsonl",
    "points.csv",
    "points_summary.csv",
    "requests/*.parquet",
    "servers/*/launch.json",
    "servers/*/memory.json",
    "servers/*/prediction.json",
    "servers/*/server.log",
    "servers/*/samples/*.metrics.parquet",
    "servers/*/samples/*.nvml.parquet",
)
COMMANDS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "report": lambda run: ("report", str(run)),
    "recommend": lambda run: ("recommend", str(run), "--users", "4"),
    "compare": lambda run: ("compare", str(run), str(run)),
    "export": lambda run: ("export", str(run), "--format", "markdown", "--out", str(run.parent / "exported")),
    "card": lambda run: ("card", str(run)),
    "ledger": lambda run: ("ledger", str(run)),
    "resume": lambda run: ("sweep", "--resume", str(run)),
}


def _cases() -> list[object]:
    return [pytest.param(pattern, damage, id=f"{pattern} {damage}") for pattern in FILES for damage in DAMAGES]


@pytest.mark.parametrize(("pattern", "damage"), _cases())
def test_a_damaged_file_costs_only_what_stood_in_it(
    whole_run: Path, tmp_path: Path, pattern: str, damage: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", ("Damage", [pattern, damage]))
    for name, command in COMMANDS.items():
        run = tmp_path / name / "r"
        shutil.copytree(whole_run, run)
        file = sorted(run.glob(pattern))[0]
        DAMAGES[damage](file)
        ended = qwenbench(*command(run))  # a traceback would come out here
        assert ended.status in (0, 1, 2), (name, ended)
        if ended.status:
            assert len(ended.err.strip()) < 4000, (name, ended.err)
            assert "Traceback" not in ended.err, (name, ended.err)


def test_rows_that_points_csv_lacks_come_from_the_journal(whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    shutil.copytree(whole_run, run)
    rows = (run / "points.csv").read_text().splitlines(keepends=True)
    (run / "points.csv").write_text("".join(rows[:-1]))
    ended = qwenbench("export", str(run), "--format", "csv", "--out", str(tmp_path / "out"))
    assert ended.status == 0, ended.err
    assert "points.csv is damaged (lacks 1 of 4 rows): they are taken from the journal" in ended.err
    exported = next(file for file in (tmp_path / "out").iterdir() if file.name == "points.csv")
    assert len(exported.read_text().splitlines()) == len(rows)
    resumed = qwenbench("sweep", "--resume", str(run))
    assert resumed.status == 0, resumed.err
    assert (run / "points.csv").read_text() == "".join(rows)


def test_one_place_that_says_simulated_is_enough(whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    shutil.copytree(whole_run, run)
    meta = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**meta, "simulated": False, "notice": None}))
    ended = qwenbench("recommend", str(run))
    assert "SIMULATED" in ended.out, ended
