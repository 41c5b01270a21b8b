"""The path of a search (`qwenbench tune`): what was tried in which order, why each was dropped, what it concludes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwenbench.analysis.run import Run
from qwenbench.report.document import Block, Bullets, Config, Inline, Number, Paragraph, Row, Span, Table

_VERDICTS = {
    "shown": "shown to hold",
    "broken": "broken",
    "open": "not decided",
    "failed": "failed",
}


def search_path(run: Run) -> Iterator[Block]:
    """Conclusion and path as they stand in run.json; nothing for a run that no search made."""
    search = run.meta.get("search")
    if not isinstance(search, Mapping) or not isinstance(search.get("outcome"), Mapping):
        return
    found = search["outcome"]
    yield Paragraph(tuple(_conclusion(search, found)), "answer")
    objective = "tokens/s" if search.get("users") else "users held"
    rows = [
        Row(
            (
                str(number),
                Config(tried["config_id"]),
                tried["why"],
                Number(tried["value"], digits=0),
                _VERDICTS.get(tried["verdict"], tried["verdict"]) if search.get("limits") else None,
                tried["dropped"] or "stays in",
            ),
            config=tried["config_id"],
        )
        for number, tried in enumerate(found["path"], start=1)
    ]
    head = ("Launch", "Configuration", "Why it was launched", objective, "Limits", "Afterwards")
    yield Table(head, rows, caption="What the search launched, in its order", numbers_from=3)
    refused = found.get("refused") or {}
    if refused:
        yield Bullets([(Config(name), f" was not launched: {reason}") for name, reason in refused.items()])


def _conclusion(search: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Inline]:
    launches, space = len(found["path"]), search.get("space")
    spent = f"{launches} launches of {space} configurations; {found['ended']}."
    if found["config_id"] is None:
        unmeasured = all(tried["value"] is None and tried["verdict"] != "broken" for tried in found["path"])
        yield Span("Nothing could be measured" if unmeasured else "Nothing that was tried holds the limits")
        yield f": {spent}"
        return
    users = search.get("users")
    value = found.get("value")
    holds = f"{value:,.0f} tokens/s at {users} users" if users else f"holds {value:,.0f} users"
    within = found.get("within")
    yield Span((found["config_id"],))
    tried = {one["config_id"] for one in found["path"] if one["value"] is not None}
    if len(tried) < 2:
        yield f": {holds}; no other was measured, so nothing is said about the others"
    else:
        claim = "" if within is None else f"; within {within:.1%} of the best that was tried, at 95 %"
        yield f": {holds}{claim}"
    if search.get("limits"):
        yield f"; {', '.join(search['limits'])}: {_VERDICTS[found['verdict']]}"
    yield f". {spent}"
