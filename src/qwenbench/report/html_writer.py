"""The result document as HTML. Every text goes through `text`, so nothing that a run holds can become markup."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

from qwenbench.report.document import (
    UNKNOWN,
    Block,
    Bullets,
    Choice,
    Code,
    Config,
    Fold,
    Group,
    Heading,
    Inline,
    Number,
    Paragraph,
    Picture,
    Row,
    Span,
    Table,
    Term,
    Tiles,
)

_SLOT = re.compile(r"\{\{([a-z_]+)\}\}")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """The value as text: markup in it is shown, not run. Html stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
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


def swatch(config: str) -> Html:
    """The place where the script draws a configuration's line and marker."""
    return tag("span", class_="swatch", data_swatch=config, aria_hidden="true")


def inline(value: Inline) -> Html:
    match value:
        case None:
            return Html(UNKNOWN)
        case bool():
            return Html("yes" if value else "no")
        case str() | int():
            return text(value)
        case Number():
            return _number(value)
        case Term(word, column):
            return tag("button", word, class_="term", type="button", data_term=column)
        case Config(name):
            return join((swatch(name), name))
        case Span():
            return _span(value)
        case _:
            return join(inline(part) for part in value)


def _number(number: Number) -> Html:
    if not number.interval:
        return text(number)
    hint = f"95 %: {number.interval}"
    return join((text(number), tag("small", f" {number.interval}", title=hint, class_="interval")))


_ELEMENTS = {"strong": "strong", "code": "code", "struck": "s"}


def _span(span: Span) -> Html:
    name = _ELEMENTS.get(span.style, "span")
    kind = f" b-{span.kind}" if span.kind else ""
    return tag(name, inline(span.text), class_=None if name != "span" else span.style + kind, title=span.hint)


class HtmlWriter:
    """Writes blocks; one writer a page, so that the ids of its code blocks differ."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def write(self, blocks: Iterable[Block]) -> Html:
        return join(self._block(block) for block in blocks)

    def _block(self, block: Block) -> Html:
        match block:
            case Heading(words, level):
                return tag(f"h{level}", inline(words))
            case Paragraph(words, style):
                return tag(
                    "p", inline(words), class_={"answer": "answer-line", "warning": "banner"}.get(style, style) or None
                )
            case Bullets(items):
                return tag("ul", *(tag("li", inline(item)) for item in items), class_="reasons")
            case Table():
                return _table(block)
            case Code():
                return self._codes((block,))
            case Choice(blocks):
                return self._codes(tuple(blocks))
            case Tiles(items):
                return tag("ul", *(_tile(name, number) for name, number in items), class_="tiles")
            case Fold():
                count = Html("") if block.count is None else tag("span", f" {block.count:,}", class_="count")
                summary = tag("summary", inline(block.title), count)
                return tag("details", summary, self.write(block.blocks), open="" if block.open else None)
            case Group(blocks):
                inner = self.write(blocks)
                return tag(
                    "div", inner, class_=block.style or None, data_config=block.config, data_workload=block.workload
                )
            case Picture():
                return _picture(block)

    def _codes(self, blocks: tuple[Code, ...]) -> Html:
        numbered = [(next(self._numbers), block) for block in blocks]
        tabs = [
            tag(
                "button", block.label or block.language, type="button", class_="plain",
                data_tab=f"line-{number}", aria_pressed=str(not place).lower(),
            )
            for place, (number, block) in enumerate(numbered)
        ]  # fmt: skip
        bodies = [
            tag(
                "div",
                tag("pre", block.text, id=f"text-{number}"),
                tag("button", "Copy", type="button", class_="plain", data_copy=f"text-{number}"),
                id=f"line-{number}", class_="command", hidden="" if place else None,
            )
            for place, (number, block) in enumerate(numbered)
        ]  # fmt: skip
        return join((tag("div", *tabs, class_="tabs") if len(blocks) > 1 else Html(""), *bodies))


def _tile(name: Inline, number: Number) -> Html:
    interval = tag("span", number.interval, class_="range", title="95 % interval") if number.interval else Html("")
    return tag("li", tag("span", str(number), class_="value"), interval, tag("span", inline(name), class_="what"))


def _picture(picture: Picture) -> Html:
    wide = tag("div", Html(picture.svg), class_="wide" if picture.narrow_svg else None)
    narrow = tag("div", Html(picture.narrow_svg), class_="narrow") if picture.narrow_svg else Html("")
    return tag(
        "figure",
        wide,
        narrow,
        class_="drawing small" if picture.small else "drawing",
        role="img",
        aria_label=picture.alt,
    )


def _table(table: Table) -> Html:
    header = tag("thead", tag("tr", join(_head(table)))) if table.head else Html("")
    rows = join(_row(table, row) for row in table.rows)
    title = tag("caption", table.caption) if table.caption else Html("")
    content = join((title, header, tag("tbody", rows)))
    words = not any(table.is_number(column) for column in range(len(table.head)))
    body = tag("table", content, class_="facts-table" if not table.head else "words" if words else None)
    return tag("div", body, class_="scroll", tabindex=0, role="region", aria_label=table.caption or "table")


def _head(table: Table) -> Iterator[Html]:
    for column, cell in enumerate(table.head):
        words = cell.replace("\n", " ").strip() if isinstance(cell, str) else cell
        yield tag("th", inline(words), scope="col", class_="n" if table.is_number(column) else None)


def _row(table: Table, row: Row) -> Html:
    cells = (
        tag("td" if column else "th", inline(cell), class_="n" if table.is_number(column) else None)
        for column, cell in enumerate(row.cells)
    )
    return tag("tr", *cells, data_config=row.config, data_workload=row.workload)
