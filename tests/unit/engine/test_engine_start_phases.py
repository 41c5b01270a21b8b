"""What a starting server does, read from its growing log."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenbench.engine.log_lines import LogReader, StartPhases

STEPS = [
    ("INFO 11-26 21:02:44 [core.py:116] Initializing a V1 LLM engine (v0.26.0) with config: model='/m'", None),
    ("INFO 11-26 21:02:53 [gpu_model_runner.py:5250] Starting to load model /tmp/model...", "loading the model"),
    ("Loading safetensors checkpoint shards:  50% Completed | 4/8 [00:01<00:01,  4.3it/s]", "loading weights (4 of 8)"),
    ("INFO 11-26 21:02:59 [gpu_model_runner.py:5347] Model loading took 10.57 GiB memory and 4.3 seconds", "profiling"),
    ("INFO 11-26 21:03:15 [backends.py:1155] Dynamo bytecode transform time: 10.89 s", "compiling"),
    ("INFO 11-26 21:03:58 [monitor.py:53] torch.compile took 54.24 s in total", "profiling"),
    ("INFO 11-26 21:05:37 [gpu_worker.py:560] Available KV cache memory: 16.98 GiB", "making the KV cache"),
    (
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   0%|          | 0/11 [00:00<?, ?it/s]"
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  27%|##7       | 3/11 [00:00<00:00, 25.9it/s]",
        "capturing graphs (3 of 11)",
    ),
    ("INFO 11-26 21:05:44 [gpu_model_runner.py:6844] Graph capturing finished in 3 secs, took 0.14 GiB", "warming up"),
    ("INFO 11-26 21:05:45 [core.py:340] init engine (profile, create kv cache) took 166.32 s", "opening the server"),
]


@pytest.mark.parametrize("wrapper", ["{}", "(EngineCore pid=1772) {}", "vllm-1  | (EngineCore pid=90) {}"])
def test_each_line_moves_it_on(tmp_path: Path, wrapper: str) -> None:
    log = tmp_path / "server.log"
    phases = StartPhases(LogReader(log))
    assert phases.now() is None
    with log.open("a") as file:
        for line, expected in STEPS:
            file.write(wrapper.format(line) + "\n")
            file.flush()
            assert phases.now() == expected
        file.write("nothing that is known\n")
        file.flush()
    assert phases.now() == "opening the server"
