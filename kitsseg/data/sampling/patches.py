"""Batches of 3D patches whose center voxels are background, kidney and tumor equally often.

As in ``kitsseg.data.sampling.slices`` a batch is a pure function of (seed, index). Kidney and tumor are 1 % of a
scan, so their voxels are kept as runs: some ten thousand numbers a case instead of a million voxels, and
still every voxel of a class is drawn with the same probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.cases import CachedCase
from kitsseg.data.cache.parts import cases_of_part
from kitsseg.data.geometry.planes import normalize
from kitsseg.data.sampling.augment import apply_batchgenerators, batchgenerators_transform
from kitsseg.data.sampling.batches import BatchForm, Draws
from kitsseg.data.sampling.buffers import Buffers
from kitsseg.data.sampling.draws import (
    batch_rng,
    checked_index,
    empty_batch,
    in_circles,
    own_places,
)
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.recipe import Augmentation, PatchSampler, PreprocessSpec

if TYPE_CHECKING:
    from typing import SupportsIndex

__all__ = ["ClassRuns", "PatchBatches", "ValidationPatches", "class_runs"]

LABELS = (0, 1, 2)
# number of the case, label of the center, center voxel
_Drawn = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class ClassRuns:
    """The voxels of each class of a case, as runs.

    Attributes:
        case: CachedCase.
        counts: voxels of background, kidney and tumor.
        ends: for kidney and tumor, how many voxels its runs hold up to the end of each run (uint32).
        shifts: number for each run (uint32). The flat index of a voxel in the label box is its number within its
            class plus this.
    """

    case: CachedCase
    counts: tuple[int, int, int]
    ends: dict[int, npt.NDArray[np.uint32]]
    shifts: dict[int, npt.NDArray[np.uint32]]

    def draw(self, rng: np.random.Generator, label: int) -> tuple[int, ...]:
        """A voxel (slice, row, column) of a class, all of them equally likely.

        Raises: ValueError if the class has none.
        """
        if not self.counts[label]:
            raise ValueError(f"{self.case.name} holds no voxel of label {label}; draw another one.")
        box, start = self.case.boxed_labels, self.case.label_start
        if label == 0:
            while True:  # 99 % of a scan is background: the first try is nearly always right
                voxel = tuple(int(i) for i in rng.integers(self.case.geometry.shape))
                inside = tuple(i - a for i, a in zip(voxel, start))
                if not all(0 <= i < m for i, m in zip(inside, box.shape)) or not box[inside]:
                    return voxel
        number = int(rng.integers(self.counts[label]))
        # an argument of another type would have the whole array converted
        run = np.searchsorted(self.ends[label], np.uint32(number), side="right")
        place = np.unravel_index(int(self.shifts[label][run]) + number, box.shape)
        return tuple(int(i) + a for i, a in zip(place, start))


def class_runs(case: CachedCase) -> ClassRuns:
    """Find the runs of kidney and of tumor in a CachedCase.

    Runs follow the C order of the label box, along columns; one may go on from the end of a row to the next.

    Returns: ClassRuns.
    Raises: InputError if the case has no background.
    """
    flat = np.asarray(case.boxed_labels).reshape(-1)
    first = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])[: flat.size])
    lengths, values = np.diff(first, append=flat.size), flat[first]
    counts, ends, shifts = [math.prod(case.geometry.shape), 0, 0], {}, {}
    for label in LABELS[1:]:
        chosen = values == label
        end = np.cumsum(lengths[chosen])
        ends[label] = end.astype(np.uint32)
        shifts[label] = (first[chosen] - (end - lengths[chosen])).astype(np.uint32)
        counts[label] = int(end[-1]) if len(end) else 0
        counts[0] -= counts[label]
    if not counts[0]:
        raise InputError(
            f"{case.folder}: expected some background in {case.name}, found every voxel labelled. "
            "Look at its segmentation, or leave the case out of the split."
        )
    background, kidney, tumor = counts
    return ClassRuns(case, (background, kidney, tumor), ends, shifts)


class PatchBatches:
    """Random training batches of patches, three of each case.

    Each case is used once before any is used again, and a batch holds different cases (unless there are
    fewer than ``cases_per_batch``). The center voxel lies at index P // 2 of the patch, before flips; at a
    border the patch is moved inward. Along an axis that is shorter than the patch the case is padded
    evenly, the image with the lower end of the HU window, the labels with background.

    Args:
        cases: dict from name to CachedCase (``open_cache``).
        split: CaseSplit; only the cases of ``part`` are drawn.
        part: "train", "validation" or "test".
        sampler: PatchSampler.
        augmentation: Augmentation, flips of rows and columns only.
        spec: PreprocessSpec of the cache, one channel.
        draws: Draws: seed, library of the flips, share of the batch; by default seed 0, the fast path, whole batches.

    Raises: TypeError if ``split`` is no CaseSplit; InputError for missing cases, or a patient in two parts of the
        split; ValueError for scaling, for a specification of several channels and for a batch that cannot be
        divided evenly.
    Source: Daza et al. state 39 patches of 13 patients, and centers equally likely in each category. One
        patch of each class from each patient is our reading of that.
    """

    def __init__(
        self,
        cases: Mapping[str, CachedCase],
        split: CaseSplit,
        part: str,
        sampler: PatchSampler,
        augmentation: Augmentation,
        spec: PreprocessSpec,
        draws: Draws | None = None,
    ) -> None:
        draws = draws or Draws()
        if augmentation.scale_probability > 0:
            raise ValueError(
                f"PatchBatches: 3D patches are not scaled; scale_probability must be 0, found "
                f"{augmentation.scale_probability}."
            )
        if augmentation.appearance is not None:
            raise ValueError(
                "PatchBatches: a random appearance is drawn for slices only; appearance must be None, found "
                f"{augmentation.appearance}."
            )
        self.cases, self.spec = cases_of_part(cases, split, part), _one_channel(spec)
        self.sampler, self.augmentation, self.seed = sampler, augmentation, draws.seed
        self.patch_size = tuple(sampler.patch_size)
        self._places = own_places(len(LABELS) * sampler.cases_per_batch, draws.shard)
        self.form, self.buffers = _form(self.patch_size, self._places, draws.shard), Buffers()
        self._transform = (
            batchgenerators_transform(self.patch_size, augmentation)
            if draws.path == "batchgenerators"
            else None
        )
        self._runs: dict[int, ClassRuns] = {}

    def draw(self, index: int) -> list[_Drawn]:
        """The patches of batch ``index``: a list of (case number, label of the center, center voxel)."""
        cases, drawn = self._cases_of_batch(index), []
        for position in range(self._places.start // len(LABELS), -(-self._places.stop // len(LABELS))):
            # random numbers of its own for each case: no process need look into those of another
            case, rng = cases[position], self._rng(index, 2 + position)
            if case not in self._runs:
                self._runs[case] = class_runs(self.cases[case])
            stratified = self.sampler.mode == "stratified"
            labels = LABELS if stratified else rng.integers(len(LABELS), size=len(LABELS)).tolist()
            drawn += [(case, *_center(self._runs[case], rng, label)) for label in labels]
        first = self._places.start % len(LABELS)
        return drawn[first : first + self.form.batch_size]

    def batch(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Batch ``index``: images (batch, slices, rows, columns, 1) float32, labels without the 1 int32."""
        images, labels = empty_batch(self)
        random = self._rng(index, 1).random((self._places.stop, 2))[self._places.start :]
        flips = random < (self.augmentation.flip_probability if self._transform is None else 0)
        for position, (case, _, center) in enumerate(self.draw(index)):
            # written through a mirrored view, a flip costs nothing
            view = (slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips[position]))
            _take(self.cases[case], center, self.spec, images[position][view], labels[position][view])
            if self._transform is not None:
                image, labels[position] = apply_batchgenerators(
                    self._transform,
                    images[position, ..., 0][None],
                    labels[position],
                    np.random.default_rng(random[position].view(np.uint64)),
                )
                images[position] = image[0][..., None]
        return images, labels

    def use_buffers(self, buffers: Buffers) -> None:
        """As ``DrawnBatches.use_buffers``."""
        self.buffers = buffers

    def __getitem__(self, index: SupportsIndex) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        return self.batch(checked_index(index))

    def _cases_of_batch(self, index: int) -> list[int]:
        n, size = len(self.cases), self.sampler.cases_per_batch
        shuffled = in_circles(lambda circle: self._rng(circle, 2**32 - 1).permutation(n), n, size, index)
        numbers: list[int] = shuffled.tolist()
        return numbers

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return batch_rng(self.seed, index, stream)


