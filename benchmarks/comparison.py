"""All papers under one protocol: python benchmarks/comparison.py OUT --labels KITS19_LABELS [--pages PAGE ...]

All networks get the same patients (real KiTS19 label maps, synthesized CT), the same split by case, and about the same
number of gradient steps: 1,920 to 2,760 (STEPS), in phases as long beside each other as in the tiny variants.
All other settings are those of each paper's tiny variant. Each network is trained with ``--seeds`` seeds; the split is
the same for all. The test cases are those of MLPerf's 42 named cases that --labels holds. Every sixth of the other
cases is used to choose the best epoch. Without --labels procedural patients are made.

Two networks are added to those of the five papers: WP-UNet trained without masks for as many steps, and this network
shrunk to half of its channels. Two more tables show the score that a split by slice claims (slice_leak.py), and the
cost of SqueezeNet with and without skips (squeeze_speed.py). Each network is trained and scored by a process of its own
on one core; as many processes run at a time as there are cores. Finished work in OUT is kept, so that a stopped call
goes on. The tables go to OUT/tables/*.md, with --pages also between the marks of those pages; the plot goes to
OUT/comparison.png.

Phantom results: they compare what these small networks learn from phantoms in little time, not the papers' methods on
CT of patients.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as kitsseg train

import numpy as np
from comparison_page import write_tables

from kitsseg import (
    evaluate_folders,
    load_split,
    make_split,
    open_cache,
    predict_cases,
    preprocess_cases,
    recipes,
    shrink_run,
    train_recipe,
)
from kitsseg.data import CaseSplit, render_cases, synthesize_cases
from kitsseg.files.atomic import atomic_path
from kitsseg.models import count_macs, read_network
from kitsseg.recipe import Plateau
from kitsseg.records.run import read_run
from kitsseg.training.epochs import steps_of
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun

STEPS = {"unet2d": 2400, "wp_unet": 2760, "squeeze_unet": 1920, "enhanced_unet": 2400, "deeplab3d": 2520}
DENSE, SHRUNK, SHRUNK_EPOCHS = "wp_unet-dense", "wp_unet-shrunk", 60
NETWORKS = ("unet2d", "wp_unet", DENSE, SHRUNK, "squeeze_unet", "enhanced_unet", "deeplab3d")
# the longest first; the shrunk network is made after the dense one, by the same process
JOBS = (
    *("deeplab3d", "squeeze_unet", "slice_leak", DENSE),
    *("enhanced_unet", "unet2d", "wp_unet", "squeeze_speed"),
)
SCRIPTS = ("slice_leak", "squeeze_speed")  # have seeds of their own


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=Path, help="folder of label maps in KiTS19 layout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of those steps")
    parser.add_argument("--only", nargs="*", choices=JOBS, default=JOBS, metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--pages", nargs="*", type=Path, default=[], help="pages to write the tables into")
    parser.add_argument("--here", type=int, metavar="SEED", help="one job with this seed, in this process")
    a = parser.parse_args()
    data, started = a.out / "data", time.monotonic()
    if not data.is_dir():
        if a.labels:
            render_cases(a.labels, data)
        else:
            synthesize_cases(data, 24, (40, 128, 128))
    if a.here is not None:
        (name,) = a.only
        measured(name, a.out, data, bool(a.labels), a.share, a.here)
        if name == DENSE:
            measured(SHRUNK, a.out, data, bool(a.labels), a.share, a.here)
        return
    options = ["--share", str(a.share), *(["--labels", str(a.labels)] if a.labels else [])]
    wanted = [
        (name, seed)
        for seed in range(a.seeds)
        for name in JOBS
        if name in a.only and not (name in SCRIPTS and seed) and not is_done(name, seed, a.out)
    ]
    run_jobs(wanted, a.out, options)
    facts = {name: seeds for name in NETWORKS if (seeds := read_facts(name, a.seeds, a.out))}
    write_tables(a.out, facts, [name for name in SCRIPTS if name in a.only], a.pages)
    print(f"{(time.monotonic() - started) / 60:.0f} min in all")


def folder_of(name, seed, out):
    return out / f"seed-{seed}" / name


def read_facts(name, seeds, out):
    """What is there of the seeds of a network; "scores" is the file of its scores."""
    files = [folder_of(name, seed, out) / "facts.json" for seed in range(seeds)]
    return [
        json.loads(file.read_text()) | {"scores": file.with_name("scores.csv")}
        for file in files
        if file.is_file()
    ]


def is_done(name, seed, out):
    """Whether all that a job writes is there already."""
    if name in SCRIPTS:
        return (out / "tables" / f"{name}.md").is_file()
    made = (DENSE, SHRUNK) if name == DENSE else (name,)
    return all((folder_of(one, seed, out) / "facts.json").is_file() for one in made)


def run_jobs(wanted, out, options):
    """Each job in a process of its own that has one core to itself; what it says: OUT/JOB-SEED.log."""
    here, waiting, running = Path(__file__), list(wanted), {}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    while waiting or running:
        for core in [core for core in cores if core not in running][: len(waiting)]:
            name, seed = waiting.pop(0)
            command = [sys.executable, here, out, *options, "--only", name, "--here", str(seed)]
            if name in SCRIPTS:
                table = out / "tables" / f"{name}.md"
                command = [sys.executable, here.with_name(f"{name}.py"), "--out", table]
            job = f"{name}-{seed}"
            with (out / f"{job}.log").open("w") as log, only_core(core, cores):
                running[core] = job, time.monotonic(), subprocess.Popen(command, stdout=log, stderr=log)
        time.sleep(1)
        for core, (job, started, process) in list(running.items()):
            if process.poll() is None:
                continue
            del running[core]
            if process.returncode:
                for *_, other in running.values():
                    other.terminate()
                sys.exit(f"{job}: ended with {process.returncode}; see {out / f'{job}.log'}")
            print(f"{job}: {(time.monotonic() - started) / 60:.1f} min", flush=True)


@contextmanager
def only_core(core, cores):
    """A process started in this block has one core, from its first thread on; where the system cannot, all."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def measured(name, out, data, real, share, seed):
    """Preprocess, train, predict and score one network; what the table says of it: OUT/seed-N/NAME/facts.json."""
    recipe, folder = recipe_of(name, share), folder_of(name, seed, out)
    if (folder / "facts.json").is_file():
        return
    # one for each process; the shrunk network follows the dense one in the same
    dense = folder_of(DENSE, seed, out)
    cache, run = (dense if name == SHRUNK else folder) / "cache", folder / "run"
    preprocess_cases(data, cache, recipe.preprocess)
    cases = open_cache(cache, recipe.preprocess)
    split = named_split(cases) if real else make_split(cases, (0.6, 0.15, 0.25))
    steps, epochs = sum(map(steps_of, recipe.phases)), max(1, round(share * SHRUNK_EPOCHS))
    if not (run / "model.keras").is_file():
        resume = (run / "run.json").is_file()
        if name == SHRUNK:
            shrink_run(
                FromRun(recipe, dense / "run", cache),
                run,
                0.5,
                TrainOptions(epochs=epochs, resume=resume),
            )
        else:
            train_recipe(recipe, cache, split, run, TrainOptions(seed=seed, resume=resume))
    seconds = read_run(run).seconds
    if name == SHRUNK:
        steps += epochs * recipe.phases[-1].steps_per_epoch
        seconds += read_run(dense / "run").seconds
    started = time.process_time()
    predict_cases(run, [data], folder / "predictions", part="test")
    predict_s = time.process_time() - started
    evaluate_folders(folder / "predictions", data, folder / "scores.csv")
    model, patch = read_network(run / "model.keras"), recipe.phases[0].sampler.patch_size
    facts = {
        "parameters": model.count_params(),
        "macs": count_macs(model, (*patch, model.input_shape[-1])) / np.prod(patch),
        "steps": steps,
        "train_s": seconds,
        "predict_ms": 1e3 * predict_s / sum(cases[case].geometry.scan_shape[0] for case in split.test),
        "megabytes": (run / "model.keras").stat().st_size / 1e6,
    }
    with atomic_path(folder / "facts.json") as temporary:
        temporary.write_text(json.dumps(facts))


