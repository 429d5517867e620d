"""Inline SVG of how the cases' scores are spread: every case a dot, and the box of the middle half."""

from html import escape

import numpy as np

__all__ = ["dice_plot"]

WIDTH, LEFT, RIGHT, TOP, BAND, AXIS = 760, 110, 20, 10, 64, 34
DOT, STEP = 3.2, 6  # radius, and how far dots of nearly the same value are moved apart
METRICS = (("tk_dice", "TK Dice"), ("tu_dice", "TU Dice"), ("composite", "composite"))


def dice_plot(rows):
    """Draw the per-case scores.

    Args:
        rows: dicts of ``case`` and the three scores, 0 to 1.

    Returns: an ``<svg>`` whose classes the page styles. Each dot is titled with its case.
    """
    height = TOP + BAND * len(METRICS) + AXIS
    bottom = TOP + BAND * len(METRICS)
    parts = [
        f'<svg class="chart spread" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Scores of {len(rows)} cases">'
    ]
    for tick in np.linspace(0, 1, 6):
        parts.append(f'<path class="grid" d="M{_x(tick):.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{_x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.1f}</text>')
    for band, (key, name) in enumerate(METRICS):
        middle = TOP + BAND * (band + 0.5)
        values = np.array([row[key] for row in rows])
        low, median, high = (_x(value) for value in np.percentile(values, [25, 50, 75]))
        parts.append(f'<text x="{LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{name}</text>')
        parts.append(
            f'<rect class="box" x="{low:.1f}" y="{middle - BAND * 0.36:.1f}" '
            f'width="{max(high - low, 1):.1f}" height="{BAND * 0.72:.1f}"/>'
        )
        parts.append(
            f'<path class="median" d="M{median:.1f} {middle - BAND * 0.36:.1f}V{middle + BAND * 0.36:.1f}"/>'
        )
        for (x, shift), row in zip(_apart(values), rows, strict=True):
            title = f"{escape(str(row['case']))}: {row[key]:.3f}"
            parts.append(
                f'<circle class="a" cx="{x:.1f}" cy="{middle + shift:.1f}" r="{DOT}"><title>{title}</title></circle>'
            )
    return "".join(parts) + "</svg>"


def _x(value):
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _apart(values):
    """Place of each dot, (x, shift from the middle of the band): those that would overlap move up and down in turn."""
    places = [None] * len(values)
    taken = {}
    for i in np.argsort(values, kind="stable"):
        x = _x(values[i])
        level = taken.get(round(x / (2 * DOT)), 0)
        taken[round(x / (2 * DOT))] = level + 1
        limit = int(BAND * 0.4 // STEP)
        step = (level + 1) // 2 % (limit + 1)
        places[i] = x, STEP * step * (1 if level % 2 else -1)
    return places
