"""What Docker, NVIDIA's tools, Hugging Face and vLLM say when a server fails, and what to do about it.

One row a cause: its class, the text by which it is known, the advice. The order is reasoned, and the first row that
matches wins: the specific before the general (a full /dev/shm before a full disk), a cause before its consequence (a
toolkit that is too old before the kernel that it could not build), what is wrong with the machine before what is wrong
with the model, and both before a lack of memory, which many of them end in. A row's text is matched against single
lines that were neither INFO nor a request's, without the logger's prefix. Where a text was seen stands in
tests/data/failures, one file a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    kind: str
    pattern: re.Pattern[str]
    advice: str


def _rule(kind: str, pattern: str, advice: str) -> Rule:
    return Rule(kind, re.compile(pattern), advice)


DOCKER_RULES: tuple[Rule, ...] = (
    _rule(
        "docker_permission",
        r"permission denied while trying to connect to the (?:Docker daemon socket|docker API)",
        "Your user may not use the Docker socket: add it to the group docker "
        "(sudo usermod -aG docker $USER, then log in again), or use a rootless engine.",
    ),
    _rule(
        "no_engine",
        r"Cannot connect to the Docker daemon|error during connect: |Is the docker daemon running\?"
        r"|failed to connect to the docker API",
        "No Docker engine answers: start it (sudo systemctl start docker, or Docker Desktop), "
        "or check `docker context ls` and DOCKER_HOST.",
    ),
    _rule(
        "driver_too_old",
        r"nvidia-container-cli: requirement error: unsatisfied condition",
        "The image needs a newer NVIDIA driver than this host has: update the driver, "
        "or choose with --image a tag built for an older CUDA (without the -cu130 suffix).",
    ),
    _rule(
        "no_nvidia_runtime",
        r'could not select device driver "" with capabilities: \[\[gpu\]\]|Unknown runtime specified nvidia'
        r"|unknown or invalid runtime name: nvidia|could not select device driver \"nvidia\"",
        "Docker does not know the NVIDIA runtime: install nvidia-container-toolkit, then "
        "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker.",
    ),
    _rule(
        "driver_mismatch",
        r"Driver/library version mismatch",
        "The NVIDIA kernel module and its libraries are of two versions (updated without a restart): restart the host.",
    ),
    _rule(
        "nvidia_runtime_broken",
        r"nvidia-container-cli: (?:initialization error|mount error|device error|ldcache error)"
        r"|failed to discover GPU|unresolvable CDI devices|failed to inject CDI devices",
        "NVIDIA's container runtime found no working driver: does nvidia-smi work on the host? "
        "After a driver update the host must be restarted.",
    ),
    _rule(
        "name_taken",
        r'Conflict\. The container name "[^"]*" is already in use',
        "A container of that name exists already: `qwenbench doctor` tells whether it is a leftover; "
        "otherwise remove or rename it.",
    ),
    _rule(
        "port_taken",
        r"port is already allocated|bind: address already in use|bind for \S+ failed: port is already allocated"
        r"|ports are not available",
        "Something else uses this port: stop it, or choose another port with --port.",
    ),
    _rule(
        "no_space",
        r"no space left on device|No space left on device|not enough free space",
        "The disk is full: free space where Docker keeps its images (docker system df, docker system prune) "
        "or on the cache mount, or move the cache with --cache-dir.",
    ),
    _rule(
        "image_missing",
        r"No such image: \S+|dial tcp: lookup \S+|manifest for \S+ not found|no matching manifest for"
        r"|manifest unknown|pull access denied for|repository does not exist or may require|toomanyrequests: ",
        "The image is not on this host and could not be pulled: check the tag given with --image and the network, "
        "or load it with docker pull or docker load.",
    ),
    _rule(
        "entrypoint",
        r'exec: "[^"]+": (?:executable file not found in \$PATH|permission denied)'
        r"|\[FATAL tini \(\d+\)\] exec .+ failed: "
        r"|exec: \S+: (?:not found|cannot execute)|exec format error",
        "The image cannot run its command: is it a vLLM server image for this machine's architecture (--image)?",
    ),
    _rule("docker_refused", r"docker: Error response from daemon: |Error response from daemon: ", ""),
)
"""What the docker command line says: matched before anything else, when it spoke at all."""

_TOOLKIT = (
    "FlashInfer compiles its kernels with this machine's CUDA toolkit, which is too old for the card or not found: "
    "cards of the RTX 50 series (SM 12.x) need CUDA 12.9 or newer. Install it and point CUDA_HOME at it, use the "
    "container image, install flashinfer-jit-cache in FlashInfer's version, or do without its sampler "
    "(VLLM_USE_FLASHINFER_SAMPLER=0: slower with top-k and top-p) and attention (--attention-backend FLASH_ATTN)."
)
_DRIVER = (
    "The NVIDIA driver is older than the CUDA of this vLLM build: update the driver, or choose with --image one built "
    "for an older CUDA (without the -cu130 suffix). In a container, remove a mounted or preloaded libcuda "
    "(LD_LIBRARY_PATH with cuda/compat): forward compatibility works on data-centre cards only."
)

RULES: tuple[Rule, ...] = (
    # The command line: vLLM did not get further.
    _rule(
        "json_argument",
        r"error: argument --\S+: (?:Value .* cannot be converted to <function loads|invalid loads value)"
        r"|error: argument --\S+: Invalid JSON|json\.decoder\.JSONDecodeError",
        "That option takes JSON, and what arrived is none: quote the whole value so that the shell leaves its double "
        'quotes alone, e.g. --vllm-arg=\'--speculative-config={"method":"mtp","num_speculative_tokens":1}\'.',
    ),
    _rule(
        "unknown_flag",
        r"error: unrecognized arguments: .*|error: argument --\S+: (?:invalid|expected|not allowed with).*"
        r"|error: ambiguous option: .*|error: the following arguments are required"
        r"|[Ii]nvalid (?:tool call|reasoning) parser:? .*(?:chose|choose|Available) |Reasoning parser '.*' not found"
        r"|KeyError: .(?:tool|reasoning) parser",
        "This vLLM version does not take that flag or value: remove it (--vllm-arg, --vary, the deployment) "
        "or choose another version with --image.",
    ),
    # The machine: driver, toolkit, compiler, build.
    _rule(
        "driver_mismatch",
        r"Driver/library version mismatch|NVML_ERROR_LIB_RM_VERSION_MISMATCH",
        "The NVIDIA kernel module and its libraries are of two versions (updated without a restart): restart the host.",
    ),
    _rule(
        "fabric_not_ready",
        r"Error 802: system not yet initialized|CUDA_ERROR_SYSTEM_NOT_READY",
        "The cards of an NVSwitch machine need the fabric manager in the driver's version: "
        "sudo systemctl start nvidia-fabricmanager.",
    ),
    _rule(
        "driver_too_old",
        r"The NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version"
        r"|Error 80[34]: |forward compatibility was attempted on non supported HW"
        r"|PTX was compiled with an unsupported toolchain|cudaErrorInsufficientDriver|cudaErrorUnsupportedPtxVersion"
        r"|CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        _DRIVER,
    ),
    _rule(
        "triton_ptxas_too_old",
        r"ptxas fatal\s*: .*(?:is not defined for option 'gpu-name'|Unsupported \.version)"
        r"|PTXASError|Internal Triton PTX codegen error",
        "The ptxas that comes with Triton does not know this card: point TRITON_PTXAS_PATH at the one of a newer CUDA "
        "toolkit (export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas), or use a newer image.",
    ),
    _rule(
        "flashinfer_toolkit",
        r"SM \d+\.x requires CUDA >= |FlashInfer requires GPUs with sm75 or higher|Could not find nvcc"
        r"|nvcc(?::)? not found|No such file or directory: '(?:\S*/)?nvcc'|nvcc fatal\s*: "
        r"|\.cache/flashinfer/.*ninja|\['ninja', .*flashinfer|No supported CUDA architectures found"
        r"|flashinfer\S*: (?:error|fatal error):|No such file or directory: 'ninja'|Ninja build failed",
        _TOOLKIT,
    ),
    _rule(
        "python_headers",
        r"fatal error: Python\.h: No such file or directory|include file 'Python\.h' not found",
        "Triton compiles a small C file at its first use and finds no Python headers: install them for the Python that "
        "runs vLLM (python3-dev, python3.12-dev), or use the container image.",
    ),
    _rule(
        "no_c_compiler",
        r"Failed to find C compiler|Please specify via CC environment variable|cannot find -lcuda"
        r"|No such file or directory: '(?:gcc|cc|g\+\+|clang)'|(?:gcc|cc1plus|g\+\+): (?:fatal error|not found)"
        r"|InvalidCxxCompiler|No working C\+\+ compiler found",
        "Triton and torch.compile need a C compiler at start: install gcc (build-essential) or set CC, "
        "or use the container image.",
    ),
    _rule(
        "broken_install",
        r"undefined symbol: |DLL load failed|lib\w[\w.-]*\.so[.\d]*: cannot open shared object file"
        r"|ImportError: cannot import name .* from '(?:transformers|torch|vllm|triton|flashinfer)"
        r"|operator torchvision::\w+ does not exist|ModuleNotFoundError: No module named",
        "The packages around vLLM do not fit together (torch, CUDA libraries or transformers of another version than "
        "this build was made for, or one missing): install vLLM into an environment of its own, or use the image.",
    ),
    _rule(
        "cpu_too_old",
        r"Illegal instruction|does not support AVX2?(?:512)?|SIGILL",
        "The processor lacks instructions that this build uses: choose a build for this machine.",
    ),
    _rule(
        "devices_by_uuid",
        r"invalid literal for int\(\) with base 10: '(?:GPU|MIG)-",
        "This vLLM version cannot read UUIDs in CUDA_VISIBLE_DEVICES: give indices there "
        "(with CUDA_DEVICE_ORDER=PCI_BUS_ID they are nvidia-smi's).",
    ),
    _rule(
        "no_gpu",
        r"Failed to infer device type|No CUDA GPUs are available|no CUDA-capable device is detected"
        r"|Found no NVIDIA driver on your system|invalid device ordinal|NVML: Driver Not Loaded"
        r"|Device string must not be empty|CUDA_ERROR_NO_DEVICE",
        "vLLM does not see the GPUs that it needs: check nvidia-smi, --gpus in the docker line, CUDA_VISIBLE_DEVICES "
        "and the parallel sizes.",
    ),
    _rule(
        "wsl_no_uva",
        r"UVA is not available|requires UVA|Pin memory is not supported on WSL",
        "Under WSL vLLM pins no memory unless asked to, and its newer model runner needs that: set "
        "VLLM_WSL2_ENABLE_PIN_MEMORY=1 (kernel 4.19.121 or later), or VLLM_USE_V2_MODEL_RUNNER=0.",
    ),
    _rule(
        "gpu_fault",
        r"uncorrectable ECC error|CUDA error: unspecified launch failure|GPU is lost|has fallen off the bus"
        r"|CUDA error: device-side hardware|cudaErrorECCUncorrectable|NVML: GPU is lost",
        "The card or its connection reported a fault: look at `sudo dmesg | grep -i xid` and nvidia-smi -q, reset or "
        "restart, and check power, cooling and the slot (riser) before measuring again.",
    ),
    # The host's own resources.
    _rule(
        "shared_memory_too_small",
        r"failed to extend /dev/shm|creating shared memory segment|shared memory \(shm\)|insufficient shared memory"
        r"|(?:No space left|[Ee]rror).*/dev/shm|/dev/shm.*(?:No space left|[Ee]rror)|Bus error",
        "The container's /dev/shm is too small for what the workers share: --ipc=host, or --shm-size=8g "
        "(a compose file: shm_size or ipc: host).",
    ),
    _rule(
        "host_out_of_memory",
        r"node running low on memory|ray\.exceptions\.OutOfMemoryError|\bMemoryError\b|Cannot allocate memory"
        r"|DefaultCPUAllocator: (?:can't allocate memory|not enough memory)|oom-kill|Out of memory: Killed process"
        r"|CUDA error: (?:host memory|OS call failed)|cudaErrorMemoryAllocation.*[Hh]ost|failed to pin memory",
        "The host ran out of main memory (not the card): end what else needs it, give the container or WSL more, or "
        "lower --cpu-offload-gb and the number of loading workers. Ray ends workers at 95 % use of the node: "
        "RAY_memory_monitor_refresh_ms=0 switches its monitor off.",
    ),
    _rule(
        "too_many_files",
        r"\[Errno 24\] Too many open files|OSError: \[Errno 23\]",
        "The limit of open files is too low: ulimit -n 65535 before the start (docker: --ulimit nofile=65535).",
    ),
    _rule(
        "thread_limit",
        r"can't start new thread|Resource temporarily unavailable|\[Errno 11\]|pthread_create failed",
        "The limit of processes or threads is reached: raise it (ulimit -u, docker --pids-limit), "
        "or end what else runs.",
    ),
    _rule(
        "no_space",
        r"[Nn]o space left on device|\[Errno 28\]|\[Errno 122\] Disk quota exceeded|Not enough free disk space",
        "The disk is full: free space where Docker keeps its images (docker system df, docker system prune) "
        "or on the cache mount, or move the cache with --cache-dir.",
    ),
    _rule(
        "cache_not_writable",
        r"\[Errno 13\] Permission denied: '|\[Errno 30\] Read-only file system|PermissionError at /|is not writable",
        "The server may not write there: make the cache mount writable for its user, or set HF_HOME and "
        "VLLM_CACHE_ROOT to a folder that is.",
    ),
    _rule(
        "port_taken",
        r"\[Errno 98\].*address already in use|EADDRINUSE|Address already in use|address already in use",
        "Something else uses this port: stop it, or choose another port with --port "
        "(--master-port for the workers' own).",
    ),
    # The model: found, allowed, known to this build, whole.
    _rule(
        "gated_model",
        r"Cannot access gated repo for url|You are trying to access a gated repo|GatedRepoError"
        r"|Access to model \S+ is restricted|Your request to access model \S+ (?:is awaiting|has been rejected)"
        r"|Access to model .* is restricted|401 Client Error(?!.*\(Request ID).*huggingface.*gated",
        "The model is gated: accept its terms on its page, then export HF_TOKEN with a token that may read it.",
    ),
    _rule(
        "bad_token",
        r"Invalid user token|Token is required \(|token seems to be invalid|Invalid credentials in Authorization",
        "HF_TOKEN is not valid (expired, mistyped): make a new one with read access, or unset it for a public model.",
    ),
    _rule(
        "hub_rate_limit",
        r"429 Client Error|429 Too Many Requests|We had to rate limit you",
        "The hub limits how often it may be asked: export HF_TOKEN, wait, or download once "
        "(hf download MODEL) and start with HF_HUB_OFFLINE=1.",
    ),
    _rule(
        "harmony_vocabulary",
        r"HarmonyError|error downloading or loading vocab file|harmony.*vocab",
        "gpt-oss needs the harmony vocabulary, which is downloaded at start: allow the download, or put "
        "o200k_base.tiktoken and cl100k_base.tiktoken into a folder and set TIKTOKEN_ENCODINGS_BASE to it.",
    ),
    _rule(
        "model_not_found",
        r"Repository Not Found for url|RepositoryNotFoundError|404 Client Error.*huggingface"
        r"|is not a local folder and is not a valid model identifier"
        r"|Repo id must (?:be|use)|HFValidationError|Invalid repository ID or local directory specified"
        r"|does not appear to have a file named config\.json|Can't load the configuration of"
        r"|Revision Not Found|RevisionNotFoundError|EntryNotFoundError",
        "No model of that name is found: the repository does not exist under it, or is private (the hub answers 401 to "
        "both). Check --model and its spelling, the path in the cache mount and, for a private model, HF_TOKEN.",
    ),
    _rule(
        "hub_unreachable",
        r"LocalEntryNotFoundError|We couldn't connect to 'https://huggingface\.co'|OfflineModeIsEnabled"
        r"|Max retries exceeded with url|Name or service not known|Temporary failure in name resolution"
        r"|CERTIFICATE_VERIFY_FAILED|outgoing traffic has been disabled|ConnectTimeout|ReadTimeoutError",
        "The model is not in the cache and the hub cannot be reached: check network, proxy and certificates, or put "
        "the model into the cache mount; with HF_HUB_OFFLINE=1 it must be there already.",
    ),
    _rule(
        "broken_weights",
        r"SafetensorError|safetensors_rust|Error while deserializing header|InvalidHeaderDeserialization"
        r"|MetadataIncompleteBuffer|PytorchStreamReader failed|unexpected EOF, expected|EOFError"
        r"|Consistency check failed|incomplete metadata, file not fully covered|git-lfs",
        "A weight file is broken or incomplete (an interrupted download, or Git LFS pointers instead of files): delete "
        "the model's folder from the cache and download it again.",
    ),
    _rule(
        "no_weights",
        r"Cannot find any model weights with|no such file.*\.safetensors|index\.json.*not found",
        "The folder holds no weights: check --model and that the download ended.",
    ),
    _rule(
        "model_too_new",
        r"Transformers does not recognize this architecture|has model type .* but Transformers does not"
        r"|Model architectures \[.*\] are not supported|not supported for now|Unrecognized model in"
        r"|Tokenizer class \w+ does not exist or is not currently imported|TokenizersBackend"
        r"|KeyError: '(?:qwen|gemma|llama|gpt_oss|mistral|glm|deepseek|kimi|minimax|nemotron)\w*'"
        r"|requires? (?:transformers|vllm|vLLM) ?>=|Please upgrade transformers",
        "This image is too old for the model (or the model's files were written by a newer transformers than it has): "
        "choose a newer vLLM with --image, or upgrade vllm and transformers together.",
    ),
    _rule(
        "trust_remote_code",
        r"trust_remote_code=True|contains custom code which must be executed",
        "The model brings code of its own: read it, then pass --trust-remote-code (--vllm-arg=--trust-remote-code).",
    ),
    _rule(
        "quantization_unsupported",
        r"quantization method \S+ is not supported for the current GPU|Quantization scheme is not supported for"
        r"|Unknown quantization (?:method|format)|does not match the quantization method specified"
        r"|type fp8e4nv not supported in this architecture|requires a GPU with compute capability"
        r"|No (?:compatible )?\S*(?:Fp4|NvFp4|FP4|FP8|Mxfp4|MXFP4)\S* (?:kernel|backend|MoE backend).*(?:found|support)"
        r"|Failed to find a kernel that can implement|Expected sm_\d+|no kernel image for NVFP4",
        "This card or this build cannot run the model's quantisation: choose a checkpoint in a format that it can "
        "(NVFP4 by itself needs a Blackwell card, FP8 an Ada card or newer), or a build with the kernels.",
    ),
    _rule(
        "dtype_unsupported",
        r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0|float16 is not supported for",
        "The card or model cannot compute in that type: pass --dtype=half (older cards) or --dtype=bfloat16.",
    ),
    _rule(
        "weights_do_not_fit_model",
        r"There is no module or parameter named|Following weights were not initialized from checkpoint"
        r"|KeyError: '(?:model\.|language_model\.)?layers\.|size mismatch for |shape mismatch"
        r"|The size of tensor a .* must match the size of tensor b",
        "The checkpoint's tensors are not those that this vLLM version expects for the architecture (a conversion, an "
        "adapter, or a quantisation it does not know): choose another version with --image or another checkpoint.",
    ),
    # What was asked for contradicts itself, the model or the card.
    _rule(
        "parallel_size",
        r"must be divisible by tensor (?:model )?parallel size|not divisible by (?:the )?tensor|is not divisible by \d"
        r"|World size \(\d+\) is larger than the number of available GPUs|number of required GPUs exceeds"
        r"|placement group .* infeasible",
        "The parallel sizes do not fit the model or the cards: choose a --tensor-parallel-size that divides the heads "
        "and layers' widths and is at most the number of cards (--devices).",
    ),
    _rule(
        "attention_backend",
        r"Selected backend .* is not valid for this configuration|No valid attention backend found"
        r"|(?:Unsupported|Unknown) attention backend|is not supported .*with (?:FlashAttention|FLASH_ATTN)"
        r"|kv_cache_dtype not supported",
        "No attention kernel does what was asked for (that line has the reasons): leave --attention-backend out, or "
        "change --kv-cache-dtype, --block-size or the drafter.",
    ),
    _rule(
        "mamba_align_block",
        r"In Mamba cache align mode, block_size \(\d+\) must be <= max_num_batched_tokens",
        "A hybrid model with prefix caching needs a step as large as its block or more: raise --max-num-batched-tokens "
        "to the block size in that line, or pass --no-enable-prefix-caching.",
    ),
    _rule(
        "batched_tokens",
        r"max_num_batched_tokens \(?\d+\)? (?:is smaller than|must be greater than or equal to)"
        r"|max_num_batched_tokens must be greater|Chunked MM input disabled but max_tokens_per_mm_item",
        "--max-num-batched-tokens is too small for what else is set: raise it as that line says.",
    ),
    _rule(
        "model_too_short",
        r"max_model_len \(\d+\) is greater than the derived max_model_len",
        "The model does not reach that far: set --max-model-len to what that line derives, or to auto.",
    ),
    _rule(
        "mamba_blocks",
        r"max_num_seqs \(\d+\) exceeds available Mamba cache blocks \(\d+\)",
        "Each running request of a hybrid model needs a state block: lower --max-num-seqs to the number in brackets, "
        "or raise --gpu-memory-utilization.",
    ),
    # The card's memory: what vLLM says itself, before an allocation that failed.
    _rule(
        "gpu_memory_taken",
        r"Free memory on device .* is less than desired GPU memory utilization",
        "The card does not have that much memory free: end what else runs on it (nvidia-smi shows it), "
        "or lower --gpu-memory-utilization.",
    ),
    _rule(
        "memory_changed",
        r"Error in memory profiling\.",
        "Another process gave back GPU memory while vLLM measured it: let nothing else run on the card.",
    ),
    _rule(
        "no_kv_memory",
        r"No available memory for the cache blocks",
        "Weights and activations alone use up the budget, nothing is left for a KV cache: raise "
        "--gpu-memory-utilization, lower --max-num-batched-tokens and --max-num-seqs, leave pictures out "
        "(--language-model-only), or choose a smaller or more quantised model.",
    ),
    _rule(
        "kv_cache_too_small",
        r"To serve at least one request with the models?'?s? max seq len|Cannot auto-fit max_model_len"
        r"|is larger than the maximum number of tokens that can be stored",
        "The KV cache is too small for the model length: raise --gpu-memory-utilization, lower "
        "--max-cudagraph-capture-size and --max-num-seqs, or set --max-model-len to the estimate in that line or auto.",
    ),
)
"""Causes that vLLM, its libraries and the system tell."""

OUT_OF_MEMORY = re.compile(
    r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError: .*|CUDA out of memory|CUDA (?:driver )?error: out of memory"
    r"|CUDA_ERROR_OUT_OF_MEMORY|Triton Error \[CUDA\]: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation|CUDA error: out of memory|NCCL WARN Cuda failure.*out of memory"
)
"""A lack of the card's memory, in any of its words."""
OTHERS_MEMORY = re.compile(r"Process \d+ has (?P<size>[\d.]+ [GM]iB) memory in use")

