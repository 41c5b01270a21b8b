from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from analysis_records import BASE_NS, request, table
from analysis_runs import launch_of, plant, repeats, row

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.deciding import repeats_to_part
from qwenbench.analysis.intervals import Estimate, combined, interval_of_means
from qwenbench.analysis.limits import parse_point_limits, parse_weights
from qwenbench.analysis.recommend import Answer, recommend
from qwenbench.analysis.run import Run
from qwenbench.cli.main import dispatch
from qwenbench.engine.docker.line import DeployLines, deploy_lines, server_config_of
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell, LoadPoint

TOKENS = "output_tokens_per_s"


def ask(
    tmp_path: Path, rows: list[dict[str, Any]], slo: str = "", failures: dict[str, Any] | None = None, **question: Any
) -> Answer:
    limits = parse_point_limits(slo) if slo else ()
    return recommend(plant(tmp_path / "run", rows, failures), Question(limits=limits, **question))


def test_the_faster_one_wins_and_the_other_says_what_it_lacks(tmp_path: Path) -> None:
    rows = repeats("cap16", 32, output_tokens_per_s=[1000, 1010, 990]) + repeats(
        "cap64", 32, output_tokens_per_s=[2000, 2010, 1990]
    )
    answer = ask(tmp_path, rows, users=32)
    assert (answer.config_id, answer.users, answer.decided, answer.would_decide) == ("cap64", 32, True, ())
    expected = answer.expected[TOKENS]
    assert expected.value == pytest.approx(2000)
    assert expected.high - expected.value == pytest.approx(4.30265 * 10 / 3**0.5, rel=1e-4)
    assert answer.runner_up.config_id == "cap16"
    assert answer.runner_up.to_win == "output tokens/s would have to rise by 100.0%, from 1,000 tok/s to 2,000 tok/s"
    assert answer.headroom == {"requests_that_fit": 168}


def test_overlapping_intervals_are_undecided_and_name_the_points_that_would_decide(tmp_path: Path) -> None:
    rows = repeats("cap16", 8, output_tokens_per_s=[1000, 1040, 960]) + repeats(
        "cap32", 8, output_tokens_per_s=[1030, 1070, 990]
    )
    answer = ask(tmp_path, rows, users=8)
    assert (answer.config_id, answer.decided) == ("cap32", False)
    assert "overlap" in answer.notes[0]
    # s = 40 on both sides, 30 apart: t(R-1) x 80 / sqrt(R) < 30 first holds at R = 30
    assert repeats_to_part(interval_of_means([1000, 1040, 960]), interval_of_means([1030, 1070, 990])) == 30
    # each repeat was a launch of its own: so are those that would decide
    assert [(p.config_id, p.concurrency, p.launches) for p in answer.would_decide] == [
        ("cap32", 8, 30),
        ("cap16", 8, 30),
    ]
    assert answer.command == f"qwenbench sweep --resume {tmp_path / 'run'} --relaunch-repeats 30"


def test_the_doubt_that_the_command_settles_is_told_before_a_tie(tmp_path: Path) -> None:
    rows = [
        made
        for config, values in (("cap16", [1030, 1069, 990]), ("cap32", [1000, 1040, 960]), ("cap64", [1031, 1070, 991]))
        for made in repeats(config, 8, output_tokens_per_s=values)
    ]
    answer = ask(tmp_path, rows, users=8)
    assert [doubt.partition(":")[0] for doubt in answer.doubts] == [
        "undecided against cap32",
        "undecided against cap16",
    ]
    assert "too little" in answer.doubts[1]
    assert {point.config_id for point in answer.would_decide} == {"cap64", "cap32"}


def test_one_launch_holds_the_spread_between_launches(tmp_path: Path) -> None:
    """10 % between two points and 18 % between two launches were recorded: 15 % apart decides nothing."""
    near = [row("cap16", 8, output_tokens_per_s=100), row("cap32", 8, output_tokens_per_s=115)]
    answer = ask(tmp_path, near, users=8)
    assert (answer.config_id, answer.decided) == ("cap32", False)
    assert {p.launches for p in answer.would_decide} > {1} or min(p.launches for p in answer.would_decide) > 1
    assert "--relaunch-repeats" in answer.command
    assert "18 % between two launches" in answer.spread
    figure = answer.expected[TOKENS]
    # one point of one launch: sd 0.18 / sqrt(2) of its value
    assert figure.high - figure.value == pytest.approx(115 * 0.18 / 2**0.5 * 2.0, rel=0.02)
    far = [row("cap16", 8, output_tokens_per_s=100), row("cap32", 8, output_tokens_per_s=900)]
    answer = ask(tmp_path, far, users=8)
    assert (answer.config_id, answer.decided, answer.command) == ("cap32", True, None)


