"""One training loop for every recipe: its phases in order, the best weights handed on, resumable after each epoch.

Nothing but weights and optimizer is stored to resume: learning rate, best epoch and the position of the sampler
all follow from ``history.csv``, so they cannot disagree with it.
"""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import keras

from kitsseg.data.cache import open_cache
from kitsseg.data.nifti import atomic_path
from kitsseg.data.slices import SliceBatches, ValidationSlices, slice_dataset
from kitsseg.errors import InputError
from kitsseg.run import create_run, read_history, read_run, update_run, versions, write_history

__all__ = ["best_epoch", "plateau_learning_rate", "train_recipe"]


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
    checkpoints = run / "checkpoint"
    checkpoints.mkdir(exist_ok=True)
    started = time.monotonic() - record["seconds"]

    previous = None
    for number, phase in enumerate(recipe.phases):
        rows = [row for row in history if row["phase"] == phase.name]
        if len(rows) < phase.epochs:
            model = _model(recipe, phase, checkpoints, rows, previous)
            training = SliceBatches(
                cases,
                split,
                "train",
                phase.sampler,
                phase.augmentation,
                recipe.preprocess,
                seed=seed + 1000 * number,
            )
            validation = ValidationSlices(cases, split, "validation", phase.sampler, recipe.preprocess)
            log = _EpochLog(run, phase, history, record, started, _steps_of(recipe, number), progress)
            model.fit(
                slice_dataset(
                    training, len(rows) * phase.steps_per_epoch, phase.epochs * phase.steps_per_epoch
                ),
                validation_data=slice_dataset(validation, 0, len(validation)),
                initial_epoch=len(rows),
                epochs=phase.epochs,
                steps_per_epoch=phase.steps_per_epoch,
                shuffle=False,
                verbose=0,
                callbacks=[log],
            )
        previous = _checkpoint(
            checkpoints, phase, best_epoch([r for r in history if r["phase"] == phase.name])
        )

    model = recipe.build_model(**recipe.model)
    model.set_weights(keras.models.load_model(previous, compile=False).get_weights())
    with atomic_path(run / "model.keras") as temporary:
        model.save(temporary)
    update_run(run, record | {"status": "finished", "seconds": round(time.monotonic() - started, 1)})
    for path in checkpoints.glob("*.keras"):
        path.unlink()
    checkpoints.rmdir()
    return run


def plateau_learning_rate(learning_rate, losses, plateau):
    """Learning rate of the epoch that follows these validation losses.

    The same as ``keras.callbacks.ReduceLROnPlateau`` would have set, but a function of the history alone.

    Args:
        learning_rate: of the first epoch. losses: validation loss of each epoch so far. plateau: Plateau or None.
    """
    if plateau is None:
        return learning_rate
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - plateau.min_delta:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= plateau.patience:
            learning_rate, waited = max(learning_rate * plateau.factor, plateau.min_learning_rate), 0
    return learning_rate


def best_epoch(rows):
    """Number of the epoch with the lowest validation loss; the first of equals."""
    return min(rows, key=lambda row: row["val_loss"])["epoch"]


class _EpochLog(keras.callbacks.Callback):
    """Progress, learning rate, history and checkpoints of one phase."""

    def __init__(self, run, phase, history, record, started, steps, progress):
        super().__init__()
        self.run, self.phase, self.history, self.record, self.started = run, phase, history, record, started
        self.before, self.total = steps
        self.progress, self.epoch = progress, 0

    @property
    def rows(self):
        return [row for row in self.history if row["phase"] == self.phase.name]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        losses = [row["val_loss"] for row in self.rows]
        rate = plateau_learning_rate(self.phase.learning_rate, losses, self.phase.plateau)
        self.model.optimizer.learning_rate.assign(rate)
        self.rate = rate

    def on_train_batch_end(self, batch, logs=None):
        if self.progress:
            done = self.before + self.epoch * self.phase.steps_per_epoch + batch + 1
            text = (
                f"{self.phase.name}, epoch {self.epoch + 1} of {self.phase.epochs}, loss {logs['loss']:.3f}"
            )
            self.progress(text, done, self.total)

    def on_epoch_end(self, epoch, logs=None):
        logs = {key: float(value) for key, value in logs.items()}
        for key in ("loss", "val_loss"):
            if not math.isfinite(logs[key]):
                raise InputError(
                    f"{self.run}: {key} is {logs[key]} in epoch {epoch + 1} of phase {self.phase.name}. "
                    "Start again with a lower learning rate or another seed."
                )
        path = _checkpoint(self.run / "checkpoint", self.phase, epoch + 1)
        with atomic_path(path) as temporary:
            self.model.save(temporary)
        self.history.append({"phase": self.phase.name, "epoch": epoch + 1, "learning_rate": self.rate} | logs)
        write_history(self.run, self.history)  # from here on, this epoch has happened
        self.record["seconds"] = round(time.monotonic() - self.started, 1)
        update_run(self.run, self.record)
        keep = {path, _checkpoint(path.parent, self.phase, best_epoch(self.rows))}
        for old in path.parent.glob(f"{self.phase.name}-*.keras"):
            if old not in keep:
                old.unlink()


def _model(recipe, phase, checkpoints, rows, previous):
    """The compiled network: as the last checkpoint left it, or with the best weights of the phase before."""
    if rows:
        path = _checkpoint(checkpoints, phase, rows[-1]["epoch"])
        try:
            return keras.models.load_model(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: missing or damaged checkpoint ({error}). Start the run again."
            ) from error
    model = recipe.build_model(**recipe.model)
    if previous is not None:
        model.set_weights(keras.models.load_model(previous, compile=False).get_weights())
    _compile(model, recipe.build_optimizer(phase.learning_rate), recipe.build_loss(**recipe.loss))
    return model


def _compile(model, optimizer, loss):
    # TensorFlow's XLA makes separable networks 13 times slower on a CPU, and older Keras turns it on by itself
    on_cpu = keras.config.backend() == "tensorflow" and not keras.distribution.list_devices("gpu")
    model.compile(optimizer, loss, jit_compile=False if on_cpu else "auto")


def _checkpoint(folder, phase, epoch):
    return folder / f"{phase.name}-{epoch:05d}.keras"


def _steps_of(recipe, number):
    steps = [phase.epochs * phase.steps_per_epoch for phase in recipe.phases]
    return sum(steps[:number]), sum(steps)


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
