"""What a random split of slices does to a score: python benchmarks/slice_leak.py [--recipe squeeze_unet:tiny]

The same recipe is trained twice on the same synthetic patients with the same number of steps: once on a random three
quarters of all slices, as several papers do, once on all slices of three quarters of the patients. Each network
is scored on the slices that its split leaves out, and then on new patients. If the split by slice claims a higher score
than that on new patients, the difference is memory of neighboring slices, not skill. The package itself offers no split
by slice.

Phantom results: they show the size of an artefact of scoring, nothing about a network on CT of patients.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

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
    parser.add_argument("--cases", type=int, default=4, help="patients to split")
    parser.add_argument("--new", type=int, default=6, help="patients that neither training sees")
    parser.add_argument("--epochs", type=int, help="epochs of every phase, instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the table")
    a = parser.parse_args()
    recipe, started = recipes.get(a.recipe), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        synthesize_cases(folder / "data", a.cases + a.new, (40, 128, 128), a.seed)
        preprocess_cases(folder / "data", folder / "cache", recipe.preprocess)
        everything = open_cache(folder / "cache", recipe.preprocess)
        cases = dict(list(everything.items())[: a.cases])
        new = dict(list(everything.items())[a.cases :])
        some, rest = split_slices(cases, 0.75, np.random.default_rng(a.seed))
        by_case = dict(list(cases.items())[: round(0.75 * a.cases)])
        others = {name: case for name, case in cases.items() if name not in by_case}
        rows = [
            "| trained on | scored on | fastai's DiceMulti | kidney with tumor | tumor |",
            "|---|---|---|---|---|",
        ]
        for name, part, held_out, words in (
            ("a random 75 % of all slices", some, rest, "the other slices of the same patients"),
            (
                f"all slices of {len(by_case)} of the {a.cases} patients",
                by_case,
                others,
                "the patients left out",
            ),
        ):
            model = train(recipe, part, a.epochs, a.seed)
            for trained, where, scored in (
                (name, words, held_out),
                ("the same network", f"{a.new} new patients", new),
            ):
                scores = " | ".join(f"{value:.3f}" for value in dice(model, scored, recipe))
                rows.append(f"| {trained} | {where} | {scores} |")
        print(*rows, f"{time.monotonic() - started:.0f} s", sep="\n")
        if a.out:
            with atomic_path(a.out) as temporary:
                temporary.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
