"""The few plots of docs/routing.md as SVG texts, without a plotting library."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, log10

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 44, 52
COLOURS = ("#1b7837", "#2166ac", "#b2182b", "#8c8c8c", "#c9a227")
TICKS = 5
# Room of a name, high and wide.
LINE, NAME = 14, 80
INK, FAINT, SHADE = "#333333", "#dddddd", "#f3ead9"


class Axes:
    """A frame with two axes from zero."""

    def __init__(self, x_max: float, y_max: float, *, x: str, y: str, title: str) -> None:
        self.x_step, self.y_step = _step(x_max), _step(y_max)
        self.x_max = self.x_step * ceil(x_max / self.x_step)
        self.y_max = self.y_step * ceil(y_max / self.y_step)
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="12" fill="{INK}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            _text(LEFT, 24, title, size=15, weight="bold"),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x, anchor="middle"),
            f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)">',
            _text(0, 0, y, anchor="middle") + "</g>",
        ]

    def across(self, value: float) -> float:
        """The horizontal place of a value."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max

    def up(self, value: float) -> float:
        """The vertical place of a value."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.y_max

    def grid(self) -> None:
        """Lines and numbers, over whatever was shaded."""
        for number in range(round(self.y_max / self.y_step) + 1):
            value = number * self.y_step
            height = self.up(value)
            self.parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="{FAINT}"/>'
            )
            self.parts.append(_text(LEFT - 6, height + 4, f"{value:g}", anchor="end"))
        for number in range(round(self.x_max / self.x_step) + 1):
            value = number * self.x_step
            self.parts.append(_text(self.across(value), HEIGHT - BOTTOM + 18, f"{value:g}", anchor="middle"))

    def svg(self) -> str:
        """The whole text."""
        return "\n".join([*self.parts, "</svg>", ""])


def scatter(points: Sequence[tuple[str, float, float]], *, x: str, y: str, title: str) -> str:
    """One named point each."""
    axes = Axes(max(each[1] for each in points), max(each[2] for each in points), x=x, y=y, title=title)
    axes.grid()
    said: list[tuple[float, float]] = []
    for (name, across, up), colour in zip(points, COLOURS, strict=False):
        left, height = axes.across(across), axes.up(up)
        axes.parts.append(f'<circle cx="{left:.1f}" cy="{height:.1f}" r="6" fill="{colour}"/>')
        # A name that would lie on another goes above it.
        line = height + 4
        while any(abs(line - other) < LINE and abs(left - beside) < NAME for beside, other in said):
            line -= LINE
        said.append((left, line))
        axes.parts.append(_text(left + 11, line, name))
    return axes.svg()


def lines(
    series: Mapping[str, Sequence[float]],
    *,
    x: str,
    y: str,
    title: str,
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """One named line each; ``marks`` are shaded from one place to another, and say what was."""
    length = max(len(values) for values in series.values())
    axes = Axes(length, max(max(values) for values in series.values()), x=x, y=y, title=title)
    for number, (begin, end, what) in enumerate(sorted(marks)):
        left, right = axes.across(begin), axes.across(end)
        axes.parts.append(
            f'<rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}" '
            f'fill="{SHADE}"/>'
        )
        axes.parts.append(_text((left + right) / 2, TOP + 12 + 12 * (number % 2), what, anchor="middle", size=10))
    axes.grid()
    for number, ((name, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        points = " ".join(f"{axes.across(at + 0.5):.1f},{axes.up(value):.1f}" for at, value in enumerate(values))
        axes.parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        height = TOP + 16 + 20 * number
        begin = WIDTH - RIGHT + 12
        axes.parts.append(
            f'<line x1="{begin}" x2="{begin + 20}" y1="{height}" y2="{height}" stroke="{colour}" stroke-width="3"/>'
        )
        axes.parts.append(_text(begin + 26, height + 4, name))
    return axes.svg()


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _step(most: float) -> float:
    """A round distance between ticks."""
    rough = (most or 1.0) / TICKS
    scale = 10.0 ** int(log10(rough) // 1)
    return next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough)
