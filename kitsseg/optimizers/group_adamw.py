"""AdamW as fastai uses it: one rate per group of layers, and a beta_1 that can change from step to step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["GroupAdamW", "factor_of", "freeze"]

# fastai gives all groups but the last a tenth of the rate while it freezes them
FROZEN_NORM_FACTOR = 0.1


@keras.saving.register_keras_serializable(package="kitsseg")
class GroupAdamW(keras.optimizers.Optimizer):  # type: ignore[misc]  # Keras ships no types
    """Adam with decoupled weight decay and discriminative learning rates.

    With one group and a constant beta_1 this is ``keras.optimizers.AdamW``; Keras' own keeps beta_1 as a number
    inside the compiled step, so that a schedule cannot reach it.

    Args:
        learning_rate: rate of a layer without a factor.
        rate_factors: pairs (start of a layer's name, factor on its rate); the first pair that fits counts. ``freeze``
            freezes the layers of factor 0; their batch normalization learns at a tenth of the rate.
        beta_1, beta_2, epsilon: of Adam; fastai's defaults.
        weight_decay: times the rate of the layer, not on biases and batch normalization.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        rate_factors: Iterable[tuple[str, float]] = (),
        beta_1: float = 0.95,
        beta_2: float = 0.99,
        epsilon: float = 1e-5,
        weight_decay: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **{"name": "group_adamw", **kwargs})
        self.rate_factors = tuple((prefix, float(factor)) for prefix, factor in rate_factors)
        self.beta_2, self.epsilon, self.decay = beta_2, epsilon, weight_decay
        self.initial_beta_1 = beta_1

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.beta_1 = self.add_variable(
            (), initializer=keras.initializers.Constant(self.initial_beta_1), name="beta_1"
        )
        self._means = [self.add_variable_from_reference(v, name="mean") for v in variables]
        self._squares = [self.add_variable_from_reference(v, name="square") for v in variables]
        # by index: with TensorFlow, update_step gets variables that do not know their path
        self._factors = [self.factor_of(v.path) for v in variables]
        self._decays = [
            0.0 if v.path.split("/")[-1] in ("bias", "gamma", "beta") else self.decay for v in variables
        ]

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        """Update one variable; see ``keras.optimizers.Optimizer``."""
        index = self._get_variable_index(variable)
        mean, square = self._means[index], self._squares[index]
        rate = ops.cast(learning_rate, variable.dtype) * self._factors[index]
        gradient = ops.cast(gradient, variable.dtype)
        beta_1, step = ops.cast(self.beta_1, variable.dtype), ops.cast(self.iterations + 1, variable.dtype)
        if self._decays[index]:
            self.assign_sub(variable, variable * rate * self._decays[index])
        self.assign(mean, mean * beta_1 + gradient * (1 - beta_1))
        self.assign(square, square * self.beta_2 + ops.square(gradient) * (1 - self.beta_2))
        unbiased_mean = mean / (1 - ops.power(beta_1, step))
        unbiased_square = square / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), step))
        self.assign_sub(variable, rate * unbiased_mean / (ops.sqrt(unbiased_square) + self.epsilon))

    def factor_of(self, path: str) -> float:
        """Factor on the rate of the variable at ``path``, such as encoder_conv1/kernel."""
        # a variable of a frozen group that gets here belongs to its batch normalization
        return factor_of(path.split("/")[-2], self.rate_factors) or FROZEN_NORM_FACTOR

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rate_factors": self.rate_factors,
            "beta_1": self.initial_beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "weight_decay": self.decay,
        }


def factor_of(layer_name: str, rate_factors: Iterable[tuple[str, float]]) -> float:
    """The factor of the first prefix that fits a layer's name; 1 if none does."""
    return next((factor for prefix, factor in rate_factors if layer_name.startswith(prefix)), 1.0)


def freeze(model: keras.Model, rate_factors: Iterable[tuple[str, float]]) -> None:
    """Freeze the layers whose factor is 0, but not their batch normalization, which goes on learning as in fastai."""
    for layer in model.layers:
        if factor_of(layer.name, rate_factors) == 0 and not isinstance(
            layer, keras.layers.BatchNormalization
        ):
            layer.trainable = False
