"""Which channels of a network can only be removed together, and where each channel lies in the weights.

A channel begins at a layer that mixes its inputs (a convolution, a dense layer), passes through layers that treat each
channel separately (normalization, activation, pooling, upsampling, a depthwise kernel), and ends at the next layer that
mixes its inputs. A concatenation puts channels side by side. An addition or a product ties two channels together: both
stay or both are removed. A pixel shuffle ties the four channels that it turns into one. Channels of the inputs and
outputs of the network always stay, and so do the channels that a softmax compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from kitsseg.models.layers.blocks2d import UpsampleBilinear
from kitsseg.models.layers.layers3d import DepthwiseConv3D, UpsampleTrilinear
from kitsseg.models.layers.torch_compat import NearestResize, PixelShuffle

__all__ = ["STAYS", "ChannelGroup", "ChannelMap", "map_channels"]

_Key = tuple[
    Any, ...
]  # of a tensor, as Keras has it: (name of the layer, number of the call, number of the output)
STAYS = -1  # in the place of a channel's number: this one is never removed

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
PRODUCERS = (*CONVOLUTIONS, *TRANSPOSED, *SEPARABLE, layers.Dense)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
MERGES = (
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average),
    *(layers.Maximum, layers.Minimum),
)
# what treats every channel by itself, with weights (if any) whose last axis is the channel's
PER_CHANNEL = (
    *(layers.BatchNormalization, layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.Identity),
    *(UpsampleBilinear, UpsampleTrilinear, DepthwiseConv3D),
)
# what compares channels, or holds constants for each: removing one would change the others, or not fit
WHOLE = (layers.Softmax, layers.Normalization)
OTHERS = (layers.InputLayer, layers.Concatenate, PixelShuffle, NearestResize)
KNOWN = (*PRODUCERS, *DEPTHWISE, *MERGES, *PER_CHANNEL, *WHOLE, *OTHERS)
COMPARING = ("softmax", "log_softmax", "sparsemax", "glu")  # activations


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of which some may be removed.

    Attributes:
        name: the first layer that produces them.
        producers: all layers that produce them; several layers if an addition ties their channels.
        numbers: int array (size,): the network-wide numbers of the removable channels, in the order of the
            first producer's outputs. Four outputs of a layer before a pixel shuffle are one channel.
    """

    name: str
    producers: tuple[str, ...]
    numbers: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class ChannelMap:
    """The channels of one network and their places in the weights.

    Attributes:
        groups: name -> ChannelGroup, in the order of the network.
        axes: layer name -> weight name -> axis -> int array: the number of the channel to which each entry along this
            axis belongs, or STAYS. It holds all weights with an axis of channels.
        kernels: name of a layer that produces channels -> (weight name, axis) of the kernel that makes its outputs.
    """

    groups: Mapping[str, ChannelGroup]
    axes: Mapping[str, Mapping[str, Mapping[int, npt.NDArray[np.int64]]]]
    kernels: Mapping[str, tuple[str, int]]


def map_channels(model: keras.Model) -> ChannelMap:
    """Follow every channel of a functional network from where it is produced to where it is read.

    Args:
        model: functional ``keras.Model``, channels last. It is not changed.

    Returns: ChannelMap.
    Raises: ValueError naming the layer, for one of a kind that cannot be followed; or for another kind of model.
    """
    if not hasattr(model, "operations"):
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(f"{name}: only the channels of a functional model can be followed; build it as one.")
    ties = _Ties()
    config = model.get_config()
    channels: dict[_Key, npt.NDArray[np.int64]] = {}
    axes: dict[str, dict[str, dict[int, npt.NDArray[np.int64]]]] = {}
    kernels: dict[str, tuple[str, int]] = {}
    inputs_of: dict[str, list[npt.NDArray[np.int64]]] = {}
    for layer, reads, result in _calls(model, config):
        _check(layer)
        inputs = [channels[key] for key in reads]
        for first, again in zip(inputs_of.setdefault(layer.name, inputs), inputs):
            ties.tie(first, again)  # a layer called twice has one set of weights for both
        channels[result] = _follow(layer, inputs, ties, axes, kernels)
    for key in _tensors(config["output_layers"]):
        ties.tie(channels[key], 0)
    return _numbered(ties.components(), axes, kernels)


