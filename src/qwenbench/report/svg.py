"""Drawing in SVG: shapes, text and the colours that every figure shares, for a page (CSS variables) or a file."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from qwenbench.errors import UsageError
from qwenbench.report.document import Picture

FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
LIGHT: Mapping[str, str] = {
    "paper": "#fdfdfc", "ink": "#1d2125", "soft": "#5f676e", "faint": "#8b9298", "rule": "#e4e5e2", "wash": "#f4f5f2",
    "accent": "#0b6e8f", "accent-wash": "#e6f1f4", "warn": "#a3480b", "warn-wash": "#fbefe6", "grid": "#ecedea",
    "s0": "#0072B2", "s1": "#E69F00", "s2": "#009E73", "s3": "#CC79A7", "s4": "#56B4E9", "s5": "#D55E00",
    "s6": "#8F8A1E", "s7": "#555B61",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "paper": "#14171a", "ink": "#e7e9ea", "soft": "#a5adb4", "faint": "#7b848b", "rule": "#2b3136", "wash": "#1b2024",
    "accent": "#5cc0de", "accent-wash": "#16303a", "warn": "#f0a35e", "warn-wash": "#33241a", "grid": "#262c31",
    "s0": "#4BA3E0", "s1": "#E69F00", "s2": "#2DBE93", "s3": "#E19BC3", "s4": "#8CCBF0", "s5": "#F07F3C",
    "s6": "#F0E442", "s7": "#B6BDC3",
}  # fmt: skip
"""Colour by name. s0 to s7 tell configurations apart: Okabe and Ito's, which colour-blind readers tell apart too."""
SERIES = 8
WIDE, NARROW = 1084.0, 358.0
"""Widths of the two drawings of a page, in CSS pixels."""


def css_variables() -> str:
    """The colours for a page: every figure and the style sheet take them from here."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in theme.items()) for theme in (LIGHT, DARK))
    return f':root{{{light}}}\n:root[data-theme="dark"]{{{dark}}}\n'


def on_page() -> Mapping[str, str]:
    return {name: f"var(--{name})" for name in LIGHT}


def text_width(words: str, size: float, bold: bool = False) -> float:
    """About how wide the words are, in pixels: a wide sans-serif (DejaVu Sans) is taken, so nothing is cut off."""
    units = 0.0
    for letter in words:
        if unicodedata.east_asian_width(letter) in "WF":
            units += 1.0
        elif letter in "ijl.,:;|!'I ":
            units += 0.34
        elif letter in "mwMW@%":
            units += 0.9
        else:
            units += 0.68 if letter.isupper() else 0.61
    return units * size * (1.1 if bold else 1.0)


def shortened(words: str, width: float, size: float, bold: bool = False) -> str:
    """The words, cut with an ellipsis where they are wider than `width` pixels."""
    if text_width(words, size, bold) <= width:
        return words
    kept = words
    while kept and text_width(kept + "…", size, bold) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def wrapped(words: str, width: float, size: float, bold: bool = False) -> list[str]:
    """The words in lines of at most `width` pixels; a single longer word is cut."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, width, size, bold))
    return lines


