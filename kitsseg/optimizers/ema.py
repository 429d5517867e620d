"""Averages of the weights over the steps of training (EMA): kept by the Keras optimizer, looked at by us.

Each step moves the average by ``1 - momentum`` towards the weights; it begins as the weights after the first step.
Validation sees the averages, and they are what a phase hands on; training itself goes on with the weights. Statistics
of batch normalization are no weights of the optimizer: they stay those that training left.

``keras.callbacks.SwapEMAWeights`` is not used: on TensorFlow it swaps by adding and subtracting, which rounds, so that
training would depend on when it was validated.
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
    """Make an optimizer that is not built yet keep averages.

    Args:
        momentum: of one step, such as 0.999.
        parts: of a batch whose gradients are accumulated: Keras averages after each of them.
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
    """Callback for ``fit``: validation sees the averages; afterwards all is to the bit as it was."""

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