OOM_ADVICE = {
    "oom_start": "The card ran out of memory while the model was loaded: lower --gpu-memory-utilization, choose a "
    "smaller or more quantised model, or end what else runs on the card.",
    "oom_profiling": "The card ran out of memory while the model's peak was measured: lower --max-num-batched-tokens "
    "or --max-num-seqs, leave pictures out (--limit-mm-per-prompt), or end what else runs on the card.",
    "oom_graph_capture": "The card ran out of memory while CUDA graphs were captured: lower "
    "--max-cudagraph-capture-size or --gpu-memory-utilization, or set "
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1 (vLLM 0.18).",
    "oom_sampler_warm_up": "The card ran out of memory while the sampler was warmed up with as many requests as "
    "--max-num-seqs allows: lower --max-num-seqs or --gpu-memory-utilization.",
    "oom_warm_up": "The card ran out of memory after the KV cache and the graphs were in place, in what vLLM warms up "
    "last: lower --gpu-memory-utilization by 0.02 to 0.05, or --max-num-seqs (the sampler's memory grows with it).",
    "oom_first_request": "The card ran out of memory at the first request: kernels that tune themselves at first "
    "use need memory outside vLLM's budget. Lower --gpu-memory-utilization by 0.02 to 0.05.",
    "oom_load": "The card ran out of memory under load, outside the budget that vLLM keeps to: lower "
    "--gpu-memory-utilization, --max-num-seqs or --max-num-batched-tokens.",
}
OOM_WSL = " Under WSL also set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False."

