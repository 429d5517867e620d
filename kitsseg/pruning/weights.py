"""The weights of a model that are pruned, by the table of layers of tensorflow-model-optimization (tfmot) 0.8.1."""

from collections.abc import Collection, Iterator

import keras
from keras import layers

from kitsseg.models.layers.layers3d import DepthwiseConv3D

__all__ = ["prunable_weights"]

# tfmot's table for the layers that Keras 3 has; what is looked up is the exact class
REGISTRY = {
    layers.Dense: ("kernel",),
    layers.Embedding: ("embeddings",),
    layers.Conv1D: ("kernel",),
    layers.Conv2D: ("kernel",),
    layers.Conv3D: ("kernel",),
    layers.Conv2DTranspose: ("kernel",),
    layers.Conv3DTranspose: ("kernel",),
    layers.SeparableConv1D: ("pointwise_kernel",),
    layers.SeparableConv2D: ("pointwise_kernel",),
}
ATTENTION = ("query_dense", "key_dense", "value_dense", "output_dense")
CELLS = (layers.GRUCell, layers.LSTMCell, layers.SimpleRNNCell)
DEPTHWISE = {
    layers.DepthwiseConv1D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    DepthwiseConv3D: "kernel",
    layers.SeparableConv1D: "depthwise_kernel",
    layers.SeparableConv2D: "depthwise_kernel",
}


def prunable_weights(
    model: keras.Model, depthwise: bool = False, first_last: bool = True, exclude: Collection[str] = ()
) -> list[tuple[keras.layers.Layer, keras.Variable]]:
    """The weights that pruning masks, in the order of the layers, including the layers of nested models.

    Args:
        model: built ``keras.Model``.
        depthwise, first_last, exclude: see ``PruneLowMagnitude``.

    Returns: list of (layer, variable), each variable once.
    Raises: ValueError for a layer with weight matrices of a class that tfmot does not know either.
    """
    found: dict[int, tuple[keras.layers.Layer, keras.Variable]] = {}
    for layer in _layers(model):
        if layer.name in exclude:
            continue
        for variable in _weights_of(layer, depthwise):
            found.setdefault(id(variable), (layer, variable))
    weights = list(found.values())
    if not first_last:
        ends = {id(weights[0][0]), id(weights[-1][0])} if weights else set()
        heads = set(getattr(model, "output_names", ()))
        weights = [(x, variable) for x, variable in weights if id(x) not in ends and x.name not in heads]
    return weights


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _weights_of(layer: keras.layers.Layer, depthwise: bool) -> list[keras.Variable]:
    kind = type(layer)
    names = REGISTRY.get(kind, ()) + ((DEPTHWISE[kind],) if depthwise and kind in DEPTHWISE else ())
    if names or kind in DEPTHWISE:
        return [getattr(layer, name) for name in names]
    if kind is layers.MultiHeadAttention:
        return [getattr(layer, name).kernel for name in ATTENTION]
    if kind in (layers.GRU, layers.LSTM, layers.SimpleRNN, layers.RNN):
        cells = layer.cell.cells if isinstance(layer.cell, layers.StackedRNNCells) else [layer.cell]
        if all(type(cell) in CELLS for cell in cells):
            return [weight for cell in cells for weight in (cell.kernel, cell.recurrent_kernel)]
    if any(len(weight.shape) > 1 for weight in layer.trainable_weights):
        raise ValueError(
            f"{layer.name}: pruning does not know the weights of a {kind.__name__}. Leave the layer alone with "
            f"exclude=({layer.name!r},)."
        )
    return []
