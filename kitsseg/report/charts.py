"""Inline SVG drawings: training curves, and the distribution of the cases' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.files.templates import render_html

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["dice_plot", "training_chart"]

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 92, 42, 44
LOG_RATIO = 20  # from here on a linear axis would show a flat line
MAX_MARKS = 12
LABEL_HEIGHT = 42
SERIES = (("loss", "training", "a"), ("val_loss", "validation", "b"))


def training_chart(history: Sequence[Mapping[str, Any]]) -> Markup:
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
        return render_html("kitsseg.report", "no_loss.html")
    values = [value for *_, points in series for _, value in points]
    scale, ticks, log = _value_axis(min(values), max(values))
    span = max(len(history) - 1, 1)

    def x(epoch: float) -> float:
        return LEFT + (epoch - 1) / span * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - scale(value) * (HEIGHT - TOP - BOTTOM)

    lines = [
        _Line(name, style, [(x(epoch), y(value)) for epoch, value in points], points[-1][1], y(points[-1][1]))
        for name, style, points in series
    ]
    lines.sort(key=lambda line: line.label_y)
    for before, after in pairwise(lines):
        after.label_y = max(after.label_y, before.label_y + LABEL_HEIGHT)
    return render_html(
        "kitsseg.report",
        "training_chart.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        epochs=len(history),
        ticks=[(y(tick), tick) for tick in ticks],
        epoch_ticks=[(x(epoch), epoch) for epoch in _epoch_ticks(len(history))],
        log=log,
        marks=_marks(history, x),
        lines=lines,
    )


@dataclass
class _Line:
    """A curve: its points in the drawing, its last value, and where its label stands."""

    name: str
    style: str
    points: list[tuple[float, float]]
    last: float
    label_y: float


@dataclass(frozen=True)
class _Mark:
    """A vertical line (from ``from_y`` down; None: no line) and a text beside it."""

    kind: str
    line_x: float
    from_y: float | None
    text: str
    text_x: float
    text_y: float


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


def _marks(history: Sequence[Mapping[str, Any]], x: Callable[[float], float]) -> list[_Mark]:
    """Vertical lines where a phase begins and where the learning rate drops."""
    marks, drops = [], []
    for i, (before, row) in enumerate(zip([None, *history], history), 1):
        if before is None or row["phase"] != before["phase"]:
            at = x(i if before is None else i - 0.5)
            text = f"{row['phase']}, lr {row['learning_rate']:.2g}"
            marks.append(_Mark("phase", at, None if before is None else TOP - 12, text, at + 4, TOP - 26))
        elif row["learning_rate"] < before["learning_rate"]:
            drops.append((i, row["learning_rate"]))
    if len(drops) > MAX_MARKS:  # a schedule that falls in every epoch
        first, last = history[0]["learning_rate"], history[-1]["learning_rate"]
        text = f"learning rate {first:.2g} to {last:.2g}, {len(drops)} drops"
        return [*marks, _Mark("drop", x(1), None, text, x(1) + 4, TOP - 8)]
    for i, rate in drops:
        at = x(i - 0.5)
        marks.append(_Mark("drop", at, TOP, f"lr {rate:.2g}", at + 3, TOP - 8))
    return marks


SPREAD_WIDTH, SPREAD_LEFT, SPREAD_RIGHT, SPREAD_TOP, BAND, SPREAD_AXIS = 760, 110, 20, 10, 64, 34
DOT, DOT_STEP = 3.2, 6  # radius, and how far dots of nearly the same value are moved apart
SPREAD_SCORES = (("tk_dice", "TK Dice"), ("tu_dice", "TU Dice"), ("composite", "composite"))


def dice_plot(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the per-case scores.

    Args:
        rows: dicts of ``case`` and the three scores, 0 to 1.

    Returns: an ``<svg>`` whose classes the page styles. Each dot is titled with its case.
    """
    bottom = SPREAD_TOP + BAND * len(SPREAD_SCORES)
    bands = []
    for number, (key, name) in enumerate(SPREAD_SCORES):
        middle = SPREAD_TOP + BAND * (number + 0.5)
        values = np.array([row[key] for row in rows])
        low, median, high = (_spread_x(value) for value in np.percentile(values, [25, 50, 75]))
        dots = [
            {"x": x, "y": middle + shift, "title": f"{row['case']}: {row[key]:.3f}"}
            for (x, shift), row in zip(_apart(values), rows, strict=True)
        ]
        band: dict[str, Any] = {"name": name, "middle": middle, "half": BAND * 0.36, "dots": dots}
        bands.append(band | {"low": low, "median": median, "width": max(high - low, 1)})
    return render_html(
        "kitsseg.report",
        "dice_plot.svg",
        width=SPREAD_WIDTH,
        height=bottom + SPREAD_AXIS,
        left=SPREAD_LEFT,
        top=SPREAD_TOP,
        bottom=bottom,
        n_cases=len(rows),
        ticks=[(_spread_x(tick), tick) for tick in np.linspace(0, 1, 6).tolist()],
        bands=bands,
        dot_radius=DOT,
    )


def _spread_x(value: float) -> float:
    return SPREAD_LEFT + value * (SPREAD_WIDTH - SPREAD_LEFT - SPREAD_RIGHT)


def _apart(values: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """(x, shift from the middle of the band) of each dot. Dots that would overlap are moved up and down by turns."""
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
