"""Averages of the weights over the steps of training (EMA). The Keras optimizer keeps them; this module uses them.

Each step moves the average by ``1 - momentum`` towards the weights; the first average is the weights after the first
step. Validation uses the averages, and a phase hands the averages on; training itself goes on with the weights. The
optimizer does not average the statistics of batch normalization: they stay as training left them.

``keras.callbacks.SwapEMAWeights`` is not used: on TensorFlow it swaps by adding and subtracting. This rounds, so that
the result of training would depend on how often it is validated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["ValidateAverages", "averaged_weights", "averages", "keep_averages"]


def keep_averages(optimizer: keras.optimizers.Optimizer, momentum: float, parts: int = 1) -> None:
    """Switch the averages of an optimizer on, before the optimizer is built.

    Args:
        optimizer: a ``keras.optimizers.Optimizer``.
        momentum: of one step, such as 0.999.
        parts: number of parts of a batch whose gradients are accumulated. Keras averages after each part.
    """
    optimizer.use_ema, optimizer.ema_momentum = True, momentum ** (1 / parts)
    optimizer.ema_overwrite_frequency = None


def averages(optimizer: keras.optimizers.Optimizer | None) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Pairs (variable, its average) of an optimizer, none where it keeps none."""
    # the one that scales the loss for float16 holds another
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for each in getattr(optimizer, "optimizers", [optimizer]):
        if getattr(each, "use_ema", False) and hasattr(each, "_model_variables_moving_average"):
            pairs = zip(each._trainable_variables, each._model_variables_moving_average)
            yield from ((variable, average) for variable, average in pairs if average is not None)


def averaged_weights(model: keras.Model) -> list[npt.NDArray[Any]]:
    """``model.get_weights()``, with averages where the optimizer keeps some."""
    found = {id(variable): average for variable, average in averages(getattr(model, "optimizer", None))}
    return [ops.convert_to_numpy(found.get(id(variable), variable)) for variable in model.weights]


class ValidateAverages(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
    """Callback for ``fit``: validation uses the averages; afterwards the weights are what they were, to the bit."""

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self.swap()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.swap()

    def swap(self) -> None:
        """Exchange the weights and their averages."""
        for variable, average in averages(self.model.optimizer):
            ours, theirs = ops.convert_to_numpy(variable), ops.convert_to_numpy(average)
            variable.assign(theirs)
            average.assign(ours)