def test_repeats_of_one_launch_do_not_hide_the_spread(tmp_path: Path) -> None:
    rows = [
        row(config, 8, repeat, output_tokens_per_s=value + repeat / 10, launch=1)
        for config, value in (("cap16", 100), ("cap32", 110))
        for repeat in (1, 2, 3)
    ]
    answer = ask(tmp_path, rows, users=8)
    assert not answer.decided and "undecided against cap16" in answer.doubts[0]
    again = [other | {"launch": launch} for other in rows for launch in (1, 2, 3)]
    assert ask(tmp_path, again, users=8).decided  # three launches of each that agree: the run's own spread


def test_the_command_that_decides_goes_on_where_the_run_was_made(tmp_path: Path) -> None:
    rows = repeats("cap16", 8, output_tokens_per_s=[1000, 1040, 960]) + repeats(
        "cap32", 8, output_tokens_per_s=[1030, 1070, 990]
    )
    cluster = {"address": "ray://head:10001", "on": "rtx-5090"}
    answer = recommend(plant(tmp_path / "run", rows, cluster=cluster), Question(users=8))
    where = f"--resume {tmp_path / 'run'} --cluster ray://head:10001 --on rtx-5090 --relaunch-repeats 30"
    assert answer.command == f"qwenbench sweep {where}"
    attached = plant(tmp_path / "bench", rows, options={"launcher": "url"}, cluster={"address": "auto", "on": None})
    attached = replace(attached, launches={"cap16": {"argv": ["http://host:8000"]}})
    begun = f"qwenbench bench --url http://host:8000 --resume {tmp_path / 'bench'} --cluster auto "
    assert recommend(attached, Question(users=8)).command.startswith(begun)


def test_the_same_configuration_on_another_machine_is_no_rival(tmp_path: Path) -> None:
    rows = [
        {**one, "machine": machine}
        for machine, more in (("fast", 100), ("slow", 0))
        for name, tokens in (("cap16", 1000), ("cap32", 500))
        for one in repeats(name, 8, output_tokens_per_s=[tokens + more, tokens + more + 3, tokens + more + 6])
    ]
    answer = ask(tmp_path, rows, users=8)
    assert (answer.config_id, answer.runner_up.config_id) == ("cap16@fast", "cap32@fast")
    assert not any("cap16@slow" in doubt for doubt in answer.doubts)


def test_the_simulator_plays_no_spread_unless_told(tmp_path: Path) -> None:
    rows = [row("cap16", 8, output_tokens_per_s=100), row("cap32", 8, output_tokens_per_s=115)]
    run = plant(tmp_path / "run", rows, simulated=True)
    answer = recommend(run, Question(users=8))
    assert (answer.spread, answer.expected[TOKENS].low) == (None, None)
    played = plant(tmp_path / "played", rows, simulated=True, options={"sim_spread": 0.1})
    assert recommend(played, Question(users=8)).spread is not None


def test_a_tie_goes_to_the_one_without_risk_and_is_undecided(tmp_path: Path) -> None:
    rows = [
        row("cap16", 8, output_tokens_per_s=100, vram_over_budget_mib=500.0),
        row("cap32", 8, output_tokens_per_s=100, vram_over_budget_mib=-20.0),
    ]
    answer = ask(tmp_path, rows, users=8)
    assert (answer.config_id, answer.decided, answer.risks, answer.would_decide) == ("cap32", False, (), ())
    assert "same" in answer.notes[0]


def test_budget_overrun_preemptions_and_a_full_cache_are_told_as_risks(tmp_path: Path) -> None:
    figures: dict[str, Any] = {
        "output_tokens_per_s": 100,
        "vram_over_budget_mib": 1234.5,
        "preemptions": 3,
        "requests_that_fit": 6,
    }
    answer = ask(tmp_path, [row("cap16", 8, **figures)], users=8)
    assert [risk.split(":")[0] for risk in answer.risks] == [
        "VRAM went 1,234 MiB past the budget under load",
        "the KV cache holds 6 requests of this length, the other 2 wait",
        "3 preemptions",
    ]


