"""Make the labels of one scan in memory: preprocessing, windows or tiles, mirroring, the mean of several networks.

Of the class probabilities, only one slice is in memory at a time for a 2D network, and one slab of tiles for a 3D
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.geometry.geometry import Geometry, averaged_labels, plan_geometry
from kitsseg.data.geometry.planes import network_planes, normalize
from kitsseg.inference.outputs import class_probabilities
from kitsseg.inference.region import Part, parts_inside
from kitsseg.inference.tiles3d import overlapping_probabilities, volume_probabilities
from kitsseg.inference.windows2d import mirrored_mean, pad_to_multiple, slice_probabilities
from kitsseg.recipe import InferenceSpec, PreprocessSpec, ReassignSmall, RemoveFar

if TYPE_CHECKING:
    import keras

    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.inference.engines import Network
    from kitsseg.interfaces import Predict, SliceProgress
    from kitsseg.records.predictions import CoarsePass

__all__ = [
    "Member",
    "as_probabilities",
    "ensemble_labels",
    "label_cached_case",
    "mean_scores",
    "members_of",
    "predict_labels",
    "prepare_scan",
    "probabilities_of",
    "refined",
    "score_cached_cases",
]


N_CLASSES = 3  # background, kidney, tumor


@dataclass(frozen=True)
class Member:
    """A network, or the mean of several networks with the same preprocessing, in an ensemble.

    Attributes:
        predict: function from (batch, rows, columns, channels), or with slices, to class probabilities of the same
            size.
        spec, inference: of its recipe.
        scores: as ``predict``, but to logits, which is faster; used if only their arg-max is needed. None: ``predict``.
        weight: number of networks.
    """

    predict: Predict
    spec: PreprocessSpec
    inference: InferenceSpec
    scores: Predict | None = None
    weight: int = 1


def members_of(networks: Iterable[tuple[Network, PreprocessSpec, InferenceSpec]]) -> list[Member]:
    """Members of an ensemble in which every network counts the same.

    Networks with the same specifications, such as the folds of one recipe, are averaged tile by tile. Because
    interpolation and weighted means are linear, the mean on the scan's grid is the same, and is interpolated only once.

    Args:
        networks: (Network, PreprocessSpec, InferenceSpec) of each.
    """
    groups: dict[tuple[PreprocessSpec, InferenceSpec], list[Network]] = {}
    for network, spec, inference in networks:
        groups.setdefault((spec, inference), []).append(network)
    return [
        Member(group[0].probabilities, spec, inference, group[0].scores)
        if len(group) == 1
        else Member(_mean([network.probabilities for network in group]), spec, inference, weight=len(group))
        for (spec, inference), group in groups.items()
    ]


def _mean(functions: Sequence[Predict]) -> Predict:
    def predict(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        total = np.array(functions[0](batch), np.float32)
        for function in functions[1:]:
            total += function(batch)
        total /= len(functions)
        return total

    return predict


def predict_labels(
    image: npt.NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    member: Member,
    postprocess: RemoveFar | ReassignSmall | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> npt.NDArray[np.uint8]:
    """Segment one scan with one network: ``prepare_scan`` and ``ensemble_labels`` in one call.

    Args:
        image: (slices, rows, columns) int16 HU in KiTS axes.
        spacing_mm: of its voxels.
        member: Member.
        postprocess: RemoveFar, ReassignSmall or None.
        progress: called as progress(done, total) in slices.

    Returns: uint8 labels of the shape of ``image``.
    """
    return ensemble_labels(prepare_scan(image, spacing_mm, [member]), spacing_mm, postprocess, progress)


@dataclass(frozen=True)
class _Prepared:
    """A scan in the preprocessing of one member: its planes, in order, and their Geometry.

    If there are parts, only these are computed.
    """

    member: Member
    geometry: Geometry
    planes: Iterable[npt.NDArray[Any]]
    parts: tuple[Part, ...] = ()


def prepare_scan(
    image: npt.NDArray[np.int16],
    spacing_mm: Sequence[float],
    members: Sequence[Member],
    region: CoarsePass | None = None,
) -> list[_Prepared]:
    """Make the input slices of each member from a scan.

    If the input slices of all members together are smaller than the scan, they are made at once, and the memory of the
    scan can be given back. Otherwise they are made one by one, and the scan stays in memory.

    Args:
        image: (slices, rows, columns) int16 HU in KiTS axes. spacing_mm: of its voxels.
        members: Member of each, one at least.
        region: of ``find_region``, for the members whose inference has a coarse pass.

    Returns: one item for each member, for ``ensemble_labels``.
    """
    seen: list[tuple[Geometry, tuple[Part, ...]]] = []
    for member in members:
        geometry = plan_geometry(image, spacing_mm, member.spec)
        if region is not None and member.inference.coarse:
            seen.append(parts_inside(geometry, region, member.spec, member.inference))
        else:
            seen.append((geometry, ()))
    dtypes = [np.dtype(np.uint8 if member.spec.windows else np.int16) for member in members]
    shapes = [
        geometry.shape if member.spec.windows is None else (*geometry.shape, member.spec.channels)
        for member, (geometry, _) in zip(members, seen, strict=True)
    ]
    smaller = sum(math.prod(n) * t.itemsize for n, t in zip(shapes, dtypes, strict=True)) < image.nbytes
    prepared = []
    for member, (geometry, parts), shape, dtype in zip(members, seen, shapes, dtypes, strict=True):
        planes = network_planes(image, geometry, member.spec)
        kept = _filled(shape, dtype, planes) if smaller else planes
        prepared.append(_Prepared(member, geometry, kept, parts))
    return prepared


def _filled(
    shape: tuple[int, ...], dtype: npt.DTypeLike, planes: Iterable[npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    volume = np.empty(shape, dtype)
    for k, plane in enumerate(planes):
        volume[k] = plane
    return volume


def _as_volume(planes: Iterable[npt.NDArray[Any]], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The planes as one array, for a 3D network; those that are one already are not copied."""
    return planes if isinstance(planes, np.ndarray) else _filled(shape, np.int16, planes)


