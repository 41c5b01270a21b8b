"""What makes a second start cheap - compiled graphs, kernels, tuning results - kept between launches; or left out.

vLLM keeps compiled graphs under VLLM_CACHE_ROOT by a key that changes with the capture size. Triton's kernels and
their tuning results go elsewhere. Where TRITON_CACHE_DIR is unset, PyTorch's Inductor points it into a folder of its
own once it compiles (torch/_inductor/runtime/triton_heuristics.py), while a start that loads what was compiled before
leaves Triton in ~/.triton: so the second start looks where the first did not write, and a container loses both. Set,
it stays (read in vLLM 0.20.2, 0.26.0 and 0.32: only VLLM_USE_STANDALONE_COMPILE=0 overwrites it before 0.32,
compilation/compiler_interface.py). A folder of their own, shared by every configuration on one kind of card, keeps
them: entries are named by the hash of what they were made from, so none is taken for another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from qwenbench.engine.config import ServerConfig

Caches = Literal["kept", "fresh"]
"""`kept` between launches, or `fresh` (empty) for each."""

_MOUNT = re.compile(r".+?:(?P<target>/[^:]*)(?::(?P<mode>[A-Za-z,]+))?")
_TUNING = {"TRITON_CACHE_AUTOTUNING": "1"}
"""vLLM's default since March 2026 (vllm#37188)."""


def kept_by_process(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a process of this machine: the rest it keeps by itself, in the user's ~/.cache."""
    base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwenbench"
    return _unset({"TRITON_CACHE_DIR": str(base / "triton" / _card(config)), **_TUNING}, config, environ)


def kept_by_container(config: ServerConfig) -> dict[str, str]:
    """Variables for a container: into its cache mount with what it would lose; none without a mount to write to."""
    mount = _MOUNT.fullmatch(config.docker.cache_mount or "")
    if mount is None or "ro" in (mount["mode"] or "").split(","):
        return {}
    target = PurePosixPath(mount["target"])
    kept = {
        "TRITON_CACHE_DIR": str(target / "triton" / _card(config)),
        "TORCHINDUCTOR_CACHE_DIR": str(target / "torchinductor"),
        "CUDA_CACHE_PATH": str(target / "nv" / "ComputeCache"),
    }
    return _unset({**kept, **_TUNING}, config, {})


def fresh(folder: str) -> dict[str, str]:
    """Variables that point every cache into an empty folder (the model's download is none of them)."""
    names = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE",
             "CUDA_CACHE_PATH", "DG_JIT_CACHE_DIR", "TILELANG_CACHE_DIR")  # fmt: skip
    return {name: f"{folder}/{name.lower()}" for name in names}


def _card(config: ServerConfig) -> str:
    """A folder for the kind of card: tuning results are named by its architecture alone, which two kinds can share."""
    names = sorted({card.name for card in config.cards if card.name})
    return re.sub(r"[^a-z0-9]+", "-", "+".join(names).lower()).strip("-") or "card"


def _unset(wanted: dict[str, str], config: ServerConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """What the user has not set himself; a TRITON_HOME of his says where Triton's cache is, too."""
    known = {*config.env, *environ, *config.env_names}
    if "TRITON_HOME" in known:
        known.add("TRITON_CACHE_DIR")
    return {name: value for name, value in wanted.items() if name not in known}
