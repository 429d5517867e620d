"""What a random split of slices does to a score: python benchmarks/slice_leak.py [--recipe squeeze_unet:tiny]

The same recipe is trained twice on the same synthetic patients with the same number of steps: on a random three
quarters of their slices, as several papers do, and on all of their slices. The first network is scored on the other
slices of its patients, which is what a split by slice claims. Then both are scored on the same new patients, which is
what a split by patient claims. If a split by slice claims more, the difference is memory of neighboring slices, not
skill. The package itself offers no split by slice. Each seed has patients of its own.

Phantom results: they show the size of an artefact of scoring, nothing about a network on CT of patients.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as kitsseg train

import keras

from kitsseg import open_cache, preprocess_cases, recipes
from kitsseg.data import CaseSplit, SliceBatches, batch_dataset, synthesize_cases
from kitsseg.data.sampling.batches import Draws
from kitsseg.files.atomic import atomic_path
from kitsseg.inference.scan import as_probabilities, probabilities_of
from kitsseg.recipe import Augmentation


class SomeSlices:
    """A cached case that shows only some of its slices: the way a patient gets onto both sides of a split."""

    def __init__(self, case, numbers):
        self.case, self.numbers = case, np.sort(numbers)
        self.name, self.folder, self.hu_counts = case.name, case.folder, case.hu_counts
        g = case.geometry
        self.geometry = replace(g, stop=(g.start[0] + len(self.numbers), *g.stop[1:]))
        self.kidney_area, self.tumor_area = case.kidney_area[self.numbers], case.tumor_area[self.numbers]
        self.image = case.image[self.numbers]

    def labels(self, k, rows=slice(None), columns=slice(None)):
        return self.case.labels(int(self.numbers[k]), rows, columns)


def split_slices(cases, share, rng):
    """Each case cut into a part to train on and a part to score on, slice by slice at random."""
    train, held_out = {}, {}
    for name, case in cases.items():
        order = rng.permutation(case.geometry.shape[0])
        n = round(share * len(order))
        train[name], held_out[name] = SomeSlices(case, order[:n]), SomeSlices(case, order[n:])
    return train, held_out


def train(recipe, cases, epochs, seed):
    """The recipe's phases one after the other, the same steps for any cases; no augmentation, as in the paper."""
    keras.utils.set_random_seed(seed)
    model = recipe.build_model(**recipe.model)
    split = CaseSplit("all of these", tuple(cases), (), ())
    for phase in recipe.phases:
        batches = SliceBatches(
            cases, split, "train", phase.sampler, Augmentation(), recipe.preprocess, Draws(seed=seed)
        )
        steps = (epochs or phase.epochs) * phase.steps_per_epoch
        model.compile(
            keras.optimizers.Adam(phase.learning_rate), recipe.build_loss(**recipe.loss), jit_compile=False
        )
        model.fit(batch_dataset(batches, 0, steps, recipe.build_targets), epochs=1, verbose=0, shuffle=False)
    return model


def dice(model, cases, recipe):
    """Pooled Dice over all slices of all cases: fastai's DiceMulti (background counted), kidney+tumor, tumor."""
    counts = np.zeros((3, 3))
    predict = as_probabilities(model)
    for case in cases.values():
        shape = case.geometry.shape
        planes = probabilities_of(iter(case.image), shape, predict, recipe.preprocess, recipe.inference)
        for k, plane in enumerate(planes):
            np.add.at(counts, (case.labels(k).ravel(), plane.argmax(axis=-1).ravel()), 1)
    each = [2 * counts[c, c] / (counts[c].sum() + counts[:, c].sum()) for c in range(3)]
    both = 2 * counts[1:, 1:].sum() / (counts[1:].sum() + counts[:, 1:].sum())
    return np.mean(each), both, each[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="squeeze_unet:tiny")
    parser.add_argument("--cases", type=int, default=4, help="patients to train on (default: 4)")
    parser.add_argument("--new", type=int, default=6, help="patients that no training sees (default: 6)")
    parser.add_argument("--epochs", type=int, help="epochs of every phase, instead of the recipe's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the table")
    a = parser.parse_args()
    recipe, started = recipes.get(a.recipe), time.monotonic()
    scores = []
    for seed in range(a.seeds):
        scores.append(scores_of(recipe, a.cases, a.new, a.epochs, seed))
        keras.backend.clear_session()
        print(f"seed {seed}: {np.round(scores[-1], 3).tolist()}", file=sys.stderr, flush=True)
    text = table(np.array(scores), a.cases, a.new)
    print(text, f"{time.monotonic() - started:.0f} s", sep="\n")
    if a.out:
        with atomic_path(a.out) as temporary:
            temporary.write_text(text + "\n")


def scores_of(recipe, cases, new, epochs, seed):
    """Rows: split by slice on its other slices, the same on new patients, trained on all slices on new patients."""
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder, "data"), Path(folder, "cache")
        synthesize_cases(data, cases + new, (40, 128, 128), seed)
        preprocess_cases(data, cache, recipe.preprocess)
        everything = list(open_cache(cache, recipe.preprocess).items())
        patients, others = dict(everything[:cases]), dict(everything[cases:])
        some, rest = split_slices(patients, 0.75, np.random.default_rng(seed))
        by_slice = train(recipe, some, epochs, seed)
        found = [dice(by_slice, rest, recipe), dice(by_slice, others, recipe)]
        by_patient = train(recipe, patients, epochs, seed)
        return [*found, dice(by_patient, others, recipe)]


def table(scores, cases, new):
    """Means and ranges over seeds; ``scores`` is an array (seeds, rows of scores_of, kinds of Dice)."""
    means, low, high = scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0)
    labels = (
        (f"a random 75 % of the slices of {cases} patients", "the other slices of these patients"),
        ("the same network", f"{new} new patients"),
        (f"all slices of the same {cases} patients", f"the same {new} new patients"),
    )
    lines = [
        "| trained on | scored on | fastai's DiceMulti | kidney with tumor | tumor |",
        "|---|---|---|---|---|",
    ]
    for i, words in enumerate(labels):
        cells = [f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(means[i], low[i], high[i], strict=True)]
        lines.append("| " + " | ".join([*words, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
