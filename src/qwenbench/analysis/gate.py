"""--gate: which changes between two runs are too much."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwenbench.analysis.comparison_rows import Change
from qwenbench.analysis.limits import metric_key
from qwenbench.errors import UsageError

_SHARE = re.compile(r"([+-])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*%\Z")


@dataclass(frozen=True, slots=True)
class GateRule:
    """A metric may rise (limit above 0) or fall (below 0) by no more than this share."""

    key: str
    limit: float

    def broken_by(self, change: Change) -> bool:
        """Whether the interval excludes zero and the point estimate passes the limit."""
        if change.key != self.key or change.change is None or change.low is None or change.high is None:
            return False
        if self.limit >= 0:
            return change.low > 0 and change.change > self.limit
        return change.high < 0 and change.change < self.limit

    def __str__(self) -> str:
        return f"{self.key}:{self.limit * 100:+.4g}%"


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate's outcome."""

    rules: tuple[GateRule, ...]
    broken: tuple[Change, ...]
    unjudged: tuple[str, ...]
    """Metrics of which no row has an interval: nothing can be said of them, so the gate does not pass."""

    @property
    def passed(self) -> bool:
        """Whether nothing is broken and every metric could be judged."""
        return not self.broken and not self.unjudged


def parse_gate(text: str, option: str = "--gate") -> tuple[GateRule, ...]:
    """Reads `ttft_p99:+10%,output_tokens_per_s:-5%`. Raises UsageError."""
    rules: list[GateRule] = []
    for part in text.split(","):
        name, colon, share = (word.strip() for word in part.partition(":"))
        match = _SHARE.match(share)
        if not colon or not match:
            raise UsageError(f"{option} {part!r}: give METRIC:+N% or METRIC:-N%, e.g. ttft_p99:+10%.")
        sign = -1.0 if match[1] == "-" else 1.0
        rule = GateRule(metric_key(name, option), sign * float(match[2]) / 100)
        if any(rule.key == other.key and (rule.limit < 0) == (other.limit < 0) for other in rules):
            raise UsageError(f"{option} {text!r}: {name} stands twice.")
        rules.append(rule)
    return tuple(rules)


def judge_gate(rules: Sequence[GateRule], changes: Sequence[Change]) -> Gate:
    """What of the changes breaks the rules."""
    broken = tuple(change for change in changes if any(rule.broken_by(change) for rule in rules))
    judged = {change.key for change in changes if change.low is not None}
    return Gate(tuple(rules), broken, tuple(dict.fromkeys(rule.key for rule in rules if rule.key not in judged)))