class ValidationPatches:
    """A fixed list of validation patches: for each case one of each class, one batch a case.

    The centers depend on the number of a case in the split and on nothing else. Args and Raises as for
    ``PatchBatches``.
    """

    def __init__(
        self,
        cases: Mapping[str, CachedCase],
        split: CaseSplit,
        part: str,
        sampler: PatchSampler,
        spec: PreprocessSpec,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.cases, self.spec = cases_of_part(cases, split, part), _one_channel(spec)
        self.patch_size, self._places = tuple(sampler.patch_size), own_places(len(LABELS), shard)
        self.form, self.buffers = _form(self.patch_size, self._places, shard), Buffers()
        self._drawn: dict[int, list[_Drawn]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def draw(self, index: int) -> list[_Drawn]:
        """As ``PatchBatches.draw``, for case ``index``."""
        index = int(index)
        if index not in self._drawn:
            rng, runs = np.random.Generator(np.random.Philox(key=[0, index])), class_runs(self.cases[index])
            self._drawn[index] = [(index, *_center(runs, rng, label)) for label in LABELS]
        return [self._drawn[index][place] for place in self._places]

    def batch(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """As ``PatchBatches.batch``."""
        images, labels = empty_batch(self)
        for position, (case, _, center) in enumerate(self.draw(index)):
            _take(self.cases[case], center, self.spec, images[position], labels[position])
        return images, labels

    def __getitem__(self, index: SupportsIndex) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        return self.batch(checked_index(index, len(self)))


def _form(patch_size: tuple[int, ...], places: range, shard: tuple[int, int] | None) -> BatchForm:
    return BatchForm(
        batch_size=len(places), image_shape=(*patch_size, 1), label_shape=patch_size, shard=shard
    )


def _one_channel(spec: PreprocessSpec) -> PreprocessSpec:
    if spec.channels != 1:
        raise ValueError(f"3D patches are cut from one channel of HU; the specification has {spec.channels}.")
    return spec


def _center(runs: ClassRuns, rng: np.random.Generator, label: int) -> tuple[int, tuple[int, ...]]:
    label = label if runs.counts[label] else 0  # a case without tumor gives background instead
    return label, runs.draw(rng, label)


def _take(
    case: CachedCase,
    center: Sequence[int],
    spec: PreprocessSpec,
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int32],
) -> None:
    """Write the patch around ``center`` to ``image`` (slices, rows, columns, 1) and ``labels``."""
    size, shape = labels.shape, case.geometry.shape
    start = [
        min(max(c - m // 2, 0), n - m) if n >= m else -((m - n) // 2) for c, m, n in zip(center, size, shape)
    ]
    source, target = _overlap(start, size, (0, 0, 0), shape)
    if any(n < m for n, m in zip(shape, size)):
        image[...] = normalize(np.full((1, 1), spec.lowest_hu, np.float32), spec)
    normalize(case.image[source], spec, out=image[target])
    source, target = _overlap(start, size, case.label_start, case.boxed_labels.shape)
    small = np.zeros(size, np.uint8)  # the int32 are written once: a batch of them is more than a cache holds
    small[target] = case.boxed_labels[source]
    labels[...] = small


def _overlap(
    start: Sequence[int], size: Sequence[int], box_start: Sequence[int], box_size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels that a patch and a box share: (slices of the box, slices of the patch), empty if they share none."""
    low = [max(a, b) for a, b in zip(start, box_start)]
    high = [max(x, min(a + m, b + n)) for x, a, m, b, n in zip(low, start, size, box_start, box_size)]
    return (
        tuple(slice(x - b, y - b) for x, y, b in zip(low, high, box_start)),
        tuple(slice(x - a, y - a) for x, y, a in zip(low, high, start)),
    )
