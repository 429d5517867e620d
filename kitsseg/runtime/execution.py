"""How the steps of training are computed: their precision, whether XLA compiles them, and how many make one call.

In every precision weights, losses, logits and saved files stay float32; convolutions are computed in the half
precision. ``mixed_bfloat16`` has the range of float32 and needs nothing else; ``mixed_float16``, for GPUs without
bfloat16 (T4, V100), scales the loss so that small gradients do not vanish, which Keras does in ``compile``.

XLA and several steps a call change the result by rounding only, so that a run may be resumed with another choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import keras

from kitsseg.errors import InputError
from kitsseg.recipe import OneCycle
from kitsseg.runtime.hardware import gpus_of_backend

if TYPE_CHECKING:
    from kitsseg.recipe import Phase, Recipe
    from kitsseg.runtime.devices import Devices

__all__ = ["PRECISIONS", "XLA", "check_execution", "computing_in", "set_execution", "step_by_step"]

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Networks that are built in this context compute in ``precision``. Afterwards Keras has its former policy.

    Raises: InputError for another name than those of ``PRECISIONS``.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: expected one of {', '.join(PRECISIONS)}; found {precision!r}.")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


XLA = ("auto", "on", "off")


def step_by_step(phase: Phase) -> bool:
    """Whether masks, or the rate of a one-cycle schedule, are set before every single step of a phase."""
    return phase.pruning is not None or isinstance(phase.schedule, OneCycle)


def check_execution(recipe: Recipe, devices: Devices, xla: str, steps_per_execution: int) -> str | None:
    """Check that the options fit the recipe, before training starts.

    Args:
        recipe: Recipe.
        devices: Devices.
        xla, steps_per_execution: as in TrainOptions.

    Returns: a line for the user, or None.
    Raises: InputError.
    """
    if xla not in XLA:
        raise InputError(f"--xla: expected one of {', '.join(XLA)}; found {xla!r}.")
    if xla == "on" and devices.mirrored:
        raise InputError(
            "--xla on: Keras on TensorFlow cannot compile steps for several devices. Set KERAS_BACKEND=jax, where XLA "
            "compiles the steps for all devices, or leave --xla out."
        )
    n = steps_per_execution
    if n < 1:
        raise InputError(f"--steps-per-execution: expected at least 1, found {n}.")
    if n == 1:
        return None
    single = [phase.name for phase in recipe.phases if step_by_step(phase)]
    grouped = [phase for phase in recipe.phases if not step_by_step(phase)]
    if not grouped:
        raise InputError(
            f"--steps-per-execution {n}: in every phase of {recipe.name} values change before each step (the masks "
            "of pruning, or the rate of a one-cycle schedule), so steps cannot be grouped. Leave the option out."
        )
    for phase in grouped:
        if phase.steps_per_epoch % n:
            raise InputError(
                f"--steps-per-execution {n}: expected a number that divides the {phase.steps_per_epoch} steps of an "
                f"epoch of phase {phase.name}."
            )
    if not single:
        return None
    return f"{', '.join(single)}: one step at a time, since masks or rates are set before each"


def set_execution(
    model: keras.Model,
    phase: Phase,
    devices: Devices,
    *,
    xla: str = "auto",
    steps_per_execution: int = 1,
    accumulate: int = 1,
) -> None:
    """Set a compiled model to what ``check_execution`` let pass.

    Args:
        model: compiled ``keras.Model``.
        phase: Phase.
        devices: Devices.
        xla, steps_per_execution: as in TrainOptions.
        accumulate: number of parts of a batch; each part is a call of its own.
    """
    # TensorFlow's XLA makes separable networks 13 times slower on a CPU, and older Keras turns it on by itself
    on_tensorflow = keras.config.backend() == "tensorflow"
    without = devices.mirrored or (on_tensorflow and not gpus_of_backend())
    # None: Keras finds out at the first step what this network and these devices allow
    model.jit_compile = {"on": True, "off": False, "auto": False if without else None}[xla]
    n = 1 if step_by_step(phase) else steps_per_execution
    model.steps_per_execution = n * accumulate if n > 1 else 1
