"""Magnitude pruning of Keras 3 models while they train, as tensorflow-model-optimization (tfmot) 0.8.1 does it.

Stated: rank the weights of a matrix by magnitude, zero the smallest, go on training (Rao et al., "WP-UNet").
Code:   tfmot's ``prune_low_magnitude``, which refuses Keras 3 models: its order of operations, its masks and
    thresholds, its table of layers. Its schedule objects are used as they are.
Ours:   options marked so. Zeroed weights are +0, never -0. A layer that a model calls twice counts one step a batch
    (tfmot: two).
Check:  equal masks on tf_keras twins; weights that a mask drops are exactly 0 after every epoch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from kitsseg.errors import InputError
from kitsseg.files.arrays import read_arrays
from kitsseg.files.atomic import atomic_path
from kitsseg.optimizers.ema import averages
from kitsseg.pruning.masks import block_mask, global_masks, is_pointwise, m_by_n_mask, magnitude_mask
from kitsseg.pruning.schedules import at_step
from kitsseg.pruning.weights import prunable_weights

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor
    from kitsseg.pruning.schedules import Schedule

__all__ = ["PruneLowMagnitude"]

M_BY_N_THRESHOLD = 999.0  # tfmot stores this instead of a threshold


class PruneLowMagnitude(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
    """Callback for ``fit`` that masks weights. The model stays an ordinary Keras model.

    Before each batch the step is counted (the first is 1), masks are drawn from the current weights if the schedule
    says so, and dropped weights are set to 0. The optimizer then updates all weights, so that a dropped weight may come
    back when masks are drawn again. Dropped weights are set to 0 again at the end of each epoch and before evaluation.
    Callbacks that save the model must therefore come after this one in the list. Averages of the weights (``use_ema``)
    are masked too.

    Step, masks and thresholds belong to this object: another ``fit`` with it goes on where the first ended, also
    with the same model loaded from a file. ``save`` and ``load`` carry them to another process.

    Args:
        schedule: ``tfmot.sparsity.keras.PruningSchedule``, such as those of ``kitsseg.pruning.schedules``.
        sparsity_m_by_n: (m, n), as tfmot's: drop m of each n consecutive weights, once, at step 1.
        block: number of neighboring output channels of a 1x1 convolution or dense layer that are kept or dropped
            together (not in tfmot for convolutions); other kernels are pruned weight by weight.
        scope: "layer", as tfmot: each tensor reaches the sparsity by itself; "global" (not in tfmot): all tensors
            reach it together.
        depthwise: prune depth-wise kernels too (not in tfmot).
        first_last: False (not in tfmot) does not prune the first layer, the last one, and other layers of an output.
        exclude: names of layers that are not pruned (not in tfmot).

    Raises: ValueError for options that exclude each other.
    """

    def __init__(
        self,
        schedule: Schedule,
        sparsity_m_by_n: tuple[int, int] | None = None,
        *,
        block: int | None = None,
        scope: str = "layer",
        depthwise: bool = False,
        first_last: bool = True,
        exclude: Iterable[str] = (),
    ) -> None:
        super().__init__()
        if scope not in ("layer", "global"):
            raise ValueError(f'PruneLowMagnitude: scope is "layer" or "global"; found {scope!r}.')
        if sum((sparsity_m_by_n is not None, block is not None, scope == "global")) > 1:
            raise ValueError('PruneLowMagnitude: give only one of sparsity_m_by_n, block and scope="global".')
        self.schedule, self.m_by_n, self.block, self.scope = schedule, sparsity_m_by_n, block, scope
        self.which: dict[str, Any] = {
            "depthwise": depthwise,
            "first_last": first_last,
            "exclude": tuple(exclude),
        }
        self.step = -1
        self._origin: str | None = None  # the file that the masks came from
        # a bool array and a number for each tensor; None before the first drawing
        self.masks: list[npt.NDArray[np.bool_]] | None = None
        self.thresholds: list[np.float32] | None = None
        # of the model of this fit, its masks as tensors; empty before they are collected
        self._weights: list[tuple[keras.layers.Layer, keras.Variable]] = []
        self._kept: list[Tensor] = []

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._weights = []

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if getattr(self.model, "steps_per_execution", 1) != 1:
            raise ValueError(
                "PruneLowMagnitude: compile the model with steps_per_execution=1; weights are masked before each "
                f"batch. Found {self.model.steps_per_execution}."
            )
        self._collect()
        self.step = max(self.step, 0)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.step += 1
        due, sparsity = at_step(self.schedule, self.step)
        if self.step == 1 if self.m_by_n else due:
            self._sync()
            self._draw(sparsity)
        self._apply()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.apply_masks()

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self.apply_masks()

    def on_predict_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self.apply_masks()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.apply_masks()

    def apply_masks(self) -> None:
        """Set dropped weights to 0, and also their averages if the optimizer keeps averages."""
        self._apply()
        if not self._kept:
            return
        kept = {id(variable): mask for (_, variable), mask in zip(self._weights, self._kept)}
        for variable, average in averages(getattr(self.model, "optimizer", None)):
            if id(variable) in kept:
                average.assign(ops.where(kept[id(variable)], average.value, 0))

    def strip(self) -> keras.Model:
        """Set dropped weights to 0 a last time, and return the model, which no longer needs this object."""
        self.apply_masks()
        return self.model

    @property
    def sparsity(self) -> float:
        """Share of dropped weights in all masks; 0 before the first drawing."""
        if self.masks is None:
            return 0.0
        return 1 - sum(int(mask.sum()) for mask in self.masks) / sum(mask.size for mask in self.masks)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write step, masks and thresholds to ``path``, a .npz file that appears whole or not at all."""
        state: dict[str, Any] = {
            "step": np.int64(self.step),
            "tensors": np.int64(-1 if self.masks is None else len(self.masks)),
        }
        for i, (mask, threshold) in enumerate(zip(self.masks or (), self.thresholds or ())):
            state |= {f"mask_{i}": np.packbits(mask), f"shape_{i}": np.array(mask.shape, np.int64)}
            state[f"threshold_{i}"] = threshold
        with atomic_path(path) as temporary:
            np.savez(temporary, **state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from what ``save`` wrote.

        Raises: InputError for a missing or damaged file.
        """
        try:
            state = read_arrays(path)
            step, count = int(state["step"]), int(state["tensors"])
            masks: list[npt.NDArray[np.bool_]] = []
            thresholds: list[np.float32] = []
            for i in range(count):
                shape = tuple(state[f"shape_{i}"])
                bits = np.unpackbits(state[f"mask_{i}"], count=math.prod(shape))
                masks.append(bits.reshape(shape).astype(bool))
                thresholds.append(np.float32(state[f"threshold_{i}"][()]))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{path}: missing or damaged state of pruning ({error}). Start the run again."
            ) from error
        self.step, self._origin = step, str(path)
        self.masks, self.thresholds = (masks, thresholds) if count >= 0 else (None, None)
        self._weights, self._kept = [], []

    def _collect(self) -> None:
        """Find the weights of the model, and fit the masks there are to them."""
        self._weights, self._kept = prunable_weights(self.model, **self.which), []
        if not self._weights:
            raise ValueError(f"{self.model.name}: no layer of this model has weights that pruning masks.")
        for _, variable in self._weights:
            if self.m_by_n and len(variable.shape) not in (2, 4):
                m_by_n_mask(np.empty(variable.shape), self.m_by_n)  # says what is wrong
        if self.masks is not None:
            shapes = [tuple(variable.shape) for _, variable in self._weights]
            if [mask.shape for mask in self.masks] != shapes:
                raise InputError(
                    f"{self._origin or self.model.name}: the masks of this callback belong to another model. Use a new "
                    "callback, or the model it has pruned so far."
                )
            self._kept = [ops.convert_to_tensor(mask) for mask in self.masks]

    def _draw(self, sparsity: float | np.float32) -> None:
        weights = [ops.convert_to_numpy(variable) for _, variable in self._weights]
        if self.scope == "global":
            self.masks, threshold = global_masks(weights, sparsity)
            self.thresholds = [threshold] * len(weights)
        else:
            drawn = [self._mask(*found, w, sparsity) for found, w in zip(self._weights, weights)]
            self.masks, self.thresholds = [mask for mask, _ in drawn], [threshold for _, threshold in drawn]
        self._kept = [ops.convert_to_tensor(mask) for mask in self.masks]

    def _mask(
        self,
        layer: keras.layers.Layer,
        variable: keras.Variable,
        weights: npt.NDArray[np.float32],
        sparsity: float | np.float32,
    ) -> tuple[npt.NDArray[np.bool_], np.float32]:
        if self.m_by_n:
            return m_by_n_mask(weights, self.m_by_n), np.float32(M_BY_N_THRESHOLD)
        if self.block and _blocked(layer, variable):
            return block_mask(weights, sparsity, self.block)
        return magnitude_mask(weights, sparsity)

    def _apply(self) -> None:
        if self.masks is None:
            return
        if not self._weights:
            self._collect()
        self._sync()
        for (_, variable), kept in zip(self._weights, self._kept):
            variable.assign(ops.where(kept, variable.value, 0))

    def _sync(self) -> None:
        # within an epoch, fit on JAX keeps the weights to itself; it takes them from the model after this
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()


def _blocked(layer: keras.layers.Layer, variable: keras.Variable) -> bool:
    """Whether a weight is a matrix (at each position) whose last axis holds the output channels."""
    return is_pointwise(variable.shape) and not type(layer).__name__.endswith("Transpose")
