"""The errors that reach the user as one line."""


class UsageError(Exception):
    """Something the user gave cannot be used: exit 2, one line on stderr, nothing written.

    The message says what is wrong, where (file, line, field or option) and what to do.
    """


class RunError(Exception):
    """Something failed while working, for a reason that is told in one line (exit 1)."""
