"""One training loop for every recipe: phases run in order, hand their best weights on, and can resume at each epoch.

To resume, only weights, optimizer and the masks of pruning are stored. Learning rate, best epoch, round and the
position of the sampler are computed from ``history.csv`` and ``rounds.csv``, so they cannot disagree with these files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from kitsseg.data.cache.cases import CachedCase, open_cache
from kitsseg.data.cache.parts import patients_digest
from kitsseg.data.sampling.ahead import batches_ahead
from kitsseg.data.sampling.slices import batch_dataset
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError, one_line
from kitsseg.files.archives import is_whole
from kitsseg.files.atomic import atomic_path, remove_unfinished
from kitsseg.files.checksums import sha256_of
from kitsseg.files.locks import folder_lock
from kitsseg.models.loading import misfit
from kitsseg.optimizers.ema import ValidateAverages
from kitsseg.optimizers.group_adamw import GroupAdamW
from kitsseg.pruning.sparsity import sparsity_rows, sparsity_totals, write_sparsity
from kitsseg.pruning.weights import prunable_weights
from kitsseg.recipe import GIVEN, OneCycle, PatchSampler, Recipe, changed, steps_of_epoch, value_of
from kitsseg.records.checkpoints import go_back
from kitsseg.records.model_card import write_model_card
from kitsseg.records.run import create_run, read_run, update_run
from kitsseg.runtime.execution import check_execution, computing_in
from kitsseg.runtime.memory import too_little_memory
from kitsseg.training.epoch_log import EpochLog
from kitsseg.training.epochs import (
    checkpoint,
    kept_epoch,
    needed_files,
    phase_finished,
    pruning_state,
    steps_of,
)
from kitsseg.training.monitor import Monitor, check_training_labels
from kitsseg.training.options import TrainOptions
from kitsseg.training.phase_setup import batches_of, compiled_network, pruning_of, weights_of
from kitsseg.training.progressive import best_round, read_rounds, run_rounds
from kitsseg.training.start import start_from_run
from kitsseg.training.state import Training, differences, unfinished
from kitsseg.training.tensorboard import check_folder

if TYPE_CHECKING:
    from kitsseg.recipe import Phase

__all__ = ["check_same", "train_recipe"]


def train_recipe(
    recipe: Recipe,
    cache: str | os.PathLike[str],
    split: CaseSplit,
    run: str | os.PathLike[str],
    options: TrainOptions | None = None,
) -> Path:
    """Train a recipe.

    Args:
        recipe: its phases run in order; each starts from the best weights of the one before.
        cache: folder given to ``preprocess_cases``.
        split: of cases in the cache; only its train and validation parts are read.
        run: folder for the result; must be new unless an unfinished run is resumed.
        options: TrainOptions; None: ``TrainOptions()``.

    Returns: the run folder.
    Raises: InputError for an unusable cache, split, run folder or batch size, for labels without kidney and tumor, and
        if the loss becomes NaN or infinite; the epochs before are kept then.
    """
    options = options or TrainOptions()
    recipe, one_by_one = _checked(recipe, options)
    cases = open_cache(cache, recipe.preprocess)
    for case in (cases[name] for name in (*split.train, *split.validation) if name in cases):
        # a damaged file is found here: TensorFlow's threads would hide the message
        _ = case.image, case.boxed_labels
    single_slices = _of_single_slices(recipe, cases, split)
    recipe = _with_steps_of(recipe, split, cases)
    warned = check_training_labels(
        cases, split, any(getattr(phase.sampler, "positive", 0) for phase in recipe.phases)
    )
    if options.tensorboard:
        check_folder(options.tensorboard)  # now: nothing is left behind yet
    if not options.resume:
        _check_built(recipe)
    phantom = any(cases[name].phantom for name in (*split.train, *split.validation) if name in cases)
    seed = options.seed or 0
    start = None if options.start_from is None else start_from_run(options.start_from, recipe, split, run)
    entries = options.computing | ({"parent": start.parent} if start else {}) | dict(options.entries)
    entries |= _patients(cases, split)
    warned = [*warned, *(start.warnings if start else ())]
    with (
        computing_in(options.precision),
        options.devices.own_run(run, options.resume) as own,
        _alone_in(own, options.resume, options.say),
    ):
        if options.resume:
            record, history = unfinished(own, recipe, split, seed, entries)
            for folder in (own, own / "checkpoint"):
                if folder.is_dir():
                    remove_unfinished(folder)
        else:
            where = {"phantom": phantom, "cache": str(Path(cache).resolve()), "seconds": 0}
            where |= {"single_slices": True} if single_slices else {}
            create_run(own, recipe, split, seed, where | {"devices": options.devices.count} | entries)
            record, history = read_run(own), []
        training = Training(
            recipe=recipe,
            cases=cases,
            run=own,
            seed=seed,
            options=options,
            record=record,
            history=history,
            started=time.monotonic() - record.seconds,
            start=None if start is None else start.weights,
        )
        training.checkpoints.mkdir(exist_ok=True)
        if damage := go_back(own, history, lambda rows: needed_files(recipe, own, rows)):
            warned = [*warned, damage]
        monitor = Monitor(training, split.validation)
        for text in warned:
            monitor.warn(text)
        if options.say and one_by_one:
            options.say(one_by_one)
        weights: Path | None = training.start
        steps_before = 0
        for number, phase in enumerate(recipe.phases):
            train = _train_progressively if phase.progressive else _train_phase
            with _memory_named(training, phase):
                weights = train(monitor, phase, split, seed + 1000 * number, weights, steps_before)
            steps_before += steps_of(phase)
        if weights is None:
            raise ValueError(f"{recipe.name}: expected a recipe with phases, found none.")
        _finish(monitor, weights)
        if options.when_finished and options.devices.process == 0:
            options.when_finished(own)
    return Path(run)


def check_same(
    recipe: Recipe,
    cache: str | os.PathLike[str],
    split: CaseSplit,
    run: str | os.PathLike[str],
    options: TrainOptions | None = None,
) -> None:
    """Check that a run is the one that ``train_recipe`` makes with these arguments.

    Args: as ``train_recipe``.
    Raises: InputError, naming what is different: a setting of the recipe such as the epochs, the split, the seed, the
        run that it starts from, or the patients that the names of its cases mean.
    """
    options = options or TrainOptions()
    recipe, _ = _checked(recipe, options)
    cases = open_cache(cache, recipe.preprocess)
    recipe = _with_steps_of(recipe, split, cases)
    start = None if options.start_from is None else start_from_run(options.start_from, recipe, split, run)
    entries = options.computing | {"parent": start.parent if start else None}
    entries |= dict(options.entries) | _patients(cases, split)
    if differing := differences(read_run(run), recipe, split, options.seed or 0, entries):
        raise InputError(
            f"{run}: holds a run that was made with {differing}. Choose another folder for the new run, or give the "
            "same settings as then."
        )


def _patients(cases: Mapping[str, CachedCase], split: CaseSplit) -> dict[str, str]:
    names = [name for name in (*split.train, *split.validation) if name in cases]
    return {"patients": patients_digest(cases, names)}


@contextlib.contextmanager
def _alone_in(run: Path, resume: bool, say: Callable[[str], object] | None) -> Iterator[None]:
    """Lock a run for training, so that a job that a cluster starts twice does not train it twice.

    Raises: InputError if another process trains the run, or if there is no run to resume.
    """
    if resume and not run.is_dir():
        read_run(run)  # says what is missing, before a folder is made
    with folder_lock(run, "train", wait=False, doing="training", **({"say": say} if say else {})):
        if resume:
            read_run(run)
        yield


@contextlib.contextmanager
def _memory_named(training: Training, phase: Phase) -> Iterator[None]:
    """In this block an error about too little memory becomes an InputError that names the option for less.

    Raises: InputError.
    """
    try:
        yield
    except Exception as error:
        text = too_little_memory(error)
        if text is None:
            raise
        parts = training.options.accumulate
        images, option = phase.sampler.images, "--batch-size"
        if isinstance(phase.sampler, PatchSampler):
            option = f"--set phases.{phase.name}.sampler.cases_per_batch"
        advice = "Use a machine or a GPU with more memory."
        if images > parts:
            advice = (
                f"Give kitsseg train a smaller {option}, or a larger --accumulate, which computes the same batch in "
                "more parts."
            )
        kept = f"No epoch is finished: remove {training.run}, or choose another folder."
        if training.history:
            kept = "The finished epochs are kept: where more memory is free, the same command with --resume goes on."
        raise InputError(
            f"{training.run}: not enough memory for batches of {images} images, computed in {parts} part"
            f"{'s' * (parts > 1)} ({text}). {advice} {kept}"
        ) from error


def _of_single_slices(recipe: Recipe, cases: Mapping[str, CachedCase], split: CaseSplit) -> bool:
    """Whether the training and validation cases are stacks of single slices.

    Raises: InputError if some cases are stacks and others are scans, because their scores have different meanings;
        InputError for stacks with a 3D recipe.
    """
    names = [name for name in (*split.train, *split.validation) if name in cases]
    stacks = [name for name in names if cases[name].slices]
    if stacks and recipe.is_3d:
        raise InputError(
            f"{cases[stacks[0]].folder}: expected scans for {recipe.name}, a 3D network; found single slices of "
            f"{len(stacks)} patients. Use a 2D recipe."
        )
    if stacks and len(stacks) < len(names):
        scan = next(name for name in names if not cases[name].slices)
        raise InputError(
            f"split {split.name}: expected scans or single slices, found both ({scan} and {stacks[0]}). Train on one "
            "kind, then on the other: kitsseg train --from RUN."
        )
    return bool(stacks)


def _checked(recipe: Recipe, options: TrainOptions) -> tuple[Recipe, str | None]:
    """(recipe with the epochs of the options, a sentence if the steps of a phase must be single calls, or None).

    Raises: InputError for options that do not fit the recipe.
    """
    epochs, accumulate = options.epochs, options.accumulate
    if epochs is not None:
        if epochs < 1:
            raise InputError(f"--epochs: expected at least 1, found {epochs}.")
        try:
            recipe = _given(recipe, "epochs", epochs)
        except ValueError as error:  # too short for the schedule of its pruning
            raise InputError(f"--epochs {epochs}: {error}") from error
    if options.validate_cases_every is not None:
        recipe = _validated_every(recipe, options.validate_cases_every)
    for phase in recipe.phases:
        options.devices.check(phase.sampler.images, accumulate)
        _check_schedule(recipe, phase)
    one_by_one = check_execution(recipe, options.devices, options.xla, options.steps_per_execution)
    if options.ema is not None and not 0 < options.ema < 1:
        raise InputError(f"--ema: expected a number between 0 and 1, such as 0.999; found {options.ema:g}.")
    return recipe, one_by_one


def _check_schedule(recipe: Recipe, phase: Phase) -> None:
    """Raise InputError if the schedule sets what the optimizer keeps as a number that nobody can change."""
    if not isinstance(phase.schedule, OneCycle):
        return
    optimizer = recipe.build_optimizer(phase)
    if not isinstance(optimizer, GroupAdamW):
        raise InputError(
            f"{recipe.name}, phase {phase.name}: the schedule OneCycle sets beta_1 before each step; "
            f"{type(optimizer).__name__} keeps it as it is. Use the optimizer GroupAdamW, or the schedule Plateau."
        )


def _with_steps_of(recipe: Recipe, split: CaseSplit, cases: Mapping[str, CachedCase]) -> Recipe:
    """The recipe with the steps per epoch that follow from a split's training cases, unless the user gave a number.

    Raises: InputError if a phase would then be too short for the schedule of its pruning.
    """
    slices = [cases[name].geometry.shape[0] for name in split.train if name in cases]
    changes = {}
    for phase in recipe.phases:
        name = f"phases.{phase.name}.steps_per_epoch"
        steps = steps_of_epoch(phase, slices)
        if steps != phase.steps_per_epoch and recipe.evidence.get(name) != GIVEN:
            changes[name] = steps
    source = f"inferred: the {len(slices)} training cases of the split {split.name}, {sum(slices)} slices"
    try:
        return changed(recipe, changes, dict.fromkeys(changes, source))
    except ValueError as error:
        raise InputError(f"split {split.name}: {error}") from error


def _check_built(recipe: Recipe) -> None:
    """Build network and loss once before a folder is made, to find out if weights are missing or options do not fit.

    The network must be able to compute the images of all phases, and those of a prediction.

    Raises: InputError.
    """
    try:
        model = recipe.build_model(**recipe.model)
        recipe.build_loss(**recipe.loss)
    except (InputError, FileNotFoundError) as error:  # of weights: it says where they may come from
        raise InputError(f"{recipe.name}: {error}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{recipe.name}: {one_line(error)}") from error
    for name, sizes in _images_of(recipe, tuple(model.inputs[0].shape[1:-1])):
        if text := misfit(model, (*sizes, recipe.preprocess.channels), recipe.inference.output):
            raise InputError(
                f"{recipe.name}, {name}={value_of(recipe, name)}: {text}. Give another {name}, or another network: "
                "--set model.NAME=VALUE."
            )


def _images_of(recipe: Recipe, form: tuple[int | None, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name of a setting, sizes of an image that it leads to) for training and prediction.

    Args:
        recipe: Recipe.
        form: the sizes of the images that its network takes; None where a network takes any size.
    """
    for phase in recipe.phases:
        yield f"phases.{phase.name}.sampler.patch_size", phase.sampler.patch_size
    tile, multiple = recipe.inference.tile, recipe.inference.multiple
    if tile is not None:
        yield "inference.tile", tile
        return
    # whole slices; the smallest multiples that are not smaller than a patch, and in a ratio that hides no factor
    least = -(-max(recipe.phases[0].sampler.patch_size) // multiple)
    sizes: tuple[int, ...] = (least * multiple, (least + 1) * multiple)
    if recipe.preprocess.slice_size:
        sizes = tuple(-(-size // multiple) * multiple for size in recipe.preprocess.slice_size)
    yield "inference.multiple", tuple(known or size for known, size in zip(form, sizes, strict=False))


def _finish(monitor: Monitor, weights: Path) -> None:
    """Write the files of a finished run. Its network computes in float32, whatever the precision of the training."""
    training = monitor.training
    recipe, run, record = training.recipe, training.run, training.begun
    with computing_in("float32"):
        model = recipe.build_model(**recipe.model)
    model.set_weights(weights_of(training, weights))
    with atomic_path(run / "model.keras") as temporary:
        model.save(temporary)
    record.model_sha256 = sha256_of(run / "model.keras")
    if words := recipe.phases[-1].pruning:
        pruned = prunable_weights(model, words.depthwise, words.first_last)
        rows = sparsity_rows(model, [variable for _, variable in pruned])
        write_sparsity(rows, run / "sparsity.csv")
        record.sparsity = sparsity_totals(model, rows)
        shutil.copyfile(pruning_state(weights), run / "pruning.npz")
    monitor.finish()
    record.seconds = round(time.monotonic() - training.started, 1)
    update_run(run, record)
    write_model_card(run)
    record.status = "finished"
    update_run(run, record)  # last: a run that says so is whole, whenever the process is killed
    shutil.rmtree(training.checkpoints)


def _train_phase(
    monitor: Monitor, phase: Phase, split: CaseSplit, seed: int, weights: Path | None, steps_before: int
) -> Path:
    """Train one phase, or the rest of it; returns the path of its best weights.

    Args:
        monitor: of the training.
        weights: path of the weights to start from; None: new ones.
        steps_before: steps of the run before this phase.
    """
    training = monitor.training
    rows = [row for row in training.history if row["phase"] == phase.name]
    if not phase_finished(phase, rows):
        steps = phase.steps_per_epoch * training.options.accumulate
        keras.utils.set_random_seed(seed)  # of each phase: a resumed run skips what came before
        drawn, validation = batches_of(training, phase, split, seed)
        start, stop = len(rows) * steps, phase.epochs * steps
        with (
            batches_ahead(drawn, start, stop, training.options.loaders) as made,
            training.options.devices.scope(),
        ):
            batches = monitor.watch(made)
            model = compiled_network(training, phase, rows, weights)
            targets = training.recipe.build_targets if len(model.outputs) > 1 else None
            pruning = pruning_of(training, phase, rows) if phase.pruning else None
            log = EpochLog(training, phase, rows, steps_before=steps_before, pruning=pruning, monitor=monitor)
            model.fit(
                batch_dataset(batches, start, stop, targets),
                validation_data=batch_dataset(validation, 0, len(validation), targets),
                initial_epoch=len(rows),
                epochs=phase.epochs,
                steps_per_epoch=steps,
                shuffle=False,
                verbose=0,
                callbacks=[
                    each for each in (pruning, training.options.ema and ValidateAverages(), log) if each
                ],
            )
            monitor.early_epoch(phase, kept_epoch(phase, rows), len(rows))
    return checkpoint(training.checkpoints, phase, kept_epoch(phase, rows))


def _train_progressively(
    monitor: Monitor, phase: Phase, split: CaseSplit, seed: int, weights: Path | None, steps_before: int
) -> Path:
    """Train in rounds (see Progressive); returns the path of the best weights. Args: as ``_train_phase``."""
    rounds = _Rounds(monitor, phase, split, seed, weights, steps_before)
    scores = [row["composite"] for row in read_rounds(monitor.training.run)]
    best = best_round(scores, rounds.words.min_delta)
    if best is not None and not is_whole(
        rounds.best
    ):  # the last epoch of the round that it was copied from is still there
        rounds.keep(best)
    run_rounds(rounds.words, monitor.training.run, split.train, seed, rounds.train, rounds.score, rounds.keep)
    return rounds.best


class _Rounds:
    """The rounds of one progressive phase.

    The score of a round is the mean of (TK + TU Dice) / 2 over whole validation cases, on the grid of the cache and
    with the recipe's post-processing. It decides when to stop; the official score is computed on the scan's own grid.

    Attributes:
        best: path of the best weights of the rounds so far.
    """

    def __init__(
        self,
        monitor: Monitor,
        phase: Phase,
        split: CaseSplit,
        seed: int,
        weights: Path | None,
        steps_before: int,
    ) -> None:
        if phase.progressive is None:
            raise ValueError(f"Phase {phase.name}: expected a progressive one.")
        self.words = phase.progressive
        self.monitor, self.training = monitor, monitor.training
        self.phase, self.split, self.seed = phase, split, seed
        self.weights, self.steps_before = weights, steps_before
        self.best = self.training.checkpoints / f"best-of-{phase.name}.keras"

    def train(self, number: int, subset: tuple[str, ...]) -> dict[str, Any]:
        part = self._of_round(number)
        steps = self.steps_before + number * self.phase.epochs * self.phase.steps_per_epoch
        start = self.best if self.best.exists() else self.weights
        split = replace(self.split, train=subset)
        _train_phase(self.monitor, part, split, self.seed + number, start, steps)
        row = next(row for row in reversed(self.training.history) if row["phase"] == part.name)
        return {"learning_rate": part.learning_rate, "loss": row["loss"]}

    def score(self, number: int) -> Mapping[str, float]:
        weights = weights_of(self.training, self._last_epoch(number))
        name = self._of_round(number).name
        scores = self.monitor.round_scores(name, self.phase.epochs, weights)
        return self.training.options.devices.agreed(scores)

    def keep(self, number: int) -> None:
        with atomic_path(self.best) as temporary:
            shutil.copyfile(self._last_epoch(number), temporary)

    def _of_round(self, number: int) -> Phase:
        rate = self.phase.learning_rate * self.words.round_decay**number
        name = f"{self.phase.name}-{number}"
        return replace(self.phase, name=name, learning_rate=rate, progressive=None, kept_epoch="last")

    def _last_epoch(self, number: int) -> Path:
        return checkpoint(self.training.checkpoints, self._of_round(number), self.phase.epochs)


def _validated_every(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with another number of epochs between scores of whole validation cases; 0: never score them."""
    if epochs < 0:
        raise InputError(f"--validate-cases-every: expected at least 0, found {epochs}.")
    return _given(recipe, "validate_cases_every", epochs or None)


def _given(recipe: Recipe, name: str, value: Any) -> Recipe:
    """The recipe with one setting of all its phases as the user gave it."""
    names = [f"phases.{phase.name}.{name}" for phase in recipe.phases]
    return changed(recipe, dict.fromkeys(names, value), dict.fromkeys(names, GIVEN))