def _calls(
    model: keras.Model, config: Mapping[str, Any]
) -> Iterator[tuple[keras.layers.Layer, list[_Key], _Key]]:
    """Every call of a layer in the graph: (layer, keys of the tensors it reads, key of its result).

    The config of the model is read rather than its layers called: calls would grow its graph, and a clone would
    draw all weights anew. Keys are Keras' own: name of the layer, number of the call, number of the output.
    """
    operations = {operation.name: operation for operation in model.operations}
    waiting = [
        (operations[entry["name"]], list(_tensors(node)), (entry["name"], number, 0))
        for entry in config["layers"]
        for number, node in enumerate(entry["inbound_nodes"] or [{}])
    ]
    known: set[_Key] = set()
    while waiting:  # layers called twice may stand before what their second call reads
        ready = [call for call in waiting if known.issuperset(call[1])]
        if not ready:
            raise ValueError(f"{model.name}: {waiting[0][0].name} reads the second output of a layer.")
        yield from ready
        known.update(result for _, _, result in ready)
        waiting = [call for call in waiting if call[2] not in known]


def _tensors(value: object) -> Iterator[_Key]:
    """The keys of all tensors named in a part of a model's config."""
    if isinstance(value, list | tuple):
        if len(value) == 3 and isinstance(value[0], str):
            yield tuple(value)
        else:
            for item in value:
                yield from _tensors(item)
    elif isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield tuple(value["config"]["keras_history"])
        else:
            for item in value.values():
                yield from _tensors(item)


class _Ties:
    """Atoms, one for each output of each producer, and which of them share their fate; atom 0 stays."""

    def __init__(self) -> None:
        self.count = 1
        self.pairs: list[npt.NDArray[np.int64]] = []

    def new(self, count: int) -> npt.NDArray[np.int64]:
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, first: npt.NDArray[np.int64] | int, second: npt.NDArray[np.int64] | int) -> None:
        self.pairs.append(np.stack(np.broadcast_arrays(first, second)))

    def components(self) -> npt.NDArray[np.int32]:
        first, second = np.concatenate([np.zeros((2, 1), int), *self.pairs], axis=1)
        ones = np.ones(len(first), bool)
        graph = coo_matrix((ones, (first, second)), (self.count, self.count))
        ids: npt.NDArray[np.int32] = connected_components(graph)[1]
        return ids


def _follow(
    layer: keras.layers.Layer,
    inputs: list[npt.NDArray[np.int64]],
    ties: _Ties,
    axes: dict[str, dict[str, dict[int, npt.NDArray[np.int64]]]],
    kernels: dict[str, tuple[str, int]],
) -> npt.NDArray[np.int64]:
    """The channels of the result of one call; the layer's own entries in ``axes`` and ``kernels``."""
    if isinstance(layer, layers.InputLayer):
        return np.zeros(layer.output.shape[-1], int)
    x = inputs[0]
    if isinstance(layer, PRODUCERS):
        if layer.name not in kernels:
            _produce(layer, x, ties, axes, kernels)
        weight, axis = kernels[layer.name]
        y = axes[layer.name][weight][axis]
        if _compares(layer):
            ties.tie(y, 0)
        return y
    if isinstance(layer, DEPTHWISE):
        y = np.repeat(x, layer.depth_multiplier)
        axes[layer.name] = {"kernel": {-2: x}, "bias": {-1: y}}
        return y
    if isinstance(layer, layers.Concatenate):
        return np.concatenate(inputs)
    if isinstance(layer, MERGES):
        widest = max(inputs, key=len)
        for other in inputs:
            # one channel beside many is a map that weights them all: it is no partner of theirs, but must stay
            ties.tie(other, widest if len(other) == len(widest) else 0)
        return widest
    if isinstance(layer, PixelShuffle):
        y = x[::4]
        ties.tie(x, np.repeat(y, 4))
        return y
    if isinstance(layer, WHOLE) or _compares(layer):
        ties.tie(x, 0)
        return x
    # one value for all channels (a PReLU may share its slopes) has a last axis of 1
    axes[layer.name] = {weight.name: {-1: x} for weight in layer.weights if weight.shape[-1] == len(x)}
    return x  # of the second argument of NearestResize only the size counts


