"""Importing datasets: formats, encodings, limits and what is written when something is wrong."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.workload.importing import dataset_files as hub
from qwenbench.workload.importing.dataset_files import MAX_ROW_BYTES, read_rows
from qwenbench.workload.importing.importer import (
    Source,
    Tally,
    TokenCounter,
    draw,
    estimated,
    from_tokenizer_file,
    prompts_of,
    write_prompts,
)
from qwenbench.workload.importing.row_formats import FORMATS, language_code
from qwenbench.workload.prompts import Prompt, PromptTurn, load_prompt_set

DATA = Path(__file__).resolve().parents[2] / "data" / "quality"

ROWS: dict[str, list[dict[str, Any]]] = {
    "ultrachat": [
        {"prompt": "Hi", "prompt_id": "1", "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."},
        ]},
    ],
    "gsm8k": [{"question": "How many?", "answer": "3 * 400 = 1,200\n#### 1,200"}],
    "code-alpaca": [
        {"instruction": "Sort this.", "input": "[3, 1]", "output": "[1, 3]"},
        {"instruction": "Say hello in C.", "input": "", "output": "puts(\"hello\");"},
    ],
    "aya": [{"inputs": "¿Qué hora es?", "targets": "Las tres.", "language": "Spanish", "language_code": "spa"}],
}  # fmt: skip


def _prompts(path: Path, form: str | None = None, **options: Any) -> list[Prompt]:
    source = Source((path,), path.name, FORMATS[form] if form else None)
    return list(prompts_of(source, estimated(), options.get("max_tokens", 8192), options.get("tally", Tally())))


def _written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the form that the file's name asks for."""
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "parquet"])
@pytest.mark.parametrize("form", list(ROWS))
def test_import_reads_every_format_from_every_kind_of_file(tmp_path: Path, form: str, ending: str) -> None:
    prompts = _prompts(_written(tmp_path / f"rows.{ending}", ROWS[form]))
    assert len(prompts) == len(ROWS[form])
    assert prompts[0].tags == (form,)
    told_by_more = len(FORMATS[form].columns) > 1
    assert prompts[0].licence == (FORMATS[form].licence if told_by_more else None)
    assert prompts[0].source == f"rows.{ending} row 1"


def test_import_keeps_what_the_rows_say(tmp_path: Path) -> None:
    chat = _prompts(_written(tmp_path / "a.jsonl", ROWS["ultrachat"]))[0]
    assert chat.system == "Be brief."
    assert [(turn.user, turn.assistant) for turn in chat.turns] == [("Hello?", "Yes."), ("Why?", "Because.")]
    assert _prompts(_written(tmp_path / "b.jsonl", ROWS["gsm8k"]))[0].answer == "1200"
    code = _prompts(_written(tmp_path / "c.jsonl", ROWS["code-alpaca"]))
    assert [prompt.turns[0].user for prompt in code] == ["Sort this.\n\n[3, 1]", "Say hello in C."]
    assert _prompts(_written(tmp_path / "d.jsonl", ROWS["aya"]))[0].language == "es"


def test_import_real_rows_make_a_prompt_set_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for name, form, count in (("gsm8k_test_first100", "gsm8k", 100), ("humaneval_first40", "humaneval", 40)):
        source = Source((DATA / f"{name}.jsonl.gz",), name)
        written = write_prompts(prompts_of(source, estimated(), 8192, Tally()), out, overwrite=True)
        prompts = load_prompt_set(out).prompts
        assert written == len(prompts) == count
        assert {prompt.tags for prompt in prompts} == {(form,)}
        assert all(prompt.source and prompt.licence == "MIT" for prompt in prompts)
    with gzip.open(DATA / "humaneval_first40.jsonl.gz") as file:
        assert json.loads(file.readline())["prompt"].strip() in prompts[0].turns[0].user


