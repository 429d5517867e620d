"""Slices per second of the training sampler: bare, through tf.data, and with batchgenerators.

    python benchmarks/slices.py [--cases 8] [--slices 40] [--batches 100] [--rounds 5]

All three make batches of 7 crops of 224 x 224 from synthetic 512 x 512 cases in a temporary folder, with the
2D U-Net's augmentation, in turn within each round, in one process and on one core where the system allows
it. Printed are medians over the rounds, of processor time and of ratios. Targets: tf.data at least 5 times
as fast as batchgenerators, and at most 1.8 times the time of the bare sampler.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from kitsseg.data.cache import CachedCase
from kitsseg.data.geometry import Geometry
from kitsseg.data.slices import SliceBatches, slice_dataset
from kitsseg.data.splits import CaseSplit
from kitsseg.recipe import Augmentation, PreprocessSpec, SliceSampler

SPEC = PreprocessSpec(
    spacing_mm=(None, None, None), crop_to_body=False, hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9
)
SAMPLER = SliceSampler(batch_size=7, positive=5, positive_weights="area", patch_size=(224, 224))
AUGMENTATION = Augmentation(scale_range=(0.6, 1.25), scale_probability=0.1, flip_probability=0.5)


def make_case(folder, n_slices, seed):
    """A case as the cache holds it: noise, and a block of kidney and tumor in the middle third."""
    rng = np.random.default_rng(seed)
    shape = (n_slices, 512, 512)
    folder.mkdir()
    np.save(folder / "image.npy", rng.integers(-200, 300, shape, dtype=np.int16))
    start, stop = (n_slices // 3, 200, 120), (2 * n_slices // 3 + 1, 320, 400)
    labels = np.ones([b - a for a, b in zip(start, stop, strict=True)], np.uint8)
    labels[:, 40:80, 40:80] = 2
    np.save(folder / "labels.npy", labels)
    area = np.zeros((3, n_slices), np.int64)
    for value in (1, 2):
        area[value, start[0] : stop[0]] = (labels == value).sum(axis=(1, 2))
    geometry = Geometry(shape, (3.0, 0.8, 0.8), shape, (0, 0, 0), shape)
    return CachedCase(folder.name, folder, geometry, start, area[1], area[2], phantom=True, channels=1)


def seconds(work):
    """Processor time: that of all threads, and none of what else runs on the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--slices", type=int, default=40, help="of each case")
    parser.add_argument("--batches", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before TensorFlow counts the cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    slice_count = arguments.batches * SAMPLER.batch_size

    with tempfile.TemporaryDirectory() as folder:
        cases = {
            name: make_case(Path(folder) / name, arguments.slices, seed)
            for seed, name in enumerate(f"case_{i:05d}" for i in range(arguments.cases))
        }
        split = CaseSplit("all", tuple(cases), (), ())
        fast, cubic = (
            SliceBatches(cases, split, "train", SAMPLER, AUGMENTATION, SPEC, path=path)
            for path in ("fast", "batchgenerators")
        )

        def bare(first):
            for index in range(first, first + arguments.batches):
                fast.batch(index)

        stream = iter(slice_dataset(fast, 0, (arguments.rounds + 1) * arguments.batches))

        def through_tf_data(first):
            for _ in range(arguments.batches):
                next(stream)

        def batchgenerators(first):
            for index in range(first, first + arguments.batches):
                cubic.batch(index)

        works = {"bare": bare, "tf.data": through_tf_data, "batchgenerators": batchgenerators}
        for work in works.values():
            work(0)  # imports, page cache
        times = {name: [] for name in works}
        for r in range(arguments.rounds):
            for name, work in works.items():
                first = (r + 1) * arguments.batches
                times[name].append(seconds(lambda work=work, first=first: work(first)))

    print(f"{'path':<16} {'slices/s':>9} {'microseconds a slice':>21}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<16} {slice_count / median:>9.0f} {1e6 * median / slice_count:>21.0f}")

    def ratio(a, b):
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    print(f"tf.data is {ratio('batchgenerators', 'tf.data'):.1f} times as fast as batchgenerators (target 5)")
    print(f"tf.data takes {ratio('tf.data', 'bare'):.2f} times the bare sampler's time (target 1.8 at most)")


if __name__ == "__main__":
    main()