def test_limits_exclude_with_the_figure_and_the_faster_but_slow_to_start_loses(tmp_path: Path) -> None:
    rows = [
        row("cap16", 8, output_tokens_per_s=100, ttft_ms_p99=900.0, tpot_ms_p50=20.0),
        row("cap32", 8, output_tokens_per_s=500, ttft_ms_p90=1200.0, ttft_ms_p99=1500.0, tpot_ms_p50=20.0),
    ]
    answer = ask(tmp_path, rows, "ttft_p99=1s,tpot_p50=25ms", users=8)
    assert answer.config_id == "cap16"
    assert answer.excluded["cap32"].startswith("ttft_p99 is 1,500 ms where 1,000 ms is asked for (math")
    assert answer.headroom == {"ttft_p99": pytest.approx(0.1), "tpot_p50": pytest.approx(0.2), "requests_that_fit": 192}
    assert answer.runner_up.to_win == "TTFT p99 would have to fall by 50.0%"
    # cap32 is out for good: at most 90 of 100 requests were within; but one launch does not show that cap16 is in
    assert not answer.decided
    # cap32 is out: only what is in doubt is launched again
    assert answer.command == f"qwenbench sweep --resume {tmp_path / 'run'} --relaunch-repeats 3 --only cap16"


def test_out_by_a_hair_is_undecided(tmp_path: Path) -> None:
    rows = repeats("cap16", 8, output_tokens_per_s=[100, 101, 99], ttft_ms_p50=[500, 501, 499]) + repeats(
        "cap32", 8, output_tokens_per_s=[500, 501, 499], ttft_ms_p50=[980, 1001, 1022]
    )
    answer = ask(tmp_path, rows, "ttft_p50=1000ms", users=8)
    assert (answer.config_id, answer.decided) == ("cap16", False)
    assert "cap32" in [p.config_id for p in answer.would_decide]
    # and met by a hair: what is shown to hold comes first, what may do better is said
    answer = ask(tmp_path, rows, "ttft_p50=1010ms", users=8)
    assert (answer.config_id, answer.decided) == ("cap16", False)
    assert answer.doubts[0].startswith("cap32 would do better, and may be within the limits")


def test_infinite_limits_exclude_nothing_not_even_the_unknown(tmp_path: Path) -> None:
    answer = ask(tmp_path, [row("cap16", 8, output_tokens_per_s=100)], "ttft_p99=inf,output_tokens_per_s=inf", users=8)
    assert answer.config_id == "cap16"
    # where nothing tells, the best that is known is still an answer, and says what would decide it
    answer = ask(tmp_path, [row("cap16", 8, output_tokens_per_s=100)], "ttft=1s", users=8)
    assert (answer.config_id, answer.decided, answer.excluded) == ("cap16", False, {})
    assert answer.limits[0].verdict == "open"


def requests_of(run: Run, config: str, slow: int, count: int = 128, repeat: int = 1) -> None:
    """Request records of one point: `slow` of them take longer than a second to their first token."""
    (run.path / "requests").mkdir(exist_ok=True)
    cell = Cell(config, repeat, LoadPoint("math", "instruct-general", 8, None, repeat))
    rows = [request(i, i + 5000, ttft_ms=1500.0 if i < slow else 100.0) for i in range(count)]
    pq.write_table(table(rows), run.path / "requests" / f"{cell.cell_id}.parquet")


def test_limits_on_shares_are_judged_by_every_request_of_all_repeats(tmp_path: Path) -> None:
    window = {"window_start_ns": BASE_NS, "window_end_ns": BASE_NS + 10**12, "requests_in_window": 128}
    rows = [row(config, 8, repeat, output_tokens_per_s=speed, **window)
            for config, speed in (("cap16", 100), ("cap32", 110), ("cap64", 900)) for repeat in (1, 2, 3)]  # fmt: skip
    run = plant(tmp_path / "run", rows)
    for repeat in (1, 2, 3):
        requests_of(run, "cap16", 0, repeat=repeat)
        requests_of(run, "cap32", 1 if repeat == 1 else 0, repeat=repeat)
        requests_of(run, "cap64", 7, repeat=repeat)
    answer = recommend(run, Question(users=8, limits=parse_point_limits("ttft=1s")))
    # 384 of 384 show a p99; 383 of 384 do not (474 requests with one miss would); 363 of 384 break it
    assert (answer.config_id, answer.limits[0].verdict) == ("cap16", "shown")
    limit = "ttft_p99 <= 1,000 ms (math (instruct-general) at 8 users)"
    assert answer.excluded["cap64"] == f"{limit}: broken, 363 of 384 requests were within it, 99% must be"
    assert answer.doubts == (
        f"cap32 would do better, and may be within the limits: {limit}: open, 383 of 384 requests were within it, "
        "99% must be; 244 more would settle it if the share stays",
    )
    assert "--repeats" in answer.command or "--relaunch-repeats" in answer.command


