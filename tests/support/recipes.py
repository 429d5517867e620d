"""Recipes cut down until they train in seconds, and what their tests share."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kitsseg import recipes
from kitsseg.data.splits import make_split
from kitsseg.recipe import Augmentation, PatchSampler, SliceSampler
from support.cases import spec_of_tests

__all__ = [
    "CASES",
    "EPOCHS",
    "MODELS",
    "SHAPE",
    "STEPS",
    "StopAt",
    "Trained",
    "check_alike",
    "micro",
    "micro_recipe_of_tests",
    "split_of_cases",
    "stages",
    "uncut",
]

CASES = tuple(f"case_{i:05d}" for i in range(5))
SHAPE = (12, 36, 40)
EPOCHS, STEPS = 2, 3
ONE = spec_of_tests()
MODELS = {
    "deeplab3d": {"input_shape": (None, None, None, 1), "width_divisor": 16},
    "enhanced_unet": {"base": 16},
    "squeeze_unet": {"input_shape": (None, None, 3), "decoder": "lite", "weights": None},
    "unet2d": {"start_filters": 4, "n_pools": 2},
    "unet3d": {"filters": (4, 8)},
    "wp_unet": {"filters": (4, 4, 8, 8, 8)},
}


def uncut(name):
    """The recipe that ``micro`` cuts down: NAME:tiny; of squeeze_unet NAME:practical, which has a frozen phase."""
    return recipes.get(f"{name}:{'practical' if name == 'squeeze_unet' else 'tiny'}")


def micro(name):
    """The recipe with its own phases, losses and schedules, but little to compute."""
    tiny, size = uncut(name), (32, 32)
    phases = []
    for number, phase in enumerate(tiny.phases):
        sampler = SliceSampler(batch_size=2, positive=1, patch_size=size)
        if isinstance(phase.sampler, PatchSampler):
            sampler = PatchSampler(cases_per_batch=1, patch_size=((16, 16, 16), (12, 12, 12))[number])
        changes = {
            "sampler": sampler,
            "augmentation": Augmentation(),
            "epochs": EPOCHS,
            "steps_per_epoch": STEPS,
        }
        if name == "squeeze_unet":
            changes |= {"validate_cases_every": 4, "steps_from": None}  # as its tiny variant
        if phase.pruning:  # the final sparsity is reached with the fourth step, in the second epoch
            changes["pruning"] = replace(phase.pruning, until=0.7, frequency=1)
        if phase.progressive:
            changes["progressive"] = replace(phase.progressive, rounds=2, patience=2, subset=0.5)
        phases.append(replace(phase, **changes))
    inference, preprocess = replace(tiny.inference, tile=None), ONE
    if tiny.inference.margin is not None:
        inference = replace(tiny.inference, tile=(16, 32, 32), margin=4)
    if name == "squeeze_unet":
        preprocess = replace(tiny.preprocess, slice_size=size)
    return replace(
        tiny,
        name=f"{name}:micro",
        preprocess=preprocess,
        model={**tiny.model, **MODELS[name]},
        phases=tuple(phases),
        inference=inference,
    )


def stages(recipe):
    """The names that the history gives to phases and rounds."""
    return [
        name
        for phase in recipe.phases
        for name in (
            [f"{phase.name}-{i}" for i in range(phase.progressive.rounds)]
            if phase.progressive
            else [phase.name]
        )
    ]


class StopAt:
    """A progress callable that interrupts at one step of the whole run; it notes the steps it has seen."""

    def __init__(self, step=None):
        self.step, self.seen, self.totals = step, [], set()

    def __call__(self, _, done, total):
        self.seen.append(done)
        self.totals.add(total)
        if done == self.step:
            raise KeyboardInterrupt


def split_of_cases():
    split = make_split(CASES)
    return replace(split, train=CASES[:3], validation=CASES[3:4], test=CASES[4:])


def check_alike(row, other, rel=1e-5, abs=1e-6):
    """Two rows of a history."""
    assert row["phase"] == other["phase"]
    one, two = ({key: row[key] for key in row if key != "phase"} for row in (row, other))
    assert one == pytest.approx(two, rel=rel, abs=abs)


def micro_recipe_of_tests(spec):
    tiny = recipes.get("unet2d:tiny")
    phase = replace(
        tiny.phases[0],
        sampler=replace(tiny.phases[0].sampler, patch_size=(32, 32)),
        epochs=3,
        steps_per_epoch=6,
        learning_rate=3e-3,
        schedule=replace(tiny.phases[0].schedule, patience=1, min_delta=10.0),
    )
    return replace(
        tiny,
        name="unet2d:micro",
        preprocess=spec,
        model={**tiny.model, "start_filters": 4, "n_pools": 2},
        phases=(phase,),
        inference=replace(tiny.inference, multiple=4),
    )


@dataclass(frozen=True)
class Trained:
    """One finished micro run that tests read and never change."""

    recipe: object
    data: Path
    cache: Path
    split: object
    run: Path
    calls: list
