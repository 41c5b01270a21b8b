"""One result document, three writers: what they say alike, and that no text becomes markup."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import HOSTILE
from rich.console import Console

from qwenbench.report.document import (
    Block,
    Bullets,
    Choice,
    Code,
    Config,
    Fold,
    Group,
    Heading,
    Number,
    Paragraph,
    Row,
    Span,
    Table,
    Term,
    Tiles,
    facts,
    figure,
)
from qwenbench.report.html_writer import HtmlWriter
from qwenbench.report.text_writers import print_document, terminal_parts, to_markdown

LONG_LINE = "docker run " + "--flag value " * 30


def everything(word: str) -> list[Block]:
    """A document in which every kind of block and inline holds this word."""
    table = Table((word, Term(word, "config_id")), [Row((Config(word), Number(1234.5, "ms", 1, 1200.0, 1300.0)))], word)
    return [
        Heading(word),
        Paragraph((word, " ", Span(word), Span(word, "code"), Span(word, "badge", hint=word)), "answer"),
        Bullets([word, None, (word, Span(word, "struck"))]),
        Choice((Code(word, "sh", word), Code("second", "yaml", "compose"))),
        Tiles([(word, Number(None, "GiB"))]),
        Fold(word, [table], count=1),
        Group([Paragraph(word)], config=word, workload=word),
        facts((word, Number(0.5), word), None),
    ]


def terminal(blocks: list[Block], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in terminal_parts(blocks, console):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_three_writers_show_the_same_figures() -> None:
    blocks = everything("word")
    for text in (HtmlWriter().write(blocks), to_markdown(blocks), terminal(blocks, 100)):
        assert "1,234.5 ms" in text and "1,200.0 to 1,300.0" in text
        assert "–" in text, "what is not known has its dash"
        assert "None" not in text


def test_hostile_text_becomes_markup_in_no_writer() -> None:
    page = HtmlWriter().write(everything(HOSTILE))
    assert "<script" not in page and "<img" not in page
    # what stands in attributes cannot end them
    assert not re.search(r'="[^"]*<', page)
    markdown = re.sub(r"^```.*?^```", "", to_markdown(everything(HOSTILE)), flags=re.M | re.S)
    outside_of_code = re.sub(r"(`+).+?\1", "", markdown)
    assert "<script" not in outside_of_code and "<img" not in outside_of_code


@given(st.text(max_size=40))
def test_a_table_stays_a_table_whatever_its_cells_hold(word: str) -> None:
    lines = to_markdown([Table(("a", "b"), [Row((word, word))])]).splitlines()
    assert len(lines) == 3
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines] == [3, 3, 3]


def test_markdown_shows_the_first_language_and_html_all() -> None:
    choice = Choice((Code("one", "sh", "bash"), Code("two", "yaml", "compose")))
    assert to_markdown([choice]) == "```sh\none\n```\n"
    page = HtmlWriter().write([choice])
    assert "one" in page and "two" in page and page.count("hidden") == 1


def test_code_is_never_broken_in_a_terminal() -> None:
    stream = io.StringIO()
    print_document([Code(LONG_LINE)], stream)
    assert LONG_LINE.rstrip() in stream.getvalue()


def test_brackets_are_text_in_a_terminal() -> None:
    assert "[bold]x[/]" in terminal([Paragraph("[bold]x[/]"), facts(("[red]", "[/nothing]"))], 80)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_too_wide_goes_on_below_and_loses_nothing(width: int) -> None:
    head = ["name", *(f"column {index}" for index in range(12))]
    text = terminal([Table(head, [Row(("row", *(Number(1000.0 + index) for index in range(12))))], group=3)], width)
    assert max(map(len, text.splitlines())) <= width
    for index in range(12):
        assert f"{1000 + index:,}" in text and f"column {index}" in text


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(1946.4, None, "1,946"), (17.29, None, "17.29"), (0.030001, None, "0.03"), (-0.001, 2, "0.00"), (12.0, 1, "12.0")],
)
def test_figures_have_four_significant_digits_unless_told(value: float, digits: int | None, shown: str) -> None:
    assert figure(value, digits) == shown
