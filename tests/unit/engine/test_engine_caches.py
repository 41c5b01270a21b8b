"""Compile caches: kept where the next launch finds them, the user's own choice left alone, or empty each time."""

from __future__ import annotations

import pytest

from qwenbench.engine.caches import fresh, kept_by_container, kept_by_process
from qwenbench.engine.config import AssignedCard, DockerOptions, ServerConfig
from qwenbench.engine.docker.line import run_argv, shown_argv

ON_5090 = ServerConfig(cards=(AssignedCard(0, "GPU-a", "NVIDIA GeForce RTX 5090"),))


def test_a_process_shares_tritons_cache_between_capture_sizes_on_one_kind_of_card() -> None:
    kept = kept_by_process(ON_5090, {"XDG_CACHE_HOME": "/c"})
    assert kept == {
        "TRITON_CACHE_DIR": "/c/qwenbench/triton/nvidia-geforce-rtx-5090",
        "TRITON_CACHE_AUTOTUNING": "1",
    }
    other = ServerConfig(cards=(AssignedCard(0, "GPU-a", "NVIDIA RTX PRO 6000"),))
    assert kept_by_process(other, {"XDG_CACHE_HOME": "/c"})["TRITON_CACHE_DIR"] != kept["TRITON_CACHE_DIR"]


@pytest.mark.parametrize(
    ("env", "environ"),
    [({"TRITON_CACHE_DIR": "/mine"}, {}), ({}, {"TRITON_CACHE_DIR": "/mine"}), ({}, {"TRITON_HOME": "/mine"})],
)
def test_what_the_user_set_stays(env: dict[str, str], environ: dict[str, str]) -> None:
    assert "TRITON_CACHE_DIR" not in kept_by_process(ServerConfig(env=env), environ)


@pytest.mark.parametrize(
    ("mount", "where"),
    [
        ("/srv/cache:/root/.cache", "/root/.cache/triton/card"),
        ("E:\\cache:/root/.cache", "/root/.cache/triton/card"),
        ("cache:/home/vllm/.cache:Z", "/home/vllm/.cache/triton/card"),
        ("C:/Users/me/hf cache:/root/.cache:rw,z", "/root/.cache/triton/card"),
        ("/srv/cache:/root/.cache:ro", None),
        (None, None),
    ],
)
def test_a_container_keeps_in_its_mount_what_it_would_lose(mount: str | None, where: str | None) -> None:
    config = ServerConfig(docker=DockerOptions(cache_mount=mount))
    assert kept_by_container(config).get("TRITON_CACHE_DIR") == where


def test_the_shown_line_has_no_caches_and_the_deployments_own_count() -> None:
    config = ServerConfig(env={"TRITON_CACHE_DIR": "/mine", "VLLM_CACHE_ROOT": "/v"})
    assert "TRITON_CACHE_DIR" not in kept_by_container(config)
    # docker takes the last of several
    run = run_argv(config, "n", {}, fresh("/tmp/x"))
    assert run.index("TRITON_CACHE_DIR=/tmp/x/triton_cache_dir") < run.index("TRITON_CACHE_DIR=/mine")
    assert not any("/tmp/x" in word for word in shown_argv(config))


def test_fresh_caches_are_all_in_one_folder() -> None:
    assert set(fresh("/f")) >= {"VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH"}
    assert all(value.startswith("/f/") for value in fresh("/f").values())