def _produce(
    layer: keras.layers.Layer,
    x: npt.NDArray[np.int64],
    ties: _Ties,
    axes: dict[str, dict[str, dict[int, npt.NDArray[np.int64]]]],
    kernels: dict[str, tuple[str, int]],
) -> None:
    """New channels, and the entries in ``axes`` and ``kernels`` of the layer that makes them from ``x``."""
    y = ties.new(layer.units if isinstance(layer, layers.Dense) else layer.filters)
    if isinstance(layer, SEPARABLE):
        spread = np.repeat(x, layer.depth_multiplier)
        weights = {"depthwise_kernel": {-2: x}, "pointwise_kernel": {-2: spread, -1: y}}
        kernels[layer.name] = "pointwise_kernel", -1
    elif isinstance(layer, TRANSPOSED):
        weights, kernels[layer.name] = {"kernel": {-2: y, -1: x}}, ("kernel", -2)
    else:
        weights, kernels[layer.name] = {"kernel": {-2: x, -1: y}}, ("kernel", -1)
    axes[layer.name] = {**weights, "bias": {-1: y}}


def _check(layer: keras.layers.Layer) -> None:
    """Raise ValueError for a layer whose channels cannot be followed."""
    if isinstance(layer, keras.Model):
        raise _unknown(layer, "a network within the network; rebuild it from that one's layers")
    if type(layer) not in KNOWN:  # a subclass may do anything
        raise _unknown(layer, "no rule for this kind of layer")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _unknown(layer, "its channels come first; build the network with channels last")
    if getattr(layer, "groups", 1) != 1:
        raise _unknown(layer, f"a convolution in {layer.groups} groups")
    last = (-1, len(layer.output.shape) - 1)
    if isinstance(layer, layers.BatchNormalization | layers.Concatenate) and layer.axis not in last:
        raise _unknown(layer, f"it works along axis {layer.axis}, not along the channels")


def _compares(layer: keras.layers.Layer) -> bool:
    """Whether the layer's activation looks at several channels at once."""
    return getattr(getattr(layer, "activation", None), "__name__", "") in COMPARING


def _unknown(layer: keras.layers.Layer, reason: str) -> ValueError:
    return ValueError(
        f"{layer.name}: the channels cannot be followed through this {type(layer).__name__}: {reason}."
    )


def _numbered(
    components: npt.NDArray[np.int32],
    axes: dict[str, dict[str, dict[int, npt.NDArray[np.int64]]]],
    kernels: dict[str, tuple[str, int]],
) -> ChannelMap:
    """ChannelMap, the atoms replaced by the numbers of the channels they belong to."""
    producers: dict[int, list[str]] = {}
    for name, (weight, axis) in kernels.items():
        for component in dict.fromkeys(components[axes[name][weight][axis]].tolist()):
            producers.setdefault(component, []).append(name)
    producers.pop(components[0].item(), None)
    number = np.full(components.max() + 1, STAYS)
    number[list(producers)] = np.arange(len(producers))

    members: dict[tuple[str, ...], list[int]] = {}
    for component, names in producers.items():
        members.setdefault(tuple(names), []).append(number[component])
    groups = {}
    for together, numbers in members.items():
        name = together[0] if together[0] not in groups else "+".join(together)
        groups[name] = ChannelGroup(name, together, np.array(numbers))
    numbers_of = {
        layer: {
            weight: {axis: number[components[atoms]] for axis, atoms in places.items()}
            for weight, places in weights.items()
        }
        for layer, weights in axes.items()
    }
    return ChannelMap(groups, numbers_of, kernels)
