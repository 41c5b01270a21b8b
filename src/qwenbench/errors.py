"""The errors that reach the user as one line."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(Exception):
    """Something the user gave cannot be used: exit 2, one line on stderr, nothing written.

    The message says what is wrong, where (file, line, field or option) and what to do.
    """


class RunError(Exception):
    """Something failed while working, for a reason that is told in one line (exit 1)."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a message about an unknown word; empty where nothing known is like it."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
