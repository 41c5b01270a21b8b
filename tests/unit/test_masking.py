"""Secrets stay out of every sink: names, shapes, known values, users in URLs."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.masking import Masker, is_secret_name, refuse_secret_arguments, secret_names_in

# put together here so that no scanner takes the file itself for a leak
HF_TOKEN = "hf_" + "aB3" * 8
API_KEY = "sk-" + "x1Y2" * 6


@pytest.mark.parametrize(
    "name",
    (
        "HF_TOKEN OPENAI_API_KEY --api-key --hf-token --api_key MY_PASSWORD db-passwd token AWS_SECRET_ACCESS_KEY "
        "CLIENT_SECRET --ssl-keyfile-password google-credentials SSH_PRIVATE_KEY pwd DB_PWD"
    ).split(),
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    (
        "--max-num-batched-tokens --tokenizer --tokenizer-mode max-model-len --kv-cache-dtype MONKEY "
        "--long-prefill-token-threshold --enable-prompt-tokens-details TOKENS --ssl-keyfile PWD"
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


@pytest.mark.parametrize(
    "name",
    (
        "OPENAI_KEY PGPASS GIT_PAT SERVICE_AUTH apiKey aws_secret_access_key hf-overrides.token X-Secret cookie "
        "dbPassword"
    ).split(),
)
def test_a_secret_is_known_by_its_last_word(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    "eos_token time_to_first_token cache_key key sort-key MY_SETTING author bypass compass keyboard tokens".split(),
)
def test_words_that_only_look_alike_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ['--hf-overrides={"token":"v"}'],
        ["--hf-overrides", '{"a": [{"b": {"apiKey": "v"}}]}'],
        ["--hf-overrides.token=v"],
        ['--model-loader-extra-config={"aws_secret_access_key":"v"}'],
        ["--api-ke=v"],
        ["--hf_tok", "v"],
        ["--download-url=https://host/x?api_key=v"],
        ["--api-key\tv"],
        ["--hf-overrides={'token': 'a-python-literal'}"],
        ["--model=s3://name:password-1@bucket"],
        ['--kv-transfer-config={"redis_url": "redis://:password-1@host"}'],
        ["--header=X-Api-Key: abcdefgh"],
        ["-api-key=abcdefgh"],
    ],
)
def test_a_secret_inside_an_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"carries a secret|holds a secret"):
        refuse_secret_arguments(arguments, "--vllm-arg")


def test_flags_that_begin_like_secret_ones_pass_where_they_are_flags_themselves() -> None:
    refuse_secret_arguments(["--ssl-keyfile=/etc/key.pem", "--hf-overrides", '{"eos_token": "x"}', "-tp", "2"], "x")


SECRET = st.text(
    alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cc"]), min_size=20, max_size=30
).filter(lambda text: "*" not in text)


@given(SECRET)
def test_a_known_value_is_masked_in_every_usual_spelling(secret: str) -> None:
    mask = Masker([secret])
    encoded = base64.b64encode(secret.encode()).decode()
    within = json.dumps({"x": secret})
    spellings = (
        *(within, json.dumps(within), json.dumps(secret, ensure_ascii=False).replace("/", "\\/"), repr(secret)),
        *(repr(secret.encode()), secret.encode("unicode_escape").decode(), secret.encode().decode("latin-1")),
        *(quote(secret, safe=""), quote(secret).lower(), quote(quote(secret, safe=""), safe="")),
        *(
            encoded,
            base64.urlsafe_b64encode(secret.encode()).decode(),
            secret.encode().hex(),
            secret.encode().hex().upper(),
        ),
        *(html.escape(secret), secret.encode("ascii", "xmlcharrefreplace").decode(), f"x-key: {secret}\r\n"),
    )
    for spelled in spellings:
        shown = mask(f"before {spelled} after")
        rest = shown.removeprefix("before ").removesuffix(" after").replace("***", "")
        assert "***" in shown
        assert len(rest) <= 16, f"{spelled} -> {shown}"  # what stood around it


@given(SECRET, st.binary(max_size=9), st.binary(max_size=9))
def test_a_known_value_is_masked_within_a_longer_text_in_base64(secret: str, before: bytes, after: bytes) -> None:
    """`Basic` and the base64 of a whole JSON body: the secret's bytes begin anywhere in a group of three."""
    encoded = base64.b64encode(before + secret.encode() + after).decode()
    shown = Masker([secret])(f"a {encoded} b")
    assert "***" in shown
    longest = max(shown.removeprefix("a ").removesuffix(" b").split("***"), key=len)
    assert len(longest) <= max(len(before), len(after)) * 4 / 3 + 4


