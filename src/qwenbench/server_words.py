"""What a server says, for people: its error messages in whatever shape, with nothing in them that steers a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


def visible(text: str) -> str:
    """The text with control and other unprintable characters escaped, so that a terminal cannot be steered by it."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "replace").decode()
        for character in text
    )


def error_message(document: Mapping[str, Any]) -> str:
    """The server's words in an error object, in any of the shapes that servers give it (OpenAI, TGI, FastAPI, ...)."""
    error = document.get("error")
    kind: object = None
    if isinstance(error, Mapping):
        kind = error.get("type")
        error = _first_text(error)
    elif not isinstance(error, str):
        kind = document.get("type")
        error = _first_text(document)
    if not error:
        return "an error without a message"
    return f"{kind}: {error}" if isinstance(kind, str) and kind else error


def _first_text(holder: Mapping[str, Any]) -> str:
    for key in ("message", "detail", "msg", "error", "error_description", "reason"):
        value = holder.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list | dict) and value:
            return orjson.dumps(value, default=str).decode()
    return ""
