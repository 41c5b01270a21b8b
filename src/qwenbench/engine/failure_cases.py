"""What Docker, NVIDIA's container tools, Hugging Face and vLLM say when a server does not start.

One row a case: the text as it was seen (recorded here, in their sources or in public reports), and what to do
about it. The first row that matches wins, so rows go from the most specific to the most general.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One known failure."""

    kind: str
    pattern: re.Pattern[str]
    advice: str


def _case(kind: str, pattern: str, advice: str) -> Case:
    return Case(kind, re.compile(pattern), advice)


DOCKER_CASES: tuple[Case, ...] = (
    _case(
        "docker_permission",
        r"permission denied while trying to connect to the (?:Docker daemon socket|docker API)",
        "Your user may not use the Docker socket: add it to the group docker "
        "(sudo usermod -aG docker $USER, then log in again), or use a rootless engine.",
    ),
    _case(
        "no_engine",
        r"Cannot connect to the Docker daemon|error during connect: |Is the docker daemon running\?"
        r"|failed to connect to the docker API",
        "No Docker engine answers: start it (sudo systemctl start docker, or Docker Desktop), "
        "or check `docker context ls` and DOCKER_HOST.",
    ),
    _case(
        "driver_too_old",
        r"nvidia-container-cli: requirement error: unsatisfied condition"
        r"|The NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version"
        r"|Error 803: system has unsupported display driver",
        "The image needs a newer NVIDIA driver than this host has: update the driver, "
        "or choose with --image a tag built for an older CUDA (without the -cu130 suffix).",
    ),
    _case(
        "no_nvidia_runtime",
        r'could not select device driver "" with capabilities: \[\[gpu\]\]|Unknown runtime specified nvidia'
        r"|unknown or invalid runtime name: nvidia",
        "Docker does not know the NVIDIA runtime: install nvidia-container-toolkit, then "
        "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker.",
    ),
    _case(
        "nvidia_runtime_broken",
        r"nvidia-container-cli: (?:initialization error|mount error|device error|ldcache error)",
        "NVIDIA's container runtime found no working driver: does nvidia-smi work on the host? "
        "After a driver update the host must be restarted.",
    ),
    _case(
        "name_taken",
        r'Conflict\. The container name "[^"]*" is already in use',
        "A container of that name exists already: `qwenbench doctor` tells whether it is a leftover; "
        "otherwise remove or rename it.",
    ),
    _case(
        "port_taken",
        r"port is already allocated|bind: address already in use|bind for \S+ failed: port is already allocated"
        r"|\[Errno 98\].*address already in use|OSError: \[Errno 98\] Address already in use",
        "Something else uses this port: stop it, or choose another port with --port.",
    ),
    _case(
        "no_space",
        r"no space left on device|No space left on device",
        "The disk is full: free space where Docker keeps its images (docker system df, docker system prune) "
        "or on the cache mount, or move the cache with --cache-dir.",
    ),
    _case(
        "image_missing",
        r"No such image: \S+|dial tcp: lookup \S+|manifest for \S+ not found"
        r"|manifest unknown|pull access denied for|repository does not exist or may require",
        "The image is not on this host and could not be pulled: check the tag given with --image and the network, "
        "or load it with docker pull or docker load.",
    ),
    _case(
        "entrypoint",
        r'exec: "[^"]+": (?:executable file not found in \$PATH|permission denied)'
        r"|\[FATAL tini \(\d+\)\] exec .+ failed: "
        r"|exec: \S+: (?:not found|cannot execute)|exec format error",
        "The image cannot run its command: is it a vLLM server image for this machine's architecture (--image)?",
    ),
    _case(
        "docker_refused",
        r"docker: Error response from daemon: |Error response from daemon: ",
        "",
    ),
)

