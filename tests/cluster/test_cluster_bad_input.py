"""What cannot go well on a cluster is one line before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_runs import SWEEP, into, run

from conftest import RayCluster


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on", "h200"), "--on h200: no node of the cluster has such a card (there are: rtx-4090, rtx-5090)"),
        (("--on", "rtx-4090", "--vllm-arg=--tensor-parallel-size=2"), "needs 2 of them on one node"),
        (("--devices", "0"), "--devices with --cluster"),
        (("--launcher", "process", "--on", "rtx-4090", "--vllm-command", "no-such-vllm serve"), "no-such-vllm"),
        (("--launcher", "process", "--on", "rtx-4090", "--vllm-command", "env", "--model", "/no/model"), "/no/model"),
        (("--header-env", "X-Key=NO_SUCH_VARIABLE", "--on", "rtx-4090"), "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_what_cannot_go_well_is_one_line_before_anything_starts(
    cluster: RayCluster, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = run(*SWEEP, "--cluster", cluster.address, *words, *into(tmp_path / "r"))
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    done = run(*SWEEP, "--cluster", "127.0.0.1:1", *into(tmp_path / "r"))
    assert done.returncode == 2
    assert "--cluster 127.0.0.1:1: nothing answers there" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