def test_import_directory_reads_all_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    _written(folder / "b.parquet", ROWS["gsm8k"])
    _written(folder / "a.jsonl", ROWS["gsm8k"])
    _written(folder / "sub" / "c.json", ROWS["gsm8k"])
    (folder / "README.md").write_text("no data")
    prompts = _prompts(folder)
    assert [prompt.source for prompt in prompts] == ["set a.jsonl row 1", "set b.parquet row 1", "set c.json row 1"]
    assert len({prompt.id for prompt in prompts}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "q"}\n', r"row 1: columns question fit no format"),
        ("a.jsonl", b'{"question": "q", "answer": 3}\n', r"row 1: column 'answer' is int, not text"),
        ("a.jsonl", b'{"question": "caf\xe9"}\n', r"row 1: is not UTF-8 \(byte 0xe9"),
        ("a.jsonl", '{"question": "q"}'.encode("utf-16"), r"is UTF-16"),
        ("a.jsonl", b'{"question": \n', r"row 1: no valid JSON"),
        ("a.jsonl", b"[1]\n", r"row 1: a JSON object"),
        ("a.json", b'[{"question": "q", "answer": "a"}, {"question": }]', r"row 2: no valid JSON"),
        ("a.json", b'[{"question": "q", "answer": "a"} {}]', r"row 1: no valid JSON: a comma"),
        ("a.json", b'[{"question": "caf\xe9"}]', r"row 1: is not UTF-8"),
        ("a.json", b'"text"', r"a JSON array of objects"),
        ("a.json", b'[{"question": "q", "answer": "a"}', r"row 1: no valid JSON"),
        ("a.parquet", b"PAR1 this is none", r"no readable Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8bno gzip", r"cannot be read"),
        ("a.txt", b"text", r"its name must end in"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "assistant", "content": "x"}]}',
            r"messages.0: 'assistant' does not follow",
        ),
        ("a.jsonl", b'{"messages": "x"}', r"column 'messages' is no list"),
    ],
)
def test_import_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    out = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match=message) as caught:
        write_prompts(prompts_of(Source((path,), name), estimated(), 8192, Tally()), out)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == [name]


def test_import_leaves_out_rows_that_cannot_be_used_and_names_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [b'{"question": "q"}', b'{"question": "caf\xe9"}', b"[1]", b"nope", b'{"question": "q", "answer": 3}']
    good = b'{"question": "q", "answer": "a"}'
    path.write_bytes(b"\n".join([bad[0], good, *bad, b'{"question": "' + b"x" * MAX_ROW_BYTES + b'"}', bad[4], good]))
    tally = Tally()
    prompts = list(prompts_of(Source((path,), "a.jsonl"), estimated(), 8192, tally))
    assert [prompt.source for prompt in prompts] == ["a.jsonl row 2", "a.jsonl row 10"]
    counts = sorted((count, reason.split(":")[0]) for reason, (count, _) in tally.unusable.items())
    assert counts[-1] == (2, "column 'answer' is int, not text.")
    assert sum(count for count, _ in counts) == 8
    assert tally.unusable["column 'answer' is int, not text."][1] == f"{path}, row 7: column 'answer' is int, not text."


SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "More"}]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("form", "row", "kept"),
    [
        ("sharegpt", {"id": "x", "conversations": SHAREGPT}, {"users": ["Hi", "More"]}),
        ("sharegpt", {"conversations": [{"from": "system", "value": "Be kind"}, *SHAREGPT]}, {"system": "Be kind"}),
        (
            "lmsys",
            {"conversation_id": "1", "model": "m", "conversation": CHAT, "language": "Thai"},
            {"language": "th"},
        ),
        ("wildchat", {"conversation": [{**one, "toxic": False} for one in CHAT], "toxic": False}, {"users": ["Hi"]}),
        ("openai-batch", {"custom_id": "r", "method": "POST", "body": {"messages": CHAT[:1]}}, {"users": ["Hi"]}),
        ("openai-batch", {"custom_id": "r", "body": {"model": "m", "prompt": "Hi"}}, {"users": ["Hi"]}),
        ("vllm-custom", {"prompt": "Hi", "output_tokens": 7}, {"output_tokens": 7}),
        ("ultrachat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, {"users": ["Hi"]}),
        ("ultrachat", {"messages": [{"role": "developer", "content": "Be kind"}, *CHAT]}, {"system": "Be kind"}),
        ("sharegpt", {"id": "x", "items": SHAREGPT}, {"users": ["Hi", "More"]}),
        ("lmsys", {"question_id": "1", "conversation_a": CHAT, "conversation_b": CHAT}, {"users": ["Hi"]}),
        ("openai-batch", {"custom_id": "r", "params": {"system": "Be kind", "messages": CHAT}}, {"system": "Be kind"}),
        ("bfcl", {"id": "1", "question": [CHAT[:1], CHAT[:1]], "function": [{}]}, {"users": ["Hi"]}),
        ("mt-bench", {"question_id": 81, "turns": ["Hi", "More"]}, {"users": ["Hi"]}),
        ("mt-bench", {"session_id": "s", "turns": [{"text": "Hi"}]}, {"users": ["Hi"]}),
        ("openorca", {"system_prompt": "Be kind", "question": "Hi", "response": "Yo"}, {"system": "Be kind"}),
        ("prompt", {"text": "Hi"}, {"users": ["Hi"]}),
        ("prompt", {"prompt": CHAT[:1], "completion": CHAT[1:]}, {"users": ["Hi"]}),
    ],
)
def test_import_reads_data_as_people_have_it(
    tmp_path: Path, form: str, row: dict[str, Any], kept: dict[str, Any]
) -> None:
    tally = Tally()
    (prompt,) = _prompts(_written(tmp_path / "a.json", [row]), tally=tally)
    assert tally.formats == {form}
    found = {"users": [turn.user for turn in prompt.turns], "system": prompt.system, "language": prompt.language}
    assert {**found, "output_tokens": prompt.output_tokens}.items() >= kept.items()
    write_prompts([prompt], tmp_path / "set.jsonl")
    assert load_prompt_set(tmp_path / "set.jsonl").prompts, "what is imported can be sent"


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [CHAT[0], CALL, {"role": "tool", "content": "18C"}]}, "has tool calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
        ({"messages": CHAT[::-1]}, "'assistant' does not follow"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be text"),
        ({"other": 1}, "is missing"),
        ({"messages": [CHAT[0], {"from": "function_call", "value": "{}"}]}, "has tool calls"),
        ({"custom_id": "r", "url": "/v1/embeddings", "body": {"input": "Hi"}}, "/v1/embeddings gives no text"),
    ],
)
def test_import_names_what_it_leaves_out(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    tally = Tally()
    rows = [{"messages": CHAT}, row, {"messages": CHAT}]
    assert len(_prompts(_written(tmp_path / "a.jsonl", rows), tally=tally)) == 2
    ((told, (count, first)),) = tally.unusable.items()
    assert count == 1
    assert reason in told
    assert "a.jsonl, row 2: " in first


def test_import_reads_rows_of_several_formats_in_one_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "b", "output_tokens": 7},
        {"messages": [{"role": "User", "content": "c"}]},
    ]
    tally = Tally()
    prompts = _prompts(_written(tmp_path / "a.jsonl", [*rows, {"id": "x"}]), tally=tally)
    assert [(one.turns[0].user, one.output_tokens) for one in prompts] == [("a", None), ("b", 7), ("c", None)]
    assert list(tally.unusable) == ["column 'messages' is missing (UltraChat has it; this row has id)."]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_import_refuses_a_line_of_200_mb_without_reading_it_whole(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    with path.open("wb") as file:
        file.write(b"[" if ending == "json" else b"")
        file.write(b'{"question": "q", "answer": "a"}' + (b",\n" if ending == "json" else b"\n") + b'{"question": "')
        file.seek(200 * 1024 * 1024, 1)  # a sparse file: nothing of it is on disk
        file.write(b'"}\n')
    with pytest.raises(UsageError, match=r"row 2: longer than 16 MiB"):
        list(read_rows(path))
    path.unlink()


def test_import_reads_a_json_array_in_pieces(tmp_path: Path) -> None:
    rows = [{"question": f"{number} é" * 50, "answer": '[{,"}]' * 20} for number in range(8000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 2 << 20
    assert [row.values for row in read_rows(path)] == rows


@given(st.lists(st.dictionaries(st.text(max_size=8), st.text(max_size=40) | st.integers() | st.none(), max_size=4)))
def test_import_json_array_reader_agrees_with_the_library(rows: list[dict[str, Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        assert [row.values for row in read_rows(path)] == rows


def test_import_limit_of_a_row_is_not_reached_by_prompts() -> None:
    assert MAX_ROW_BYTES >= 4 * 1024 * 1024


def test_import_leaves_out_what_is_too_long_or_empty(tmp_path: Path) -> None:
    rows = [
        {"question": "short", "answer": "a"},
        {"question": "", "answer": "a"},
        {"question": "word " * 500, "answer": "a"},
    ]
    tally = Tally()
    prompts = _prompts(_written(tmp_path / "a.jsonl", rows), max_tokens=300, tally=tally)
    assert [prompt.turns[0].user for prompt in prompts] == ["short"]
    assert (tally.read, tally.without_text, tally.too_long) == (3, 1, 1)


def test_import_never_replaces_a_file_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_prompts(iter([]), out)
    with pytest.raises(UsageError, match="nothing to write"):
        write_prompts(iter([]), out, overwrite=True)
    assert out.read_text() == "mine"


def _numbered(count: int) -> list[Prompt]:
    return [Prompt(id=str(number), turns=(PromptTurn(user="x"),)) for number in range(count)]


def test_mix_draws_by_seed_from_the_whole_file() -> None:
    first = [prompt.id for prompt in draw(iter(_numbered(5000)), 256, 1, "aya")]
    assert first == [prompt.id for prompt in draw(iter(_numbered(5000)), 256, 1, "aya")]
    assert first != [prompt.id for prompt in draw(iter(_numbered(5000)), 256, 2, "aya")]
    assert len(set(first)) == 256
    assert 2200 < sum(map(int, first)) / 256 < 2800


def test_mix_says_when_a_dataset_is_too_small() -> None:
    with pytest.raises(UsageError, match=r"gsm8k: only 10 usable rows, 256 are wanted"):
        draw(iter(_numbered(10)), 256, 1, "gsm8k")


@pytest.mark.parametrize(
    ("name", "code"),
    [("English", "en"), ("Standard Arabic", "ar"), ("Simplified Chinese", "zh"), ("spa", "es"), ("pt-BR", "pt"),
     ("Moroccan Arabic", "ar"), ("Cantonese", "yue"), ("Klingon", "und"), ("", "und")],
)  # fmt: skip
def test_import_language_names(name: str, code: str) -> None:
    assert language_code(name) == code


def test_token_count_asks_no_tokenizer_about_short_prompts() -> None:
    asked: list[str] = []
    counter = TokenCounter(lambda text: asked.append(text) or 10**9, "test")  # type: ignore[func-returns-value]  # a recording stub
    prompt = Prompt(id="1", turns=(PromptTurn(user="x" * 100),))
    assert counter.within(prompt, 100)
    assert asked == []
    assert not counter.within(prompt, 99)
    assert len(asked) == 1


def test_token_count_says_that_a_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'qwenbench\[datasets\]'"):
        from_tokenizer_file(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        from_tokenizer_file(tmp_path / "nowhere")


class GatedRepoError(Exception):
    """Stands for huggingface_hub's error of that name."""


def _fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception | None = None) -> None:
    class HfApi:
        def dataset_info(self, dataset_id: str, revision: str | None = None) -> Any:
            if error:
                raise error
            names = ["README.md", "main/train-00000.parquet", "main/test-00000.parquet", "socratic/train-00000.parquet"]
            return SimpleNamespace(
                sha="0123456789abcdef",
                siblings=[SimpleNamespace(rfilename=name) for name in names],
                card_data=SimpleNamespace(license="mit"),
            )

    def download(dataset_id: str, name: str, repo_type: str, revision: str) -> str:
        return str(_written(tmp_path / name.replace("/", "-"), ROWS["gsm8k"]))

    module = ModuleType("huggingface_hub")
    module.HfApi = HfApi  # type: ignore[attr-defined]  # a stand-in for the optional package
    module.hf_hub_download = download  # type: ignore[attr-defined]  # the same
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_hub_fetches_the_split_once_and_records_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_hub(monkeypatch, tmp_path)
    dataset = hub.fetch_dataset("openai/gsm8k", folder="main", split="train")
    assert [file.name for file in dataset.files] == ["main-train-00000.parquet"]
    assert dataset.label == "openai/gsm8k@0123456789ab"
    assert dataset.licence == "mit"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("403 Client Error\nCannot access gated repo"), "is gated: accept its terms"),
        (ConnectionError("no route"), "cannot be reached: is there a network"),
        (RuntimeError("odd\nmore"), "RuntimeError: odd"),
    ],
)
def test_hub_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    _fake_hub(monkeypatch, tmp_path, error)
    with pytest.raises(UsageError, match=message) as caught:
        hub.fetch_dataset("owner/set")
    assert "\n" not in str(caught.value)


def test_hub_ids_are_told_from_paths(tmp_path: Path) -> None:
    assert hub.is_hub_id("openai/gsm8k")
    assert not hub.is_hub_id("data/rows.jsonl")
    assert not hub.is_hub_id(str(tmp_path))
    assert not hub.is_hub_id("rows.jsonl")


def test_import_csv_as_people_have_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('\ufeffprompt;output_tokens\n"two\nlines; here";12\nplain;\n', encoding="utf-8")
    assert [(one.turns[0].user, one.output_tokens) for one in _prompts(path)] == [
        ("two\nlines; here", 12),
        ("plain", None),
    ]
    talks = tmp_path / "talks.csv"
    cell = '"[{""role"": ""user"", ""content"": ""hey""}, {""role"": ""assistant"", ""content"": ""yo""}]"'
    talks.write_text(f"id,conversation\n1,{cell}\n")
    assert _prompts(talks)[0].turns == (PromptTurn(user="hey", assistant="yo"),)


@pytest.mark.parametrize(
    ("row", "turn"),
    [
        (
            {"instruction": "Sum up", "context": "A long text", "response": "short"},
            PromptTurn(user="Sum up\n\nA long text", assistant="short"),
        ),
        ({"custom_id": "1", "body": {"prompt": ["hello there"]}}, PromptTurn(user="hello there")),
        ({"custom_id": "1", "body": {"input": [{"role": "user", "content": "hey"}]}}, PromptTurn(user="hey")),
    ],
)
def test_import_rows_of_the_same_kind(tmp_path: Path, row: dict[str, Any], turn: PromptTurn) -> None:
    assert _prompts(_written(tmp_path / "rows.jsonl", [row]))[0].turns == (turn,)