@given(
    st.recursive(
        st.sampled_from(["token", "API_KEY", "dbPassword"]).map(lambda name: {name: "planted-value"}),
        lambda inner: st.one_of(st.lists(inner, min_size=1, max_size=3), inner.map(lambda v: {"plain": v})),
        max_leaves=5,
    )
)
def test_a_secret_is_found_at_any_depth(value: object) -> None:
    assert list(secret_names_in(value))
    assert "planted-value" not in Masker()(json.dumps({"body": value}))
    assert "planted-value" not in Masker()(json.dumps({"text": json.dumps(value)}))


def test_values_in_a_query_are_masked_under_a_secrets_name_only() -> None:
    text = "GET http://h/v1?api_key=abc&limit=5&token=x%20y HTTP/1.1"
    assert Masker()(text) == "GET http://h/v1?api_key=***&limit=5&token=*** HTTP/1.1"


PLANTED = "sekret-99"


@pytest.mark.parametrize(
    "text",
    [
        "non-default args: {'api_key': ['sekret-99', 'sekret-99'], 'x': {'password': \"sekret-99\"}}",
        "Namespace(api_key='sekret-99', hf_token=['sekret-99'])",
        "export HF_TOKEN=sekret-99; -e HF_TOKEN=sekret-99 x",
        "X-Api-Key: sekret-99",
        "set-cookie: session=sekret-99; a=sekret-99",
        "Proxy-Authorization: Basic sekret-99",
        "authorization: sekret-99",
        "[(b'authorization', b'Bearer sekret-99'), (b'x-api-key', b'sekret-99')]",
        "serve m --api-key sekret-99 --hf-token=sekret-99",
        "http://h/x?key=sekret-99&X-Amz-Signature=sekret-99&sig=sekret-99",
        "http://u:sek/ret-99@host/ postgres://u:sekret-99@h/db",
        '{"env":[{"name":"HF_TOKEN","value":"sekret-99"}]}',
        "api_key: sekret-99\nenv: {DB_PASSWORD: sekret-99}",
        '{"api_key": 99123456789}',
        '"apiKey" : "a\\"sekret-99"',
        '"{\\"api_key\\": \\"sekret-99\\"}"',
        "a line\\napi_key=sekret-99",
        "curl -H 'Bearer sekret-99'",
    ],
)
def test_what_stands_under_a_secrets_name_is_masked_in_every_form(text: str) -> None:
    shown = Masker()(text)
    assert "ret-99" not in shown and "99123" not in shown, shown


@pytest.mark.parametrize(
    "text",
    [
        "unexpected token: sekret at line 3",
        '["token", "word"]',
        "first pass: 3.2 s, HF_TOKEN=None, api_key=$API_KEY, --header-env X-Api-Key=MY_KEY",
        "max_num_batched_tokens=2048 eos_token=7 per-token: 5.2 ms",
        "http://host:8000/v1?mail=a@b.example",
        "non-default args: {'model': 'm', 'max_model_len': 4096}",
        "--api-key is needed",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Masker()(text) == text


def test_parts_of_a_known_secret_are_masked_where_they_are_shown_alone() -> None:
    mask = Masker(
        ["Bearer abcdefgh1", "session=ijklmnop2; other=qrstuvwx3", "-----BEGIN KEY-----\nyz456789\nyz456780\n"]
    )
    assert mask("abcdefgh1 ijklmnop2 qrstuvwx3 yz456789 yz456780") == "*** *** *** *** ***"


def test_in_a_models_answer_only_known_values_are_masked() -> None:
    assert Masker(["known-secret"]).known('password = "known-secret" or "x1y2z3"') == 'password = "***" or "x1y2z3"'
