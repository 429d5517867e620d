"""Batches of axial slices with an exact number of positive ones, for tf.data and for plain NumPy.

A batch is a pure function of (seed, index): the same in every process, on every machine, and after resuming.
"""

import numpy as np

from kitsseg.data.augment import center_crop, cut, cut_batchgenerators, draw_crop, pad_to
from kitsseg.data.draws import batch_rng, cases_of_part, in_circles
from kitsseg.data.planes import normalize
from kitsseg.errors import InputError

__all__ = ["SliceBatches", "ValidationSlices", "slice_dataset"]


class SliceBatches:
    """Random training batches of slices.

    Each case is used once before any is used again, and a batch holds different cases (unless there are fewer cases
    than slices in a batch). The first ``positive`` of them give a slice with kidney or tumor, the others any slice.
    The order within a batch is shuffled.

    Args:
        cases: dict from name to CachedCase (``open_cache``).
        split: CaseSplit; only the cases of ``part`` are drawn.
        part: "train", "validation" or "test".
        sampler: SliceSampler. augmentation: Augmentation. spec: PreprocessSpec of the cache.
        seed: of everything random here.
        path: "fast", or "batchgenerators" for the authors' own augmentation library (cubic, slower).

    Raises: TypeError if ``split`` is no CaseSplit; InputError for missing cases or a case without a positive slice.
    """

    def __init__(self, cases, split, part, sampler, augmentation, spec, seed=0, path="fast"):
        if path not in ("fast", "batchgenerators"):
            raise ValueError(f'SliceBatches: path is "fast" or "batchgenerators", found "{path}".')
        if path == "batchgenerators" and augmentation.flip_probability not in (0, 0.5):
            raise ValueError("SliceBatches: batchgenerators flips with probability 0.5; use the fast path.")
        self.cases = cases_of_part(cases, split, part)
        self.sampler, self.augmentation, self.spec, self.seed, self.path = (
            sampler,
            augmentation,
            spec,
            seed,
            path,
        )
        self.batch_size, self.image_shape, self.label_shape = _shapes(sampler, spec)
        self._ends = np.cumsum([case.geometry.shape[0] for case in self.cases])
        self._last_order = None, None
        self._positive = []
        for case in self.cases:
            area = case.kidney_area + case.tumor_area
            slices = np.flatnonzero(area)
            if sampler.positive and not len(slices):
                raise InputError(
                    f"{case.folder}: no slice of {case.name} holds kidney or tumor; it cannot train."
                )
            weights = area[slices] if sampler.positive_weights == "area" else np.ones(len(slices), np.int64)
            self._positive.append((slices, np.cumsum(weights)))

    def draw(self, index):
        """Which slices batch ``index`` holds: a list of (case number, slice number), order shuffled."""
        if self.sampler.unit == "slice":
            return self._draw_slices(index)
        rng = self._rng(index, 0)
        wanted = []
        for position, case in enumerate(self._cases_of_batch(index)):
            slices, cumulative = self._positive[case]
            if position < self.sampler.positive:
                chosen = np.searchsorted(cumulative, rng.integers(cumulative[-1]), side="right")
                wanted.append((case, int(slices[chosen])))
            else:
                wanted.append((case, int(rng.integers(self.cases[case].geometry.shape[0]))))
        return [wanted[i] for i in rng.permutation(len(wanted))]

    def batch(self, index):
        """Batch ``index``: images (batch, rows, columns, 1) float32, labels (batch, rows, columns) int32."""
        images, labels = _empty_batch(self)
        rng = self._rng(index, 1)
        for position, (case, k) in enumerate(self.draw(index)):
            image, labels[position] = self._crop(self.cases[case], k, rng)
            normalize(image, self.spec, out=images[position])
        return images, labels

    def _crop(self, case, k, rng):
        size = self.sampler.patch_size
        image, truth = _whole_or_lazy(case, k, size, self.spec)
        if self.path == "batchgenerators":
            truth = truth(slice(None), slice(None)) if callable(truth) else truth
            return cut_batchgenerators(image, truth, size, self.augmentation, rng)
        return cut(image, truth, draw_crop(rng, image.shape[:2], size, self.augmentation))

    def _draw_slices(self, index):
        """The next slices of a random order of all slices, drawn anew each time it is used up."""
        total, size, drawn = int(self._ends[-1]), self.batch_size, []
        for position in range(index * size, (index + 1) * size):
            order = self._order(position // total, total)
            slice_number = int(order[position % total])
            case = int(np.searchsorted(self._ends, slice_number, side="right"))
            drawn.append((case, slice_number - (int(self._ends[case - 1]) if case else 0)))
        return drawn

    def _order(self, round_number, total):
        last = self._last_order  # read once: tf.data calls from a thread of its own
        if last[0] != round_number:
            last = self._last_order = round_number, self._rng(round_number, 2**32 - 1).permutation(total)
        return last[1]

    def _cases_of_batch(self, index):
        n = len(self.cases)
        return in_circles(lambda circle: self._order(circle, n), n, self.batch_size, index)

    def _rng(self, index, stream):
        return batch_rng(self.seed, index, stream)


class ValidationSlices:
    """A fixed list of validation slices, center crops, in the same mixture as the training batches.

    For each case ``sampler.positive`` slices spread evenly over those with kidney or tumor (over all, in a case
    without any) and the rest of ``sampler.batch_size`` spread evenly over all, one batch a case.
    """

    def __init__(self, cases, split, part, sampler, spec):
        self.cases, self.sampler, self.spec = cases_of_part(cases, split, part), sampler, spec
        self.batch_size, self.image_shape, self.label_shape = _shapes(sampler, spec)

    def __len__(self):
        return len(self.cases)

    def draw(self, index):
        """Slice numbers of case ``index``."""
        case = self.cases[index]
        positive = np.flatnonzero(case.kidney_area + case.tumor_area)
        everything = np.arange(case.geometry.shape[0])
        counts = (self.sampler.positive, self.sampler.batch_size - self.sampler.positive)
        pools = (positive if len(positive) else everything, everything)
        return [
            int(pool[int((i + 0.5) * len(pool) / count)])
            for pool, count in zip(pools, counts, strict=True)
            for i in range(count)
        ]

    def batch(self, index):
        """As ``SliceBatches.batch``."""
        case, size = self.cases[index], self.sampler.patch_size
        images, labels = _empty_batch(self)
        for position, k in enumerate(self.draw(index)):
            image, truth = _whole_or_lazy(case, k, size, self.spec)
            image, labels[position] = cut(image, truth, center_crop(image.shape[:2], size))
            normalize(image, self.spec, out=images[position])
        return images, labels


def slice_dataset(batches, start, stop, targets=None):
    """Batches ``start`` to ``stop`` as a ``tf.data.Dataset`` of (images, labels).

    Args:
        batches: SliceBatches, ValidationSlices, or the patches of ``kitsseg.data.patches``.
        targets: applied to the labels; for networks whose outputs want different targets.
    """
    import tensorflow as tf

    def load(index):
        images, labels = tf.numpy_function(batches.batch, [index], (tf.float32, tf.int32))
        images.set_shape((batches.batch_size, *batches.image_shape))
        labels.set_shape((batches.batch_size, *batches.label_shape))
        return images, labels if targets is None else targets(labels)

    # one call a batch, in the thread of prefetch; a second one would wait for the interpreter lock
    dataset = tf.data.Dataset.range(start, stop).map(load).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread holds every call of fit up at the end, up to twice the time
    return dataset.with_options(options)


def _whole_or_lazy(case, k, size, spec):
    """Slice ``k`` as (image, labels); labels is a function of a window where no padding is needed."""
    image = np.asarray(case.image[k])  # still mapped; np.memmap is slow to index
    if all(n >= m for n, m in zip(image.shape, size)):
        return image, lambda rows, columns: case.labels(k, rows, columns)
    return pad_to(image, case.labels(k), size, int(np.floor(spec.hu_window[0])) if spec.hu_window else 0)


def _shapes(sampler, spec):
    """Slices in a batch, and the shape of one image and of its labels."""
    return sampler.batch_size, (*sampler.patch_size, spec.channels), tuple(sampler.patch_size)


def _empty_batch(batches):
    images = np.empty((batches.batch_size, *batches.image_shape), np.float32)
    return images, np.empty((batches.batch_size, *batches.label_shape), np.int32)
