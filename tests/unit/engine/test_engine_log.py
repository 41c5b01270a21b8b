"""server.log: everything as printed, by whole lines, without secrets however the reads cut them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenbench.engine.launch_record import LaunchRecord, read_launch_record, write_launch_record
from qwenbench.engine.log_lines import LogReader, LogSink, tail
from qwenbench.masking import Masker

SECRET = "planted-secret-0123456789"
FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@FIXTURES
@given(chunks=st.lists(st.binary(max_size=40), max_size=12))
def test_every_byte_arrives(tmp_path: Path, chunks: list[bytes]) -> None:
    path = tmp_path / "server.log"
    sink = LogSink(path, lambda text: text)
    for chunk in chunks:
        sink.feed(chunk)
    sink.close()
    assert path.read_bytes() == b"".join(chunks)


@FIXTURES
@given(cuts=st.sets(st.integers(1, 90)))
def test_a_secret_is_masked_wherever_the_reads_cut_it(tmp_path: Path, cuts: set[int]) -> None:
    text = f"loading\r 50%\rtoken={SECRET} \u00e4\xff\nhf_{'a' * 30} done".encode()
    path = tmp_path / "server.log"
    sink = LogSink(path, Masker([SECRET]))
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    for start, end in itertools.pairwise(edges):
        sink.feed(text[start:end])
    sink.close()
    assert path.read_bytes().decode() == "loading\r 50%\rtoken=*** \u00e4\xff\n*** done"


def test_lines_are_there_as_soon_as_they_end(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    sink = LogSink(path, lambda text: text)
    reader = LogReader(path)
    sink.feed(b"one\ntw")
    assert reader.new_lines() == ["one"]
    sink.feed(b"o\rthree")
    assert reader.new_lines() == ["two"]
    sink.close()
    assert path.read_bytes() == b"one\ntwo\rthree"
    assert tail(path, 2) == ["two", "three"]


def test_a_new_launch_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("of the launch before\n")
    LogSink(path, lambda text: text).close()
    assert path.read_text() == ""
    assert tail(tmp_path / "none.log") == []


def test_a_launch_record_is_read_back_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    record = LaunchRecord(
        launcher="process",
        argv=("vllm", f"--download=https://me:{SECRET}@host/x"),
        shown_argv=("vllm",),
        env_names=("HF_TOKEN",),
        env={"A": SECRET},
        pid=7,
    )
    write_launch_record(tmp_path, record)
    text = (tmp_path / "launch.json").read_text()
    assert SECRET not in text
    assert re.search(r"https://\*\*\*@host/x", text)
    found = read_launch_record(tmp_path / "launch.json")
    assert (found.pid, found.env_names, found.env) == (7, ("HF_TOKEN",), {"A": "***"})


def test_a_launch_record_of_a_newer_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "launch.json"
    path.write_text('{"launcher": "sim", "argv": ["x"], "shown_argv": ["x"], "env_names": [], "from_the_future": 1}')
    assert read_launch_record(path).launcher == "sim"
    path.write_text('{"argv": []}')
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_launch_record(path)
