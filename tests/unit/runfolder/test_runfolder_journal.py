"""The journal is the truth of a resumed sweep: what it holds is done, what it lacks is done again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.runfolder.journal import Entry, Journal


def entry(cell: str, value: float = 1.0) -> Entry:
    return Entry(cell, "cap16-seq16", 1, {"ttft_ms_p50": value, "kv_cache_gib": None}, 42)


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.entries() == []
    for cell in ("a", "b", "c"):
        journal.append(entry(cell))
    assert journal.entries() == [entry("a"), entry("b"), entry("c")]


def test_a_cell_that_was_done_again_counts_once_with_its_last_values(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for cell, value in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        journal.append(entry(cell, value))
    assert journal.entries() == [entry("b", 2.0), entry("a", 3.0)]


@given(cut=st.integers(min_value=0))
def test_a_torn_last_line_is_ignored_and_overwritten(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    journal = Journal(path)
    journal.append(entry("a"))
    whole = path.stat().st_size
    journal.append(entry("b"))
    data = path.read_bytes()
    path.write_bytes(data[: whole + cut % (len(data) - whole)])  # any power cut in the middle of b's line
    assert journal.entries() == [entry("a")]
    journal.append(entry("c"))
    assert journal.entries() == [entry("a"), entry("c")]
    assert path.read_bytes().count(b"\n") == 2


def test_numpy_values_are_written_as_numbers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Entry("a", "x", 1, {"n": np.int64(3), "x": np.float64(0.5)}, 1))
    assert journal.entries()[0].point == {"n": 3, "x": 0.5}


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"cell": "b"}', b'{"cell":"b","wrong":1}'])
def test_a_line_that_is_no_entry_is_told_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(entry("a"))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UsageError, match=r"journal\.jsonl, line 2: "):
        journal.entries()


def test_a_line_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    synced: list[bytes] = []

    def sync(handle: int) -> None:
        if os.fstat(handle).st_ino == path.stat().st_ino:  # the folder is synced too
            synced.append(path.read_bytes())

    monkeypatch.setattr("os.fsync", sync)
    Journal(path).append(entry("a"))
    assert synced[-1].endswith(b"\n"), "the whole line was there when it was synced"
    assert b'"a"' in synced[-1]
