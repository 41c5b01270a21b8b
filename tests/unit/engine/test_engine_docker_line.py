"""The docker line: byte for byte the model card's, and what is run is that line with the documented differences."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from qwenbench.cli.deployment import app
from qwenbench.engine.config import DockerOptions, ServerConfig
from qwenbench.engine.deployments import deployment_names, find_deployment
from qwenbench.engine.docker.line import compose, docker_bash, docker_powershell, run_argv, seen_from_wsl, shown_argv
from qwenbench.engine.launch_record import new_labels, owner_of_labels
from qwenbench.errors import UsageError
from qwenbench.processes import ProcessIdentity

CARD = Path(__file__).parents[2] / "data" / "deployments"
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)


def test_the_three_lines_are_the_model_cards() -> None:
    assert docker_bash(find_deployment("generic")) + "\n" == (CARD / "generic.sh").read_text()
    assert docker_bash(find_deployment("rtx5090-headless")) + "\n" == (CARD / "rtx5090-headless.sh").read_text()
    assert docker_powershell(find_deployment("rtx5090-wsl")) + "\n" == (CARD / "rtx5090-wsl.ps1").read_text()


@pytest.mark.parametrize("name", deployment_names())
def test_what_is_run_differs_by_the_documented_list_only(name: str) -> None:
    config = find_deployment(name)
    labels = new_labels("run-1")
    run = run_argv(config, "own-name", labels)
    assert run[:6] == ["docker", "run", "--init", "--pull=never", "--name", "own-name"]
    after_labels = 6 + 2 * len(labels)
    assert run[6:after_labels] == [word for key, text in labels.items() for word in ("--label", f"{key}={text}")]
    shown = shown_argv(config)
    assert shown[:5] == ["docker", "run", "--rm", "--name", config.model.rsplit("/", maxsplit=1)[-1]]
    assert run[after_labels:] == [{"E:\\cache:/root/.cache": "/mnt/e/cache:/root/.cache"}.get(w, w) for w in shown[5:]]


@pytest.mark.parametrize(
    ("mount", "seen"),
    [
        ("E:\\cache:/root/.cache", "/mnt/e/cache:/root/.cache"),
        ("C:/Users/me/hf cache:/root/.cache:ro", "/mnt/c/Users/me/hf cache:/root/.cache:ro"),
        ("D:\\:/root/.cache", "/mnt/d:/root/.cache"),
        ("/srv/cache:/root/.cache", "/srv/cache:/root/.cache"),
        ("cache:/root/.cache", "cache:/root/.cache"),
    ],
)
def test_a_windows_path_is_mounted_from_where_wsl_sees_it(mount: str, seen: str) -> None:
    assert seen_from_wsl(mount) == seen


@pytest.mark.parametrize("name", deployment_names())
def test_nothing_is_privileged_and_ports_bind_to_loopback(name: str) -> None:
    argv = run_argv(find_deployment(name), "own-name", {})
    assert "--privileged" not in argv
    published = [argv[at + 1] for at, word in enumerate(argv) if word in ("-p", "--publish")]
    assert published == ["127.0.0.1:8000:8000"]
    elsewhere = run_argv(replace(find_deployment(name), host="192.0.2.7"), "own-name", {})
    assert "192.0.2.7:8000:8000" in elsewhere, "for a load from another node of a cluster"
    assert "--network" not in argv
    assert [word for word in argv if word.startswith("HF_TOKEN")] == ["HF_TOKEN"]


@given(values=st.lists(WORDS, max_size=4), model=WORDS.filter(bool))
def test_bash_reads_the_shown_line_back(values: list[str], model: str) -> None:
    config = ServerConfig(model=model, flags={f"flag-{n}": text for n, text in enumerate(values)})
    assert shlex.split(docker_bash(config).replace("\\\n", "")) == shown_argv(config)


@given(values=st.lists(WORDS, max_size=4))
def test_compose_carries_the_same_arguments(values: list[str]) -> None:
    config = ServerConfig(flags={f"flag-{n}": text for n, text in enumerate(values)}, extra_args=("--last", "$X"))
    service = yaml.safe_load(compose(config))["services"]["vllm"]
    assert [word.replace("$$", "$") for word in service["command"]] == [config.model, *config.vllm_args()]


def test_compose_has_health_checks_and_an_optional_proxy() -> None:
    services = yaml.safe_load(compose(find_deployment("rtx5090-wsl")))["services"]
    assert services["vllm"]["volumes"] == [{"type": "bind", "source": "E:\\cache", "target": "/root/.cache"}]
    assert services["vllm"]["environment"] == ["HF_TOKEN", "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1"]
    assert services["vllm"]["ports"] == ["127.0.0.1:8000:8000"]
    assert services["proxy"]["profiles"] == ["proxy"]
    assert services["proxy"]["depends_on"] == {"vllm": {"condition": "service_healthy"}}
    assert all("healthcheck" in service for service in services.values())


def test_cards_by_uuid_in_compose_and_line() -> None:
    config = ServerConfig(docker=DockerOptions(gpus='"device=GPU-1,GPU-2"'))
    device = yaml.safe_load(compose(config))["services"]["vllm"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device == {"driver": "nvidia", "device_ids": ["GPU-1", "GPU-2"], "capabilities": ["gpu"]}
    assert '"device=GPU-1,GPU-2"' in shown_argv(config)


def test_a_model_folder_gives_a_container_name_that_docker_takes() -> None:
    config = replace(find_deployment("generic"), model="/models/.x:y/")
    assert "'x-y'" in docker_bash(config)


def test_labels_name_their_owner() -> None:
    assert owner_of_labels(new_labels("run-1")) == ProcessIdentity.current()
    assert owner_of_labels({"qwenbench.run": "run-1"}) is None


def test_command_prints_the_line_and_a_near_miss() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["show", "generic"]).stdout == (CARD / "generic.sh").read_text()
    assert runner.invoke(app, ["show", "rtx5090-wsl"]).stdout == (CARD / "rtx5090-wsl.ps1").read_text()
    assert yaml.safe_load(runner.invoke(app, ["show", "generic", "--shell", "compose"]).stdout)["services"]
    with pytest.raises(UsageError, match="Did you mean 'rtx5090-headless'"):
        find_deployment("rtx5090-headles")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nmodel: m\nserved_model_name: m\ndocker: {image: i}\nport: 0\n", "line 5, field port"),
        ("name: x\nmodel: m\nserved_model_name: m\ndocker: {image: i}\nenv: {HF_TOKEN: abc}\n", "line 5.*HF_TOKEN"),
        ("name: x\nmodel: m\nserved_model_name: m\ndocker: {image: i}\nflags: {api-key: abc}\n", "--api-key"),
        ("name: x\nmodel: m\nserved_model_name: m\ndocker: {image: i}\nfalgs: {}\n", "line 5, field falgs"),
        ("name: [", "line 1"),
    ],
)
def test_broken_deployment_files_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        find_deployment(str(path))


def test_the_proxys_command_is_one_that_the_proxy_takes() -> None:
    from qwenbench.cli import servers

    command = yaml.safe_load(compose(find_deployment("generic")))["services"]["proxy"]["command"]
    assert command[0] == "proxy"
    flags = {word for word in command if word.startswith("--")}
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(servers.proxy).parameters}
    assert flags <= known
    assert command[command.index("--served-model") + 1] == "Qwen3.5-9B"
