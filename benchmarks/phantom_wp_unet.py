"""Phantom-trained WP-UNets to measure: python benchmarks/phantom_wp_unet.py OUT [--patients 24] [--epochs 20]

Trains a dense network with the paper's 1.3M parameters on synthetic patients, prunes it to several sparsities (single
weights and blocks of two), shrinks it, and scores all networks on patients that no training has seen. A pruned
network has trained for twice as many steps as the dense one. It must therefore be compared with "dense-long", which
trains for as many steps from scratch. The shrunk networks train on for three times as many epochs as the pruned ones,
which takes about as long. Each network is an ordinary run in OUT; finished runs are kept.
Then: python benchmarks/inference.py --dense OUT/dense,OUT/dense.csv ...

Phantom results: they show what pruning costs and saves, nothing about CT of patients.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as kitsseg train

from kitsseg import (
    compare_scores,
    evaluate_folders,
    make_split,
    open_cache,
    predict_cases,
    preprocess_cases,
    recipes,
    shrink_run,
    train_recipe,
)
from kitsseg.data import synthesize_cases
from kitsseg.records.run import read_run
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.sweep import COLUMNS, sweep_run

SPARSITIES = {"magnitude": (0.5, 0.7, 0.8, 0.85, 0.9), "block": (0.5, 0.8)}
KEEPS = (0.5, 0.375)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=20)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    tiny = recipes.get("wp_unet:tiny")
    widths = {key: value for key, value in tiny.model.items() if key != "filters"}
    # the demo's patients, slices and steps with the paper's widths; dense: the phase that prunes is left out
    recipe = replace(tiny, model=widths, phases=(replace(tiny.phases[0], epochs=a.epochs),))
    data, cache = a.out / "data", a.out / "cache"
    if not data.is_dir():
        synthesize_cases(data, a.patients, (40, 128, 128))
    preprocess_cases(data, cache, recipe.preprocess)
    split = make_split(open_cache(cache, recipe.preprocess), (0.6, 0.15, 0.25))
    runs = {"dense": a.out / "dense"}

    def timed(name, make):
        if not (runs[name] / "model.keras").is_file():
            started = time.monotonic()
            make((runs[name] / "run.json").is_file())
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)

    timed(
        "dense", lambda resume: train_recipe(recipe, cache, split, runs["dense"], TrainOptions(resume=resume))
    )
    runs["dense-long"] = a.out / "dense-long"
    long = replace(recipe, phases=(replace(recipe.phases[0], epochs=2 * a.epochs),))
    timed(
        "dense-long",
        lambda resume: train_recipe(long, cache, split, runs["dense-long"], TrainOptions(resume=resume)),
    )
    for keep in KEEPS:
        runs[f"shrunk-{keep:g}"] = folder = a.out / f"shrunk-{keep:g}"
        timed(
            folder.name,
            lambda resume, folder=folder, keep=keep: shrink_run(
                FromRun(recipe, runs["dense"], cache),
                folder,
                keep,
                TrainOptions(epochs=3 * a.epochs, resume=resume),
            ),
        )
    for method, sparsities in SPARSITIES.items():
        rows = sweep_run(
            FromRun(recipe, runs["dense"], cache),
            a.out / method,
            sparsities,
            TrainOptions(epochs=a.epochs),
            method=method,
        )
        print(*COLUMNS, sep="\t")
        for row in rows:
            values = [row[column] for column in COLUMNS]
            print(*(f"{v:.4g}" if isinstance(v, float) else v for v in values), sep="\t", flush=True)
        runs |= {f"{method}-{s:g}": a.out / method / f"{method}-{s:g}" for s in sparsities}
    scores = {}
    for name, run in runs.items():
        scores[name] = a.out / f"{name}.csv"
        if not scores[name].is_file():
            predict_cases(run, [data], a.out / "predictions" / name, part="test")
            evaluate_folders(a.out / "predictions" / name, data, scores[name])
    dense_bytes = read_run(runs["magnitude-0.5"]).sparsity["bytes"] / 1e6
    print(
        f"weights of the dense network {dense_bytes:.2f} MB as float32; Dice: {len(split.test)} test patients"
    )
    found = compare_scores(scores)
    for name, means in found.means.items():
        totals = read_run(runs[name]).sparsity
        size = f"gzip {totals['gzip_bytes'] / 1e6:.2f} MB" if totals else ""
        print(f"{name:16} TK {means['tk_dice'][0]:.3f} TU {means['tu_dice'][0]:.3f} {size}")


if __name__ == "__main__":
    main()
