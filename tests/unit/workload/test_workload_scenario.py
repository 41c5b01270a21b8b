"""Scenario files: what is wrong is told with file, line and field; a near miss is suggested."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenbench.errors import UsageError
from qwenbench.workload.scenario import Lengths, Scenario, load_scenario, shipped_scenarios, synthetic_scenario

GOOD = "name: mine\nprompts: mine.jsonl\noutput_tokens: 64-256\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(UsageError) as caught:
        load_scenario(str(path))
    message = str(caught.value)
    assert message.startswith(f"scenario {path}")
    assert "\n" not in message
    return message


def test_a_file_is_read_and_its_prompts_lie_beside_it(tmp_path: Path) -> None:
    found = load_scenario(str(write(tmp_path, GOOD)))
    assert found.scenario.output_tokens == Lengths(min=64, max=256)
    assert found.prompts_path == tmp_path / "mine.jsonl"
    assert found.text == GOOD


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_are_good_and_named_as_their_files(name: str) -> None:
    found = load_scenario(name)
    assert found.scenario.name == name
    assert found.prompts_path is not None
    assert found.prompts_path.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("requests: 5\n  bad: 1", "line 5: no valid YAML"),
        ("requets: 5", "line 4, field requets: "),
        ("requests: 0", "line 4, field requests: "),
        ("requests: 2.5", "line 4, field requests: "),
        ("requests: lots", "line 4, field requests: "),
        ("profile: fast", "line 4, field profile: "),
        ("think_time_s: -1", "line 4, field think_time_s: "),
        ("input_tokens: {min: 5, max: 1}", "line 4, field input_tokens: "),
        ("input_tokens:\n  min: 5\n  max: x", "line 6, field input_tokens.max: "),
        ("replay: both", "line 4, field replay: "),
        ("seed: -3", "line 4, field seed: "),
    ],
)
def test_a_broken_field_is_told_with_its_line(tmp_path: Path, change: str, told: str) -> None:
    assert told in refused(tmp_path, f"{GOOD}{change}\n")


def test_a_key_given_twice_is_told_with_its_line(tmp_path: Path) -> None:
    assert "line 4: 'name' stands twice" in refused(
        tmp_path, "name: mine\nprompts: mine.jsonl\noutput_tokens: 8\nname: x\n"
    )


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    assert "field output_tokens: Field required" in refused(tmp_path, "name: mine\n")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "a mapping of fields was expected" in refused(tmp_path, text)


@pytest.mark.parametrize("name", ["../up", "a b", "", ".hidden", "x" * 50])
def test_a_name_that_no_file_could_have_is_refused(tmp_path: Path, name: str) -> None:
    assert "line 1, field name: " in refused(tmp_path, GOOD.replace("mine\n", f"{name!r}\n", 1))


def test_an_unknown_name_is_refused_with_the_near_miss() -> None:
    with pytest.raises(UsageError, match=r"--scenario 'conversatoin': unknown\. Did you mean 'conversation'\?"):
        load_scenario("conversatoin")
    with pytest.raises(UsageError, match=r"unknown\. Known: code, conversation, math, multilingual"):
        load_scenario("zzz")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_scenario(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="line 1: is not UTF-8"):
        load_scenario(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    ("requests", "concurrency", "count"),
    [("4x", 32, 128), ("4x", 1, 16), ("200", 8, 200), ("0.5x", 64, 32), ("1x", 20, 20), ("3", 64, 3)],
)
def test_the_size_of_a_load_point(requests: str, concurrency: int, count: int) -> None:
    scenario = Scenario(name="s", output_tokens=Lengths(min=1, max=1), requests=requests)
    assert scenario.request_count(concurrency) == count


def test_a_synthetic_scenario_has_no_file() -> None:
    found = synthetic_scenario(Lengths(min=512, max=512), Lengths(min=64, max=64))
    assert found.path is None
    assert found.prompts_path is None


def test_a_prompt_set_alone_is_a_scenario(tmp_path: Path) -> None:
    prompts = tmp_path / "My prompts.jsonl"
    prompts.write_text('{"id": "a", "turns": [{"user": "x"}]}\n')
    file = load_scenario(str(prompts))
    assert file.scenario.name == "My-prompts"
    assert file.prompts_path == prompts
    assert str(tmp_path) not in file.text, "the same set elsewhere is the same scenario"
