"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwenbench.runfolder.files import read_json, remove_unfinished, replacing, write_bytes, write_json, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "points.csv"
    write_bytes(target, b"old")

    def write_half() -> None:
        with replacing(target) as file:
            file.write(b"half of the n")
            file.flush()
            assert target.read_bytes() == b"old"  # readers see the old one until the end
            raise RuntimeError("the table could not be made")

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_data_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the new name must not lead to an empty file: sync the data, rename, sync the folder."""
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append("sync")
        sync(handle)

    def replace(self: Path, to: Path) -> Path:
        done.append("rename")
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_bytes(tmp_path / "file", b"data")
    assert done == ["sync", "rename", "sync"]


def test_folders_are_made_and_json_is_read_back(tmp_path: Path) -> None:
    target = tmp_path / "servers" / "cap16-seq16" / "launch.json"
    write_json(target, {"argv": ["vllm", "serve"], "pid": None})
    assert read_json(target) == {"argv": ["vllm", "serve"], "pid": None}


def test_a_json_list_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run\.json: a JSON object was expected"):
        read_json(tmp_path / "run.json")


def test_a_table_keeps_its_nulls(tmp_path: Path) -> None:
    table = pa.table({"ttft_ms": pa.array([1.5, None], pa.float64())})
    write_table(tmp_path / "requests" / "cell.parquet", table)
    assert pq.read_table(tmp_path / "requests" / "cell.parquet").equals(table)


def test_what_a_killed_writer_left_beside_its_files_is_removed(tmp_path: Path) -> None:
    (tmp_path / "requests").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input('qwenbench')"], stdin=subprocess.PIPE) as report:
        left = [tmp_path / "requests" / f".cell.parquet.{pid}.tmp" for pid in (1, os.getpid(), 4194305)]
        kept = [
            tmp_path / "requests" / name for name in ("cell.parquet", ".notes.tmp", f".report.html.{report.pid}.tmp")
        ]
        for file in (*left, *kept):
            file.write_bytes(b"x")
        assert remove_unfinished(tmp_path) == len(left)
        report.kill()
    assert sorted((tmp_path / "requests").iterdir()) == sorted(kept)