CONSEQUENCES: tuple[Rule, ...] = (
    _rule(
        "compile_cache_stale",
        r"^AttributeError: 'NoneType' object has no attribute '(?:size|shape|stride|dtype)'"
        r"|Inductor cache lookup failed|Failed to load AOT|AOT compil\w+ .*(?:fail|mismatch|corrupt)"
        r"|Error\b.*torch_compile_cache|Please remove the cache directory and try again",
        "A compiled graph from an earlier start with other options does not fit this one: start once with "
        "VLLM_DISABLE_COMPILE_CACHE=1, or remove ~/.cache/vllm/torch_compile_cache (--caches fresh does without).",
    ),
    _rule(
        "illegal_memory_access",
        r"illegal memory access was encountered|misaligned address|an illegal instruction was encountered"
        r"|device-side assert triggered|CUDA error: invalid configuration argument|Warp Illegal",
        "A CUDA kernel of this build went wrong (no lack of memory): try another attention or MoE backend "
        "(--attention-backend, --moe-backend), --enforce-eager, no drafter, or another version with --image; "
        "CUDA_LAUNCH_BLOCKING=1 shows which kernel it was.",
    ),
    _rule(
        "kernel_shared_memory",
        r"out of resource: (?:shared memory|tensor memory|registers|threads)|OutOfResources",
        "A Triton kernel of this build wants more on-chip memory than the card has (consumer cards: 99 KiB a block): "
        "choose another attention or MoE backend, a smaller --block-size, or a newer version with --image.",
    ),
    _rule(
        "kernel_not_for_card",
        r"no kernel image is available for execution on the device|device kernel image is invalid"
        r"|cutlass_?\w*.*(?:Error Internal|Invalid status)|Failed to (?:run|initialize) cutlass|cutlass cannot init"
        r"|cutlass error: ",
        "This build has no kernels that work on the card: choose an image built for it (an RTX 5090 needs CUDA 12.8 or "
        "newer), a newer version, or another kernel (VLLM_DISABLED_KERNELS=..., --moe-backend marlin).",
    ),
    _rule(
        "nccl",
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclRemoteError|DistBackendError"
        r"|Custom allreduce.*fail|peer access is not supported between these two devices",
        "The cards could not talk to each other: set NCCL_DEBUG=WARN to see why; NCCL_P2P_DISABLE=1 and "
        "--disable-custom-all-reduce help where consumer cards have no peer access; in a container use --ipc=host.",
    ),
    _rule(
        "workers_hung",
        r"RPC call to \w+ timed out|Timed out waiting for engine|Watchdog caught collective operation timeout"
        r"|DistStoreError: .*[Tt]imed out|wait timeout after \d+ms|Timed out after \d+ seconds waiting for clients",
        "A worker stopped answering (a collective that hangs, a very long compilation, a worker that was killed): look "
        "for the other worker's own lines above and at dmesg; between two cards try NCCL_P2P_DISABLE=1 and "
        "--disable-custom-all-reduce, and for slow starts a larger VLLM_ENGINE_READY_TIMEOUT_S.",
    ),
    _rule(
        "fork_after_cuda",
        r"Cannot re-initialize CUDA in forked subprocess",
        "CUDA was used before the workers were forked: set VLLM_WORKER_MULTIPROC_METHOD=spawn.",
    ),
)
"""Ends that other causes can lead to as well: told when none of those was."""