def ensemble_labels(
    prepared: Sequence[_Prepared],
    spacing_mm: Sequence[float],
    postprocess: RemoveFar | ReassignSmall | None = None,
    progress: SliceProgress | None = None,
) -> npt.NDArray[np.uint8]:
    """Segment one scan: the arg-max, on its own grid, of the mean of the members' probabilities.

    Args:
        prepared: from ``prepare_scan``; can be used once.
        spacing_mm: of the scan's voxels.
        postprocess: RemoveFar, ReassignSmall or None.
        progress: called as progress(done, total) in slices.

    Returns: uint8 labels of the shape of the scan.
    """
    [first, *others] = prepared
    as_it_is = first.geometry.grid_shape == first.geometry.scan_shape and not _averages(
        first.member.inference
    )
    if not others and first.member.scores is not None and as_it_is:
        labels = _argmax_labels(first, progress)
    else:
        streams = [
            (_probabilities(item, item.member.predict), item.geometry, item.member.weight)
            for item in prepared
        ]
        labels = averaged_labels(streams, progress)
    return refined(labels, spacing_mm, postprocess)


def _probabilities(item: _Prepared, predict: Predict) -> Iterator[npt.NDArray[np.float32]]:
    if item.parts:
        return _of_parts(item, predict)
    return probabilities_of(
        item.planes, item.geometry.shape, predict, item.member.spec, item.member.inference
    )


