"""Options of a sweep as a user writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwenbench.analysis.columns import LATENCIES
from qwenbench.errors import UsageError
from qwenbench.sweep.extension import load_campaign
from qwenbench.sweep.option_values import (
    fraction,
    parse_list,
    parse_vary,
    positive,
    read_header_env,
    request_limits,
    split_values,
    writable_folder,
)
from qwenbench.sweep.options import SweepOptions, checked_options, flags_of

names = st.from_regex(r"[a-z][a-z0-9-]{0,15}[a-z0-9]", fullmatch=True)
words = st.from_regex(r"[A-Za-z0-9_.]{1,8}", fullmatch=True)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8, unique=True))
def test_a_list_is_read_in_the_order_given(values: list[int]) -> None:
    assert parse_list(",".join(map(str, values)), "--capture", int, positive) == tuple(values)
    assert parse_list(" , ".join(map(str, values)), "--capture", int, positive) == tuple(values)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=4), st.integers(0, 3))
def test_a_repeated_value_is_refused_wherever_it_stands(values: list[int], place: int) -> None:
    repeated = [*values, values[place % len(values)]]
    with pytest.raises(UsageError, match="stands twice"):
        parse_list(",".join(map(str, repeated)), "--capture", int, positive)


@given(st.text(alphabet="0123456789,.-+ ex", max_size=12))
def test_any_text_gives_positive_numbers_or_one_error_that_names_the_option(text: str) -> None:
    try:
        values = parse_list(text, "--rate", float, positive)
    except UsageError as error:
        assert str(error).startswith(f"--rate {text!r}: ")
    else:
        assert values
        assert all(value > 0 and math.isfinite(value) for value in values)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_fraction_lies_above_0_and_not_above_1(value: float) -> None:
    assert fraction(value)
    assert fraction(1.0) is None
    assert fraction(0.95) is None


@given(st.dictionaries(names, st.lists(words, min_size=1, max_size=3, unique=True), max_size=3))
def test_vary_keeps_flags_and_values_in_order(given_flags: dict[str, list[str]]) -> None:
    own = {"max-cudagraph-capture-size", "max-num-seqs", "gpu-memory-utilization"}
    wanted = {name: tuple(values) for name, values in given_flags.items() if name not in own}
    assert parse_vary([f"{name}={','.join(values)}" for name, values in wanted.items()]) == wanted
    assert parse_vary([f"--{name}={','.join(values)}" for name, values in wanted.items()]) == wanted


@pytest.mark.parametrize(
    "item", ["dtype", "=a", "dtype=", "dtype=a,,b", "dtype=a,a", "Dtype=a", "max-num-seqs=1", "max_num_seqs=1"]
)
def test_a_vary_that_cannot_be_used_is_refused(item: str) -> None:
    with pytest.raises(UsageError, match=f"--vary '{item}'"):
        parse_vary([item])


def test_values_of_a_flag_may_be_json() -> None:
    drafter = '{"method": "mtp", "num_speculative_tokens": 3, "x": [1, 2], "y": "a,{b"}'
    varied = parse_vary([f"speculative-config=unset,{drafter} , {{}}", "hf-overrides=[1,2],[3]"])
    assert varied == {"speculative-config": ("unset", drafter, "{}"), "hf-overrides": ("[1,2]", "[3]")}


@pytest.mark.parametrize("values", ['{"a": 1', "{a: 1}", '{"a": 1} {"b": 2}', '{"a": 1},,{}', '{"a": 1},{"a": 1}'])
def test_broken_json_of_a_flag_is_told_with_the_option(values: str) -> None:
    with pytest.raises(UsageError, match="--vary 'speculative-config="):
        parse_vary([f"speculative-config={values}"])


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), min_size=1))
def test_any_json_comes_back_whole(values: list[dict[str, object]]) -> None:
    written = [json.dumps(value) for value in values]
    assert split_values(",".join(written), "") == written
    assert split_values(" , ".join([*written, "last"]), "") == [*written, "last"]


def test_environment_variables_vary_like_flags() -> None:
    assert parse_vary(["env.VLLM_USE_X=0,1"]) == {"env.VLLM_USE_X": ("0", "1")}
    for item in ("env.=1", "env.1A=1", "env.A-B=1", "ENV.A=1"):
        with pytest.raises(UsageError, match="--vary"):
            parse_vary([item])


def test_a_flag_varies_once() -> None:
    with pytest.raises(UsageError, match="block-size stands twice"):
        parse_vary(["block-size=16", "block_size=32"])


@given(st.dictionaries(st.sampled_from(LATENCIES), st.floats(0.001, 1e6), min_size=1))
def test_limits_are_read_in_milliseconds(limits: dict[str, float]) -> None:
    in_ms = ",".join(f"{name}={value:f}ms" for name, value in limits.items())
    in_s = ",".join(f"{name}={value / 1000:.9f}s" for name, value in limits.items())
    for text in (in_ms, in_s):
        assert request_limits(text, "--slo") == pytest.approx(limits, rel=1e-3, abs=1e-5)


def test_a_limit_may_be_open() -> None:
    assert request_limits("ttft=inf, tpot = 25 ms", "--slo") == {"ttft": math.inf, "tpot": 25.0}


@pytest.mark.parametrize("text", ["", "ttft", "ttft=", "ttft=fast", "ttft=0", "ttft=1.2.3", "ttft=-5", "ttft=5min"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slo"):
        request_limits(text, "--slo")
    with pytest.raises(UsageError, match="stands twice"):
        request_limits("ttft=1,ttft=2", "--slo")


def test_headers_name_variables_and_never_values() -> None:
    assert read_header_env(["Authorization=MY_KEY"]) == {"Authorization": "MY_KEY"}
    for item in ("Authorization", "Authorization=Bearer abc", "A:b=X", "=X", "X="):
        with pytest.raises(UsageError, match="--header-env"):
            read_header_env([item])


@pytest.mark.parametrize("requests", ["200", "4x", "0.5x"])
def test_sizes_of_a_load_point(requests: str) -> None:
    assert SweepOptions(requests=requests).requests == requests


@pytest.mark.parametrize("requests", ["0", "0x", "2.5", "x", "-1", "1 x", "4xx", ""])
def test_sizes_that_are_none(requests: str) -> None:
    with pytest.raises(ValidationError):
        SweepOptions(requests=requests)


def test_an_unknown_option_of_a_campaign_is_refused() -> None:
    with pytest.raises(ValidationError):
        SweepOptions.model_validate({"concurency": [1]})


def test_a_folder_may_be_made_below_a_writable_one(tmp_path: Path) -> None:
    writable_folder(tmp_path / "a" / "b", "--out")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*cannot be written"):
        writable_folder(tmp_path / "file" / "b", "--out")


def test_an_open_limit_survives_run_json() -> None:
    """JSON has no infinity: `--slo ttft=inf` was stored as null, and --resume ended in a traceback."""
    options = SweepOptions(slo={"ttft": math.inf, "tpot": 25.0})
    stored = json.loads(json.dumps(options.model_dump(mode="json"), allow_nan=False))
    assert SweepOptions.model_validate(stored) == options


@pytest.mark.parametrize("field", ["timeout_s", "duration_s", "ramp_s", "startup_timeout_s"])
def test_no_time_is_endless(field: str) -> None:
    with pytest.raises(UsageError, match=f"--{field.removesuffix('_s').replace('_', '-')} inf: .*finite"):
        checked_options({field: math.inf})


def test_every_field_is_offered_by_a_command() -> None:
    assert {*flags_of("sweep"), *flags_of("bench")} == {*SweepOptions.model_fields}


def test_a_campaigns_wrong_field_is_told_by_its_name() -> None:
    with pytest.raises(UsageError, match="option concurency"):
        checked_options({"concurency": [1]})


def test_no_reader_hides_behind_a_field_of_its_name() -> None:
    """Annotations are looked up in the class first, where a field's default stands under its name."""
    flags = {**flags_of("sweep"), **flags_of("bench")}
    read = {"capture", "concurrency", "rate", "scenario", "slo", "burstiness", "until_ci", "header_env", "extra_body"}
    assert {name for name in read if flags[name].read is None} == set()


def test_the_campaign_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "sweep.md").read_text()
    block = text[text.index("    name: night") : text.index("## Exit status")]
    file = tmp_path / "night.yaml"
    file.write_text("\n".join(line.removeprefix("    ") for line in block.splitlines()))
    (options,) = load_campaign(file).values()
    assert checked_options(options).vary == {"max-num-batched-tokens": ("2048", "8192")}
