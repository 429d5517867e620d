"""One training loop for every recipe: its phases in order, the best weights handed on, resumable after each epoch.

Nothing but weights and optimizer is stored to resume: learning rate, best epoch, round and the position of the
sampler all follow from ``history.csv`` and ``rounds.csv``, so they cannot disagree with them.
"""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from kitsseg.atomic import atomic_path
from kitsseg.data.cache import open_cache
from kitsseg.data.patches import PatchBatches, ValidationPatches
from kitsseg.data.slices import SliceBatches, ValidationSlices, slice_dataset
from kitsseg.epoch_log import EpochLog, best_epoch, checkpoint, phase_finished
from kitsseg.errors import InputError
from kitsseg.networks import read_network
from kitsseg.optimizers import freeze
from kitsseg.predict import as_probabilities, score_cached_cases
from kitsseg.progressive import run_rounds
from kitsseg.recipe import PatchSampler
from kitsseg.run import create_run, read_history, read_run, update_run, versions

__all__ = ["train_recipe"]


@dataclass
class Training:
    """What all phases of one run share."""

    recipe: object
    cases: dict
    split: object
    run: Path
    seed: int
    record: dict
    history: list
    started: float
    progress: object
    done_steps: int = 0

    @property
    def checkpoints(self):
        return self.run / "checkpoint"

    @property
    def total_steps(self):
        return sum(_steps(phase) for phase in self.recipe.phases)


def train_recipe(recipe, cache, split, run, seed=0, epochs=None, resume=False, progress=None):
    """Train a recipe.

    Args:
        recipe: Recipe. Its phases run in order; each starts from the best weights of the one before.
        cache: folder given to ``preprocess_cases``.
        split: CaseSplit of cases in the cache. Only its train and validation parts are read here.
        run: folder for the result; new, unless ``resume``.
        seed: of the initial weights and of the sampling.
        epochs: epochs of every phase, instead of the recipe's.
        resume: go on with an unfinished run; recipe, split and seed must be those it was started with.
        progress: called as progress(description, done, total) in training steps.

    Returns: the run folder.
    Raises: InputError for an unusable cache, split or run folder, or when the loss is no longer a number.
    """
    if epochs is not None:
        if epochs < 1:
            raise InputError(f"--epochs: expected at least 1, found {epochs}.")
        recipe = replace(recipe, phases=tuple(replace(phase, epochs=epochs) for phase in recipe.phases))
    cases = open_cache(cache, recipe.preprocess)
    for case in (cases[name] for name in (*split.train, *split.validation) if name in cases):
        # a damaged file is found here: TensorFlow's threads would bury what is said of it
        _ = case.image, case.boxed_labels
    run = Path(run)
    if resume:
        record, history = _unfinished(run, recipe, split, seed)
    else:
        phantom = any(cases[name].phantom for name in (*split.train, *split.validation) if name in cases)
        create_run(
            run, recipe, split, seed, {"phantom": phantom, "cache": str(Path(cache).resolve()), "seconds": 0}
        )
        record, history = read_run(run), []
    keras.utils.set_random_seed(seed)
    started = time.monotonic() - record["seconds"]
    training = Training(recipe, cases, split, run, seed, record, history, started, progress)
    training.checkpoints.mkdir(exist_ok=True)

    weights = None
    for number, phase in enumerate(recipe.phases):
        train = _train_progressively if phase.progressive else _train_phase
        weights = train(training, phase, split, seed + 1000 * number, weights)
        training.done_steps += _steps(phase)

    model = recipe.build_model(**recipe.model)
    model.set_weights(_load(weights).get_weights())
    with atomic_path(run / "model.keras") as temporary:
        model.save(temporary)
    update_run(run, record | {"status": "finished", "seconds": round(time.monotonic() - started, 1)})
    shutil.rmtree(training.checkpoints)
    return run


def _train_phase(training, phase, split, seed, weights):
    """Train one phase, or what is left of it; returns the path of its best weights."""
    rows = [row for row in training.history if row["phase"] == phase.name]
    if not phase_finished(phase, rows):
        recipe = training.recipe
        model = _compiled(training, phase, rows, weights)
        batches, validation = _batches(training, phase, split, seed)
        log = EpochLog(training, phase, rows)
        model.fit(
            slice_dataset(
                batches,
                len(rows) * phase.steps_per_epoch,
                phase.epochs * phase.steps_per_epoch,
                recipe.build_targets,
            ),
            validation_data=slice_dataset(validation, 0, len(validation), recipe.build_targets),
            initial_epoch=len(rows),
            epochs=phase.epochs,
            steps_per_epoch=phase.steps_per_epoch,
            shuffle=False,
            verbose=0,
            callbacks=[log],
        )
    return checkpoint(training, phase, best_epoch(rows))


