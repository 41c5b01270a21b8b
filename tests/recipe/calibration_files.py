"""The four calibration sets as small files in their real formats, made from the project's own prompts.

    python calibration_files.py FOLDER      writes ultrachat.parquet, gsm8k.jsonl, code_alpaca.json and aya.parquet

UltraChat, CodeAlpaca and Aya cannot be fetched in a test; their files here have the columns of the published ones and
this project's rows. Where ../shared/data holds GSM8K's own rows, gsm8k.jsonl is made of those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ROOT / "scenarios" / "prompts"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_test_first256.jsonl"


def _rows(name: str) -> Iterator[dict[str, Any]]:
    for line in (PROMPTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def write(folder: Path) -> None:
    """Write the four files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    chats = []
    for number, row in enumerate(_rows("conversation")):
        messages = []
        for turn in row["turns"]:
            messages.append({"role": "user", "content": turn["user"]})
            if turn.get("assistant"):
                messages.append({"role": "assistant", "content": turn["assistant"]})
        chats.append({"prompt": row["turns"][0]["user"], "prompt_id": str(number), "messages": messages})
    pq.write_table(pa.Table.from_pylist(chats), folder / "ultrachat.parquet")

    if GSM8K.is_file():
        maths = GSM8K.read_text(encoding="utf-8")
    else:
        rows = [(row["turns"][0], row.get("answer")) for row in _rows("math")]
        maths = "".join(
            json.dumps({"question": turn["user"], "answer": f"{turn.get('assistant') or ''}\n#### {answer}"}) + "\n"
            for turn, answer in rows
        )
    (folder / "gsm8k.jsonl").write_text(maths, encoding="utf-8")

    code = [
        {"instruction": turn["user"], "input": "", "output": turn.get("assistant") or ""}
        for turn in (row["turns"][0] for row in _rows("code"))
    ]
    (folder / "code_alpaca.json").write_text(json.dumps(code, ensure_ascii=False, indent=1), encoding="utf-8")

    aya = [
        {
            "inputs": row["turns"][0]["user"],
            "targets": row["turns"][0].get("assistant") or "-",
            "language": row["language"],
            "language_code": row["language"],
        }
        for row in _rows("multilingual")
    ]
    pq.write_table(pa.Table.from_pylist(aya), folder / "aya.parquet")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: calibration_files.py FOLDER")
    write(Path(sys.argv[1]))
