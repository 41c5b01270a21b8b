"""Whatever a user gets wrong: one line on stderr that says where, exit 2, no traceback and no run folder."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwenbench.cli.main import dispatch

SIM = ("sweep", "--launcher", "sim")
TOKEN = "hf_" + "aB3" * 8  # put together here so that no scanner takes it for a leak


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command line in an empty folder; returns its one line after checking everything that never differs."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def run(*arguments: str, keep: tuple[Path, ...] = ()) -> str:
        known = {*before, *keep}
        status = dispatch(list(arguments))
        seen = capsys.readouterr()
        assert status == 2, seen.err
        assert seen.out == ""
        assert len(seen.err.splitlines()) == 1, seen.err
        assert seen.err.startswith(f"qwenbench {arguments[0]}: ")
        assert "Traceback" not in seen.err
        assert {path for path in tmp_path.rglob("*") if path.is_dir()} <= known, "a folder was made"
        return seen.err

    return run


OPTIONS = [
    (("--scenario", "conversatoin"), ["--scenario 'conversatoin'", "Did you mean 'conversation'?"]),
    (("--scenario", "math,"), ["--scenario 'math,'", "empty"]),
    (("--scenario", "math,math"), ["--scenario", "twice"]),
    (("--scenario", "nowhere.yaml"), ["nowhere.yaml", "cannot be read"]),
    (("--scenario", "synthetic"), ["--input-tokens and --output-tokens"]),
    (("--capture", ""), ["--capture ''", "empty"]),
    (("--capture", "16,,32"), ["--capture '16,,32'", "empty"]),
    (("--capture", "0"), ["--capture '0'", "above 0"]),
    (("--capture", "-16"), ["--capture '-16'", "above 0"]),
    (("--capture", "many"), ["--capture 'many'", "'many' is no number"]),
    (("--capture", "16.5"), ["--capture '16.5'", "no number"]),
    (("--capture", "16,16"), ["--capture '16,16'", "twice"]),
    (("--max-num-seqs", "0"), ["--max-num-seqs '0'", "above 0"]),
    (("--max-num-seqs", "mach"), ["--max-num-seqs", "'mach' is no number"]),
    (("--concurrency", "1,8,8"), ["--concurrency '1,8,8'", "twice"]),
    (("--concurrency", "0"), ["--concurrency '0'", "above 0"]),
    (("--concurrency", "x"), ["--concurrency 'x'", "no number"]),
    (("--rate", "nan"), ["--rate 'nan'", "above 0"]),
    (("--rate", "-1"), ["--rate '-1'", "above 0"]),
    (("--rate", "1", "--burstiness", "0"), ["--burstiness '0'"]),
    (("--interfere", "32768"), ["--interfere '32768'", "TOKENS@RATE"]),
    (("--interfere", "0@1"), ["--interfere '0@1'"]),
    (("--speed", "2"), ["--speed is about a trace"]),
    (("--trace-unit", "s"), ["--trace-unit is about a trace"]),
    (("--trace", "x.jsonl", "--trace-unit", "h"), ["--trace-unit"]),
    (("--trace", "none.jsonl"), ["--trace none.jsonl", "cannot be read"]),
    (("--gpu-memory-utilization", "1.01"), ["--gpu-memory-utilization '1.01'", "not above 1"]),
    (("--gpu-memory-utilization", "0"), ["--gpu-memory-utilization '0'", "above 0"]),
    (("--gpu-memory-utilization", "95%"), ["--gpu-memory-utilization '95%'", "no number"]),
    (("--vary", "max-num-batched-tokens"), ["--vary 'max-num-batched-tokens'", "FLAG=V1,V2"]),
    (("--vary", 'speculative-config={"a": 1'), ["--vary", "no valid JSON"]),
    (("--vary", "dtype=a,a"), ["--vary 'dtype=a,a'", "repeated"]),
    (("--vary", "max-num-seqs=1,2"), ["use --max-num-seqs for that flag"]),
    (("--card", "rtx-5099"), ["rtx-5099", "rtx-5090"]),
    (("--launcher", "podman"), ["--launcher", "podman"]),
    (("--deployment", "rtx5090-headles"), ["rtx5090-headles", "rtx5090-headless"]),
    (("--profile", "fast"), ["--profile 'fast'", "thinking-general"]),
    (("--endpoint", "embeddings"), ["--endpoint", "embeddings"]),
    (("--requests", "0"), ["--requests"]),
    (("--requests", "-3"), ["--requests"]),
    (("--requests", "x4"), ["--requests"]),
    (("--duration", "0"), ["--duration"]),
    (("--duration", "soon"), ["--duration", "valid number"]),
    (("--repeats", "0"), ["--repeats"]),
    (("--relaunch-repeats", "0"), ["--relaunch-repeats"]),
    (("--until-ci", "0%"), ["--until-ci '0%'"]),
    (("--order", "random"), ["--order"]),
    (("--seed", "-1"), ["--seed"]),
    (("--natural-stop-limit", "0"), ["--natural-stop-limit"]),
    (("--timeout", "-1"), ["--timeout"]),
    (("--startup-timeout", "0"), ["--startup-timeout"]),
    (("--slo", "ttft"), ["--slo 'ttft'", "METRIC=LIMIT"]),
    (("--slo", "tfft=100ms"), ["--slo tfft", "ttft"]),
    (("--slo", "ttft=-1"), ["--slo"]),
    (("--input-tokens", "9-3"), ["--input-tokens '9-3'"]),
    (("--output-tokens", "0"), ["--output-tokens '0'"]),
    (("--extra-body", "{"), ["--extra-body", "JSON"]),
    (("--extra-body", "[]"), ["--extra-body", "object"]),
    (("--header-env", "X"), ["--header-env 'X'"]),
    (("--header-env", "X-Key=QWENBENCH_TEST_UNSET"), ["QWENBENCH_TEST_UNSET", "not set"]),
    (("--port", "99999"), ["--port"]),
    (("--run-id", "../up"), ["--run-id '../up'"]),
    (("--run-id", ".hidden"), ["--run-id '.hidden'"]),
    (("--resume", "nowhere"), ["--resume nowhere", "run.json"]),
    (("--campaign", "none.yaml"), ["none.yaml"]),
    (("--client-processes", "0"), ["--client-processes"]),
    (("--client-cpus", "-1"), ["--client-cpus '-1'"]),
    (("--captuer", "16"), ["--captuer", "--help"]),
    (("extra",), ["extra"]),
]


@pytest.mark.parametrize(("options", "told"), OPTIONS, ids=lambda value: " ".join(value) if value else "empty")
def test_a_bad_option(refused: Callable[..., str], options: tuple[str, ...], told: list[str]) -> None:
    line = refused(*SIM, *options)
    assert all(part in line for part in told), line


def test_options_of_a_cluster_without_one(refused: Callable[..., str]) -> None:
    assert "--client remote sends the load from another node: give --cluster" in refused(*SIM, "--client", "remote")
    search = refused("tune", "--users", "4", "--cluster", "auto")
    assert "--cluster: a search runs on one machine. Run it on a node" in search
    assert "--on names cards of a cluster" in refused(*SIM, "--on", "rtx-5090")
    bench = refused("bench", "--url", "http://127.0.0.1:1", "--client-nodes", "2")
    assert "--client-nodes are nodes of a cluster: give --cluster" in bench


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_a_cluster_without_ray(refused: Callable[..., str]) -> None:
    assert "pip install 'qwenbench[ray]'" in refused(*SIM, "--cluster", "auto")


@pytest.mark.parametrize(
    "options",
    [
        ("--vllm-arg=--api-key=abcdef",),
        ("--vllm-arg=--api-key", "--vllm-arg=abcdef"),
        ("--vllm-arg=--hf-token abcdef",),
        (f"--vllm-arg={TOKEN}",),
        ("--vary", "hf-token=abcdef,ghijkl"),
        ("--vary", "env.HF_TOKEN=abcdef,ghijkl"),
        ("--vary", f"model-loader-extra-config={TOKEN}"),
        ("--launcher", "process", "--vllm-command", "vllm serve --api-key abcdef"),
        ("--launcher", "process", "--vllm-command", f"env HF_TOKEN={TOKEN} vllm serve"),
        ("--extra-body", '{"api_key": "abcdef"}'),
        ("--extra-body", f'{{"nested": {{"x": "{TOKEN}"}}}}'),
    ],
)
def test_a_secret_as_an_argument_is_refused_and_not_repeated(
    refused: Callable[..., str], options: tuple[str, ...]
) -> None:
    line = refused(*SIM, *options)
    assert "environment variable" in line or "--header-env" in line
    assert "abcdef" not in line
    assert TOKEN not in line


def test_malformed_yaml_is_told_with_file_line_and_field(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nprompts: set.jsonl\noutput_tokens: soon\n")
    assert "mine.yaml, line 3, field output_tokens: " in refused(*SIM, "--scenario", str(file))
    file.write_text("name: [\n")
    assert "mine.yaml, line 2: no valid YAML" in refused(*SIM, "--scenario", str(file))


def test_all_missing_fields_are_told_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("description: nothing else\nseed: -1\n")
    line = refused(*SIM, "--scenario", str(file))
    assert "field name: " in line and "field output_tokens: " in line and "line 2, field seed: " in line


def test_an_unknown_campaign_has_a_near_miss(refused: Callable[..., str]) -> None:
    assert "Did you mean 'seed'?" in refused(*SIM, "--campaign", "sed")


def test_a_broken_row_of_a_prompt_set_is_told_with_its_line(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nprompts: set.jsonl\noutput_tokens: 16\n")
    (tmp_path / "set.jsonl").write_text('{"id": "a", "turns": [{"user": "x"}]}\n{"id": "b"}\n')
    assert "set.jsonl, line 2: turns: " in refused(*SIM, "--scenario", "./mine.yaml")


@pytest.mark.parametrize("where", ["file/results", "/proc/qwenbench-results"])
def test_an_unwritable_folder(refused: Callable[..., str], tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = refused(*SIM, "--out", where)
    assert "--out" in line
    assert "cannot be written" in line


def test_a_run_id_that_exists(refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "results" / "mine"
    run.mkdir(parents=True)
    line = refused(*SIM, "--run-id", "mine", keep=(run, run.parent))
    assert "--run-id mine" in line
    assert "--resume" in line
    assert list(run.iterdir()) == []


def test_a_port_in_use(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(*SIM, "--port", str(port))
    assert str(port) in line
    assert "--port" in line


def test_a_vllm_command_that_does_not_exist(refused: Callable[..., str]) -> None:
    line = refused("sweep", "--launcher", "process", "--vllm-command", "/nowhere/vllm serve")
    assert "/nowhere/vllm" in line
    assert "--vllm-command" in line


def test_a_vllm_command_that_cannot_be_split(refused: Callable[..., str]) -> None:
    assert "--vllm-command" in refused("sweep", "--launcher", "process", "--vllm-command", "vllm 'serve")


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "served-model"}]}).encode()
        self.send_response(200 if self.path in ("/v1/models", "/health") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps stderr for the command's own line."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Models) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_model_that_the_server_does_not_serve(refused: Callable[..., str], server: str) -> None:
    line = refused("bench", "--url", server, "--model", "other-model")
    assert "'other-model'" in line
    assert "served-model" in line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("releases",), "--images v0.30.0,v0.31.0: two or more"),
        (("releases", "--images", "v0.30.0"), "two or more"),
        (("releases", "--launcher", "process"), "--vllm-command once per version"),
        (("releases", "--launcher", "process", "--images", "a,b"), "takes its versions from --vllm-command"),
        (("releases", "--images", "a,b", "--gate", "ttft_p99:10%"), "--gate"),
        (("releases", "--launcher", "sim", "--images", "0.26.0,v0.26.0", "--requests", "none"), "--requests"),
        (("releases", "--images", "a,b", "--run-id", "a b"), "--run-id"),
        (("merge", "run", "--out", "joined"), "give two runs or more"),
        (("merge", "run", "run", "--out", "joined"), "no run there"),
    ],
)
def test_releases_and_merge(refused: Callable[..., str], line: tuple[str, ...], told: str) -> None:
    assert told in refused(*line)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_an_address_that_is_none(refused: Callable[..., str], url: str) -> None:
    assert "--url" in refused("bench", "--url", url)


def test_a_server_that_is_not_there(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    line = refused("bench", "--url", f"http://127.0.0.1:{port}")
    assert str(port) in line


def test_a_key_whose_variable_is_not_set(refused: Callable[..., str], server: str) -> None:
    assert "QWENBENCH_TEST_UNSET" in refused("bench", "--url", server, "--api-key-env", "QWENBENCH_TEST_UNSET")


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["swep"]) == 2
    assert "Did you mean 'sweep'?" in capsys.readouterr().err
