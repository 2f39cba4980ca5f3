"""Bars and step lines as SVG.

What belongs here: drawing numbers that are handed in. What is drawn for which asset is in `pictures.py`. Everything
stays inside the picture, whatever the labels are, because the width of a text is bounded from above and a text that
would be too wide is narrowed.
"""

import colorsys
from collections.abc import Mapping, Sequence
from html import escape
from itertools import islice
from typing import Any

import numpy as np

from latentgloss.machine.printable import printable

COLOURS = (
    "#3b6ea5", "#d1733b", "#4f9d69", "#8a5a9e", "#c2352b", "#2aa1a8", "#b3912c", "#d667a5", "#5c4a3d", "#7a7a7a",
)  # fmt: skip
DASHES = ("", "7 3", "2 2", "9 3 2 3")
"""Patterns of lines. A dashed line lets a line of the same values be seen below it."""
WIDTH, HEIGHT = 560, 200
CHARACTER = 7.2
"""Upper bound of the mean width of a character at 12 px, in px."""
ROW = 18
"""Height of a row of the legend, in px."""
BARS = 40
"""Most bars of a chart; what has more shows the first ones and says how many are left out."""


def colour(number: int) -> str:
    """A colour for a series, different for every number: the palette first, then hues far from their neighbours'."""
    if number < len(COLOURS):
        return COLOURS[number]
    red, green, blue = colorsys.hls_to_rgb(number * 0.618034 % 1, 0.3 + 0.05 * (number % 5), 0.55)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def bars(values: Mapping[Any, float], unit: str) -> str:
    """Horizontal bars as SVG, one per entry, each with its number. `unit` labels the axis."""
    shown = dict(islice(values.items(), BARS))
    largest = max([*values.values(), 1])
    row = 22
    left = min(max([CHARACTER * len(str(label)) for label in shown] + [174]) + 16, WIDTH / 2)
    body = []
    for i, (label, value) in enumerate(shown.items()):
        y, width = 8 + i * row, (WIDTH - left - 90) * value / largest
        body.append(_text(left - 8, y + 12, str(label), "end", widest=left - 16))
        body.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{COLOURS[0]}"/>')
        body.append(_text(left + width + 6, y + 12, f"{value:,.0f}", "start"))
    height = 8 + len(shown) * row + 20
    more = f" (and {len(values) - len(shown):,} more)" if len(values) > len(shown) else ""
    return _svg([*body, _text(left, height - 6, f"{unit}{more}", "start")], height)


def steps(series: Mapping[str, np.ndarray], edges: np.ndarray, label: str) -> str:
    """Histograms over the same edges as step lines in an SVG. Heights are shares of each series.

    No two series have the same colour, and neighbours have different dashes. Of two with the same dashes, the first is
    wider, so that it can be seen below the other where their values are the same. The legend has as many rows as
    it needs.
    """
    legend, rows = _legend(list(series))
    left, right, top = 20, WIDTH - 20, 12 + ROW * rows
    bottom, height = top + HEIGHT - 60, top + HEIGHT - 26
    shares = {name: n / max(n.sum(), 1) for name, n in series.items()}
    highest = max([float(share.max()) for share in shares.values()] + [1e-9])
    xs = left + (right - left) * (edges - edges[0]) / (edges[-1] - edges[0])
    body = [*legend, f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="#888"/>']
    for number, share in enumerate(shares.values()):
        ys = bottom - (bottom - top) * share / highest
        wider = (len(shares) - 1) // len(DASHES) - number // len(DASHES)
        stroke = _stroke(number, min(1.6 + wider, 5))
        body.append(f'<polyline points="{_outline(xs, ys)}" fill="none" {stroke}/>')
    for i in np.linspace(0, len(edges) - 1, 5).astype(int):
        body.append(_text(xs[i], bottom + 14, f"{edges[i]:.3g}", "middle"))
    return _svg([*body, _text((left + right) / 2, height - 4, label, "middle", widest=right - left)], height)


def _outline(xs: np.ndarray, ys: np.ndarray) -> str:
    """The points of a step line: both ends, and two for each step. `xs` has one value more than `ys`."""
    steps = [i for i in range(1, len(ys)) if ys[i] != ys[i - 1]]
    corners = [(xs[i], y) for i in steps for y in (ys[i - 1], ys[i])]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in [(xs[0], ys[0]), *corners, (xs[-1], ys[-1])])


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """A line and a name for each series, in rows from the top, and the number of rows."""
    sample, gap, left, right = 24, 14, 20, WIDTH - 10
    body, x, row = [], float(left), 0
    for number, name in enumerate(names):
        width = min(CHARACTER * len(name), right - left - sample)
        if x > left and x + sample + width > right:
            x, row = left, row + 1
        y = 16 + ROW * row
        body.append(f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x + 18:.1f}" y2="{y - 4}" {_stroke(number)}/>')
        body.append(_text(x + sample, y, name, "start", widest=width))
        x += sample + width + gap
    return body, row + 1


def _stroke(number: int, width: float = 2) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'stroke="{colour(number)}" stroke-width="{width:g}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _svg(body: Sequence[str], height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, *, widest: float = WIDTH) -> str:
    """Text at a place. If it could be wider than `widest`, its characters are narrowed to that."""
    narrow = f' textLength="{widest:.1f}" lengthAdjust="spacingAndGlyphs"' if CHARACTER * len(text) > widest + 1 else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222"{narrow}>{escape(printable(text))}</text>'
