"""Secrets stay out of every sink: names, shapes, known values, users in URLs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.masking import Masker, is_secret_name, refuse_secret_arguments

# put together here so that no scanner takes the file itself for a leak
HF_TOKEN = "hf_" + "aB3" * 8
API_KEY = "sk-" + "x1Y2" * 6


@pytest.mark.parametrize(
    "name",
    (
        "HF_TOKEN OPENAI_API_KEY --api-key --hf-token --api_key MY_PASSWORD db-passwd token AWS_SECRET_ACCESS_KEY "
        "CLIENT_SECRET --ssl-keyfile-password google-credentials SSH_PRIVATE_KEY"
    ).split(),
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    (
        "--max-num-batched-tokens --tokenizer --tokenizer-mode max-model-len --kv-cache-dtype MONKEY "
        "--long-prefill-token-threshold --enable-prompt-tokens-details TOKENS --ssl-keyfile"
    ).split(),
)
def test_ordinary_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", "abc"],
        ["--api-key=abc"],
        ["--api-key abc"],
        ["--hf_token=abc"],
        ["--load-config", HF_TOKEN],
        [f"--speculative-config={{'token': '{HF_TOKEN}'}}"],
        [API_KEY],
        [f'{{"token": "{HF_TOKEN}", "x": "a=b"}}'],
    ],
)
def test_an_argument_with_a_secret_is_refused_without_repeating_it(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_secret_arguments(arguments, "--vllm-arg")
    assert str(caught.value).startswith("--vllm-arg: ")
    assert HF_TOKEN not in str(caught.value)
    assert API_KEY not in str(caught.value)
    assert "environment variable" in str(caught.value)


def test_ordinary_arguments_pass() -> None:
    refuse_secret_arguments(
        ["--max-num-batched-tokens=2048", "--max-num-batched-tokens", "2048", "--enforce-eager"], "--vllm-arg"
    )


def test_known_values_are_masked_the_longest_first() -> None:
    mask = Masker(["secret", "secret-and-longer"])
    assert mask("a secret-and-longer b secret c") == "a *** b *** c"


def test_a_known_value_is_text_not_a_pattern() -> None:
    assert Masker(["a.c*(e"])("abcee a.c*(e") == "abcee ***"


def test_very_short_values_are_left_alone() -> None:
    """A password of `a` would mask every a of a log."""
    assert Masker(["a", "", "12345"])("banana 12345") == "banana 12345"


@pytest.mark.parametrize("token", [HF_TOKEN, API_KEY, "ghp_" + "A1b2" * 6])
def test_token_shaped_words_are_masked_without_being_known(token: str) -> None:
    assert Masker()(f"curl -H 'Authorization: Bearer {token}' x") == "curl -H 'Authorization: Bearer ***' x"


def test_words_that_only_begin_like_a_token_stay() -> None:
    text = "hf_hub sk-learn hf_transfer_enabled ghp_1"
    assert Masker()(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:pass@host:8000/v1", "http://***@host:8000/v1"),
        ("https://token@host", "https://***@host"),
        ("redis://:pass@host/0", "redis://***@host/0"),
        ("http://user:p@ss@host/x", "http://***@host/x"),
        ('{"url": "http://u:p@h/", "mail": "a@b.example"}', '{"url": "http://***@h/", "mail": "a@b.example"}'),
        ("http://host/path?mail=a@b.example", "http://host/path?mail=a@b.example"),
        ('["http://one","a@b.example"]', '["http://one","a@b.example"]'),
        ("http://host:8000", "http://host:8000"),
    ],
)
def test_users_in_urls_are_masked(text: str, masked: str) -> None:
    assert Masker()(text) == masked


def test_the_environment_gives_named_variables_and_those_that_sound_secret() -> None:
    environ = {"HF_TOKEN": "value-one", "X_AUTH": "value-two", "HOME": "/home/me-and-more", "EMPTY_TOKEN": ""}
    mask = Masker.from_environment(["X_AUTH"], environ)
    assert mask("value-one value-two /home/me-and-more") == "*** *** /home/me-and-more"


@given(st.text(min_size=6, max_size=30), st.text(max_size=40), st.text(max_size=40))
def test_a_known_value_never_comes_through(secret: str, before: str, after: str) -> None:
    masked = Masker([secret])(f"{before}{secret}{after}")
    if "*" not in secret:  # a secret made of the mask's own characters can stand in what replaces it
        assert secret not in masked
