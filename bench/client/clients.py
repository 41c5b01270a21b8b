"""The clients that are compared, each in an environment of its own, all told to do the same work."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from trials import CACHE, HERE, Seen, Shape

VLLM = "0.33.0"
AIPERF = "0.13.0"
GUIDELLM = "0.8.1"
PROMPT = "hi " * 16

Run = Callable[[int, Shape, int, int], Seen]
"""(port, shape, concurrency, requests) -> what the client saw."""


def qwenbench(port: int, shape: Shape, concurrency: int, requests: int) -> Seen:
    """This project's load generator, as `qwenbench bench` uses it."""
    from qwenbench.load.run import run_load
    from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
    from qwenbench.workload.sessions import SessionPlan, TurnPlan

    def session(index: int) -> SessionPlan:
        payload = {
            "model": "mock",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_completion_tokens": shape.tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        turn = TurnPlan(f"r{index}", 0, "p", "en", payload, shape.tokens)
        return SessionPlan(f"s{index}", "bench", (turn,))

    target = Target(f"http://127.0.0.1:{port}")
    spec = LoadSpec(target, ClosedLoop(concurrency), [session(i) for i in range(requests)], timeout_s=120)
    result = asyncio.run(run_load(spec))
    table = result.requests
    good = table.filter(table["error"].is_null())
    gaps = good["itl_ms"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    sent, ended = good["sent_ns"].to_numpy(), good["ended_ns"].to_numpy()
    tokens = int(np.sum(good["output_tokens"].to_numpy(zero_copy_only=False)))
    health = result.health
    merged = int(np.sum(good["gaps_merged"].to_numpy(zero_copy_only=False)))
    return Seen(
        ttft=good["ttft_ms"].to_numpy(),
        gaps=gaps,
        ok=good.num_rows,
        failed=table.num_rows - good.num_rows,
        tokens=tokens,
        wall_s=(ended.max() - sent.min()) / 1e9,
        cpu_s=health.cpu_us_per_token * tokens / 1e6 if health.cpu_us_per_token else None,
        more={"merged_share": merged / max(1, merged + len(gaps)), "stamps": health.stamp_source},
    )


def qwenbench_before(port: int, shape: Shape, concurrency: int, requests: int) -> Seen:
    """The same of another checkout, QWENBENCH_BEFORE, by this environment's Python and packages."""
    call = f"clients.qwenbench({port}, trials.{shape!r}, {concurrency}, {requests})"
    code = f"import pickle, sys, clients, trials; sys.stdout.buffer.write(pickle.dumps({call}))"
    paths = [str(Path(os.environ["QWENBENCH_BEFORE"]).resolve() / "src"), str(HERE)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, timeout=300, check=True)
    seen = pickle.loads(done.stdout)
    assert isinstance(seen, Seen)
    return seen


def vllm_rs(port: int, shape: Shape, concurrency: int, requests: int, *, warm: bool = False) -> Seen:
    """The Rust client in vLLM's wheel. `warm`: as many warm-up requests as streams come first."""
    folder = CACHE / "vllm-rs"
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": PROMPT}) + "\n" for _ in range(requests)))
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    command: list[str] = [
        str(folder / "vllm-rs"),
        *("bench", "serve", "--backend", "openai-chat", "--host", "127.0.0.1", "--port", str(port)),
        *("--endpoint", "/v1/chat/completions", "--model", "mock", "--tokenizer", str(tokenizer())),
        *("--dataset-name", "custom", "--dataset-path", str(prompts)),
        *("--custom-output-len", str(shape.tokens), "--num-prompts", str(requests)),
        *("--max-concurrency", str(concurrency), "--disable-tqdm", "--no-steady-state"),
        *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", out.name),
        *(("--num-warmups", str(concurrency)) if warm else ()),
    ]
    cpu = _run(command)
    told = json.loads(out.read_text())
    tokens = int(told["total_output_tokens"])
    return Seen(
        ttft=[1000 * one for one in told["ttfts"]],
        gaps=[1000 * gap for one in told["itls"] for gap in one],
        ok=int(told["completed"]),
        failed=int(told["failed"]),
        tokens=tokens,
        wall_s=float(told["duration"]),
        cpu_s=cpu if not warm else None,  # with the program's start, and without warm-up requests
    )


def vllm_rs_warm(port: int, shape: Shape, concurrency: int, requests: int) -> Seen:
    """vllm-rs with warm connections."""
    return vllm_rs(port, shape, concurrency, requests, warm=True)


def vllm_python(port: int, shape: Shape, concurrency: int, requests: int) -> Seen:
    """vLLM's own Python request function, driven as `vllm bench serve` drives it."""
    python = CACHE / "vllm-python" / "env" / "bin" / "python"
    out = CACHE / "vllm-python" / "result.json"
    numbers = (port, shape.tokens, concurrency, requests)
    _run([str(python), str(HERE / "drive_vllm_python.py"), str(out), *map(str, numbers)])
    told = json.loads(out.read_text())
    return Seen(**told)


def aiperf(port: int, shape: Shape, concurrency: int, requests: int) -> Seen:
    """NVIDIA's AIPerf."""
    folder = CACHE / "aiperf"
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": PROMPT}) + "\n" for _ in range(requests)))
    out = folder / "artifacts"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        str(folder / "env" / "bin" / "aiperf"),
        *("profile", "-m", "mock", "--url", f"http://127.0.0.1:{port}", "--endpoint-type", "chat"),
        *("--streaming", "--concurrency", str(concurrency), "--request-count", str(requests)),
        *("--input-file", str(prompts), "--custom-dataset-type", "single_turn"),
        *("--extra-inputs", f"max_completion_tokens:{shape.tokens}", "--use-server-token-count"),
        *("--tokenizer", str(tokenizer()), "--artifact-dir", str(out), "--ui", "none", "--no-auto-plot"),
        *("--export-level", "records", "--wait-for-model-timeout", "0"),
    ]
    _run(command)
    rows = [json.loads(line) for line in (out / "profile_export.jsonl").read_text().splitlines()]
    good = [row for row in rows if not row.get("error")]
    start = min(row["metadata"]["request_start_ns"] for row in good)
    end = max(row["metadata"]["request_end_ns"] for row in good)
    metrics = [row["metrics"] for row in good]
    return Seen(
        ttft=[one["time_to_first_token"]["value"] for one in metrics],
        gaps=[gap for one in metrics for gap in one.get("inter_chunk_latency", {}).get("value", [])],
        ok=len(good),
        failed=requests - len(good),
        tokens=int(sum(one["usage_completion_tokens"]["value"] for one in metrics)),
        wall_s=(end - start) / 1e9,
    )


def guidellm(port: int, shape: Shape, concurrency: int, requests: int) -> Seen:
    """GuideLLM, whose report keeps no single gaps: its ITL is left empty here."""
    folder = CACHE / "guidellm"
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    command = [
        str(folder / "env" / "bin" / "guidellm"),
        *("run", "--backend", f"kind=openai_http,target=http://127.0.0.1:{port},model=mock"),
        *("--profile", f"kind=concurrent,streams={concurrency}"),
        *("--constraint", f"kind=max_requests,count={requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer()}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={shape.tokens}"),
        *("--output", f"kind=json,path={out}", "--disable-console"),
    ]
    _run(command)
    told = json.loads(out.read_text())["benchmarks"][0]
    good = told["requests"]["successful"]
    return Seen(
        ttft=[one["time_to_first_token_ms"] for one in good],
        gaps=[],
        ok=len(good),
        failed=len(told["requests"]["errored"]),
        tokens=sum(one["output_tokens"] for one in good),
        wall_s=max(one["request_end_time"] for one in good) - min(one["request_start_time"] for one in good),
    )


CLIENTS: dict[str, Run] = {
    "qwenbench": qwenbench,
    "qwenbench before": qwenbench_before,
    "vllm-rs": vllm_rs,
    "vllm-rs warm": vllm_rs_warm,
    "vLLM Python": vllm_python,
    "AIPerf": aiperf,
    "GuideLLM": guidellm,
}
HEAVY = ("AIPerf", "GuideLLM")
"""Clients that take far longer to start than to measure."""


def prepare(names: list[str]) -> None:
    """Install the named clients under the cache folder; what is there already is kept."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if any(name.startswith(("vllm", "vLLM")) for name in names):
        _prepare_vllm()
    if "AIPerf" in names:
        _environment("aiperf", f"aiperf=={AIPERF}")
    if "GuideLLM" in names:
        _environment("guidellm", f"guidellm=={GUIDELLM}")


def _prepare_vllm() -> None:
    binary = CACHE / "vllm-rs" / "vllm-rs"
    module = CACHE / "vllm-python" / "endpoint_request_func.py"
    if not (binary.exists() and module.exists()):
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE / "wheel")]
        download += ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", f"vllm=={VLLM}"]
        subprocess.run(download, check=True)
        (wheel,) = (CACHE / "wheel").glob(f"vllm-{VLLM}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name, place in (
                ("vllm/vllm-rs", binary),
                ("vllm/benchmarks/lib/endpoint_request_func.py", module),
            ):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(name))
        binary.chmod(0o755)
        shutil.rmtree(CACHE / "wheel")
    _environment("vllm-python", "aiohttp", "regex", "tqdm")


def _environment(name: str, *packages: str) -> None:
    folder = CACHE / name / "env"
    marker = folder / "installed"
    if marker.exists() and marker.read_text() == " ".join(packages):
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages], check=True)
    marker.write_text(" ".join(packages))


def tokenizer() -> Path:
    """A tokenizer of two words: no client needs a real one for a truth server."""
    folder = CACHE / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "hi": 1}, "unk_token": "[UNK]"}
    whole: dict[str, Any] = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    whole |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    whole["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    names = dict.fromkeys(("unk_token", "eos_token", "bos_token"), "[UNK]")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 100_000, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _run(command: list[str]) -> float:
    """Run a client to its end; returns its CPU seconds. Ends the comparison when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-800:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def versions() -> dict[str, str]:
    """Which client versions are compared."""
    from qwenbench import __version__

    rust = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=False).stdout.split()
    python = sys.version.split()[0]
    return {
        "qwenbench": __version__,
        "vLLM": VLLM,
        "AIPerf": AIPERF,
        "GuideLLM": GUIDELLM,
        "Python": python,
        "rustc": rust[1] if len(rust) > 1 else "",
    }
