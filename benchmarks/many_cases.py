"""What a cohort costs by its number of cases: python benchmarks/many_cases.py

    open      the cache, every case's record checked
    training  a whole training of one step with one validation case, so that the start takes most of the time
    predict   the record of a prediction, without a network: begin and record every scan, then write predictions.json
    evaluate  score every label map

The cases are tiny: 8 x 40 x 48 voxels. A few of them are made; all others are hard links to these few, with records
that differ. Each step runs in a process of its own that may have at most --limit files open. Printed are processor
seconds without the imports, and the largest memory and number of open files of the process. Growth is the seconds per
case, divided by the seconds per case of the same step at the previous number of cases; 1 is linear.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from process_memory import status_mib

from kitsseg import preprocess_cases, recipes
from kitsseg.data import write_image
from kitsseg.data.cache.case_file import read_case, write_case
from kitsseg.recipe import Augmentation, PreprocessSpec, SliceSampler

SPEC = PreprocessSpec(hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9)
MADE = 5
SHAPE, SPACING = (8, 40, 48), (3.0, 0.8, 0.8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[210, 1000, 3000, 10000])
    parser.add_argument("--limit", type=int, default=256, help="files that a process may have open")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--child", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a.child[0], Path(a.child[1]), a.limit)
        return
    print("cases | step | seconds | growth | MiB | open files")
    before = {}
    for count in a.cases:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), count)
            for step in a.only:
                command = [sys.executable, __file__, "--limit", str(a.limit), "--child", step, folder]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
                )
                if done.returncode:
                    print(f"{count} | {step} | failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                seconds, mib, files = json.loads(done.stdout.splitlines()[-1])
                growth = f"{seconds / count / before[step]:.2f}" if step in before else "-"
                before[step] = seconds / count
                print(f"{count} | {step} | {seconds:.2f} | {growth} | {mib:.0f} | {files}", flush=True)


def make(folder, count):
    """A cache, and a folder of label maps with one of predictions, of so many cases."""
    for number in range(MADE):
        case, rng = folder / "data" / f"case_{number:05d}", np.random.default_rng(number)
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:6, 10:25, 8:20] = 1
        labels[3:5, 14:20, 12:17] = 2
        image = (rng.integers(-60, 60, SHAPE) + 160 * (labels == 1) + 300 * (labels == 2)).astype(np.int16)
        write_image(case / "imaging.nii.gz", image, SPACING)
        write_image(case / "segmentation.nii.gz", labels, SPACING)
    cache, *_ = preprocess_cases(folder / "data", folder / "cache", SPEC)
    records = [read_case(cache / f"case_{number:05d}") for number in range(MADE)]
    for out in ("truth", "predictions"):
        (folder / out).mkdir()
    for number in range(count):
        name, source = f"case_{number:05d}", f"case_{number % MADE:05d}"
        if number >= MADE:
            (cache / name).mkdir()
            for file in ("image.npy", "labels.npy"):
                os.link(cache / source / file, cache / name / file)
            record = records[number % MADE]
            first, *others = record.hu_counts.counts
            counts = [first + number, *others]  # else it would be the same patient
            write_case(cache / name, replace(record, hu_counts=replace(record.hu_counts, counts=counts)))
        (folder / "truth" / name).mkdir()
        map_of_source = folder / "data" / source / "segmentation.nii.gz"
        os.link(map_of_source, folder / "truth" / name / "segmentation.nii.gz")
        os.link(map_of_source, folder / "predictions" / f"prediction_{number:05d}.nii.gz")


def child(step, folder, limit):
    """One step in a process that may have so many files open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    run = STEPS[step](folder)  # imports first
    files, ended = [0], threading.Event()

    def count():
        while not ended.wait(0.005):
            files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))

    watcher = threading.Thread(target=count)
    watcher.start()
    started = time.process_time()
    try:
        run()
        seconds = time.process_time() - started
    finally:
        ended.set()
        watcher.join()
    print(json.dumps([seconds, status_mib("VmHWM"), max(files)]))


def opening(folder):
    from kitsseg.data.cache.cases import open_cache

    return lambda: open_cache(folder / "cache", SPEC)


def training(folder):
    from kitsseg.runtime.start_keras import start_keras

    start_keras()
    import tensorflow as tf

    tf.constant(0)  # what it starts with its first tensor
    from kitsseg.data.splits import CaseSplit
    from kitsseg.training.options import TrainOptions
    from kitsseg.training.train import train_recipe

    tiny = recipes.get("unet2d:tiny")
    phase = replace(
        tiny.phases[0],
        sampler=SliceSampler(batch_size=4, positive=2, patch_size=(32, 32)),
        augmentation=Augmentation(),
        epochs=1,
        steps_per_epoch=1,
        validate_cases_every=None,
    )
    recipe = replace(
        tiny, preprocess=SPEC, model={**tiny.model, "start_filters": 2, "n_pools": 2}, phases=(phase,)
    )
    names = sorted(path.parent.name for path in (folder / "cache").glob("*/*/case.json"))
    split = CaseSplit("all but two", tuple(names[:-2]), (names[-2],), (names[-1],))
    return lambda: train_recipe(recipe, folder / "cache", split, folder / "run", TrainOptions(seed=0))


def predicting(folder):
    from kitsseg.data.cache.sources import Source
    from kitsseg.records.made_by import MadeBy, PartOfSplit
    from kitsseg.records.predictions import PredictedScan, Predictions

    header = MadeBy(
        kitsseg="", run="run", networks=[], engine="none", inference={}, postprocess=None,
        split=PartOfSplit(name="all", hash="0", part=None),
    )  # fmt: skip
    scans = sorted((folder / "truth").iterdir())

    def run():
        record = Predictions(folder / "out", header)
        for number, scan in enumerate(scans):
            image = scan / "segmentation.nii.gz"
            record.begin(scan.name, image)
            source = Source(bytes=1, modified_ns=1, ends_sha256="0" * 64)
            file = f"prediction_{number:05d}.nii.gz"
            record.add(
                scan.name,
                PredictedScan(file=file, image=str(image), source=source, crc32="0" * 8, phantom=False),
            )
        record.finish()
        record.close()

    return run


def evaluating(folder):
    from kitsseg.scoring.evaluate import evaluate_folders

    return lambda: evaluate_folders(folder / "predictions", folder / "truth", folder / "scores.csv")


STEPS = {"open": opening, "training": training, "predict": predicting, "evaluate": evaluating}

if __name__ == "__main__":
    main()