VLLM_CASES: tuple[Case, ...] = (
    _case(
        "unknown_flag",
        r"error: unrecognized arguments: .*|error: argument --\S+: (?:invalid|expected).*"
        r"|error: ambiguous option: .*",
        "This vLLM version does not take that flag or value: remove it (--vllm-arg, --vary, the deployment) "
        "or choose another version with --image.",
    ),
    _case(
        "gated_model",
        r"Cannot access gated repo for url|You are trying to access a gated repo|GatedRepoError"
        r"|Access to model \S+ is restricted|401 Client Error.*huggingface|Invalid username or password",
        "The model is gated: accept its terms on its page, then export HF_TOKEN with a token that may read it.",
    ),
    _case(
        "model_not_found",
        r"Repository Not Found for url|RepositoryNotFoundError"
        r"|is not a local folder and is not a valid model identifier"
        r"|Repo id must (?:be|use)|HFValidationError|Invalid repository ID or local directory specified"
        r"|does not appear to have a file named config\.json|LocalEntryNotFoundError|Can't load the configuration of"
        r"|We couldn't connect to 'https://huggingface\.co'|OfflineModeIsEnabled",
        "The model was not found: check --model, the cache mount and, for a private model, HF_TOKEN; "
        "with HF_HUB_OFFLINE=1 it must be in the cache already.",
    ),
    _case(
        "gpu_memory_taken",
        r"Free memory on device .* is less than desired GPU memory utilization",
        "The card does not have that much memory free: end what else runs on it (nvidia-smi shows it), "
        "or lower --gpu-memory-utilization.",
    ),
    _case(
        "kv_cache_too_small",
        r"To serve at least one request with the models?'?s? max seq len|Cannot auto-fit max_model_len"
        r"|No available memory for the cache blocks|is larger than the maximum number of tokens that can be stored",
        "The KV cache is too small for the model length: raise --gpu-memory-utilization, lower "
        "--max-cudagraph-capture-size and --max-num-seqs, or set --max-model-len to the estimate in that line or auto.",
    ),
    _case(
        "model_too_short",
        r"max_model_len \(\d+\) is greater than the derived max_model_len",
        "The model does not reach that far: set --max-model-len to what that line derives, or to auto.",
    ),
    _case(
        "mamba_blocks",
        r"max_num_seqs \(\d+\) exceeds available Mamba cache blocks \(\d+\)",
        "Each running request of a hybrid model needs a state block: lower --max-num-seqs to the number in brackets, "
        "or raise --gpu-memory-utilization.",
    ),
    _case(
        "memory_changed",
        r"Error in memory profiling\.",
        "Another process gave back GPU memory while vLLM measured it: let nothing else run on the card.",
    ),
    _case(
        "no_gpu",
        r"Failed to infer device type|No CUDA GPUs are available|no CUDA-capable device is detected"
        r"|Found no NVIDIA driver on your system",
        "vLLM sees no GPU: check nvidia-smi, --gpus in the docker line and CUDA_VISIBLE_DEVICES.",
    ),
    _case(
        "card_not_supported",
        r"no kernel image is available for execution on the device",
        "This build has no kernels for the card: choose an image built for it (an RTX 5090 needs CUDA 12.8 or newer).",
    ),
)

OUT_OF_MEMORY = re.compile(
    r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError: .*|CUDA out of memory.*|RuntimeError: CUDA error: out of memory.*"
    r"|Triton Error \[CUDA\]: out of memory.*|CUBLAS_STATUS_ALLOC_FAILED.*|cudaErrorMemoryAllocation.*"
)
CAPTURING = re.compile(r"\bcapture_model\b|\bcapture_end\b|torch\.cuda\.graph\(|Capturing CUDA graphs")
CAPTURED = re.compile(r"Graph capturing finished")
READY = re.compile(r"Application startup complete")
OOM_ADVICE = {
    "oom_start": "The card ran out of memory while the model was loaded or measured: lower "
    "--gpu-memory-utilization or --max-num-batched-tokens, or end what else runs on the card.",
    "oom_graph_capture": "The card ran out of memory while CUDA graphs were captured: lower "
    "--max-cudagraph-capture-size or --gpu-memory-utilization, or set "
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1 (vLLM 0.18).",
    "oom_first_request": "The card ran out of memory at the first request: kernels that tune themselves at first "
    "use need memory outside vLLM's budget. Lower --gpu-memory-utilization by 0.02 to 0.05.",
    "oom_load": "The card ran out of memory under load, outside the budget that vLLM keeps to: lower "
    "--gpu-memory-utilization, --max-num-seqs or --max-num-batched-tokens.",
}

DYING = re.compile(
    r"EngineCore encountered a fatal error|WorkerProc hit an exception|EngineCore failed to start"
    r"|WorkerProc failed to start|Engine core initialization failed|Engine core proc \S+ died unexpectedly"
)
STOPPING = re.compile(r"\[shutdown\]|Shutdown initiated|INFO:\s+Shutting down")
"""Lines of an ordinary stop: errors after them are its consequences (EngineDeadError in an output handler)."""
