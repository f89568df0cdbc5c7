"""Figures as SVG that follow the page's light or dark, in a wide form and one for phones, with the drawn numbers."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossover.evidence.page.words import encodable

# Okabe and Ito's colours (told apart by colour-blind eyes) that show on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#9A7D0A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = {"ar": "-", "l2r": "--", "nelbo": ":"}
# Matplotlib draws text in this colour; the page replaces it with its own.
INK = "#010203"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crossover",
    "font.family": "sans-serif",
    "font.size": 10,
    # A `$` in an arm's name is a dollar, not mathematics.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
# Inches; a phone shows the narrow form in its own width, so that nobody scrolls sideways.
WIDE, NARROW = 9.6, 4.8
# A legend is no place for a long name; the tables have all of it.
NAME_LETTERS = 28


@dataclass(frozen=True)
class Figure:
    """A figure and what it shows.

    Args:
        name: File stem, such as "loss-against-compute".
        title: What it is.
        caption: How to read it.
        svg: For the page: no fixed size, the page's text colour.
        csv: The numbers that are drawn.
        narrow: The same for the width of a phone.
    """

    name: str
    title: str
    caption: str
    svg: str
    csv: str
    narrow: str

    @property
    def standalone(self) -> str:
        """The figure as a file: black on white."""
        white = '<rect width="100%" height="100%" fill="white"/>'
        body = self.svg.replace("currentColor", "#000000")
        return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(r"(<svg[^>]*>)", rf"\1{white}", body, count=1)


@dataclass(frozen=True)
class Sheet:
    """What a figure is drawn on.

    Args:
        figure: Matplotlib's figure.
        panels: Its axes, from top to bottom.
        narrow: Whether this is the form for phones.
    """

    figure: Any
    panels: tuple[Any, ...]
    narrow: bool


def figure_of(
    name: str,
    title: str,
    caption: str,
    table: tuple[Sequence[str], Sequence[Sequence[Any]]],
    draw: Callable[[Sheet], None],
    *,
    height: float,
    panels: Sequence[float] = (1.0,),
) -> Figure:
    """Draw a figure in both forms.

    Args:
        name: File stem; no other figure of the page has it.
        title: What it is.
        caption: How to read it.
        table: Header and rows of the numbers that are drawn.
        draw: Draws on a sheet; called once for each form.
        height: Inches.
        panels: Relative heights of the panels.

    Returns:
        The figure.
    """
    shown = {}
    for form, width in (("wide", WIDE), ("narrow", NARROW)):
        with _Canvas(width, height if form == "wide" else max(height, 3.4), panels) as (figure, axes):
            sheet = Sheet(figure, axes, form == "narrow")
            draw(sheet)
            _mend_texts(figure)
            _arrange(sheet)
            shown[form] = svg_of(figure, f"{name}-{form}", title)
    return Figure(name, title, caption, shown["wide"], csv_of(*table), shown["narrow"])


def _mend_texts(figure: Any) -> None:
    """Make every text such that it can be set; what is drawn came from files."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if (sound := encodable(text.get_text())) != text.get_text():
            text.set_text(sound)


def _arrange(sheet: Sheet) -> None:
    """Give every part its room: what matplotlib's own layouts do, in one look at the axes where they take many."""
    figure, panels = sheet.figure, sheet.panels
    width, height = figure.bbox.width, figure.bbox.height
    pad, title = 5.0, 15.0
    beyond = [[one.bbox.min - box.min if box else np.zeros(2) for box in (one.yaxis.get_tightbbox(),
               one.xaxis.get_tightbbox())] for one in panels]  # fmt: skip
    left, under = max(sides[0][0] for sides in beyond) + pad, [sides[1][1] for sides in beyond]
    right, bottom = width - 2 * pad, under[-1] + pad
    for drawn in figure.legends:
        room = drawn.get_window_extent()
        beside = room.y0 > height / 2 and room.x0 > width / 2
        right, bottom = (right - room.width, bottom) if beside else (right, bottom + room.height)
    top = height - pad - (title if any(one.get_title(loc="left") for one in panels) else 0)
    gap = max(under[:-1], default=0) + title + pad
    mean = max((top - bottom - gap * (len(panels) - 1)) / len(panels), 1.0)
    figure.subplots_adjust(left / width, bottom / height, right / width, top / height, hspace=gap / mean)


