"""Fine-tune a finished run: change its network, such as by pruning, and train it into a new run.

The new run records the run from which it started.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from kitsseg.data.splits import load_split
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.json_records import as_builtins
from kitsseg.files.paths import relative_path
from kitsseg.models.loading import read_network
from kitsseg.recipe import Phase, Recipe, settings
from kitsseg.records.networks import FinishedRun, finished_run
from kitsseg.records.run import Parent, RunRecord, seen_patients
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe

__all__ = ["FromRun", "check_recipe", "fine_tune", "last_phase", "network_of"]


@dataclass(frozen=True)
class FromRun:
    """A finished run that another training starts from; it is not changed.

    Attributes:
        recipe: the Recipe that the run was trained with.
        run: its folder.
        cache: folder given to ``preprocess_cases``.
    """

    recipe: Recipe
    run: str | os.PathLike[str]
    cache: str | os.PathLike[str]


def check_recipe(recipe: Recipe, record: RunRecord, run: str | os.PathLike[str]) -> None:
    """Raise InputError unless a run was trained with this recipe, whose cache and loss the fine-tuning uses.

    Args:
        recipe: Recipe.
        record: of the run.
        run: its folder, for the message.
    """
    ours = as_builtins(recipe.as_dict())
    for key in ("preprocess", "model", "loss"):
        if ours[key] != record.settings[key]:
            raise InputError(
                f"{run}: it was trained with other {key} settings than those of {recipe.name} in this version of "
                f"kitsseg: found {record.settings[key]}, expected {ours[key]}. Train again, or use "
                f"kitsseg {record.kitsseg}."
            )


def last_phase(recipe: Recipe) -> Phase:
    """The phase that a fine-tuning repeats: the recipe's last one that does not prune."""
    return [phase for phase in recipe.phases if not phase.pruning][-1]


def network_of(run: FinishedRun) -> keras.Model:
    """The network of a finished run, for more training.

    Raises: InputError as ``read_network``, also for a network of another form than the run's record says.
    """
    return read_network(run.source, shape=run.image_shape, output=run.inference.output)


def fine_tune(
    origin: FromRun,
    out: str | os.PathLike[str],
    phase: Phase,
    build_model: Callable[[], keras.Model],
    command: str,
    options: TrainOptions,
) -> Path:
    """Train one phase from the network that ``build_model`` makes, with the split and the seed of the run.

    Args:
        origin: the finished run, its recipe and cache.
        out: folder for the new run, which predict, evaluate and report take like any other.
        phase: ``last_phase(recipe)`` with changed settings.
        build_model: returns the network to start from; called again at the end and on resuming.
        command: the kitsseg command that fine-tunes, recorded as the evidence of the phase's settings.
        options: TrainOptions; its epochs must be those of the phase.

    Returns: ``out``.
    Raises: InputError for a run that is unfinished or of another recipe, and as ``train_recipe``.
    """
    recipe, run = origin.recipe, origin.run
    network = finished_run(run)
    check_recipe(recipe, network.record, run)
    base = last_phase(recipe)
    tuned = replace(recipe, phases=(phase,), build_model=lambda **_: build_model())
    evidence = {key: text for key, text in recipe.evidence.items() if not key.startswith("phases.")}
    for key, value in settings(tuned):
        if key.startswith(f"phases.{phase.name}.") and value is not None and value != ():
            before = f"phases.{base.name}.{key.removeprefix(f'phases.{phase.name}.')}"
            evidence[key] = recipe.evidence.get(before, f"ours: given to kitsseg {command}")
    for name in ("epochs", "learning_rate"):
        if getattr(phase, name) != getattr(base, name):
            evidence[f"phases.{phase.name}.{name}"] = f"ours: given to kitsseg {command}"
    parent = Parent(run=relative_path(run, out), recipe=recipe.name, model_sha256=sha256_of(network.source))
    if (
        network.record.parent and network.record.parent.patients
    ):  # others than those of the split, which stays
        seen = {part: sorted(names) for part, names in seen_patients(network.record).items()}
        parent = replace(parent, patients=seen)
    seed = network.record.seed if options.seed is None else options.seed
    entries = {"parent": parent, **options.entries}
    return train_recipe(
        replace(tuned, evidence=evidence),
        origin.cache,
        load_split(Path(run) / "split.json"),
        out,
        replace(options, seed=seed, epochs=None, entries=entries),
    )