def test_interpolates_between_and_never_beyond(tmp_path: Path) -> None:
    rows = (
        repeats("cap16", 8, output_tokens_per_s=[100, 110])
        + repeats("cap16", 16, output_tokens_per_s=[200, 210])
        + repeats("cap32", 8, output_tokens_per_s=[900, 910])
    )
    answer = ask(tmp_path, rows, users=10)
    assert answer.config_id == "cap16"
    figure = answer.expected[TOKENS]
    assert figure.value == pytest.approx(0.75 * 105 + 0.25 * 205)
    # two independent standard errors of 5, weighted; 1 degree of freedom
    assert figure.high - figure.value == pytest.approx(12.7062 * (0.75**2 + 0.25**2) ** 0.5 * 5, rel=1e-4)
    assert any(note == "interpolated: 10 users lie between the measured 8 and 16 streams" for note in answer.notes)
    assert "beyond" in answer.excluded["cap32"]
    assert not answer.decided  # nothing is known of cap32 at 10 users
    assert (answer.would_decide[-1].config_id, answer.would_decide[-1].concurrency) == ("cap32", 10)
    assert answer.command == f"qwenbench sweep --resume {tmp_path / 'run'} --concurrency 10 --only cap32"


def test_invalid_points_failures_and_broken_text_never_win(tmp_path: Path) -> None:
    rows = [
        row("cap16", 8, output_tokens_per_s=100),
        row("cap17", 8, output_tokens_per_s=900, valid=False, invalid_reason="the client was saturated"),
        row("cap18", 8, output_tokens_per_s=900, requests_failed=2),
        row("cap19", 8, output_tokens_per_s=900),
        row("cap19", 1, output_tokens_per_s=10, valid=False, invalid_reason="50.0% of the answers were broken output"),
        row("cap20", 8, output_tokens_per_s=900),
    ]
    failure = {
        "class": "oom_load",
        "evidence": "CUDA out of memory",
        "advice": "lower the utilisation",
        "phase": "load",
    }
    answer = ask(tmp_path, rows, failures={"cap20": failure}, users=8)
    assert answer.config_id == "cap16"
    assert answer.excluded["cap17"] == "no valid point for math (instruct-general): the client was saturated"
    assert answer.excluded["cap18"] == "2 requests failed at 8 streams of math (instruct-general)"
    assert "broken output" in answer.excluded["cap19"]
    assert answer.excluded["cap20"] == "failed: oom_load: CUDA out of memory (lower the utilisation)"


def test_all_invalid_qualifies_nothing(tmp_path: Path) -> None:
    rows = [row("cap16", 8, output_tokens_per_s=1, valid=False, invalid_reason="every request failed")]
    answer = ask(tmp_path, rows, users=8)
    assert (answer.config_id, answer.nearest_miss) == (None, None)
    assert "every request failed" in answer.excluded["cap16"]


def test_scenarios_weigh_and_each_must_meet_the_limits(tmp_path: Path) -> None:
    def both(config: str, math: float, code: float, ttft: float) -> list[dict[str, Any]]:
        return [
            row(config, 8, output_tokens_per_s=math, ttft_ms_p50=10.0),
            row(config, 8, output_tokens_per_s=code, ttft_ms_p50=ttft, scenario="code"),
        ]

    rows = both("cap16", 100, 400, 10.0) + both("cap32", 300, 100, 90.0)
    assert ask(tmp_path, rows, users=8).config_id == "cap16"
    weighted = ask(tmp_path, rows, users=8, weights={"math": 3.0, "code": 1.0})
    assert weighted.config_id == "cap32"
    assert weighted.expected[TOKENS].value == pytest.approx(0.75 * 300 + 0.25 * 100)
    assert ask(tmp_path, rows, users=8, weights={"math": 1.0}).expected[TOKENS].value == 300
    strict = ask(tmp_path, rows, "ttft_p50=50ms", users=8, weights={"math": 3.0, "code": 1.0})
    assert strict.config_id == "cap16"
    with pytest.raises(UsageError, match="maths"):
        ask(tmp_path, rows, weights={"maths": 1.0})