class _Canvas:
    """A figure of matplotlib's object interface: no global state, no display."""

    def __init__(self, width: float, height: float, panels: Sequence[float]) -> None:
        self._size, self._ratios = (width, height), list(panels)

    def __enter__(self) -> tuple[Any, tuple[Any, ...]]:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Paper

        self._settings = matplotlib.rc_context(dict(SETTINGS))
        self._settings.__enter__()
        # SVG counts in points; text is laid out for that size.
        figure = Paper(figsize=self._size, dpi=72)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        axes = figure.subplots(len(self._ratios), 1, squeeze=False, height_ratios=self._ratios)[:, 0]
        for one in axes:
            one.patch.set_visible(False)
            one.grid(visible=True, color="#888888", alpha=0.25, lw=0.6)
        return figure, tuple(axes)

    def __exit__(self, *error: object) -> None:
        self._settings.__exit__(None, None, None)


def colour_of(index: int) -> str:
    """Give the colour of an arm by its place; more arms than colours share them."""
    return COLOURS[index % len(COLOURS)]


def marker_of(index: int) -> str:
    """Give the marker of an arm by its place; arms that share a colour have other markers."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def short(name: str) -> str:
    """Shorten a name for a legend, on one line."""
    flat = " ".join(encodable(name).split())
    return flat if len(flat) <= NAME_LETTERS else flat[: NAME_LETTERS - 1] + "…"


def legend(sheet: Sheet, arms: Sequence[tuple[int, str]], *, beside: bool = False) -> None:
    """Name arms outside of the panels, where no curve is hidden.

    Args:
        sheet: Where to.
        arms: Place of each, and its name as it is to be shown.
        beside: Right of the panels where there is room, else below.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour_of(place), marker=marker_of(place), lw=2.2, ms=5) for place, _ in arms]
    names = [name for _, name in arms]
    if beside and not sheet.narrow:
        sheet.figure.legend(handles, names, loc="upper right", frameon=False, fontsize=9.5)
    else:
        legend_below(sheet, handles, names)


def legend_below(sheet: Sheet, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Put a legend under the panels.

    Args:
        sheet: Where to.
        handles: What is drawn of each entry.
        names: What it is.
    """
    columns = 2 if sheet.narrow else 4
    sheet.figure.legend(handles, names, loc="lower center", ncols=columns, frameon=False, fontsize=9)


def plain_logs(axes: Any) -> None:
    """Write powers of ten without mathematics, which is switched off."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def frame(axes: Any, spans: Sequence[tuple[float, float]]) -> None:
    """Choose the stretch of losses that is shown.

    Args:
        axes: The panel.
        spans: Lowest and highest loss that matter of each curve; empty leaves the panel as it is.
    """
    if spans:
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        room = max(high - low, 0.02 * abs(high), 1e-9)
        axes.set_ylim(low - 0.08 * room, high + 0.12 * room)


def svg_of(figure: Any, prefix: str, label: str) -> str:
    """Write a figure as SVG that can stand inside a page.

    Args:
        figure: Matplotlib's figure.
        prefix: Set before every id, so that no other figure of the page has it.
        label: What the figure is, for those who cannot see it.

    Returns:
        The element `svg`, without a size of its own.
    """
    buffer = io.StringIO()
    # `savefig` would draw all of it one more time, only to find out how large it is.
    figure.canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<[^>]*?\bid=")([^"]+")', rf"\1{prefix}-\2", text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # A hundredth of a point is seen by nobody; the millionths are half of the file.
    text = re.sub(r'(\s(?:d|x|y)=")([^"]*)"', lambda found: found[1] + _rounded(found[2]) + '"', text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def _rounded(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", numbers)


def csv_of(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table as CSV; numbers keep seven digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_digits(item) for item in row] for row in rows])
    return encodable(buffer.getvalue())


def _digits(item: Any) -> Any:
    return f"{float(item):.7g}" if isinstance(item, float) else item
