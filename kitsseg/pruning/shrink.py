"""Structured pruning: a smaller dense network without the least important channels.

Scores: the norm of the kernels that produce a channel (Li et al., "Pruning Filters for Efficient ConvNets",
    ICLR 2017; there the sum of absolute values), or the scale of its batch normalization (Liu et al., "Learning
    Efficient Convolutional Networks through Network Slimming", ICCV 2017; there one threshold for all layers).
    Random scores are the baseline of both.
Ours:   the same share of every group of channels (see ``channel_groups``), the L2 norm over all producers of a
    group, whole multiples of a number of channels, as the kernels of CPUs work on eight or sixteen at a time.

Three steps, then fine-tune: ``scores = channel_scores(model)``; ``removed = choose_channels(scores, keep=0.5)``;
``small = shrink_model(model, removed)``. Multiply-adds go roughly with the square of ``keep``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt

from kitsseg.pruning.channels import map_channels

if TYPE_CHECKING:
    from kitsseg.pruning.channels import ChannelMap

__all__ = ["channel_scores", "choose_channels", "masked_model", "shrink_model"]

SCORES = ("magnitude", "batch_norm", "random")


def channel_scores(
    model: keras.Model, by: str = "magnitude", seed: int = 0
) -> dict[str, npt.NDArray[np.float64]]:
    """The importance of each channel that could be removed.

    Args:
        model: functional ``keras.Model``, channels last.
        by: ``"magnitude"``: L2 norm of all kernels that produce the channel; ``"batch_norm"``: sum of the absolute
            scales of the batch normalizations that it passes; ``"random"``: a random number above 0, which is the
            baseline of the two others.
        seed: of the random numbers.

    Returns: dict from the name of a group (its first producing layer) to float array (channels,).
    Raises: ValueError for an unknown ``by``, a group without batch normalization, or a network that cannot be
        followed (see ``channel_groups.map_channels``).
    """
    if by not in SCORES:
        raise ValueError(f"channel_scores: by must be one of {', '.join(SCORES)}; got {by!r}.")
    channels = map_channels(model)
    if by == "random":
        rng = np.random.default_rng(seed)
        return {name: 1 - rng.random(len(group.numbers)) for name, group in channels.groups.items()}
    squares: dict[int, float] = {}
    scales: dict[int, float] = {}
    for name, weights in channels.axes.items():
        values = {weight.name: weight for weight in model.get_layer(name).weights}
        if name in channels.kernels and by == "magnitude":
            weight, axis = channels.kernels[name]
            kernel = np.moveaxis(keras.ops.convert_to_numpy(values[weight]).astype("float64"), axis, 0)
            _add(squares, weights[weight][axis], np.square(kernel).reshape(len(kernel), -1).sum(axis=1))
        if "gamma" in weights and by == "batch_norm":
            _add(scales, weights["gamma"][-1], np.abs(keras.ops.convert_to_numpy(values["gamma"])))
    if by == "magnitude":
        return {
            name: np.sqrt([squares[i] for i in group.numbers.tolist()])
            for name, group in channels.groups.items()
        }
    for name, group in channels.groups.items():
        if not scales.keys() >= set(group.numbers.tolist()):
            raise ValueError(
                f"{model.name}: no batch normalization with a scale follows {name}, so batch_norm cannot rank "
                "its channels. Rank by magnitude."
            )
    return {
        name: np.array([scales[i] for i in group.numbers.tolist()]) for name, group in channels.groups.items()
    }


def _add(
    totals: dict[int, float], numbers: npt.NDArray[np.int64], values: npt.NDArray[np.floating[Any]]
) -> None:
    for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
        totals[number] = totals.get(number, 0.0) + value


def choose_channels(
    scores: Mapping[str, npt.NDArray[np.float64]], keep: float | None = None, multiple: int = 1
) -> dict[str, list[int]]:
    """The channels to remove: in every group those with the lowest scores.

    Args:
        scores: from ``channel_scores``.
        keep: share of the channels of each group that stays, above 0 and up to 1. ``None`` removes only the channels
            whose score is 0, because pruning has set all their weights to 0.
        multiple: the number of channels that stay is rounded to a multiple of this (halves are rounded up), but not to
            0; a group that is smaller than this stays whole. At least one channel of every group stays.

    Returns: dict from the name of a group to the increasing indices of its removed channels; groups that lose
        none are left out.
    Raises: ValueError for ``keep`` or ``multiple`` out of range.
    """
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"choose_channels: keep is a share above 0 and up to 1; got {keep}.")
    if multiple < 1 or multiple != int(multiple):
        raise ValueError(f"choose_channels: multiple must be a whole number from 1 on; got {multiple}.")
    removed = {}
    for name, values in scores.items():
        wanted = np.count_nonzero(values) if keep is None else keep * len(values)
        steps = -(-wanted // multiple) if keep is None else np.floor(wanted / multiple + 0.5)
        stay = min(len(values), int(max(steps, 1)) * multiple)
        gone = np.argsort(values, kind="stable")[: len(values) - stay]
        if len(gone):
            removed[name] = sorted(gone.tolist())
    return removed


def masked_model(model: keras.Model, removed: Mapping[str, Sequence[int]]) -> keras.Model:
    """A network of the same shape in which the removed channels are 0 and no layer uses them.

    Args, Raises: as ``shrink_model``.
    Returns: a new ``keras.Model``; every weight that ``shrink_model`` would cut away is 0.
    """
    channels = map_channels(model)
    stays = _remaining(model, channels, removed)

    def zero(array: npt.NDArray[Any], axis: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        shape = [1] * array.ndim
        shape[axis] = -1
        return np.where(stays[numbers].reshape(shape), array, array.dtype.type(0))

    masked = keras.models.clone_model(model)
    _carry_weights(model, masked, channels, zero)
    return masked


def shrink_model(model: keras.Model, removed: Mapping[str, Sequence[int]]) -> keras.Model:
    """The network without the removed channels.

    Its outputs equal those of ``masked_model``, up to rounding.

    Args:
        model: functional ``keras.Model``, channels last; not changed.
        removed: dict from the name of a group to indices of its channels, as from ``choose_channels``.

    Returns: a new ``keras.Model`` of the same layers under the same names, with fewer filters; not compiled.
    Raises: ValueError for an unknown group or index, for a group that would lose all its channels, or for a
        network that cannot be followed (see ``channel_groups.map_channels``).
    """
    channels = map_channels(model)
    stays = _remaining(model, channels, removed)

    def narrower(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if layer.name in channels.kernels:
            weight, axis = channels.kernels[layer.name]
            size = int(stays[channels.axes[layer.name][weight][axis]].sum())
            config["units" if isinstance(layer, keras.layers.Dense) else "filters"] = size
        return layer.__class__.from_config(config)

    def cut(array: npt.NDArray[Any], axis: int, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return np.compress(stays[numbers], array, axis)

    small = keras.models.clone_model(model, clone_function=narrower)
    _carry_weights(model, small, channels, cut)
    return small


def _remaining(
    model: keras.Model, channels: ChannelMap, removed: Mapping[str, Sequence[int]]
) -> npt.NDArray[np.bool_]:
    """Bool array: whether the channel of each number stays; STAYS, which is -1, picks the last entry, True."""
    stays = np.ones(sum(group.size for group in channels.groups.values()) + 1, bool)
    for name, indices in removed.items():
        if name not in channels.groups:
            groups = ", ".join(channels.groups)
            raise ValueError(f"{model.name}: no group of channels is called {name!r}; it has {groups}.")
        group = channels.groups[name]
        wrong = [i for i in indices if i != int(i) or not 0 <= i < group.size]
        if wrong:
            raise ValueError(
                f"{model.name}: the channels of {name} go from 0 to {group.size - 1}; got {wrong[0]}."
            )
        if len(set(indices)) == group.size:
            raise ValueError(
                f"{model.name}: all {group.size} channels of {name} would go, and nothing could pass. "
                "Keep at least one."
            )
        stays[group.numbers[np.asarray(indices, int)]] = False
    return stays


def _carry_weights(
    source: keras.Model,
    target: keras.Model,
    channels: ChannelMap,
    change: Callable[[npt.NDArray[Any], int, npt.NDArray[np.int64]], npt.NDArray[Any]],
) -> None:
    """Copy the weights layer by layer, each changed along the axes that channels index."""
    for layer in source.layers:
        places = channels.axes.get(layer.name, {})
        arrays = []
        for weight in layer.weights:
            array = keras.ops.convert_to_numpy(weight)
            for axis, numbers in places.get(weight.name, {}).items():
                array = change(array, axis, numbers)
            arrays.append(array)
        if arrays:
            target.get_layer(layer.name).set_weights(arrays)