def _of_parts(item: _Prepared, predict: Predict) -> Iterator[npt.NDArray[np.float32]]:
    """As ``probabilities_of``, of the parts alone: all else is background.

    Where parts overlap because they have grown, the one that was wanted there counts.
    """
    spec, inference = item.member.spec, item.member.inference
    if inference.tile_3d:
        volume = _as_volume(item.planes, item.geometry.shape)
        streams = [
            probabilities_of(box, box.shape, predict, spec, inference)
            for box in (volume[part.computed] for part in item.parts)
        ]
        for k, plane in enumerate(volume):
            pairs = zip(item.parts, streams, strict=True)
            yield _together(plane, k, [(part, next(stream)) for part, stream in pairs if part.has(k)])
        return
    for k, plane in enumerate(item.planes):
        found = []
        for part in item.parts:
            if part.has(k):
                window = normalize(plane[part.computed[1:]], spec)
                found.append((part, slice_probabilities(window, predict, inference)))
        yield _together(plane, k, found)


def _together(
    plane: npt.NDArray[Any], k: int, found: Sequence[tuple[Part, npt.NDArray[np.float32]]]
) -> npt.NDArray[np.float32]:
    """Class probabilities of slice ``k`` from those of its parts."""
    together = np.zeros((*plane.shape[:2], N_CLASSES), np.float32)
    together[..., 0] = 1
    for part, probabilities in found:
        together[part.computed[1:]] = probabilities
    for part, probabilities in found:
        if part.wanted[0].start <= k < part.wanted[0].stop:
            together[part.wanted[1:]] = probabilities[part.kept]
    return together


def _argmax_labels(item: _Prepared, progress: SliceProgress | None) -> npt.NDArray[np.uint8]:
    """Labels of one member on the scan's own grid: the arg-max of logits, since nothing is averaged or interpolated."""
    labels, geometry = np.zeros(item.geometry.scan_shape, np.uint8), item.geometry
    box = labels[tuple(slice(a, b) for a, b in zip(geometry.start, geometry.stop, strict=True))]
    for k, plane in enumerate(_probabilities(item, item.member.scores or item.member.predict)):
        found = plane.argmax(axis=-1)
        if found.any():  # memory of empty slices is never touched
            box[k] = found
        if progress:
            progress(k + 1, len(box))
    return labels


def refined(
    labels: npt.NDArray[np.uint8], spacing_mm: Sequence[float], postprocess: RemoveFar | ReassignSmall | None
) -> npt.NDArray[np.uint8]:
    """Labels after a recipe's post-processing.

    Args:
        labels: uint8 (slices, rows, columns).
        spacing_mm: of their voxels.
        postprocess: RemoveFar, ReassignSmall, or None for no change.
    """
    if postprocess is None:
        return labels
    # SciPy's graphs take a third of a second to import, of the one in which a prediction can be done
    from kitsseg.labels.postprocess import refine

    return refine(labels, spacing_mm, postprocess)


def _averages(inference: InferenceSpec) -> bool:
    return bool(inference.mirror_axes) or (inference.tile is not None and inference.margin is None)