def test_objectives(tmp_path: Path) -> None:
    rows = [
        row("cap16", 8, output_tokens_per_s=300, e2e_ms_mean=50, energy_j_per_output_token=0.3, kv_cache_tokens=10_000),
        row("cap32", 8, output_tokens_per_s=200, e2e_ms_mean=20, energy_j_per_output_token=0.2, kv_cache_tokens=20_000),
        row("cap64", 8, output_tokens_per_s=100, e2e_ms_mean=90, energy_j_per_output_token=0.1, kv_cache_tokens=90_000),
    ]
    won = {name: ask(tmp_path, rows, users=8, objective=name).config_id for name in
           ("tokens", "latency", "energy", "context")}  # fmt: skip
    assert won == {"tokens": "cap16", "latency": "cap32", "energy": "cap64", "context": "cap64"}
    assert ask(tmp_path, rows, users=8, objective="context").decided  # a capacity is counted, not sampled
    small = ask(tmp_path, rows, users=8, context=15_000)
    assert small.config_id == "cap32"
    assert small.excluded["cap16"].startswith("kv_cache_tokens is 10,000 tokens where 15,000 tokens is asked for")


def test_without_users_each_counts_at_its_best(tmp_path: Path) -> None:
    rows = [
        row("cap16", 8, output_tokens_per_s=500, ttft_ms_p50=10),
        row("cap16", 64, output_tokens_per_s=900, ttft_ms_p50=500),
        row("cap32", 8, output_tokens_per_s=400, ttft_ms_p50=10),
        row("cap32", 64, output_tokens_per_s=2000, ttft_ms_p50=100),
    ]
    assert (ask(tmp_path, rows).config_id, ask(tmp_path, rows).users) == ("cap32", 64)
    tight = ask(tmp_path, rows, "ttft_p50=50ms")
    assert (tight.config_id, tight.users) == ("cap16", 8)


def test_open_loops_and_empty_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no closed-loop points"):
        ask(tmp_path, [row("cap16", None, rate=2.0, load_shape="poisson", output_tokens_per_s=1)])
    with pytest.raises(UsageError, match="no closed-loop points"):
        ask(tmp_path / "empty", [])


