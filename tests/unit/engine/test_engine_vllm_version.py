"""The vLLM version, asked of image tags and of commands before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qwenbench.engine.launchers import version_of_command, version_of_image


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.18.0-cu130", "0.18.0"),
        ("registry:5000/vllm-openai:0.33.0", "0.33.0"),
        ("vllm/vllm-openai:v0.20.1rc1.dev16", "0.20.1rc1.dev16"),
        ("vllm/vllm-openai:latest", None),
        ("vllm/vllm-openai", None),
        ("vllm/vllm-openai@sha256:" + "0" * 64, None),
    ],
)
def test_version_in_an_image_tag(image: str, version: str | None) -> None:
    assert version_of_image(image) == version


def _package(folder: Path, version: str) -> Path:
    """An installed vLLM as far as its metadata goes, and its script with this Python in the first line."""
    site = folder / "site" / f"vllm-{version}.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    script = folder / "vllm"
    script.write_text(f"#!{python}\nprint('not this one')\n")
    for file in (python, script):
        file.chmod(0o755)
    return script


def test_the_installed_package_is_asked_before_the_slow_command(tmp_path: Path) -> None:
    assert version_of_command(f"{_package(tmp_path, '0.26.0')} serve") == "0.26.0"


def test_a_command_without_metadata_answers_itself(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 0.28.1\n')
    script.chmod(0o755)
    assert version_of_command(f"{script} serve") == "0.28.1"


@pytest.mark.parametrize("command", ["", "/nowhere/vllm serve", "'unbalanced"])
def test_no_command_has_no_version(command: str) -> None:
    assert version_of_command(command) is None


def test_another_program_is_not_started_to_be_asked(tmp_path: Path) -> None:
    witness = tmp_path / "started"
    script = tmp_path / "server"
    script.write_text(f"#!/bin/sh\ntouch {witness}\n")
    script.chmod(0o755)
    assert version_of_command(str(script)) is None
    assert not witness.exists()
