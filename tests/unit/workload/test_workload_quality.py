"""Broken-output checks: what they must catch, and what they must leave alone."""

from __future__ import annotations

import gzip
import json
import random
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_gibberish import PLANTED

from qwenbench.workload.quality import KINDS, cut_in_reasoning, judge

HERE = Path(__file__).resolve()
DATA = HERE.parents[2] / "data" / "quality"
PROMPTS = HERE.parents[3] / "scenarios" / "prompts"
DRAWN = 400
"""Gibberish drawn of each kind."""

Real = tuple[str, str, str]
"""Group, text, language."""


def _prompt_sets() -> Iterator[Real]:
    for path in sorted(PROMPTS.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            language = row.get("language", "en")
            for turn in row["turns"]:
                yield f"{path.stem} prompts", turn["user"], language
                if turn.get("assistant"):
                    yield f"{path.stem} answers", turn["assistant"], language


def _datasets() -> Iterator[Real]:
    for name, columns in (
        ("gsm8k_test_first100", ("question", "answer")),
        ("humaneval_first40", ("prompt", "canonical_solution", "test")),
    ):
        for line in gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).splitlines():
            row = json.loads(line)
            yield from ((name, row[column], "en") for column in columns)


def _source_code() -> Iterator[Real]:
    draw = random.Random(7)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 2000:
            length = draw.randint(200, 2000)
            start = draw.randrange(len(text) - length)
            yield "Python's library", text[start : start + length], "en"


def _tables() -> Iterator[Real]:
    draw = random.Random(8)
    words = "north south total revenue Q1 Q2 status ready failed median capture tokens price city name".split()
    for _ in range(100):
        columns = draw.sample(words, draw.randint(2, 6))
        rows = [[draw.choice([f"{draw.uniform(0, 900):.1f}", str(draw.randint(0, 99)), draw.choice(words)])
                 for _ in columns] for _ in range(draw.randint(3, 20))]  # fmt: skip
        markdown = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        markdown += ["| " + " | ".join(row) + " |" for row in rows]
        yield "Markdown tables", "Here is the table:\n\n" + "\n".join(markdown), "en"
        yield "CSV tables", "\n".join(",".join(row) for row in [columns, *rows]), "en"
        boxed = ["+" + "+".join("-" * 12 for _ in columns) + "+"]
        boxed += ["|" + "|".join(cell.ljust(12) for cell in row) + "|" for row in [columns, *rows]]
        yield "drawn tables", "\n".join([*boxed, boxed[0]]), "en"


def _real() -> list[Real]:
    return [*_prompt_sets(), *_datasets(), *_source_code(), *_tables()]


def test_quality_false_alarms_on_real_text(capsys: pytest.CaptureFixture[str]) -> None:
    texts = _real()
    seen = Counter(group for group, _, _ in texts)
    alarms = [(group, judge(text, language=language, finish_reason="stop"), text) for group, text, language in texts]
    alarms = [alarm for alarm in alarms if alarm[1]]
    per_group = Counter(group for group, _, _ in alarms)
    with capsys.disabled():
        print(f"\n{'real text':<24} {'texts':>6} {'false alarms':>13}")
        for group, count in seen.items():
            print(f"{group:<24} {count:>6} {per_group[group]:>13}")
        print(f"{'all':<24} {len(texts):>6} {len(alarms):>6} = {100 * len(alarms) / len(texts):.2f} %")
    assert len(texts) > 1000
    assert len(alarms) <= 0.005 * len(texts), [(group, kinds, text[:60]) for group, kinds, text in alarms]


def test_quality_catches_planted_gibberish(capsys: pytest.CaptureFixture[str]) -> None:
    real = [text for group, text, _ in [*_prompt_sets(), *_datasets()] if len(text) > 100 and "prompts" not in group]
    shares: dict[str, float] = {}
    for number, (kind, (draw_case, named)) in enumerate(PLANTED.items()):
        draw = random.Random(number)
        shares[kind] = sum(bool(named & set(judge(**draw_case(draw, real)))) for _ in range(DRAWN)) / DRAWN
    with capsys.disabled():
        print(f"\n{'planted gibberish':<24} {'caught':>8}   (of {DRAWN} each, by its own name)")
        for kind, share in shares.items():
            print(f"{kind:<24} {100 * share:>7.1f} %")
    assert {kind: share for kind, share in shares.items() if share < 0.99} == {}


