"""The result document as Markdown and for a terminal."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

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
    Span,
    Table,
    Term,
    Tiles,
    facts,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~])")
_PIPED_WIDTH = 160
"""Columns where the output is no terminal: enough that a table stays one."""


def plain(value: Inline) -> str:
    match value:
        case None:
            return UNKNOWN
        case bool():
            return "yes" if value else "no"
        case str() | int():
            return str(value)
        case Number():
            return f"{value} ({value.interval})" if value.interval else str(value)
        case Term(word, _) | Config(word):
            return word
        case Span(words):
            return plain(words)
        case _:
            return "".join(plain(part) for part in value)


def to_markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown that GitHub reads, ending in a line end."""
    return "\n\n".join(part for block in blocks if (part := _markdown(block))) + "\n"


def escaped(words: str) -> str:
    """Text in which no character is markup, on one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(words.split()), quote=False))


def fenced(words: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of back-ticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{words.rstrip()}\n{fence}"


def _markdown(block: Block) -> str:
    match block:
        case Heading(words, level):
            return f"{'#' * level} {_marked(words)}"
        case Paragraph(words, style):
            return f"**{_marked(words, bold=True)}**" if style == "warning" else _marked(words)
        case Bullets(items):
            return "\n".join(f"- {_marked(item)}" for item in items)
        case Table():
            return _markdown_table(block)
        case Code():
            return fenced(block.text, block.language)
        case Choice(blocks):
            return _markdown(blocks[0]) if blocks else ""
        case Tiles(items):
            return "\n".join(f"- {_marked(name)}: {_marked(number)}" for name, number in items)
        case Fold():
            inner = to_markdown(block.blocks).rstrip()
            return f"<details><summary>{_marked(block.title)}</summary>\n\n{inner}\n\n</details>"
        case Group(blocks):
            return to_markdown(blocks).rstrip()
        case Picture():
            return f"![{escaped(block.alt)}]({block.file})" if block.file else ""


def _marked(value: Inline, bold: bool = False) -> str:
    match value:
        case Span(words, "strong" | "badge") if not bold:
            return f"**{_marked(words, bold=True)}**"
        case Span(words, "code"):
            # a code span ends at a run of as many back-ticks as it began with
            return fenced(plain(words)).replace("\n", " ") if "`" in plain(words) else f"`{plain(words)}`"
        case Span(words):
            return _marked(words, bold)
        case list() | tuple():
            return "".join(_marked_part(part, bold) for part in value)
        case _:
            return escaped(plain(value))


def _marked_part(part: Inline, bold: bool) -> str:
    """A part of a line keeps the space at its ends, which parts it from its neighbours."""
    if not isinstance(part, str):
        return _marked(part, bold)
    before, after = part[: len(part) - len(part.lstrip())], part[len(part.rstrip()) :]
    return f"{before and ' '}{escaped(part)}{after and ' '}" if part.strip() else " " if part else ""


def _markdown_table(table: Table) -> str:
    if not table.rows:
        return ""
    width = max(len(row.cells) for row in table.rows)
    head = [_marked(cell) for cell in table.head] or [" "] * width
    align = ["--:" if table.is_number(column) else ":--" for column in range(len(head))]
    rows = [[_marked(cell) for cell in row.cells] for row in table.rows]
    body = "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))
    return f"**{escaped(table.caption)}**\n\n{body}" if table.caption else body


def print_document(blocks: Iterable[Block], file: TextIO | None = None) -> None:
    """Writes the blocks to a terminal (stdout unless `file`), as wide as it is; code is never broken."""
    for renderable in terminal_parts(blocks, console := terminal_console(file)):
        console.print(renderable, soft_wrap=_is_code(renderable))


def terminal_console(file: TextIO | None = None) -> Console:
    """A console for results: nothing in them is markup, and a pipe gets lines of up to 160 columns."""
    from rich.console import Console

    console = Console(file=file or sys.stdout, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and console.width < _PIPED_WIDTH:
        console.width = _PIPED_WIDTH
    return console


def _is_code(renderable: RenderableType) -> bool:
    from rich.text import Text

    return isinstance(renderable, Text) and renderable.no_wrap is True


def terminal_parts(blocks: Iterable[Block], console: Console) -> Iterator[RenderableType]:
    """What rich prints for the blocks, one after the other, with empty lines between them."""
    from rich.text import Text

    for place, block in enumerate(blocks):
        parts = list(_terminal(block, console))
        if place and parts:
            yield Text()
        yield from parts


def _terminal(block: Block, console: Console) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    match block:
        case Heading(words, _):
            yield _styled(words, "bold")
        case Paragraph(words, style):
            yield _styled(words, {"quiet": "dim", "warning": "bold yellow"}.get(style, ""))
        case Bullets(items):
            for item in items:
                yield Padding(Text.assemble("- ", _styled(item)), (0, 0, 0, 2), expand=False)
        case Table():
            yield from _terminal_tables(block, console.width)
        case Code():
            yield Text(block.text.rstrip(), no_wrap=True)
        case Choice(blocks):
            yield from _terminal(blocks[0], console) if blocks else ()
        case Tiles(items):
            yield from _terminal_tables(facts(*items), console.width)
        case Fold():
            yield _styled(block.title, "bold")
            yield from terminal_parts(block.blocks, console)
        case Group(blocks):
            yield from terminal_parts(blocks, console)
        case Picture():
            return


_STYLES = {
    "strong": "bold",
    "quiet": "dim",
    "bad": "yellow",
    "badge": "yellow",
    "bound": "",
    "code": "",
    "struck": "strike",
}


def _styled(value: Inline, style: str = "") -> Text:
    from rich.text import Text

    match value:
        case Span(words, name):
            return _styled(words, f"{style} {_STYLES[name]}".strip())
        case Number() if value.interval:
            return Text.assemble((str(value), style), (f" ({value.interval})", f"{style} dim".strip()))
        case list() | tuple():
            return Text.assemble(*(_styled(part, style) for part in value))
        case _:
            return Text(plain(value), style=style)


def _terminal_tables(table: Table, width: int) -> Iterator[RenderableType]:
    """One table, or several below each other where its columns do not fit side by side."""
    from rich.text import Text

    if table.caption:
        yield Text(table.caption, style="bold")
    columns = max((len(row.cells) for row in table.rows), default=len(table.head))
    widths = [_column_width(table, column) + 2 for column in range(columns)]
    starts = [1]
    used = widths[0] if widths else 0
    for first in range(1, columns, table.group):
        needed = sum(widths[first : first + table.group])
        if used + needed > width and first > starts[-1]:
            starts.append(first)
            used = widths[0]
        used += needed
    # words fold, so only a table of numbers is taken apart
    parts = starts if table.head and table.numbers_from == 1 and table.numbers_to is None else [1]
    for place, (first, end) in enumerate(zip(parts, [*parts[1:], columns], strict=True)):
        if place:
            yield Text()
        yield _rich_table(table, [0, *range(first, end)])


def _column_width(table: Table, column: int) -> int:
    from rich.cells import cell_len

    cells = [plain(row.cells[column]) for row in table.rows if column < len(row.cells)]
    cells += plain(table.head[column]).splitlines() if column < len(table.head) else []
    return max(map(cell_len, cells), default=0)


def _rich_table(table: Table, columns: Sequence[int]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shape = RichTable(
        box=box.SIMPLE_HEAD if table.head else None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False,
        show_header=bool(table.head), header_style="bold",
    )  # fmt: skip
    for column in columns:
        right = table.is_number(column)
        title = _styled(table.head[column]) if column < len(table.head) else Text()
        title.justify = "right" if right else "left"
        # names are looked up, so they are folded and never cut
        shape.add_column(title, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in table.rows:
        shape.add_row(*(_styled(row.cells[column]) if column < len(row.cells) else Text() for column in columns))
    return shape
