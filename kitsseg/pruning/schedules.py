"""Schedules of tensorflow-model-optimization (tfmot), for Keras 3. The only module that imports tfmot.

tfmot needs Keras 2: its import sets the environment variable TF_USE_LEGACY_KERAS, and then ``tf.keras`` becomes Keras 2
where it has not been used before. This module restores both after the import. The schedules of tfmot are plain
functions of TensorFlow, so they work with Keras 3 on any backend.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kitsseg.recipe import Phase

__all__ = ["Schedule", "at_step", "constant_sparsity", "polynomial_decay", "schedule_of"]

# a tfmot.sparsity.keras.PruningSchedule: from a step to (whether masks are drawn, sparsity), both tensors
Schedule = Callable[[Any], tuple[Any, Any]]
LEGACY = "TF_USE_LEGACY_KERAS"


def _tfmot() -> Any:
    """``tfmot.sparsity.keras``."""
    import tensorflow as tf
    import tensorflow.compat.v1 as tf1
    import tensorflow.compat.v2 as tf2

    before = os.environ.get(LEGACY)
    for each in (tf, tf1, tf2):
        _ = each.keras.layers  # decides now, before the variable is set, which Keras this is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it compares versions with distutils
            import tensorflow_model_optimization as tfmot
    finally:
        if before is None:
            os.environ.pop(LEGACY, None)
        else:
            os.environ[LEGACY] = before
    return tfmot.sparsity.keras


def polynomial_decay(
    final_sparsity: float, end_step: int, frequency: int, initial_sparsity: float = 0.0
) -> Schedule:
    """``tfmot.sparsity.keras.PolynomialDecay`` from step 0, power 3: sparsity rises fast first, then slowly.

    Args:
        final_sparsity: share of zeros at the end, in 0..1.
        end_step: step at which it is reached.
        frequency: masks are drawn every so many steps.
        initial_sparsity: share of zeros at step 0.

    Raises: ValueError if the last mask would be drawn before ``end_step``, short of the final sparsity.
    """
    if end_step % frequency:
        raise ValueError(
            f"polynomial_decay: end_step must be a multiple of frequency, or the final sparsity is never reached; "
            f"found {end_step} and {frequency}."
        )
    schedule: Schedule = _tfmot().PolynomialDecay(
        initial_sparsity, final_sparsity, 0, end_step, frequency=frequency
    )
    return schedule


def constant_sparsity(sparsity: float, step: int = 1) -> Schedule:
    """``tfmot.sparsity.keras.ConstantSparsity`` that draws one mask, before the update of batch ``step``."""
    schedule: Schedule = _tfmot().ConstantSparsity(sparsity, step, step, frequency=1)
    return schedule


def schedule_of(phase: Phase) -> Schedule:
    """The schedule of a Phase with ``pruning``."""
    pruning = phase.pruning
    if pruning is None:
        raise ValueError(f"Phase {phase.name}: expected one with pruning.")
    if pruning.schedule == "one-shot":
        return constant_sparsity(pruning.sparsity)
    return polynomial_decay(
        pruning.sparsity, phase.pruning_steps, pruning.frequency, pruning.initial_sparsity
    )


def at_step(schedule: Schedule, step: int) -> tuple[bool, np.float32]:
    """Ask any ``PruningSchedule``: (whether masks are to be drawn at this step, float32 sparsity)."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        due, sparsity = schedule(tf.constant(step, tf.int64))
    return bool(due), np.float32(sparsity)