def test_docker_lines_deploy_what_was_requested_not_a_stand_ins_budget() -> None:
    config = server_config_of(launch_of("cap64"))
    assert config.flags["gpu-memory-utilization"] == "0.95"
    assert (config.capture, config.max_num_seqs, config.port) == (64, 64, 8000)
    assert config.docker.image == "vllm/vllm-openai:v0.18.0-cu130"
    assert server_config_of({"argv": []}) is None
    assert deploy_lines(launch_of("cap64")).bash.startswith("docker run")
    # random weights and the measuring machine's card are nobody's to deploy
    launch = launch_of("cap64") | {"launcher": "process"}
    server = launch["server"]
    server = server | {"docker": server["docker"] | {"gpus": '"device=GPU-836403c5"'}}
    for extra in (["--load-format=dummy", "--enforce-eager"], ["--load-format", "dummy", "--enforce-eager"]):
        line = deploy_lines(launch | {"server": server | {"extra_args": extra}}).bash
        assert "dummy" not in line
        assert "GPU-836403c5" not in line
        assert "--gpus 'all'" in line or "--gpus all" in line
        assert "--enforce-eager" in line
    # a server that was already there: nobody knows how it was started
    for extra in (["--sim-fail", "oom", "--enforce-eager"], ["--sim-time-scale=0.2", "--enforce-eager"]):
        lines = deploy_lines(launch | {"server": server | {"extra_args": extra}})
        assert "sim" not in f"{lines.bash}{lines.compose}" and "--enforce-eager" in str(lines.bash), (
            "no vLLM takes them"
        )
    assert deploy_lines(launch_of("cap64") | {"launcher": "url"}) == DeployLines()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ttft_p98=1", "Did you mean 'ttft_p99'"),
        ("ttft_p99", "METRIC=LIMIT"),
        ("ttft_p99=fast", "METRIC=LIMIT"),
        ("ttft_p99=0", "above"),
        ("ttft_p99=1,ttft_p99=2", "twice"),
        ("ttft=1,ttft_p99=2", "twice"),
        ("output_tokens_per_s=3s", "tok/s"),
        ("", "METRIC"),
    ],
)
def test_bad_limits_say_what_to_do(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_point_limits(text)


@pytest.mark.parametrize("text", ["", "math=0", "math=-1", "math=x", "math,math", "=2", "math=inf", "math=nan"])
def test_bad_weights_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--scenario"):
        parse_weights(text)


def test_command_prints_the_line_and_json_only_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = repeats("cap16", 8, output_tokens_per_s=[100, 101]) + repeats("cap32", 8, output_tokens_per_s=[900, 901])
    plant(tmp_path / "run", rows, simulated=True)
    assert dispatch(["recommend", str(tmp_path / "run"), "--users", "8"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("SIMULATED")
    assert "docker run" in shown and "--max-num-seqs 32" in shown
    assert dispatch(["recommend", str(tmp_path / "run"), "--users", "8", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    contract = {"config_id", "docker_bash", "docker_powershell", "compose", "expected", "runner_up", "decided",
                "would_decide", "excluded"}  # fmt: skip
    assert contract <= set(answer)
    assert (answer["config_id"], answer["simulated"]) == ("cap32", True)
    assert set(answer["expected"][TOKENS]) == {"value", "low", "high"}


def test_command_exits_1_with_the_nearest_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path / "run", [row("cap16", 8, output_tokens_per_s=1, ttft_ms_p90=600),
                             row("cap32", 8, output_tokens_per_s=1, ttft_ms_p90=900),
                             row("cap32", 2, output_tokens_per_s=1, ttft_ms_p90=60, ttft_ms_p99=70)])  # fmt: skip
    assert dispatch(["recommend", str(tmp_path / "run"), "--users", "8", "--slo", "ttft_p99=500ms", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["excluded"]["cap16"].startswith("ttft_p99 <= 500 ms")
    assert "Nearest miss: cap16" in printed.err.splitlines()[-1]
    assert "At 2 users cap32 is within every limit" in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [["--objective", "speed"], ["--slo", "nonsense=1"], ["--shell", "fish"], ["--users", "0"]]
)
def test_command_refuses_bad_usage(tmp_path: Path, arguments: list[str]) -> None:
    plant(tmp_path / "run", [row("cap16", 8, output_tokens_per_s=1)])
    assert dispatch(["recommend", str(tmp_path / "run"), *arguments]) == 2
    assert dispatch(["recommend", str(tmp_path / "nothing")]) == 2


def test_equal_or_unknown_spread_when_counting_repeats() -> None:
    same = Estimate(3, 5.0, 1.0)
    assert repeats_to_part(same, same) is None
    assert repeats_to_part(Estimate(1, 5.0), Estimate(1, 6.0)) == 3
    assert repeats_to_part(Estimate(3, 100.0, 50.0), Estimate(3, 100.1, 50.0)) is None


def test_an_interval_ends_where_nothing_is_possible_and_says_what_would_narrow_it(tmp_path: Path) -> None:
    """Two launches that lie far apart: Student's t of one degree of freedom reaches far below 0."""
    rates = [240.0, 200.0]
    run = plant(tmp_path, [row("cap16", 8, launch=n + 1, repeat=1, output_tokens_per_s=rate, ttft_ms_p50=100.0 + n)
                           for n, rate in enumerate(rates)])  # fmt: skip
    answer = recommend(run, Question())
    found = answer.expected["output_tokens_per_s"]
    assert found.low == 0.0 and found.high is not None and found.high > 400
    (told,) = [note for note in answer.notes if "reach 0" in note]
    # sd 28.3, a fifth of 220 is 44: t(n - 1) x 28.3 / sqrt(n) is 45.0 with 4 launches (t 3.18), 35.1 with 5 (t 2.78)
    assert "2 measurements" in told and "output tokens/s reach 0" in told and "about 5 launches" in told
    assert combined([(1.0, found), (-1.0, found)]).low is not None, "a difference may lie below 0"
    assert (combined([(1.0, found), (-1.0, found)]).low or 0.0) < 0
