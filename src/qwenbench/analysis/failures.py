"""Why requests failed, and which of them contradict themselves: the commonest reasons with their counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

MOST_REASONS = 3
_LONGEST_REASON = 160
_NUMBERS = re.compile(r"\d+")
_STATUS = re.compile(r"(HTTP \d{3})(?: \(Retry-After: [^)]*\))?: ?")


def failure_reasons(requests: pa.Table) -> str | None:
    """`HTTP 400 x 16: unrecognized request argument: top_k; timeout x 2: ...`; None when no request failed.

    `requests` has REQUEST_SCHEMA. The words are the server's own where it gave any; details that differ in numbers
    only count as one.
    """
    errors, details = (requests[name].to_pylist() for name in ("error", "error_detail"))
    reasons = (_reason(error, detail or "") for error, detail in zip(errors, details, strict=True) if error is not None)
    return _counted(reasons)


def disagreements(requests: pa.Table) -> str | None:
    """The commonest contradictions within successful requests, as `usage and chunks x 4: ...`; None without any."""
    if "disagreement" not in requests.column_names:
        return None
    errors, found = (requests[name].to_pylist() for name in ("error", "disagreement"))
    told = (text.partition(": ") for error, text in zip(errors, found, strict=True) if error is None and text)
    return _counted((head, words) for head, _, words in told)


def _reason(error: str, detail: str) -> tuple[str, str]:
    status = _STATUS.match(detail) if error == "http_status" else None
    return (status[1], detail[status.end() :]) if status else (error, detail)


def _counted(reasons: Iterable[tuple[str, str]]) -> str | None:
    counts: Counter[tuple[str, str]] = Counter()
    shown: dict[tuple[str, str], str] = {}
    for head, words in reasons:
        kind = (head, _NUMBERS.sub("0", words))
        counts[kind] += 1
        shown.setdefault(kind, words[:_LONGEST_REASON])
    told = [
        f"{kind[0]} x {count}" + (f": {shown[kind]}" if shown[kind] else "")
        for kind, count in counts.most_common(MOST_REASONS)
    ]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(MOST_REASONS))
    return "; ".join([*told, *([f"{rest} more of other kinds"] if rest else [])]) or None