class Drawing:
    """An SVG that grows by shapes. Coordinates are pixels from the upper left corner."""

    def __init__(self, width: float, theme: Mapping[str, str], size: float = 13.0) -> None:
        self.width = width
        self.height = 0.0
        self.theme = theme
        self.size = size
        """Of text that does not say its own, in pixels."""
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, *, colour: str = "ink", size: float | None = None, bold: bool = False,
        anchor: str = "start",
    ) -> None:  # fmt: skip
        """Words on one line; `y` is their base line, `anchor` start, middle or end."""
        weight = ' font-weight="700"' if bold else ""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size or self.size:g}"{weight}{place} '
            f'fill="{self.theme[colour]}">{html.escape(words)}</text>'
        )

    def rect(
        self, x: float, y: float, width: float, height: float, *, colour: str, opacity: float = 1.0, radius: float = 2.0
    ) -> None:
        """A filled rectangle; nothing where it has no width."""
        if width > 0:
            self._parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
                f'fill="{self.theme[colour]}"{"" if opacity == 1 else f" fill-opacity={chr(34)}{opacity:g}{chr(34)}"}/>'
            )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, colour: str, width: float = 1.0, dash: str = ""
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{self.theme[colour]}" '
            f'stroke-width="{width:g}"{dashed}/>'
        )

    def path(self, points: list[tuple[float, float]], *, colour: str, width: float = 1.5) -> None:
        if len(points) > 1:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            self._parts.append(
                f'<polyline points="{joined}" fill="none" stroke="{self.theme[colour]}" stroke-width="{width:g}"/>'
            )

    def circle(self, x: float, y: float, radius: float, *, colour: str) -> None:
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{self.theme[colour]}"/>')

    def star(self, x: float, y: float, radius: float, *, colour: str) -> None:
        corners = (
            (0, -1), (0.24, -0.32), (0.95, -0.31), (0.38, 0.12), (0.59, 0.81), (0, 0.4), (-0.59, 0.81), (-0.38, 0.12),
            (-0.95, -0.31), (-0.24, -0.32),
        )  # fmt: skip
        joined = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in corners)
        self._parts.append(f'<polygon points="{joined}" fill="{self.theme[colour]}"/>')

    def group(self, **filters: str | None) -> None:
        """Opens a group that a page's filters can hide (`config=NAME`); `end` closes it."""
        shown = "".join(f' data-{k}="{html.escape(v, quote=True)}"' for k, v in filters.items() if v is not None)
        self._parts.append(f"<g{shown}>")

    def end(self, hint: str = "") -> None:
        """Closes a group; `hint` shows where the pointer rests on it."""
        self._parts.append(f"{f'<title>{html.escape(hint)}</title>' if hint else ''}</g>")

    def entry(self, x: float, y: float, words: str, *, colour: str = "s7", opacity: float = 1.0) -> None:
        """A line of the key: a small filled box (none where it has no opacity) and what it means."""
        if opacity:
            self.rect(x, y - 10, 16, 11, colour=colour, opacity=opacity)
        self.text(x + 24, y, words, colour="soft", size=12)

    def simulated(self, x: float, y: float, size: float = 11.5) -> None:
        """The mark of a figure that was not measured, its right end at x."""
        width = text_width("SIMULATED", size, bold=True) + 1.2 * size
        self.rect(x - width, y - 1.15 * size, width, 1.6 * size, colour="warn-wash", radius=3)
        self.text(x - width / 2, y, "SIMULATED", colour="warn", size=size, bold=True, anchor="middle")

    def svg(self, *, background: bool = False) -> str:
        """The whole drawing. On a page it scales with its column; with a background it is a file of its own."""
        width, height = f"{self.width:g}", f"{self.height:g}"
        paper = f'<rect width="{width}" height="{height}" fill="{self.theme["paper"]}"/>' if background else ""
        size = f' width="{width}" height="{height}"' if background else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"{size} '
            f'font-family="{html.escape(FONT, quote=True)}">{paper}{"".join(self._parts)}</svg>'
        )


def picture(
    alt: str, draw: Callable[[Drawing], None], *, simulated: bool, wide: float = WIDE, small: bool = False
) -> Picture:
    """A figure for a page in both widths, made by `draw` on an empty drawing that is marked where it is `simulated`."""
    drawings = [Drawing(width, on_page()) for width in (wide, NARROW)]
    for drawing in drawings:
        if simulated:
            drawing.simulated(drawing.width, 14)
        draw(drawing)
    return Picture(drawings[0].svg(), alt, drawings[1].svg(), small=small)


_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "/System/Library/Fonts")


def to_png(svg: str, zoom: float = 2.0) -> bytes:
    """A drawing's file as PNG, `zoom` times as large. Raises UsageError where the machine has no font to draw with."""
    import resvg_py

    homes = [Path(folder) for folder in _FONT_FOLDERS] + [Path.home() / ".fonts", Path.home() / ".local/share/fonts"]
    if not any(next(folder.rglob("*.[to]t[fc]"), None) for folder in homes if folder.is_dir()):
        raise UsageError(
            "PNG needs a font and this machine has none: install one (Debian: fonts-dejavu-core), or take SVG."
        )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom, sans_serif_family="DejaVu Sans"))
