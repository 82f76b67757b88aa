"""Charts as small inline SVG: they take their colours from the page, so that they read in light and dark alike."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 28  # room for the labels
TICKS = 4


def line(points: Sequence[float], title: str, *, percent: bool = False) -> str:
    """Draw one figure per step; a percentage has the whole scale, any other figure starts at zero."""
    top = 1.0 if percent else max([*points, 1e-9])
    places = [(_across(index, len(points)), _up(value, top)) for index, value in enumerate(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    last = f'<text class="value" x="{x - 4:.1f}" y="{y - 6:.1f}">{_label(points[-1], percent)}</text>'
    steps = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" class="end">step {len(points)}</text>'
    return _svg(title, _grid(top, percent) + f'<polyline class="curve" points="{path}"/>' + last + steps)


def intervals(rows: Sequence[tuple[str, float, float, float]], title: str) -> str:
    """Draw scores, 0 … 1, given as (name, score, low, high), each as a bar with its interval."""
    slot = (WIDTH - LEFT - RIGHT) / len(rows)
    marks = []
    for index, (name, score, low, high) in enumerate(rows):
        middle = LEFT + slot * (index + 0.5)
        wide = min(54.0, slot * 0.5)
        marks.append(
            f'<rect class="bar" x="{middle - wide / 2:.1f}" y="{_up(score, 1.0):.1f}" width="{wide:.1f}"'
            f' height="{_up(0.0, 1.0) - _up(score, 1.0):.1f}"/>'
            f'<line class="interval" x1="{middle:.1f}" x2="{middle:.1f}"'
            f' y1="{_up(low, 1.0):.1f}" y2="{_up(high, 1.0):.1f}"/>'
            f'<text class="middle" x="{middle:.1f}" y="{HEIGHT - 8}">{escape(name.rpartition("/")[2])}</text>'
        )
    return _svg(title, _grid(1.0, percent=True) + "".join(marks))


def _svg(title: str, content: str) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>{content}</svg>'


def _grid(top: float, percent: bool) -> str:
    lines = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = _up(value, top)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{_label(value, percent)}</text>'
        )
    return "".join(lines)


def _across(index: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (index / (count - 1) if count > 1 else 0.5)


def _up(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, value / top)


def _label(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:.2g}"
