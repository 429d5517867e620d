"""Training batches per second against the libraries that others use: python benchmarks/data.py [--work FOLDER]

    pip install "kitsseg[bench]"

2D: batches of 7 crops of 224 x 224, 5 of positive slices, with the 2D U-Net's crop, scaling and flips. 3D: batches of
39 patches of 48 x 48 x 48, one of each class from each of 13 cases. All loaders draw from the same cached cases (made
here, unless --data names a folder of cases in KiTS19 layout). Each loader has a process of its own, on one core where
the system allows it, and the loaders run in turn within each round. Times are processor times of all threads and
workers. Printed are medians over the rounds, and the medians of the ratios within a round. The ratios are to the row
"kitsseg, tf.data".
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import data_peers
from process_memory import status_mib

from kitsseg import open_cache, preprocess_cases, recipes
from kitsseg.data import CaseSplit, PatchBatches, SliceBatches, batch_dataset, synthesize_cases
from kitsseg.recipe import PatchSampler

# slices of 512 x 512, neither resampled nor cropped, because peers that batch whole slices need slices of one size
SPEC = replace(recipes.get("unet2d").preprocess, spacing_mm=(None, None, None), crop_to_body=False)
PHASE = recipes.get("unet2d").phases[0]
PATCH_SAMPLER = PatchSampler(cases_per_batch=13, patch_size=(48, 48, 48))
NO_AUGMENTATION = recipes.get("deeplab3d").phases[0].augmentation
MEMORY_TARGET_MIB = 64
SLICES, PATCHES = "2D batches, augmented", "3D patches, by class"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of cases; 13 are synthesized otherwise")
    parser.add_argument(
        "--work", type=Path, help="folder for cases and cache, kept; a temporary one otherwise"
    )
    parser.add_argument("--slices", type=int, default=56, help="of each synthesized case")
    parser.add_argument(
        "--batches", type=int, default=40, help="of slices in each round; a quarter of patches"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before TensorFlow and torch count the cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        cases = prepared(arguments.data, work, arguments.slices)
        total = sum(case.geometry.shape[0] for case in cases.values())
        print(f"{len(cases)} cases, {total} slices, {PHASE.augmentation}")
        memory(cases)
        for title, unit, peers, count in (
            (SLICES, "slices", data_peers.SLICES, arguments.batches),
            (PATCHES, "patches", data_peers.PATCHES, max(arguments.batches // 4, 1)),
        ):
            compare(title, unit, cases, work, peers, count, arguments.rounds, Path(temporary))


def batches_of(title, cases):
    """What is compared: SliceBatches or PatchBatches of all cases."""
    split = CaseSplit("all", tuple(cases), (), ())
    if title == SLICES:
        return SliceBatches(cases, split, "train", PHASE.sampler, PHASE.augmentation, SPEC)
    return PatchBatches(cases, split, "train", PATCH_SAMPLER, NO_AUGMENTATION, SPEC)


def prepared(data, work, n_slices):
    """The cache of 13 cases, made where it is missing."""
    if data is None and not (data := work / "cases").is_dir():
        synthesize_cases(data, 13, (n_slices, 512, 512))
    preprocess_cases(data, work / "cache", SPEC)
    return open_cache(work / "cache", SPEC)


def memory(cases):
    """Print the anonymous memory that our pipelines add to TensorFlow's own; mapped files are no part of it."""
    tf = one_thread_for_tensorflow()
    list(tf.data.Dataset.range(3).map(lambda x: x + 1).prefetch(1))
    before = status_mib("RssAnon")
    if before is None:
        print("anonymous memory: only known on Linux, not measured")
        return
    for name in (SLICES, PATCHES):
        for _ in batch_dataset(batches_of(name, cases), 0, 20):
            pass
        print(
            f"anonymous memory of {name}: {status_mib('RssAnon') - before:.0f} MiB over TensorFlow's own "
            f"{before:.0f} (target {MEMORY_TARGET_MIB} at most)"
        )
        before = status_mib("RssAnon")


def one_thread_for_tensorflow():
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def compare(title, unit, cases, work, peers, count, rounds, folder):
    """Print how long a batch takes with ours and with each peer that is installed."""
    batch_size, loaders, missing = batches_of(title, cases).form.batch_size, {}, []
    for name in (*OURS, *(name for name, _, _ in peers)):
        place = folder / title / name
        place.mkdir(parents=True)
        loader = Loader(title, name, work, place)
        if loader.problem:
            missing.append(f"{name}: not compared, it is not installed ({loader.problem})")
        else:
            loaders[name] = loader
    times = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, loader in loaders.items():
            seconds = loader.take(count)
            if number:  # the first imports and reads
                times[name].append(1e6 * seconds / count / batch_size)
    for loader in loaders.values():
        loader.stop()
    targets = {name: target for name, _, target in peers}
    print(f"\n{title}, {rounds} rounds of {count} batches of {batch_size}")
    print(f"{'':<38}{'us each':>9}{unit + '/s':>12}{'ours is':>9}  target")
    for name, values in times.items():
        median = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, times[next(iter(OURS))], strict=True))
        aim = "" if targets.get(name) is None else f"{targets[name]}x {verdict(ratio, targets[name])}"
        faster = f"{ratio:.1f}x" if name in targets else ""
        print(f"{name:<38}{median:>9.0f}{1e6 / median:>12.0f}{faster:>9}  {aim}")
    print(*missing, sep="\n", end="\n" if missing else "", flush=True)


class Loader:
    """One loader in a process of its own: in one that others share, it would pay for their memory and threads."""

    def __init__(self, title, name, work, place):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, title, name, work, place))
        self._process.start()
        self.problem = self._pipe.recv()

    def take(self, count):
        """Make ``count`` batches; returns the processor time they took, workers included."""
        self._pipe.send(count)
        return self._pipe.recv()

    def stop(self):
        self._pipe.send(0)
        self._pipe.recv()
        self._process.terminate()  # threads of a peer would keep it waiting
        self._process.join()


def serve(pipe, title, name, work, place):
    """The other side of ``Loader``."""
    cases = open_cache(work / "cache", SPEC)
    batches = batches_of(title, cases)
    peers = data_peers.SLICES if title == SLICES else data_peers.PATCHES
    loaders = OURS | {peer: make for peer, make, _ in peers}
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # for the workers of a peer, as on Linux
    try:
        batch = loaders[name](cases, batches, place)
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while count := pipe.recv():
        settle()
        start = processor_seconds()
        for _ in range(count):
            batch()
        settle()  # the time of batches that are prepared ahead counts for this loader
        pipe.send(processor_seconds() - start)
    for child in multiprocessing.active_children():
        child.terminate()
    pipe.send(None)


def through_tf_data(cases, batches, place):
    one_thread_for_tensorflow()
    return iter(batch_dataset(batches, 0, 10**9)).__next__


def through_numpy(cases, batches, place):
    numbers = itertools.count()
    return lambda: batches[next(numbers)]


OURS = {"kitsseg, tf.data": through_tf_data, "kitsseg, NumPy": through_numpy}


def verdict(ratio, target):
    return "reached" if ratio >= target else f"missed by {100 * (1 - ratio / target):.0f} %"


def settle(pause=0.1):
    """Wait until nothing runs in the background: as many batches are then prepared as were taken."""
    quiet = 0
    while quiet < 2:
        before = processor_seconds()
        time.sleep(pause)
        quiet = quiet + 1 if processor_seconds() - before < 0.02 * pause else 0


def processor_seconds():
    """Of this process and of the workers it has now."""
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


if __name__ == "__main__":
    main()
