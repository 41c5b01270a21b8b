"""Traces as they are published: whose form it is, its unit, its sessions, and what becomes of them."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.workload.arrivals import TraceRow, read_trace, sessions_of
from qwenbench.workload.planning import PlannedSessions, RequestOptions
from qwenbench.workload.scenario import Lengths, Scenario
from qwenbench.workload.sessions import SessionPlan

SCENARIO = Scenario(name="t", output_tokens=Lengths(min=8, max=8))


def load_trace(path: Path, **how: Any) -> list[TraceRow]:
    return list(read_trace(path, **how).rows)


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def starts(path: Path, **how: Any) -> list[float]:
    return [row.start_s for row in load_trace(path, **how)]


def bailian(time: float, chat: int, parent: int = -1, **more: Any) -> dict[str, Any]:
    row = {"chat_id": chat, "parent_chat_id": parent, "timestamp": time, "input_length": 21, "output_length": 8}
    return row | {"type": "text", "turn": 1, "hash_ids": [1, 2]} | more


def test_bailians_times_are_seconds(tmp_path: Path) -> None:
    path = jsonl(tmp_path, bailian(0.0, 1), bailian(2.114, 2), bailian(4.25, 3))
    assert starts(path) == [0, 2.114, 4.25]
    assert "Bailian" in read_trace(path).note
    assert starts(jsonl(tmp_path, bailian(0, 1), bailian(2, 2))) == [0, 2], "whole seconds are seconds too"


def test_a_unit_that_cannot_be_told_is_asked_for_with_both_readings(tmp_path: Path) -> None:
    rows = [{"timestamp": time, "input_length": 21, "output_length": 8} for time in (0.0, 2.114, 4.25)]
    with pytest.raises(UsageError, match=r"its 4.25 are 4.25 s or 0.00425 s. Say which with --trace-unit s or ms"):
        load_trace(jsonl(tmp_path, *rows))
    assert starts(jsonl(tmp_path, *rows), unit="s") == [0, 2.114, 4.25]
    assert starts(jsonl(tmp_path, *rows), unit="ms") == pytest.approx([0, 0.002114, 0.00425])


def test_the_unit_given_wins_over_the_form(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"timestamp": 0, "input_tokens": 5}, {"timestamp": 1500, "input_tokens": 5})
    assert starts(path, unit="s") == [0, 1500]
    assert starts(path, unit="ms") == [0, 1.5]


@pytest.mark.parametrize("packed", [False, True])
def test_azures_csv(tmp_path: Path, packed: bool) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    )
    path = tmp_path / ("azure.csv.gz" if packed else "azure.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    first, second = load_trace(path)
    assert (first, second.input_tokens, second.output_tokens) == (TraceRow(0.0, 374, 44), 396, 109)
    assert second.start_s == pytest.approx(4.314579, abs=1e-5)


def test_azures_later_csv_has_a_time_zone(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2024-05-10 00:00:00.009930+00:00,2162,5"]
    path.write_text("\r\n".join([*lines, "2024-05-10 00:00:00.509930+00:00,2399,6", ""]))
    assert starts(path) == pytest.approx([0, 0.5])


def test_burstgpts_csv_and_its_failed_requests(tmp_path: Path) -> None:
    path = tmp_path / "burstgpt.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,Conversation log\n"
        "118,GPT-4,417,276,693,Conversation log\n"
    )
    assert load_trace(path) == [TraceRow(0.0, 472, 18), TraceRow(113.0, 417, 276)]
    assert "1 rows without tokens left out" in read_trace(path).note


def test_speed_and_a_limit_of_time(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"timestamp": time} for time in (10, 11, 14, 18)))
    assert starts(path, speed=2) == [0, 0.5, 2, 4]
    assert starts(path, speed=2, until_s=2) == [0, 0.5]
    assert "2 times as fast" in read_trace(path, speed=2).note


def test_csv_in_a_file_of_another_name_is_told(tmp_path: Path) -> None:
    path = tmp_path / "azure.txt"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n")
    with pytest.raises(UsageError, match=r"reads like CSV: name the file \.csv"):
        load_trace(path)


def test_a_csv_without_a_heading_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("5,6,7\n")
    with pytest.raises(UsageError, match="first line must name the columns"):
        load_trace(path)


def test_a_device_is_no_trace() -> None:
    with pytest.raises(UsageError, match="is a device"):
        load_trace(Path("/dev/zero"))


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=20), st.floats(0.1, 100))
def test_any_ascending_times_are_read_as_they_are(tmp_path_factory: Any, gaps: list[float], speed: float) -> None:
    times = [sum(gaps[: end + 1]) for end in range(len(gaps))]
    path = jsonl(tmp_path_factory.mktemp("t"), *({"timestamp": time} for time in times))
    assert starts(path, unit="s", speed=speed) == pytest.approx([(time - times[0]) / speed for time in times])


def planned(rows: list[TraceRow], **options: Any) -> list[SessionPlan]:
    sessions = sessions_of(rows)
    begin = [one[0].start_s for one in sessions]
    made = RequestOptions(model="m", **options)
    return list(PlannedSessions(SCENARIO, (), made, 1, len(begin), starts=begin, trace=sessions))


def test_turns_of_a_chat_are_one_session_and_keep_their_times(tmp_path: Path) -> None:
    path = jsonl(tmp_path, bailian(0.0, 1), bailian(1.0, 2), bailian(4.5, 3, 1), bailian(9.0, 4, 3))
    sessions = planned(load_trace(path))
    assert [len(session.turns) for session in sessions] == [3, 1]
    assert [turn.due_s for turn in sessions[0].turns] == [None, 4.5, 9.0]
    assert sessions[1].start_s == 1.0


def test_a_pause_of_its_own_is_think_time(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "session_id": "a", "input_length": 10, "output_length": 4},
        {"timestamp": 3000, "session_id": "a", "delay": 2500, "input_length": 30, "output_length": 4},
    ]
    (session,) = planned(load_trace(jsonl(tmp_path, *rows), speed=2))
    assert (session.turns[1].think_s, session.turns[1].due_s) == (1.25, None)


def test_a_later_turn_holds_what_was_said_before_it(tmp_path: Path) -> None:
    rows = [TraceRow(0.0, 10, 4, "a"), TraceRow(5.0, 30, 6, "a")]
    first, second = planned(rows)[0].turns
    messages = second.payload["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[0] == first.payload["messages"][0]
    assert [len(message["content"].split()) for message in messages] == [10, 4, 16]
    assert (first.output_tokens, second.output_tokens) == (4, 6)


def test_equal_blocks_are_equal_words_and_others_are_not() -> None:
    rows = [TraceRow(float(n), tokens, 4, None, hash_ids=ids, block_tokens=16) for n, (tokens, ids) in enumerate(
        [(40, (1, 2, 3)), (20, (1, 2)), (20, (9, 2))]
    )]  # fmt: skip
    whole, begin, other = (session.turns[0].payload["messages"][0]["content"].split() for session in planned(rows))
    assert (len(whole), len(begin)) == (40, 20)
    assert whole[:20] == begin
    assert other[:16] != begin[:16]
    assert other[16:] == begin[16:]


TALK = [
    {"role": "user", "content": "What's the weather in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "18C"},
]


@pytest.mark.parametrize("wrapped", [False, True])
def test_messages_with_tool_calls_are_sent_as_they_are(tmp_path: Path, wrapped: bool) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    said = {"messages": TALK, "tools": tools}
    path = jsonl(tmp_path, {"timestamp": 0, "output_tokens": 7, **({"body": said} if wrapped else said)})
    body = planned(load_trace(path))[0].turns[0].payload
    assert (body["messages"], body["tools"], body["max_tokens"]) == (TALK, tools, 7)
    salted = planned(load_trace(path), salt="z", salt_mode="prefix")[0].turns[0].payload["messages"]
    assert salted[0]["content"] == "[z-s00000] What's the weather in Paris?"
    assert salted[1:] == TALK[1:]


def test_messages_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="row 1: messages must be a list of objects"):
        load_trace(jsonl(tmp_path, {"timestamp": 0, "messages": "hello"}))


AZURE = (
    "TIMESTAMP{0}ContextTokens{0}GeneratedTokens\r\n"
    "2023-11-16 18:15:46.5{0}374{0}44\r\n"
    "2023-11-16 18:15:48{0}396{0}109\r\n"
)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_as_spreadsheets_write_it(tmp_path: Path, mark: str, delimiter: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_bytes((mark + AZURE.format(delimiter)).encode())
    assert load_trace(path) == [TraceRow(0.0, 374, 44), TraceRow(1.5, 396, 109)]


def test_decimal_commas_and_line_breaks_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('timestamp;input_tokens;note\n0,5;8.0;"two\nlines; here"\n2;9;\n;;\n')
    assert load_trace(path) == [TraceRow(0.0, 8), TraceRow(1.5, 9)]


def test_a_quoted_comma_is_no_decimal_one_where_commas_part_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('timestamp,input_tokens\n"1,024",5\n')
    with pytest.raises(UsageError, match="'1,024' is no date"):
        load_trace(path)


LENGTHS = {"input_length": 600, "output_length": 8}
BLOCKS = list(range(38))


@pytest.mark.parametrize(
    ("gap", "more"),
    [
        (1, LENGTHS),  # whole seconds or milliseconds: two lengths are in both forms
        (3000, LENGTHS | {"session_id": "a"}),
        (1, LENGTHS | {"hash_ids": [1, 2]}),  # Mooncake's blocks at 1,000 requests a second
        (2.5, LENGTHS | {"hash_ids": [1, 2]}),
        (1500, {"input_tokens": 5}),
        (1500, {}),
        (1, {"ContextTokens": 5, "GeneratedTokens": 5}),  # published with dates
    ],
)
def test_a_unit_in_doubt_is_asked_for(tmp_path: Path, gap: float, more: dict[str, Any]) -> None:
    rows = [{"timestamp": gap * at, **more} for at in range(5)]
    span = 4 * gap
    with pytest.raises(UsageError, match=f"its {span:g} are {span:g} s or {span / 1000:g} s. Say which"):
        load_trace(jsonl(tmp_path, *rows))
    assert starts(jsonl(tmp_path, *rows), unit="s")[-1] == span


@pytest.mark.parametrize(
    ("times", "more", "read"),
    [
        ("timestamp", LENGTHS | {"hash_ids": BLOCKS}, (3.0, 600, 8)),  # as many as Bailian's 16 tokens need
        ("arrived_at", {"num_prefill_tokens": 6, "num_decode_tokens": 7}, (3.0, 6, 7)),
        ("arrival_timestamp", {"prompt_size": 6, "token_size": 7}, (3.0, 6, 7)),
        ("timestamp", {"prompt_tokens": 6, "completion_tokens": 7}, (3.0, 6, 7)),
    ],
)
def test_names_and_blocks_tell_whose_trace_it_is(tmp_path: Path, times: str, more: dict[str, Any], read: Any) -> None:
    last = load_trace(jsonl(tmp_path, *({times: 1.5 * at, **more} for at in range(3))))[-1]
    assert (last.start_s, last.input_tokens, last.output_tokens) == read


def test_lengths_under_other_names_are_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"are output_len, prompt_len lengths. Name the columns input_tokens"):
        load_trace(jsonl(tmp_path, {"timestamp": 0.5, "prompt_len": 5, "output_len": 6}))


def test_a_rows_own_prompt_is_sent_and_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    row = {"timestamp": 0, "prompt": "hello", "output_tokens": 5, "conversations": [], "id": "a"}
    trace = read_trace(jsonl(tmp_path, row))
    assert trace.rows[0].messages == ({"role": "user", "content": "hello"},)
    assert trace.note.endswith("not read: conversations, id")


@pytest.mark.parametrize("name", ["azure.csv", "azure.csv.zst", "azure.csv.gz", "azure.csv.bz2"])
@pytest.mark.parametrize("codec", ["zstd", "gzip", "bz2", None])
def test_packed_files_are_told_by_their_bytes(tmp_path: Path, name: str, codec: str | None) -> None:
    text = AZURE.format(",").encode()
    path = tmp_path / name
    with pa.CompressedOutputStream(str(path), codec) if codec else path.open("wb") as file:
        file.write(text)
    assert load_trace(path) == [TraceRow(0.0, 374, 44), TraceRow(1.5, 396, 109)]


def test_an_archive_is_to_be_unpacked_first(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "trace.csv", "w") as archive:
        archive.writestr("azure.csv", AZURE.format(","))
    with pytest.raises(UsageError, match=r"trace.csv: is a ZIP archive. Unpack it first"):
        load_trace(tmp_path / "trace.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", '[{"Timestamp": 5, "Request tokens": 47, "Response tokens": 18},'
         '{"Timestamp": 7, "Request tokens": 5}]'),
        ("t.jsonl", '{"timestamp": "2024-05-10T00:00:05Z", "input_tokens": 47, "output_tokens": 18}\n'
         '{"timestamp": "2024-05-10T00:00:07Z", "input_tokens": 5}\n'),
    ],
)  # fmt: skip
def test_other_files_and_other_cases_of_names(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert load_trace(path) == [TraceRow(0.0, 47, 18), TraceRow(2.0, 5)]


@pytest.mark.parametrize(
    ("time", "told"),
    [
        (1700000000123, "no date in seconds but in a smaller unit: say so with --trace-unit ms"),
        (1700000000123456, "convert it to milliseconds"),
        ("11/16/2023 18:15", "is no date like 2023-11-16"),
        (None, r"must be a number of seconds \(it has input_tokens; name that of its times timestamp\)"),
    ],
)
def test_a_time_that_is_none_is_refused(tmp_path: Path, time: object, told: str) -> None:
    row = {"timestamp": time, "input_tokens": 5} if time else {"input_tokens": 5}
    with pytest.raises(UsageError, match=told):
        load_trace(jsonl(tmp_path, row))


def test_a_later_turn_with_a_pause_needs_no_time(tmp_path: Path) -> None:
    first = {"session_id": "a", "timestamp": 500, "input_length": 5, "output_length": 4, "hash_ids": [1]}
    rows = load_trace(jsonl(tmp_path, first, {**first, "timestamp": None, "delay": 300}))
    assert [(row.start_s, row.think_s) for row in rows] == [(0, None), (0, 0.3)]


def test_a_line_of_csv_that_does_not_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("wb") as file:
        file.write(b"timestamp,input_tokens,output_tokens\n")
        file.truncate(1 << 30)
    with pytest.raises(UsageError, match="row 2: longer than 16 MiB"):
        load_trace(path)
