"""Batches of axial slices with an exact number of positive ones, for tf.data and for plain NumPy.

A batch is a pure function of (seed, index): the same in every process, on every machine, and after resuming. Nothing
here needs TensorFlow but ``batch_dataset``, which hands the very same batches to ``tf.data``::

    batches = SliceBatches(cases, split, "train", sampler, augmentation, spec, Draws(seed=0))
    images, labels = batches[1000]                                          # NumPy arrays
    part = SliceBatches(..., Draws(seed=0, shard=(1, 4)))[1000]             # the second quarter of that batch
    dataset = batch_dataset(batches, 1000, 2000)                            # goes on after 1,000 steps

For training in several processes (the JAX backend, tf.distribute's multi-worker strategies) each process gives its own
``shard``. Together their batches are the batches of one process, so that the loss curve is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.cache.cases import CachedCase
from kitsseg.data.cache.parts import cases_of_part
from kitsseg.data.geometry.planes import normalize
from kitsseg.data.sampling.augment import (
    Crop,
    LabelWindow,
    batchgenerators_transform,
    center_crop,
    change_appearance,
    cut,
    cut_batchgenerators,
    draw_crop,
    pad_to,
)
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
from kitsseg.recipe import Augmentation, PreprocessSpec, RandomAppearance, SliceSampler

if TYPE_CHECKING:
    from typing import SupportsIndex

    from kitsseg.data.sampling.batches import Batches
    from kitsseg.interfaces import Tensor

__all__ = ["SliceBatches", "ValidationSlices", "batch_dataset"]


class SliceBatches:
    """Random training batches of slices.

    Each case is used once before any is used again, and a batch holds different cases (unless there are fewer cases
    than slices in a batch). The first ``positive`` of them give a slice with kidney or tumor, the others any slice.
    The order within a batch is shuffled.

    Args:
        cases: dict from name to CachedCase (``open_cache``).
        split: CaseSplit; only the cases of ``part`` are drawn.
        part: "train", "validation" or "test".
        sampler: SliceSampler.
        augmentation: Augmentation.
        spec: PreprocessSpec of the cache.
        draws: Draws: seed, library, share of the batch; by default seed 0, the fast path, whole batches.

    Attributes:
        form: BatchForm of the batches. Its batch size is the sampler's, divided by the number of processes.

    Raises: TypeError if ``split`` is no CaseSplit; InputError for missing cases, a case without a positive slice, or a
        patient in two parts of the split; ValueError for a batch that cannot be divided evenly.
    """

    def __init__(
        self,
        cases: Mapping[str, CachedCase],
        split: CaseSplit,
        part: str,
        sampler: SliceSampler,
        augmentation: Augmentation,
        spec: PreprocessSpec,
        draws: Draws | None = None,
    ) -> None:
        draws = draws or Draws()
        if draws.path == "batchgenerators":
            batchgenerators_transform(sampler.patch_size, augmentation)  # what it cannot do is said now
        if augmentation.appearance is not None and spec.hu_window is None:
            raise ValueError(
                "SliceBatches: a random appearance needs HU, found a specification with 8-bit windows. "
                "Set appearance to None."
            )
        self.cases = cases_of_part(cases, split, part)
        self.sampler, self.augmentation, self.spec = sampler, augmentation, spec
        self.seed, self.path = draws.seed, draws.path
        self._places = own_places(sampler.batch_size, draws.shard)
        self.form, self.buffers = _form(sampler, spec, self._places, draws.shard), Buffers()
        self._shapes = [case.geometry.shape for case in self.cases]
        self._ends = np.cumsum([shape[0] for shape in self._shapes])
        self._last_order: tuple[int, npt.NDArray[np.int64]] = -1, np.empty(0, np.int64)  # of no round yet
        self._positive = []
        for case in self.cases:
            area = case.kidney_area + case.tumor_area
            slices = np.flatnonzero(area)
            if sampler.positive and not len(slices):
                raise InputError(
                    f"{case.folder}: no slice of {case.name} holds kidney or tumor; training needs such slices. "
                    "Leave the case out of the split."
                )
            weights = area[slices] if sampler.positive_weights == "area" else np.ones(len(slices), np.int64)
            self._positive.append((slices, np.cumsum(weights)))

    def draw(self, index: int) -> list[tuple[int, int]]:
        """The slices of batch ``index``: a list of (case number, slice number) in shuffled order."""
        drawn = self._draw_all(index)
        return [drawn[place] for place in self._places]

    def batch(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Batch ``index``: images (batch, rows, columns, channels) float32, labels (batch, rows, columns) int32."""
        images, labels = empty_batch(self)
        rng = self._rng(index, 1)
        # drawn for the places of other processes, too, so that a place holds the same slice whichever process draws it
        drawn = [(self.cases[case], k, self._draw_crop(rng, case)) for case, k in self._draw_all(index)]
        for own, place in enumerate(self._places):
            window, labels[own] = self._cut(*drawn[place])
            if (appearance := self.augmentation.appearance) is not None:
                window = self._changed(window, labels[own], appearance, self._rng(index, 2 + place))
            normalize(window, self.spec, out=images[own])
        return images, labels

    def use_buffers(self, buffers: Buffers) -> None:
        """As ``DrawnBatches.use_buffers``."""
        self.buffers = buffers

    def _changed(
        self,
        window: npt.NDArray[Any],
        truth: npt.NDArray[np.int32],
        appearance: RandomAppearance,
        rng: np.random.Generator,
    ) -> npt.NDArray[Any]:
        if rng.random() >= appearance.probability:
            return window
        return change_appearance(window, truth, appearance.strength, rng)

    def __getitem__(self, index: SupportsIndex) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        return self.batch(checked_index(index))

    def _draw_all(self, index: int) -> list[tuple[int, int]]:
        if self.sampler.unit == "slice":
            return self._draw_slices(index)
        rng, wanted = self._rng(index, 0), []
        numbers = rng.random(self.sampler.batch_size).tolist()
        for position, (case, number) in enumerate(zip(self._cases_of_batch(index), numbers, strict=True)):
            if position < self.sampler.positive:
                slices, cumulative = self._positive[case]
                chosen = cumulative.searchsorted(int(number * cumulative[-1]), side="right")
                wanted.append((case, int(slices[chosen])))
            else:
                wanted.append((case, int(number * self._shapes[case][0])))
        return [wanted[i] for i in rng.permutation(len(wanted)).tolist()]

    def _draw_crop(self, rng: np.random.Generator, case: int) -> Crop | int:
        """A Crop, or the seed of batchgenerators."""
        if self.path == "batchgenerators":
            return int(rng.integers(2**32))
        size = self.sampler.patch_size
        shape = [max(n, m) for n, m in zip(self._shapes[case][1:], size)]
        return draw_crop(rng, shape, size, self.augmentation)

    def _cut(
        self, case: CachedCase, k: int, crop: Crop | int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        size = self.sampler.patch_size
        image, truth = _whole_or_lazy(case, k, size, self.spec)
        if isinstance(crop, Crop):
            return cut(image, truth, crop)
        truth = truth(slice(None), slice(None)) if callable(truth) else truth
        return cut_batchgenerators(image, truth, size, self.augmentation, np.random.default_rng(crop))

    def _draw_slices(self, index: int) -> list[tuple[int, int]]:
        """The next slices of a random order of all slices. A new order is drawn when all slices were used."""
        total, size, drawn = int(self._ends[-1]), self.sampler.batch_size, []
        for position in range(index * size, (index + 1) * size):
            order = self._order(position // total, total)
            slice_number = int(order[position % total])
            case = int(np.searchsorted(self._ends, slice_number, side="right"))
            drawn.append((case, slice_number - (int(self._ends[case - 1]) if case else 0)))
        return drawn

    def _order(self, round_number: int, total: int) -> npt.NDArray[np.int64]:
        last = self._last_order  # read once: tf.data calls from a thread of its own
        if last[0] != round_number:
            last = self._last_order = round_number, self._rng(round_number, 2**32 - 1).permutation(total)
        return last[1]

    def _cases_of_batch(self, index: int) -> list[int]:
        n = len(self.cases)
        chosen = in_circles(lambda circle: self._order(circle, n), n, self.sampler.batch_size, index)
        numbers: list[int] = chosen.tolist()
        return numbers

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return batch_rng(self.seed, index, stream)


class ValidationSlices:
    """A fixed list of validation slices, center crops, in the same mixture as the training batches.

    For each case ``sampler.positive`` slices spread evenly over those with kidney or tumor (over all, in a case
    without any) and the rest of ``sampler.batch_size`` spread evenly over all, one batch a case. Args and Raises as for
    ``SliceBatches``.
    """

    def __init__(
        self,
        cases: Mapping[str, CachedCase],
        split: CaseSplit,
        part: str,
        sampler: SliceSampler,
        spec: PreprocessSpec,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.cases, self.sampler, self.spec = cases_of_part(cases, split, part), sampler, spec
        self._places = own_places(sampler.batch_size, shard)
        self.form, self.buffers = _form(sampler, spec, self._places, shard), Buffers()

    def __len__(self) -> int:
        return len(self.cases)

    def draw(self, index: int) -> list[int]:
        """Slice numbers of case ``index``."""
        case = self.cases[index]
        positive = np.flatnonzero(case.kidney_area + case.tumor_area)
        everything = np.arange(case.geometry.shape[0])
        counts = (self.sampler.positive, self.sampler.batch_size - self.sampler.positive)
        pools = (positive if len(positive) else everything, everything)
        drawn = [
            int(pool[int((i + 0.5) * len(pool) / count)])
            for pool, count in zip(pools, counts, strict=True)
            for i in range(count)
        ]
        return [drawn[place] for place in self._places]

    def batch(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """As ``SliceBatches.batch``."""
        case, size = self.cases[index], self.sampler.patch_size
        images, labels = empty_batch(self)
        for position, k in enumerate(self.draw(index)):
            image, truth = _whole_or_lazy(case, k, size, self.spec)
            image, labels[position] = cut(image, truth, center_crop(image.shape[:2], size))
            normalize(image, self.spec, out=images[position])
        return images, labels

    def __getitem__(self, index: SupportsIndex) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        return self.batch(checked_index(index, len(self)))


def batch_dataset(
    batches: Batches, start: int, stop: int, targets: Callable[[Any], Any] | None = None
) -> Any:
    """Batches ``start`` to ``stop`` as a ``tf.data.Dataset`` of (images, labels), in order.

    Args:
        batches: Batches, such as SliceBatches, ValidationSlices, or the patches of ``kitsseg.data.sampling.patches``.
        start, stop: numbers of the first batch, and of the batch after the last one.
        targets: function of the labels that makes the targets of the network's outputs, if they are not the labels.

    A strategy of tf.distribute divides each batch among its replicas when ``fit`` runs under its scope. With several
    workers, give each worker batches of its own ``shard``.
    """
    import tensorflow as tf

    def load(index: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = tf.numpy_function(batches.batch, [index], (tf.float32, tf.int32))
        images.set_shape((batches.form.batch_size, *batches.form.image_shape))
        labels.set_shape((batches.form.batch_size, *batches.form.label_shape))
        return images, labels if targets is None else targets(labels)

    # one call a batch, in the thread of prefetch; a second one would wait for the interpreter lock. One batch waits,
    # one is in the making, one in use: 34 MB each for the 39 patches of deeplab3d
    dataset = tf.data.Dataset.range(start, stop).map(load).prefetch(1)
    options = tf.data.Options()
    # the thread of autotuning delays the end of every call of fit, which can then take twice as long
    options.autotune.enabled = False
    policies = tf.data.experimental.AutoShardPolicy
    # a worker that draws its own shard must not be given every n-th batch of it
    options.experimental_distribute.auto_shard_policy = policies.OFF if batches.form.shard else policies.DATA
    return dataset.with_options(options)


def _whole_or_lazy(
    case: CachedCase, k: int, size: Sequence[int], spec: PreprocessSpec
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | LabelWindow]:
    """Slice ``k`` as (image, labels); labels is a function of a window where no padding is needed."""
    image = case.image[k]
    if all(n >= m for n, m in zip(image.shape, size)):
        return image, lambda rows, columns: case.labels(k, rows, columns)
    lowest = spec.lowest_hu
    return pad_to(image, case.labels(k), size, 0 if lowest is None else int(np.floor(lowest)))


def _form(
    sampler: SliceSampler, spec: PreprocessSpec, places: range, shard: tuple[int, int] | None
) -> BatchForm:
    return BatchForm(
        batch_size=len(places),
        image_shape=(*sampler.patch_size, spec.channels),
        label_shape=tuple(sampler.patch_size),
        shard=shard,
    )