@pytest.mark.parametrize(
    "text", ["42", "7", "Yes.", "Paris", "x = 3", "**B**", "…", "no", "🙂", "北京", "3.14159", "<5"]
)
def test_quality_leaves_short_answers_alone(text: str) -> None:
    assert judge(text, finish_reason="stop") == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [("!" * 64, "one_character"), ("\n" * 50, "one_character"), ("", "empty"), ("ok ok " * 40, "loop")],
)
def test_quality_names_what_it_finds(text: str, kind: str) -> None:
    assert judge(text, finish_reason="stop") == [kind]


def test_quality_lets_a_model_answer_in_english_but_not_in_letters_drawn_by_chance() -> None:
    english = "The capital of France is Paris, and it lies on the river Seine, where about two million people live."
    assert judge(english, language="zh", finish_reason="stop") == []
    assert judge(english, language="ar", finish_reason="stop") == []
    soup = "xqzt vkjw bfph zzqx wvkt qpxj mgzt vxkq hjwz ptqx kvbz wqjx fzkp tvxq jwzb kqpx"
    assert "wrong_script" in judge(soup, language="zh", finish_reason="stop")


def test_quality_tells_reasoning_cut_by_the_limit_from_reasoning_never_closed() -> None:
    thought = "The user wants to know how long a train takes, so I should set up the speeds first."
    assert judge("", thought, finish_reason="stop") == ["reasoning_unclosed"]
    assert judge("", thought, finish_reason="length") == []
    assert cut_in_reasoning(len(thought), 0, "length")
    assert not cut_in_reasoning(len(thought), 12, "length")
    assert not cut_in_reasoning(0, 0, "length")


def test_quality_judges_reasoning_too_but_in_any_language() -> None:
    assert judge("42", "wait, wait, " * 60, finish_reason="stop") == ["loop"]
    assert (
        judge("42", "先看题目：火车每小时行驶六十公里，三小时后到达，因此距离是一百八十公里。", finish_reason="stop")
        == []
    )


def test_quality_wrong_script_leaves_code_and_names_alone() -> None:
    code = "以下の関数を使ってください。\n```python\ndef total(values):\n    return sum(values) / len(values)\n```\n"
    assert judge(code, language="ja", finish_reason="stop") == []
    assert judge("The Japanese word is 食べる (taberu), which means to eat.", finish_reason="stop") == []
    assert judge("这是一个用中文写的回答，但是问题是用英语提出的，所以它是错的。", finish_reason="stop") == [
        "wrong_script"
    ]


def test_quality_a_tool_call_needs_no_text() -> None:
    assert judge("", "I should call the weather tool.", finish_reason="tool_calls") == []
    assert judge("", finish_reason="tool_calls") == []


@given(st.text(max_size=300), st.text(max_size=60), st.sampled_from(["en", "zh", "ja", "ar", "sr-Latn", "xx", ""]))
def test_quality_never_fails_on_any_text(text: str, reasoning: str, language: str) -> None:
    assert set(judge(text, reasoning, language, "stop")) <= set(KINDS)


def test_quality_knows_a_model_whose_cache_was_clipped() -> None:
    """SmolLM2-135M with keys and values through FP8 at a scale of 0.001 (tests/recipe/broken_cache.py)."""
    lines = (DATA / "clipped_cache.jsonl").read_text(encoding="utf-8").splitlines()
    found = [judge(json.loads(line), finish_reason="length") for line in lines]
    assert len(found) == 12
    assert found.count(["run_together"]) == 8  # the others have under 40 characters


def test_quality_leaves_long_words_alone() -> None:
    german = (
        "Die Donaudampfschifffahrtsgesellschaft fuhr mit Rechtsschutzversicherungen und Straßenbahnhaltestellen gut: "
        "wer am Morgen in die Stadt wollte, nahm das Schiff, und wer am Abend zurück wollte, nahm die Bahn."
    )
    assert judge(german, language="de") == []