def recipe_of(name, share):
    """The recipe's tiny variant, trained for longer; the dense WP-UNet is the same but for its masks."""
    paper = name.split("-")[0]
    recipe, phases = recipes.get(f"{paper}:tiny"), []
    factor = share * STEPS[paper] / sum(map(steps_of, recipe.phases))
    for phase in recipe.phases:
        if isinstance(phase.schedule, Plateau):
            patience = max(1, round(factor * phase.schedule.patience))
            phase = replace(phase, schedule=replace(phase.schedule, patience=patience))
        if name in (DENSE, SHRUNK):
            phase = replace(phase, pruning=None)
        epochs = max(1, round(factor * phase.epochs))
        phases.append(replace(phase, epochs=epochs, validate_cases_every=None))
    return replace(recipe, phases=tuple(phases))


def named_split(cases):
    """Test on the cases that MLPerf names, and choose epochs by every sixth of the others.

    The split ``mlperf42`` itself would choose epochs by only one of these 24 cases, which is too few.
    """
    test = load_split("mlperf42").among(cases)[0].test
    rest = sorted(set(cases) - set(test))
    return CaseSplit("mlperf42's test", tuple(c for c in rest if c not in rest[::6]), tuple(rest[::6]), test)


if __name__ == "__main__":
    main()