def _train_progressively(training, phase, split, seed, weights):
    """Train in rounds (see Progressive); returns the path of the best weights.

    The score of a round is the mean of (TK + TU Dice) / 2 over whole validation cases, on the grid of the cache and
    with the recipe's post-processing: a stopping rule, not the official score, which is that of the scan's own grid.
    """
    best = training.checkpoints / f"best-of-{phase.name}.keras"
    last = None

    def of_round(number):
        rate = phase.learning_rate * phase.progressive.round_decay**number
        return replace(phase, name=f"{phase.name}-{number}", learning_rate=rate, progressive=None)

    def train_round(number, subset):
        nonlocal last
        part, offset = of_round(number), number * phase.epochs * phase.steps_per_epoch
        training.done_steps += offset
        _train_phase(
            training, part, replace(split, train=subset), seed + number, best if best.exists() else weights
        )
        training.done_steps -= offset
        last = checkpoint(training, part, phase.epochs)
        row = next(row for row in reversed(training.history) if row["phase"] == part.name)
        return {"learning_rate": part.learning_rate, "loss": row["loss"]}

    def score_round():
        cases = [training.cases[name] for name in split.validation]
        recipe = training.recipe
        return score_cached_cases(
            cases, as_probabilities(_load(last)), recipe.preprocess, recipe.inference, recipe.postprocess
        )

    def keep_round(number):
        with atomic_path(best) as temporary:
            shutil.copyfile(last, temporary)

    run_rounds(phase.progressive, training.run, split.train, seed, train_round, score_round, keep_round)
    return best


def _batches(training, phase, split, seed):
    spec = training.recipe.preprocess
    kinds = (
        (PatchBatches, ValidationPatches)
        if isinstance(phase.sampler, PatchSampler)
        else (SliceBatches, ValidationSlices)
    )
    return (
        kinds[0](training.cases, split, "train", phase.sampler, phase.augmentation, spec, seed=seed),
        kinds[1](training.cases, split, "validation", phase.sampler, spec),
    )


def _compiled(training, phase, rows, weights):
    """The network: as the last checkpoint left it, or with the weights of the phase before."""
    recipe = training.recipe
    if rows:
        return _load(checkpoint(training, phase, rows[-1]["epoch"]), compile=True)
    model = recipe.build_model(**recipe.model)
    if weights is not None:
        model.set_weights(_load(weights).get_weights())
    freeze(model, phase.rate_factors)
    loss, loss_weights = recipe.build_loss(**recipe.loss), None
    if isinstance(loss, tuple):
        loss, loss_weights = loss
    # TensorFlow's XLA makes separable networks 13 times slower on a CPU, and older Keras turns it on by itself
    on_cpu = keras.config.backend() == "tensorflow" and not keras.distribution.list_devices("gpu")
    optimizer = recipe.build_optimizer(phase)
    optimizer.build(model.trainable_variables)  # now: a schedule sets beta_1 before the first step
    model.compile(
        optimizer,
        loss,
        loss_weights=loss_weights,
        jit_compile=False if on_cpu else "auto",
    )
    return model


def _load(path, compile=False):
    try:
        return read_network(path, compile)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: missing or damaged checkpoint ({error}). Start the run again.") from error


def _steps(phase):
    rounds = phase.progressive.rounds if phase.progressive else 1
    return rounds * phase.epochs * phase.steps_per_epoch


def _unfinished(run, recipe, split, seed):
    """Record and history of the run to go on with."""
    record = read_run(run)
    if record["status"] == "finished":
        raise InputError(f"{run}: this run has finished; there is nothing to resume. Choose another folder.")
    for key, expected, found in (
        ("recipe", record["settings"], json.loads(json.dumps(recipe.as_dict()))),
        ("split", record["split"]["hash"], split.hash),
        ("seed", record["seed"], seed),
    ):
        if expected != found:
            raise InputError(
                f"{run}: this run was started with another {key} than the one given; resuming would mix the two. "
                f"Give the same --epochs, --split and --seed, or choose another folder."
            )
    if record["versions"] != versions():
        record = record | {"versions_resumed": versions()}
    return record, read_history(run)
