"""Learning rates as pure functions of history or step, so that nothing about them has to be saved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kitsseg.recipe import OneCycle, Plateau

__all__ = ["one_cycle", "plateau_learning_rate", "plateau_stops"]


def plateau_learning_rate(learning_rate: float, losses: Iterable[float], plateau: Plateau) -> float:
    """Learning rate of the epoch that follows these validation losses.

    It is the rate that ``keras.callbacks.ReduceLROnPlateau`` sets, computed from the history alone.

    Args:
        learning_rate: of the first epoch.
        losses: validation loss of each epoch so far.
        plateau: Plateau.
    """
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - plateau.min_delta:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= plateau.patience:
            learning_rate, waited = max(learning_rate * plateau.factor, plateau.min_learning_rate), 0
    return learning_rate


def plateau_stops(learning_rate: float, losses: Iterable[float], plateau: Plateau) -> bool:
    """Whether the rate that would follow is below ``plateau.stop_below``. Args: as ``plateau_learning_rate``."""
    if plateau.stop_below is None:
        return False
    # 1e-3 times 0.1 five times is not exactly 1e-8
    return plateau_learning_rate(learning_rate, losses, plateau) < plateau.stop_below * (1 - 1e-9)


def one_cycle(step: int, steps: int, learning_rate: float, cycle: OneCycle) -> tuple[float, float]:
    """Learning rate and beta_1 of a step, as fastai's ``fit_one_cycle`` sets them.

    Args:
        step: of the phase, from 0.
        steps: of the whole phase.
        learning_rate: the highest, reached after ``cycle.rise`` of the steps.
        cycle: OneCycle.

    Returns: (learning rate, beta_1).
    """
    share = step / steps
    high, low = cycle.momentum
    if share <= cycle.rise:
        part = share / cycle.rise
        return _cosine(learning_rate / cycle.start_divisor, learning_rate, part), _cosine(high, low, part)
    part = (share - cycle.rise) / (1 - cycle.rise)
    return _cosine(learning_rate, learning_rate / cycle.end_divisor, part), _cosine(low, high, part)


def _cosine(start: float, end: float, part: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * part)) / 2
