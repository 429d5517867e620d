"""Inline SVG drawings: training curves, and how the scores of the cases are spread."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["dice_plot", "training_chart"]

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 92, 42, 44
LOG_RATIO = 20  # from here on a linear axis would show a flat line
MAX_MARKS = 12
SERIES = (("loss", "training loss", "a"), ("val_loss", "validation loss", "b"))


def training_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss and validation loss of each epoch, with marks where phases begin and the learning rate drops.

    Args:
        history: dicts with ``phase``, ``learning_rate``, ``loss`` and perhaps ``val_loss``, one an epoch.

    Returns: an ``<svg>`` element whose classes the page styles; or a sentence if there is no finite loss.
    """
    series = []
    for key, name, style in SERIES:
        points = [(i, row[key]) for i, row in enumerate(history, 1) if math.isfinite(row.get(key, math.nan))]
        if points:
            series.append((name, style, points))
    if not series:
        return "<p>No epoch with a finite loss has been recorded.</p>"
    values = [value for *_, points in series for _, value in points]
    scale, ticks, log = _value_axis(min(values), max(values))
    span = max(len(history) - 1, 1)

    def x(epoch: float) -> float:
        return LEFT + (epoch - 1) / span * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - scale(value) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Loss over {len(history)} epochs">'
    ]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for epoch in _epoch_ticks(len(history)):
        parts.append(
            f'<text x="{x(epoch):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{epoch}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">epoch</text>')
    parts.append(f'<text x="0" y="{TOP - 26}">loss{" (log)" if log else ""}</text>')
    parts += _marks(history, x)
    ends = []
    for name, style, points in series:
        line = "L".join(f"{x(epoch):.1f} {y(value):.1f}" for epoch, value in points)
        parts.append(f'<path class="line {style}" d="M{line}"/>')
        if len(points) <= 40:
            parts += [f'<circle class="{style}" cx="{x(e):.1f}" cy="{y(v):.1f}" r="2.5"/>' for e, v in points]
        ends.append([y(points[-1][1]), name.split()[0], points[-1][1], style])
    ends.sort()
    for before, after in pairwise(ends):
        after[0] = max(after[0], before[0] + 30)
    for top, name, value, style in ends:
        left = WIDTH - RIGHT + 10
        parts.append(f'<text class="{style}" x="{left}" y="{top:.1f}">{name}</text>')
        parts.append(f'<text class="{style}" x="{left}" y="{top + 14:.1f}">{value:.4g}</text>')
    return "".join(parts) + "</svg>"


def _value_axis(low: float, high: float) -> tuple[Callable[[float], float], list[float], bool]:
    """(function from a value to 0..1, ticks, whether the axis is logarithmic)."""
    if low > 0 and high / low > LOG_RATIO:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if len(decades) <= 4 else (1,)
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        first = max(i for i, tick in enumerate(ticks) if tick <= low)
        last = min(i for i, tick in enumerate(ticks) if tick >= high)
        ticks = ticks[first : last + 1]
        bottom, span = math.log10(ticks[0]), math.log10(ticks[-1] / ticks[0])
        return lambda value: (math.log10(value) - bottom) / span, ticks, True
    step = _step((high - low) or abs(high) or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = [round(i * step, 10) for i in range(first, last + 1)]
    return lambda value: (value / step - first) / (last - first), ticks, False


def _step(span: float, count: int = 5) -> float:
    """1, 2 or 5 times a power of ten, for about ``count`` ticks over ``span``."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span)


def _epoch_ticks(n: int) -> list[int]:
    step = max(1, int(_step(n, 8)))
    return [1, *(epoch for epoch in range(step, n + 1, step) if epoch > max(1, step // 2))] if n > 1 else [1]


def _marks(history: Sequence[Mapping[str, Any]], x: Callable[[float], float]) -> list[str]:
    """Vertical lines where a phase begins and where the learning rate drops."""
    parts, drops = [], []
    for i, (before, row) in enumerate(zip([None, *history], history), 1):
        if before is None or row["phase"] != before["phase"]:
            if before is not None:
                parts.append(f'<path class="phase" d="M{x(i - 0.5):.1f} {TOP - 12}V{HEIGHT - BOTTOM}"/>')
            name = escape(f"{row['phase']}, lr {row['learning_rate']:.2g}")
            parts.append(
                f'<text x="{x(i - 0.5 * (before is not None)) + 4:.1f}" y="{TOP - 26}">{name}</text>'
            )
        elif row["learning_rate"] < before["learning_rate"]:
            drops.append((i, row["learning_rate"]))
    if len(drops) > MAX_MARKS:  # a schedule that falls in every epoch
        first, last = history[0]["learning_rate"], history[-1]["learning_rate"]
        text = f"learning rate {first:.2g} to {last:.2g}, {len(drops)} drops"
        parts.append(f'<text class="drop" x="{x(1) + 4:.1f}" y="{TOP - 8}">{text}</text>')
        return parts
    for i, rate in drops:
        parts.append(f'<path class="drop" d="M{x(i - 0.5):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="drop" x="{x(i - 0.5) + 3:.1f}" y="{TOP - 8}">lr {rate:.2g}</text>')
    return parts


SPREAD_WIDTH, SPREAD_LEFT, SPREAD_RIGHT, SPREAD_TOP, BAND, SPREAD_AXIS = 760, 110, 20, 10, 64, 34
DOT, DOT_STEP = 3.2, 6  # radius, and how far dots of nearly the same value are moved apart
SPREAD_SCORES = (("tk_dice", "TK Dice"), ("tu_dice", "TU Dice"), ("composite", "composite"))


def dice_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the per-case scores.

    Args:
        rows: dicts of ``case`` and the three scores, 0 to 1.

    Returns: an ``<svg>`` whose classes the page styles. Each dot is titled with its case.
    """
    height = SPREAD_TOP + BAND * len(SPREAD_SCORES) + SPREAD_AXIS
    bottom = SPREAD_TOP + BAND * len(SPREAD_SCORES)
    parts = [
        f'<svg class="chart spread" viewBox="0 0 {SPREAD_WIDTH} {height}" role="img" '
        f'aria-label="Scores of {len(rows)} cases">'
    ]
    for tick in np.linspace(0, 1, 6):
        parts.append(f'<path class="grid" d="M{_spread_x(tick):.1f} {SPREAD_TOP}V{bottom}"/>')
        parts.append(
            f'<text x="{_spread_x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.1f}</text>'
        )
    for band, (key, name) in enumerate(SPREAD_SCORES):
        middle = SPREAD_TOP + BAND * (band + 0.5)
        values = np.array([row[key] for row in rows])
        low, median, high = (_spread_x(value) for value in np.percentile(values, [25, 50, 75]))
        parts.append(f'<text x="{SPREAD_LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{name}</text>')
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


def _spread_x(value: float) -> float:
    return SPREAD_LEFT + value * (SPREAD_WIDTH - SPREAD_LEFT - SPREAD_RIGHT)


def _apart(values: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Place of each dot, (x, shift from the middle of the band): those that would overlap move up and down in turn."""
    places = [(0.0, 0.0)] * len(values)
    taken: dict[int, int] = {}
    for i in np.argsort(values, kind="stable"):
        x = _spread_x(values[i])
        level = taken.get(round(x / (2 * DOT)), 0)
        taken[round(x / (2 * DOT))] = level + 1
        limit = int(BAND * 0.4 // DOT_STEP)
        step = (level + 1) // 2 % (limit + 1)
        places[i] = x, DOT_STEP * step * (1 if level % 2 else -1)
    return places
