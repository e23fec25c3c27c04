"""A line chart as SVG: a category axis, a linear axis from zero, lines with a legend. No more than the plots need."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 40, 48
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#6a4c93", "#5c677d", "#00798c", "#a44a3f")


@dataclass(frozen=True, slots=True)
class Line:
    """A value for each category, None where there is none."""

    name: str
    values: Sequence[float | None]


def line_chart(title: str, x_title: str, y_title: str, categories: Sequence[str], lines: Sequence[Line]) -> str:
    """The SVG's text. Raises ValueError: a line has not one value for each category, or no value is above 0."""
    values = [value for line in lines for value in line.values if value is not None]
    if any(len(line.values) != len(categories) for line in lines) or max(values, default=0) <= 0:
        raise ValueError("every line needs a value or None for each category, and some value above 0")
    ticks = _ticks(max(values))
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(categories) for i in range(len(categories))]
    parts = [_text(WIDTH / 2, 22, title, "middle", size=15), _text((LEFT + xs[-1]) / 2, HEIGHT - 8, x_title, "middle")]
    parts.append(_text(8, TOP - 10, y_title, "start"))
    for tick in ticks:
        y = _y(tick, ticks[-1])
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    parts += [_text(x, HEIGHT - BOTTOM + 18, name, "middle") for x, name in zip(xs, categories, strict=True)]
    for i, line in enumerate(lines):
        parts += _drawn(line, xs, ticks[-1], COLOURS[i % len(COLOURS)], legend_y=TOP + 8 + 20 * i)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" fill="#222">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _drawn(line: Line, xs: Sequence[float], top: float, colour: str, *, legend_y: float) -> list[str]:
    points = [(x, _y(value, top)) for x, value in zip(xs, line.values, strict=True) if value is not None]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    legend_x = WIDTH - RIGHT + 14
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points),
        f'<circle cx="{legend_x}" cy="{legend_y - 4:.1f}" r="4" fill="{colour}"/>',
        _text(legend_x + 10, legend_y, line.name, "start"),
    ]


def _ticks(largest: float) -> list[float]:
    """From 0 to at least the largest value, four to nine steps of 1, 2 or 5 times a power of ten."""
    power = 10 ** floor(log10(largest))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1, 2) if largest / (power * part) <= 8)
    n_steps = ceil(largest / step - 1e-9)
    return [round(step * i, 10) for i in range(n_steps + 1)]


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