def probabilities_of(
    planes: Iterable[npt.NDArray[Any]],
    shape: tuple[int, ...],
    predict: Predict,
    spec: PreprocessSpec,
    inference: InferenceSpec,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the class probabilities (rows, columns, classes) of each slice.

    Args:
        planes: the slices in order, as ``network_planes`` yields them or the cache holds them.
        shape: (slices, rows, columns) of all planes together.
        predict, spec, inference: as in ``Member``.
    """
    if inference.tile is None or len(inference.tile) == 2:
        for plane in planes:
            yield slice_probabilities(normalize(plane, spec), predict, inference)
        return

    def prepare(hu: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return normalize(hu, spec)

    def mirrored(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return mirrored_mean(batch[0], predict, inference.mirror_axes)[None]

    volume = _as_volume(planes, shape)
    predict_tile = mirrored if inference.mirror_axes else predict
    air_hu = spec.lowest_hu
    if inference.margin is not None:
        yield from volume_probabilities(
            volume, prepare, predict_tile, inference.tile, inference.margin, air_hu
        )
    else:
        yield from overlapping_probabilities(volume, prepare, predict_tile, inference, air_hu)


def as_probabilities(network: keras.Model, output: str = "softmax") -> Predict:
    """A Keras network as a function from a batch of inputs to the class probabilities of its last output.

    Args:
        network: ``keras.Model``.
        output: ``InferenceSpec.output``, the meaning of its channels.

    Returns: a function to NumPy float32 (..., 3).
    """
    import keras

    logits = network.outputs[-1]  # with deep supervision the last output is the full-size one
    if output != "softmax":
        compute = keras.Model(network.input, logits).predict_on_batch
        return lambda batch: class_probabilities(compute(batch), output)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    predict: Predict = keras.Model(network.input, probabilities).predict_on_batch
    return predict


def score_cached_cases(
    cases: Iterable[CachedCase],
    member: Member,
    postprocess: RemoveFar | ReassignSmall | None = None,
    *,
    at_once: int = 1,
    look: Callable[[CachedCase, npt.NDArray[np.uint8]], object] | None = None,
) -> list[dict[str, Any]]:
    """TK and TU Dice of whole cached cases, on the grid of the cache.

    Args:
        cases: CachedCase of each case.
        member: the network and its specifications.
        postprocess, at_once: as in ``label_cached_case``.
        look: called as look(case, labels) for each case.

    Returns: a row with case, tk_dice and tu_dice for each case. These figures are for comparing epochs or rounds; they
        are not official scores.
    """
    from kitsseg.scoring.dice import score_case

    rows = []
    for case in cases:
        labels = label_cached_case(case, member, postprocess, at_once=at_once)
        truth = np.stack([case.labels(k) for k in range(len(labels))])
        score = score_case(labels, truth, case.geometry.spacing_mm)
        rows.append({"case": case.name, "tk_dice": score["tk_dice"], "tu_dice": score["tu_dice"]})
        if look:
            look(case, labels)
    return rows


def mean_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the rows of ``score_cached_cases``.

    Returns: {"tk", "tu", "composite"}; the composite is (TK + TU) / 2.
    """
    rows = list(rows)
    tk, tu = ([row[key] for row in rows] for key in ("tk_dice", "tu_dice"))
    both = [(a + b) / 2 for a, b in zip(tk, tu, strict=True)]
    return dict(zip(("tk", "tu", "composite"), np.mean([tk, tu, both], axis=1).tolist(), strict=True))


def label_cached_case(
    case: CachedCase,
    member: Member,
    postprocess: RemoveFar | ReassignSmall | None = None,
    *,
    at_once: int = 1,
) -> npt.NDArray[np.uint8]:
    """Labels of a whole cached case, uint8 (slices, rows, columns) on the grid of the cache.

    Args:
        case: of ``open_cache``.
        member: the network and its specifications.
        postprocess: of the recipe, or None.
        at_once: slices in a batch if they are whole and not mirrored; single slices would leave a GPU idle.
    """
    spec, inference, predict = member.spec, member.inference, member.predict
    shape = case.geometry.shape
    labels = np.empty(shape, np.uint8)
    if at_once > 1 and inference.tile is None and not inference.mirror_axes:
        for first in range(0, shape[0], at_once):
            # the last batch is filled up: of another size, it would be compiled anew
            numbers = [min(k, shape[0] - 1) for k in range(first, first + at_once)]
            batch = [pad_to_multiple(normalize(case.image[k], spec), inference.multiple) for k in numbers]
            found = np.asarray(predict(np.stack(batch)))[:, : shape[1], : shape[2]].argmax(axis=-1)
            labels[first : first + at_once] = found[: shape[0] - first]
    else:
        for k, plane in enumerate(probabilities_of(iter(case.image), shape, predict, spec, inference)):
            labels[k] = plane.argmax(axis=-1)
    if case.slices:  # no neighbors: each by itself
        parts = [
            refined(labels[k : k + 1], case.geometry.spacing_mm, postprocess) for k in range(len(labels))
        ]
        return np.concatenate(parts)
    return refined(labels, case.geometry.spacing_mm, postprocess)
