"""Prune a phantom-trained run of every recipe: python benchmarks/prune_all.py OUT [--patients 16] [--epochs N] ...

For the tiny variant of each of the five recipes: trains a dense run on synthetic patients, prunes it as
``kitsseg prune RUN CACHE OUT --sparsity 0.5`` does, checks that every pruned kernel reaches the sparsity on the step
that the schedule says and not before, and scores both runs on patients that none has seen. What is in OUT already is
kept: a stopped call goes on. With KERAS_BACKEND=jax the same dense runs are pruned and scored on JAX; the table shows
the rows of both backends.

Phantom results: they show that pruning works and what it costs here, nothing about CT of patients.
"""

import argparse
import csv
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from kitsseg import (
    evaluate_folders,
    make_split,
    open_cache,
    predict_cases,
    preprocess_cases,
    prune_run,
    recipes,
    train_recipe,
)
from kitsseg.data import synthesize_cases
from kitsseg.files.atomic import atomic_path
from kitsseg.models import read_network
from kitsseg.pruning import PruneLowMagnitude
from kitsseg.pruning.masks import n_kept
from kitsseg.pruning.weights import prunable_weights
from kitsseg.records.run import read_history, read_run
from kitsseg.scoring import read_scores
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun

# how many weights more than the rule says a mask may keep: some of a million float32 weights are equal, and all weights
# that equal the threshold are kept, as in tfmot
TIES = 3
PAPERS = ("unet2d", "wp_unet", "squeeze_unet", "enhanced_unet", "deeplab3d")
COLUMNS = ("recipe", "backend", "target", "reached", "at step", "scheduled", "TK before", "TK after", "TU before",
           "TU after")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=16, help="a quarter of them are scored")
    parser.add_argument(
        "--epochs", type=int, help="of each phase of the dense training (default: the recipe's)"
    )
    parser.add_argument("--prune-epochs", type=int, help="of the pruning (default: that of kitsseg prune)")
    parser.add_argument("--steps", type=int, help="of each epoch (default: the recipe's)")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--only", nargs="*", choices=PAPERS, default=PAPERS, metavar="RECIPE")
    a = parser.parse_args()
    if not (a.out / "data").is_dir():
        synthesize_cases(a.out / "data", a.patients, (40, 128, 128))
    for name in a.only:
        row = prune_recipe(name, a)
        with atomic_path(a.out / name / f"row-{backend()}.json") as temporary:
            temporary.write_text(json.dumps(row))
        print(*row.values(), sep="\t", flush=True)
    print_table(
        [
            json.loads(path.read_text())
            for name in PAPERS
            for path in sorted((a.out / name).glob("row-*.json"))
        ]
    )


def backend():
    return keras.config.backend()


def prune_recipe(name, a):
    """Train, prune, check and score one recipe; returns its row of the table."""
    tiny = recipes.get(f"{name}:tiny")
    # wp_unet prunes by itself in a second phase, which is left out
    phases = [phase for phase in tiny.phases if not phase.pruning]
    if a.steps:
        phases = [replace(phase, steps_per_epoch=a.steps) for phase in phases]
    recipe = replace(tiny, phases=tuple(phases))
    cache, folder = a.out / "cache", a.out / name
    preprocess_cases(a.out / "data", cache, recipe.preprocess)
    split = make_split(open_cache(cache, recipe.preprocess), (0.6, 0.15, 0.25))
    dense, pruned = folder / "dense", folder / f"pruned-{backend()}"
    if not (dense / "model.keras").is_file():
        train_recipe(
            recipe, cache, split, dense, TrainOptions(epochs=a.epochs, resume=(dense / "run.json").is_file())
        )
    drawn = folder / f"drawn-{backend()}.csv"
    if not (pruned / "model.keras").is_file():
        resume = (pruned / "run.json").is_file()
        if not resume:
            drawn.unlink(missing_ok=True)
        with Watched(drawn):
            prune_run(
                FromRun(recipe, dense, cache),
                pruned,
                a.sparsity,
                TrainOptions(epochs=a.prune_epochs, resume=resume),
            )
    step, scheduled, reached = check(pruned, drawn, a.sparsity)
    before, after = (score(run, a.out / "data") for run in (dense, pruned))
    values = (name, backend(), a.sparsity, reached, step, scheduled, before[0], after[0], before[1], after[1])
    return dict(zip(COLUMNS, values, strict=True))


class Watched:
    """Note each drawing of masks: step, sparsity, least share of zeros of a mask, and whether all masks are exact."""

    def __init__(self, path):
        self.path, self.draw = path, PruneLowMagnitude._draw

    def __enter__(self):
        def draw(pruning, sparsity):
            self.draw(pruning, sparsity)
            left = [1 - float(mask.mean()) for mask in pruning.masks]
            exact = all(0 <= mask.sum() - n_kept(mask.size, sparsity) <= TIES for mask in pruning.masks)
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow([pruning.step, float(sparsity), min(left), int(exact)])

        PruneLowMagnitude._draw = draw

    def __exit__(self, *_):
        PruneLowMagnitude._draw = self.draw


def check(pruned, drawn, sparsity):
    """Compare what happened with the schedule; returns (step of the target, the scheduled one, share of zeros).

    Raises: AssertionError where they differ.
    """
    words = read_run(pruned).settings["phases"][0]
    frequency, steps = words["pruning"]["frequency"], words["epochs"] * words["steps_per_epoch"]
    scheduled = int(words["pruning"]["until"] * steps)
    scheduled -= scheduled % frequency
    with drawn.open(newline="") as file:  # an epoch that was stopped and done again is there twice
        rows = {int(row[0]): list(map(float, row[1:])) for row in csv.reader(file)}
    assert sorted(rows) == list(range(frequency, scheduled + 1, frequency)), (
        f"{pruned}: drawn at {sorted(rows)}"
    )
    for step, (wanted, _, exact) in rows.items():
        assert exact, f"{pruned}: step {step}: a mask does not keep what the rule says"
        assert (abs(wanted - sparsity) < 1e-6) == (step == scheduled), f"{pruned}: step {step}: {wanted}"
    for row in read_history(pruned):
        at_target = row["epoch"] * words["steps_per_epoch"] >= scheduled
        assert (row["sparsity"] > sparsity - 0.005) == at_target, (
            f"{pruned}: epoch {row['epoch']}: {row['sparsity']}"
        )
    network = read_network(pruned / "model.keras")
    zeros = size = 0
    for layer, variable in prunable_weights(network):
        values = keras.ops.convert_to_numpy(variable)
        found = values.size - np.count_nonzero(values)
        expected = values.size - n_kept(values.size, sparsity)
        assert found == expected, (
            f"{pruned}: {layer.name}: {found} zeros of {values.size}, expected {expected}"
        )
        zeros, size = zeros + found, size + values.size
    return max(rows), scheduled, zeros / size


def score(run, data):
    """Mean TK and TU Dice of the run's test patients, on the scans' own voxels."""
    scores = run.parent / f"{run.name}.csv"
    if not scores.is_file():
        predictions = run.parent / f"predictions-{run.name}"
        predict_cases(run, [data], predictions, part="test")
        evaluate_folders(predictions, data, scores)
    rows, _ = read_scores(scores)
    return [float(np.mean([row[key] for row in rows])) for key in ("tk_dice", "tu_dice")]


def print_table(rows):
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
