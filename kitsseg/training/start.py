"""Start a training from the network of another run instead of random weights."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.paths import relative_path
from kitsseg.models.loading import read_network
from kitsseg.recipe import Recipe
from kitsseg.records.networks import finished_run
from kitsseg.records.run import Parent, RunRecord, seen_patients

__all__ = ["Start", "start_from_run"]

PLAIN = ("preprocess", "loss")


@dataclass(frozen=True)
class Start:
    """The network of another run.

    Attributes:
        weights: the file of its weights.
        parent: the entry about it in the new ``run.json``.
        warnings: sentences for the user.
    """

    weights: Path
    parent: Parent
    warnings: tuple[str, ...]


def start_from_run(
    run: str | os.PathLike[str], recipe: Recipe, split: CaseSplit, out: str | os.PathLike[str]
) -> Start:
    """Check that a training can start from a run's weights, and that the run has not seen the patients of its scores.

    Args:
        run: folder of a finished run.
        recipe: of the new training; its network must have the same weights, one by one.
        split: of the new training. The run must not have been trained on its validation or test patients, and its
            best epoch must not have been chosen by its test patients.
        out: folder of the new training.

    Raises: InputError for an unfinished run, another network, and patients that the run has seen.
    """
    network = finished_run(run)
    record, weights = network.record, network.source
    _check_same_network(weights, record, recipe, run)
    seen = seen_patients(record)
    # both runs may choose epochs by the same validation patients, but neither may be trained on them, and test
    # patients may not have decided anything
    for part, deciding in (("validation", seen["train"]), ("test", seen["train"] | seen["validation"])):
        if known := sorted(deciding & set(getattr(split, part))):
            raise InputError(
                f"--from {run}: this run has seen {len(known)} of the {part} patients of split {split.name}, such as "
                f"{known[0]}; their scores would be too high. Give a split that keeps these patients apart, such as "
                f"--split {Path(run) / 'split.json'}"
            )
    found = []
    for key in PLAIN:
        if record.settings[key] != recipe.as_dict()[key]:
            found.append(
                f"--from {run}: it was trained with other {key} settings than {recipe.name} has now: "
                f"{_difference(record.settings[key], recipe.as_dict()[key])}."
            )
    parent = Parent(
        how="train",
        run=relative_path(run, out),
        recipe=record.recipe,
        model_sha256=sha256_of(weights),
        phantom=bool(record.phantom),
        patients={part: sorted(names) for part, names in seen.items()},
    )
    return Start(weights, parent, tuple(found))


def _check_same_network(
    weights: Path, record: RunRecord, recipe: Recipe, run: str | os.PathLike[str]
) -> None:
    theirs = _shapes(read_network(weights, advice="Train that run again."))
    # pretrained weights change no shape, and would be downloaded
    options = {key: None if key == "weights" else value for key, value in recipe.model.items()}
    ours = _shapes(recipe.build_model(**options))
    if ours == theirs:
        return
    expected, found = next(
        (
            (_described(ours, name), _described(theirs, name))
            for name in (*ours, *theirs)
            if ours.get(name) != theirs.get(name)
        ),
        ("its weights in this order", "another order"),
    )
    raise InputError(
        f"--from {run}: expected the network of {recipe.name}, with {expected}; found that of {record.recipe}, with "
        f"{found}. Start from a run of the same network, size and number of classes."
    )


def _shapes(model: keras.Model) -> dict[str, tuple[int, ...]]:
    return {variable.path: tuple(variable.shape) for variable in model.weights}


def _described(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return f"{name} {shapes[name]}" if name in shapes else f"no {name}"


def _difference(theirs: Any, ours: Any) -> str:
    """The first setting that differs."""
    for key in dict.fromkeys((*theirs, *ours)):
        if theirs.get(key) != ours.get(key):
            return f"{key} {theirs.get(key)}, now {ours.get(key)}"
    return "the same values in another order"
