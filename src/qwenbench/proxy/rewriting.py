"""What the proxy changes: the model's name both ways, sampling parameters and thinking. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from qwenbench.http1.reading import HttpError
from qwenbench.workload.profiles import PROFILES, SamplingProfile

DEFAULT_PREFIX = "qwen3.5-"
"""Virtual names are this and the profile's name."""

CHAT_PATHS = frozenset({"/v1/chat/completions", "/tokenize"})
"""Paths whose bodies may hold messages, so that the chat template's enable_thinking applies."""
SAMPLING_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths whose bodies take sampling parameters."""
NOT_SERVED = ("/v1/responses", "/invocations", "/inference/v1/generate", "/v1/chat/completions/batch")
"""Paths (and what lies below them) of vLLM that generate and would get past the profiles."""
MOST_VALUES = 1_000_000
"""In a body: as Python objects they take sixty times the bytes that they have as text."""
_HELD_BYTES = 1 << 20
"""Of a line that does not end, before it is passed on without its end."""
_LONGEST_FIELD = 1024
_LISTING_BYTES = 4 << 20


class BadRequest(Exception):
    """A request that is answered with 400; its text never quotes the body."""


def virtual_models(prefix: str = DEFAULT_PREFIX) -> dict[str, SamplingProfile]:
    """Virtual model name -> its profile."""
    return {prefix + name: profile for name, profile in PROFILES.items()}


@dataclass(frozen=True, slots=True)
class RewrittenRequest:
    """A request body for the target, and the virtual name that its answer shall carry."""

    body: bytes
    virtual_model: str | None


def rewrite_request(
    path: str, body: bytes, models: Mapping[str, SamplingProfile], served_model: str, *, enforce: bool = False
) -> RewrittenRequest:
    """A body as the target shall see it.

    On the paths of SAMPLING_PATHS and CHAT_PATHS the model must be one of `models` (/tokenize may leave it out);
    sampling parameters that are missing or null are filled in, with `enforce` all are replaced. enable_thinking is
    what the name stands for, so it is always set. On any other path only a virtual name is replaced.
    Raises BadRequest: no JSON object, or an unknown name.
    """
    strict = path in SAMPLING_PATHS or path in CHAT_PATHS
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise BadRequest(f"the body holds more than {MOST_VALUES:,} values")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        if strict:
            raise BadRequest("the body is no JSON object")
        return RewrittenRequest(body, None)
    name = fields.get("model")
    profile = models.get(name) if isinstance(name, str) else None
    if profile is None:
        if name != served_model and (not strict or (path == "/tokenize" and name is None)):
            return RewrittenRequest(body, None)
        told = "is missing" if name is None else "is no text"
        told = f"{name[:100]!r} is unknown" if isinstance(name, str) else told
        raise BadRequest(f"model {told}; this proxy serves {', '.join(models)}")
    fields["model"] = served_model
    _apply(profile, fields, path, enforce=enforce)
    try:
        return RewrittenRequest(orjson.dumps(fields), name)
    except orjson.JSONEncodeError:  # orjson reads deeper than it writes
        raise BadRequest("the body is nested too deeply") from None


def _apply(profile: SamplingProfile, fields: dict[str, Any], path: str, *, enforce: bool) -> None:
    """Sampling parameters and thinking of a profile, where this path takes them."""
    if path in SAMPLING_PATHS:
        for parameter, value in profile.sampling().items():
            if enforce or fields.get(parameter) is None:
                fields[parameter] = value
    if path in CHAT_PATHS and "messages" in fields:
        given = fields.get("chat_template_kwargs")
        if given is not None and not isinstance(given, dict):
            raise BadRequest("chat_template_kwargs is no object")
        fields["chat_template_kwargs"] = {**(given or {}), "enable_thinking": profile.enable_thinking}


class BodyChange(Protocol):
    """Changes an answer's body as it passes."""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on after these bytes. Raises HttpError (502) for more than can be held."""

    def finish(self) -> bytes:
        """What is left at the body's end."""


class NameRestorer:
    """Puts the virtual name into an answer's `"model"` fields, as its bytes pass by.

    Inside a JSON string quotes are escaped, so generated text cannot look like the field. Bytes after the last line
    end are held back until the line is whole (`finish` gives the rest): a client could not use half an event anyway.
    Of a line of more than a MiB only the end is held, in which half a field may stand.
    """

    __slots__ = ("_new", "_old", "_rest")

    def __init__(self, served_model: str, virtual_model: str) -> None:
        name = re.escape(orjson.dumps(served_model))
        self._old = re.compile(rb'"model"(\s*):(\s*)' + name)
        self._new = rb'"model"\1:\2' + orjson.dumps(virtual_model).replace(b"\\", rb"\\")
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What of the answer can be passed on now."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n") + 1
        if len(data) - end > _HELD_BYTES:
            data = self._old.sub(self._new, data)
            end = len(data) - _LONGEST_FIELD
            self._rest = data[end:]
            return data[:end]
        self._rest = data[end:]
        return self._old.sub(self._new, data[:end])

    def finish(self) -> bytes:
        rest, self._rest = self._rest, b""
        return self._old.sub(self._new, rest)


class ModelListing:
    """The target's /v1/models with its model's entry under every virtual name.

    A target that does not list the model gives nothing to enrich: the names then stand alone.
    """

    __slots__ = ("_data", "_models", "_served_model")

    def __init__(self, models: Mapping[str, SamplingProfile], served_model: str) -> None:
        self._models = models
        self._served_model = served_model
        self._data = b""

    def feed(self, data: bytes) -> bytes:
        """Collects: the listing is changed as a whole."""
        if len(self._data) + len(data) > _LISTING_BYTES:
            raise HttpError("its list of models is too long", 502)
        self._data += data
        return b""

    def finish(self) -> bytes:
        try:
            listing = orjson.loads(self._data)
        except orjson.JSONDecodeError:
            listing = None
        rows = listing.get("data") if isinstance(listing, dict) else None
        known: dict[str, Any] = {"object": "model", "owned_by": "qwenbench"}
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("id") == self._served_model:
                known = row
        with suppress(orjson.JSONEncodeError):  # orjson reads deeper than it writes
            return self._shown(known)
        return self._shown({})

    def _shown(self, known: Mapping[str, Any]) -> bytes:
        shown = [{**known, "id": name, "parent": self._served_model} for name in self._models]
        return orjson.dumps({"object": "list", "data": shown})
