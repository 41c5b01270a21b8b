"""`qwenbench prompts import` as a process: the mix end to end, and 100,000 rows in little memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwenbench.workload.prompts import load_prompt_set

# VmHWM is this program's own peak; ru_maxrss would begin with that of the pytest process it was forked from
_MEASURED = """
import re, sys
from pathlib import Path
from qwenbench.cli.main import dispatch
status = dispatch(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(status)
"""


def _import(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MEASURED, "prompts", "import", *arguments], capture_output=True, text=True, check=False
    )


def _peak_mb(done: subprocess.CompletedProcess[str]) -> float:
    return int(done.stderr.rsplit("peak ", 1)[1]) / 1024


def test_import_parquet_row_group_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    draw = random.Random(1)
    texts = [draw.randbytes(1000).hex() for _ in range(60_000)]
    table = pa.table({"question": texts, "answer": ["#### 7"] * len(texts)})
    pq.write_table(table, path, row_group_size=len(texts), use_dictionary=False, compression="none")
    assert path.stat().st_size > 110_000_000
    done = _import(str(path), "--out", str(tmp_path / "out.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == len(texts)
    assert _peak_mb(done) < 300


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_import_100_000_rows_streams_in_under_300_mb(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    with path.open("w") as file:
        for number in range(100_000):
            row = {"question": f"{number} " + "How many apples are left? " * 20, "answer": "They ate some. #### 7"}
            before = "[" if number == 0 else ","
            file.write((before if ending == "json" else "") + json.dumps(row) + "\n")
        file.write("]" if ending == "json" else "")
    assert path.stat().st_size > 50_000_000
    done = _import(str(path), "--out", str(tmp_path / "out.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 100_000
    assert _peak_mb(done) < 300


def test_import_mix_draws_of_each_and_marks_every_row(tmp_path: Path) -> None:
    rows = {
        "ultrachat": {"messages": [{"role": "user", "content": "q{n}"}, {"role": "assistant", "content": "a"}]},
        "gsm8k": {"question": "q{n}", "answer": "#### 1"},
        "code-alpaca": {"instruction": "q{n}", "input": "", "output": "a"},
        "aya": {"inputs": "q{n}", "targets": "a", "language": "Thai"},
    }
    sources = []
    for name, row in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row).replace("{n}", str(number)) + "\n" for number in range(300)))
        sources.append(f"{name}={path}")
    outs = []
    for number in range(2):
        out = tmp_path / f"mix{number}.jsonl"
        done = _import("--mix", "seed", *sources, "--seed", "5", "--out", str(out))
        assert done.returncode == 0, done.stderr
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]
    prompts = load_prompt_set(tmp_path / "mix0.jsonl").prompts
    assert len(prompts) == 1024
    for name in rows:
        assert sum(prompt.tags == (name,) for prompt in prompts) == 256
    assert all(prompt.licence and prompt.source for prompt in prompts)


def test_import_without_a_usable_row_exits_2_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "caf\xe9"}\n')
    done = _import(str(path), "--out", str(tmp_path / "out.jsonl"))
    assert done.returncode == 2
    assert done.stdout == ""
    first = done.stderr.splitlines()[0]
    assert first.startswith("qwenbench prompts: ")
    assert "row 1" in first
    assert not (tmp_path / "out.jsonl").exists()


def test_import_names_the_rows_that_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question": "q", "answer": "a"}\n{"question": "caf\xe9"}\n')
    done = _import(str(path), "--out", str(tmp_path / "out.jsonl"))
    assert done.returncode == 0
    assert f"1 x {path}, row 2: is not UTF-8" in done.stderr
