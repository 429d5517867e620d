"""Count the multiply-accumulates of a Keras model for one image.

A convolution multiplies each weight of its kernel once for each output position, a transposed convolution once for each
input position. Biases, normalizations, activations, poolings and resizings are not counted. The number of FLOPs is
twice the number of multiply-accumulates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import keras
import numpy as np
from keras import layers

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["count_macs", "macs_of_weights"]

Counted = TypeVar("Counted")

CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def count_macs(
    model: keras.Model, input_shape: tuple[int | None, ...] | None = None, nonzero_only: bool = False
) -> int:
    """Count the multiply-accumulates of the model's convolutions and dense layers for one image.

    A layer used twice counts twice; nested models are entered. A layer of another class with a method
    ``count_macs(input_shape, output_shape)`` (shapes without the batch axis) gives its own figure.

    Args:
        model: functional or sequential ``keras.Model`` with one input. It is not changed.
        input_shape: of one image, without the batch axis; the model's own by default.
        nonzero_only: scale each layer's figure by the share of its kernel weights that are not zero: the work
            a pruned model would need if zeros were skipped (dense kernels do not skip them).

    Returns:
        int.

    Raises:
        ValueError: a size of the input is not known; a layer has a weight matrix but no known count.
    """
    return sum(
        round(macs * _nonzero_share(layer)) if macs and nonzero_only else macs
        for layer, macs in _calls(model, input_shape, _count_layer)
    )


def macs_of_weights(
    model: keras.Model, input_shape: tuple[int | None, ...] | None = None
) -> list[tuple[keras.Variable, int | None]]:
    """Multiply-accumulates of each weight matrix. The count of a layer is divided among its kernels.

    Args: as ``count_macs``.

    Returns: list of (variable, int), in the order of the layers, with None instead of a number if the layer's class
        has no known count. A variable that is used twice has the sum.
    Raises: ValueError: a size of the input is not known.
    """
    found: dict[int, tuple[keras.Variable, int | None]] = {}

    def count(layer: keras.layers.Layer, x: Tensor, y: Tensor) -> int | None:
        return _count_layer(layer, x, y) if _has_count(layer) else None

    for layer, macs in _calls(model, input_shape, count):
        weights = sum(math.prod(kernel.shape) for kernel in _kernels(layer))
        for kernel in _kernels(layer):
            _, before = found.get(id(kernel), (kernel, 0))
            known = macs is not None and before is not None
            found[id(kernel)] = kernel, before + macs * math.prod(kernel.shape) // weights if known else None
    return list(found.values())


def _calls(
    model: keras.Model,
    input_shape: tuple[int | None, ...] | None,
    count: Callable[[keras.layers.Layer, Tensor, Tensor], Counted],
) -> list[tuple[keras.layers.Layer, Counted]]:
    """(layer, count(layer, input, output)) of each call of each layer of a model, nested models entered."""
    shape = tuple(model.input_shape[1:] if input_shape is None else input_shape)
    if any(size is None for size in shape):
        raise ValueError(f"{model.name}: the cost depends on the size; got {shape}. Give input_shape.")
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # the same layers, as a graph
    calls: list[tuple[keras.layers.Layer, Counted]] = []

    def note_call(layer: keras.layers.Layer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = layer(x, *args, **kwargs)
        if isinstance(layer, keras.Model):
            calls.extend(_calls(model.get_layer(layer.name), x.shape[1:], count))
        elif isinstance(layer, keras.Layer):
            calls.append((model.get_layer(layer.name), count(layer, x, y)))
        return y

    # A clone, because calling the model's own layers again would add to its graph.
    keras.models.clone_model(model, input_tensors=keras.Input(shape), call_function=note_call)
    return calls


def _count_layer(layer: keras.layers.Layer, x: Tensor, y: Tensor) -> int:
    """Multiply-accumulates of one call of a layer, from tensor ``x`` to tensor ``y``."""
    if hasattr(layer, "count_macs"):
        return int(layer.count_macs(tuple(x.shape[1:]), tuple(y.shape[1:])))
    weights: int = sum(math.prod(kernel.shape) for kernel in _kernels(layer))
    if isinstance(layer, CONVOLUTIONS):
        return _positions(y, layer.data_format) * weights
    if isinstance(layer, TRANSPOSED):
        return _positions(x, layer.data_format) * weights
    if isinstance(layer, layers.Dense):
        return _positions(x, "channels_last") * weights
    if weights and not _has_count(layer):
        raise ValueError(
            f"{layer.name}: no count for a {type(layer).__name__}, which has weight matrices. "
            "Give its class a method count_macs(input_shape, output_shape)."
        )
    return 0


def _has_count(layer: keras.layers.Layer) -> bool:
    return hasattr(layer, "count_macs") or isinstance(
        layer, (*CONVOLUTIONS, *TRANSPOSED, layers.Dense, layers.PReLU)
    )


def _positions(tensor: Tensor, data_format: str) -> int:
    """How many places one image of the tensor has."""
    return math.prod(tensor.shape[1:-1] if data_format == "channels_last" else tensor.shape[2:])


def _kernels(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The layer's weights that multiply: those with more than one axis (biases and scales have one)."""
    return [weight for weight in layer.trainable_weights if len(weight.shape) > 1]


def _nonzero_share(layer: keras.layers.Layer) -> float:
    """Share of the layer's kernel weights that are not zero."""
    values = [keras.ops.convert_to_numpy(kernel) for kernel in _kernels(layer)]
    size: int = sum(value.size for value in values)
    return sum(int(np.count_nonzero(value)) for value in values) / size
