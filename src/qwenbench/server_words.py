"""What a server says, for people: its error messages in whatever shape, with nothing in them that steers a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson


def visible(text: str) -> str:
    """The text with control and other unprintable characters escaped, so that a terminal cannot be steered by it."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "replace").decode()
        for character in text
    )


_FINE = (None, 0, "0", 200, "200", "ok", "success", "Success", "")
"""Values of a code that tell of no error."""


def is_error(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object tells of an error: by its name, by a code, by its type. A chunk or remark does not."""
    if document.get("error") or document.get("errors") or document.get("success") is False:
        return True
    if any("error" in str(document.get(key) or "").lower() for key in ("object", "type", "status")):
        return True
    if document.get("choices") or document.get("usage"):
        return False
    inner = document.get("base_resp")  # MiniMax
    codes = [document.get("error_code"), inner.get("status_code") if isinstance(inner, Mapping) else None]
    if document.get("message") or document.get("msg"):
        codes.append(document.get("code"))
    # FastAPI's form has nothing but its detail
    return bool(document.get("detail") and "type" not in document) or any(code not in _FINE for code in codes)


def error_message(document: Mapping[str, Any]) -> str:
    """The server's words in an error object, in any of the shapes that servers give it (OpenAI, TGI, FastAPI, ...)."""
    error: object = document.get("error") or document.get("errors") or document.get("base_resp")
    if isinstance(error, list):
        error = error[0]
    kind = None
    if isinstance(error, Mapping):
        kind, error = error.get("type"), _first_text(error)
    elif not isinstance(error, str):
        kind, error = document.get("type"), _first_text(document)
    if not error:
        return "an error without a message"
    return f"{kind}: {error}" if isinstance(kind, str) and kind else str(error)


def words_of(body: bytes, longest: int) -> str:
    """The server's words in the body of an error answer: a JSON error's message, a page's text, else the beginning."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[: 16 * longest].decode("utf-8", "replace")
        if "<html" in text[:200].lower():  # nginx and others: the page's head is of no use to a reader
            text = re.sub(r"(?is)<(style|script|head)\b.*?</\1>|<[^>]*>", " ", text)
        return text[:longest]
    if isinstance(document, list) and document:
        document = document[0]  # Gemini's
    if isinstance(document, dict):
        return error_message(document)
    return document if isinstance(document, str) else ""


def _first_text(holder: Mapping[str, Any]) -> str:
    holder = {name.lower(): value for name, value in holder.items()}  # AWS writes Message
    for key in ("message", "detail", "msg", "error", "error_description", "error_msg", "status_msg", "reason", "title"):
        value = holder.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list | dict) and value:
            return orjson.dumps(value, default=str).decode()
    return ""