SILENT_ADVICE = (
    "Its process ended without telling why: most often it was killed (by the host for lack of memory: see "
    "`sudo dmesg | grep -i -e oom -e xid`), crashed in native code, or hung and was ended. VLLM_LOGGING_LEVEL=DEBUG "
    "and PYTHONFAULTHANDLER=1 show how far it came."
)
KILLED_ADVICE = (
    "Somebody sent SIGKILL: the host for lack of memory (`sudo dmesg | grep -i oom`), a container limit, or a person."
)

DYING = re.compile(
    r"EngineCore encountered a fatal error|WorkerProc hit an exception|EngineCore failed to start"
    r"|WorkerProc failed to start|Engine core initialization failed|died unexpectedly|engine core exited unexpectedly"
)
"""vLLM's own words for the death of one of its processes."""
STOPPING = re.compile(r"\[shutdown\] (?:API server|EngineCore): |Shutdown initiated|(?:INFO:\s+|^)Shutting down")
"""Lines of an ordinary stop: errors after them are its consequences (EngineDeadError in an output handler). What
clients and process managers say at their end is said after a death as well, sometimes before its own line."""
SECONDHAND = re.compile(
    r"EngineDeadError|See (?:root cause|stack trace|the stack trace)|Engine core initialization failed"
    r"|Worker failed with error|WorkerProc initialization failed|RayTaskError|RayActorError|ActorDiedError"
    r"|BackendCompilerFailed|validation errors? for |Error in inspecting model architecture|failed to be inspected"
    r"|CalledProcessError|Error raised in subprocess|Error executing method"
    r"|asyncio\.exceptions\.CancelledError|generation failed|ChildFailedError|SystemExit"
)
"""Exceptions that report another one, which stands elsewhere in the log."""
