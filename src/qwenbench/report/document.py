"""A result as values: headings, paragraphs, tables, lists, code and figures with their units and decimal places.

Whoever has an answer says it once with these; html_writer.py and text_writers.py write it for a page, for Markdown and
for a terminal. Nothing here knows what markup is, and every text is taken as text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union

from qwenbench.analysis.columns import POINT_COLUMNS, column_of, figure, label

UNKNOWN = "–"
"""What stands for a value that is not known."""
SIMULATED = "SIMULATED: made by qwenbench's simulator, not measured on a GPU."


@dataclass(frozen=True, slots=True)
class Number:
    """A figure with its unit and, where there is one, its 95 % interval."""

    value: float | None
    unit: str = ""
    digits: int | None = None
    """Decimal places; None: four significant digits."""
    low: float | None = None
    high: float | None = None
    signed: bool = False
    """A plus sign in front of what is above 0."""

    @property
    def interval(self) -> str:
        """`low to high`, without unit; empty where it is not known or nothing but the value."""
        if self.low is None or self.high is None or self.low == self.high:
            return ""
        return f"{figure(self.low, self.digits, self.signed)} to {figure(self.high, self.digits, self.signed)}"

    def __str__(self) -> str:
        if self.value is None or math.isnan(self.value):
            return UNKNOWN
        return f"{figure(self.value, self.digits, self.signed)} {self.unit}".rstrip()


def counted(number: float, word: str) -> str:
    """`1 point`, `2 points`, `2 launches`."""
    plural = "es" if word.endswith("ch") else "s"
    return f"{figure(number)} {word}{'' if number == 1 else plural}"


@dataclass(frozen=True, slots=True)
class Span:
    """Words that are set apart. Where the writer has no such style, the words stand as they are."""

    text: Inline
    style: Literal["strong", "code", "quiet", "bad", "badge", "struck", "bound"] = "strong"
    hint: str | None = None
    """What a page shows when the pointer rests on it; left out elsewhere."""
    kind: str = ""
    """What a `bound` is coloured by."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word whose definition a page shows on hover, focus or touch."""

    text: str
    column: str
    """The column of points.csv that defines it."""


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration's name; a page draws its line and marker before it."""

    name: str


Inline: TypeAlias = Union[str, int, Number, Span, Term, Config, Sequence["Inline"], None]  # noqa: UP007 # `|` cannot take a name in quotes
"""What stands in a line or a cell. None: not known. A sequence is written without anything in between."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A title; level 2 is a section's."""

    text: Inline
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: Inline
    style: Literal["", "answer", "settings", "lead", "quiet", "warning"] = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    items: Sequence[Inline]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. A page's filters show it where its configuration and scenario are chosen."""

    cells: Sequence[Inline]
    config: str | None = None
    workload: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Cells from `numbers_from` on are set to the right.

    Without a `head` it is a list of facts: name, value, remark. A head may hold line ends. Where a terminal is too
    narrow the columns behind the first go on in a further table, `group` of them at a time.
    """

    head: Sequence[Inline]
    rows: Sequence[Row]
    caption: str = ""
    numbers_from: int = 1
    numbers_to: int | None = None
    """First column behind the numbers; None: all up to the last are numbers."""
    group: int = 1

    def is_number(self, column: int) -> bool:
        return column >= self.numbers_from and (self.numbers_to is None or column < self.numbers_to)


@dataclass(frozen=True, slots=True)
class Code:
    """A block to copy; lines are never broken."""

    text: str
    language: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The same in several languages: a page shows tabs, text writers the first."""

    blocks: Sequence[Code]


@dataclass(frozen=True, slots=True)
class Tiles:
    """A few large figures with their names."""

    items: Sequence[tuple[Inline, Number]]


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks under a title that a page can fold away; elsewhere the title is a heading of the lowest level."""

    title: Inline
    blocks: Sequence[Block]
    count: int | None = None
    open: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Blocks that belong together: a page's filters show them where their configuration and scenario are chosen."""

    blocks: Sequence[Block]
    config: str | None = None
    workload: str | None = None
    style: Literal["", "failure", "bounds", "grid"] = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing. Text writers leave it out but for Markdown, which refers to `file` where there is one."""

    svg: str
    """With colours as CSS variables, so that it follows the page's theme."""
    alt: str
    narrow_svg: str = ""
    """The same drawn for a telephone."""
    file: str | None = None
    small: bool = False
    """Half of a column's width is enough."""


Block: TypeAlias = Heading | Paragraph | Bullets | Table | Code | Choice | Tiles | Fold | Group | Picture


def facts(*pairs: tuple[Inline, Inline] | tuple[Inline, Inline, Inline] | None) -> Table:
    """Name, value and remark, a row each; None is left out."""
    rows = [pair for pair in pairs if pair is not None]
    width = max((len(pair) for pair in rows), default=2)
    return Table((), [Row((*pair, *[""] * (width - len(pair)))) for pair in rows], numbers_from=1, numbers_to=2)


_IMPLIED = ("", "requests", "blocks")
"""Units that the name of a figure tells."""


def titled(key: str) -> str:
    """Name and unit for a table's head or an axis."""
    word, shown = label(key), column_of(key).shown_unit
    return word if shown in _IMPLIED or "/s" in word else f"{word}, {shown}"


def term(key: str, words: str | None = None) -> Term | str:
    """The name (or other words for it) with its definition to look up, where it has one."""
    column, shown = column_of(key), titled(key) if words is None else words
    return Term(shown, column.name) if column in POINT_COLUMNS else shown


def number(
    key: str, value: Any, low: float | None = None, high: float | None = None, *,
    bare: bool = False, signed: bool = False,
) -> Number:  # fmt: skip
    """A figure of this metric or column; `bare` leaves the unit to the table's head."""
    column = column_of(key)
    known, below, above = (None if each is None else column.shown(float(each)) for each in (value, low, high))
    unit = "" if bare or column.shown_unit in _IMPLIED else column.shown_unit
    return Number(known, unit, column.digits, below, above, signed)
