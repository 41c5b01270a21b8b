"""Small pieces of HTML. Every text goes through `text`, so nothing that a run holds can become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_SLOT = re.compile(r"\{\{([a-z_]+)\}\}")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """The value as text: markup in it is shown, not run. Html stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """The pieces one after the other."""
    return Html(between.join(text(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element. `class_` is class, underscores are dashes; an attribute that is None is left out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>{join(content)}</{name}>")


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Puts each slot's text in the place of {{slot}}, in one pass: what is put in is never searched again.

    Raises KeyError for a slot without a text.
    """
    return _SLOT.sub(lambda match: slots[match.group(1)], template)


def term(word: str, key: str) -> Html:
    """A word whose definition is shown on hover, focus or touch."""
    return tag("button", word, class_="term", type="button", data_term=key)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: what it is about decides whether the filter shows it."""

    cells: Sequence[object]
    config: str | None = None
    workload: str | None = None


def table(head: Sequence[object], rows: Sequence[Row], *, numbers_from: int = 1, caption: str = "") -> Html:
    """A table that scrolls sideways where it is too wide. Columns from `numbers_from` on are set as numbers."""
    header = join(
        tag("th", cell, scope="col", class_="n" if index >= numbers_from else None) for index, cell in enumerate(head)
    )
    body = join(
        tag(
            "tr",
            *(
                tag("td" if index else "th", cell, class_="n" if index >= numbers_from else None)
                for index, cell in enumerate(row.cells)
            ),
            data_config=row.config,
            data_workload=row.workload,
        )
        for row in rows
    )
    title = tag("caption", caption) if caption else Html("")
    content = join((title, tag("thead", tag("tr", header)), tag("tbody", body)))
    return tag("div", tag("table", content), class_="scroll", tabindex=0, role="region", aria_label=caption or "table")


def swatch(config: str) -> Html:
    """The place where the script draws a configuration's line and marker."""
    return tag("span", class_="swatch", data_swatch=config, aria_hidden="true")


def number(value: float | None, digits: int = 0) -> Html:
    """A number with thousands separators; a dash where it is not known."""
    return Html("–") if value is None else text(f"{value:,.{digits}f}")
