"""What happens around each epoch: learning rate, history, checkpoints, progress."""

import math
import time

import keras

from kitsseg.atomic import atomic_path
from kitsseg.errors import InputError
from kitsseg.recipe import OneCycle, Plateau
from kitsseg.run import update_run, write_history
from kitsseg.schedules import one_cycle, plateau_learning_rate, plateau_stops

__all__ = ["EpochLog", "best_epoch", "checkpoint", "phase_finished", "pruning_state"]


class EpochLog(keras.callbacks.Callback):
    """Callback of one phase.

    Args:
        training: ``kitsseg.train.Training``.
        phase: Phase.
        rows: the phase's rows of the history so far; new ones are added here and to ``training.history``.
        pruning: PruneLowMagnitude of the phase, or None; it comes before this one in the list of callbacks.
    """

    def __init__(self, training, phase, rows, pruning=None):
        super().__init__()
        self.training, self.phase, self.rows, self.pruning, self.epoch = training, phase, rows, pruning, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.rate, schedule = epoch, self.phase.learning_rate, self.phase.schedule
        if isinstance(schedule, Plateau):
            self.rate = plateau_learning_rate(self.rate, _losses(self.rows), schedule)
        self.model.optimizer.learning_rate.assign(self.rate)

    def on_train_batch_begin(self, batch, logs=None):
        if isinstance(self.phase.schedule, OneCycle):
            if batch % self.training.accumulate:  # a further part of the same batch
                return
            steps = self.phase.steps_per_epoch
            self.rate, beta_1 = one_cycle(
                self.epoch * steps + batch // self.training.accumulate,
                self.phase.epochs * steps,
                self.phase.learning_rate,
                self.phase.schedule,
            )
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()  # or fit on JAX would not see what is assigned within an epoch
            self.model.optimizer.learning_rate.assign(self.rate)
            # where the loss is scaled, the optimizer is wrapped in another
            getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer).beta_1.assign(beta_1)

    def on_train_batch_end(self, batch, logs=None):
        accumulate = self.training.accumulate
        if self.training.progress and (batch + 1) % accumulate == 0:
            done = self.training.done_steps + self.epoch * self.phase.steps_per_epoch
            done += (batch + 1) // accumulate
            text = (
                f"{self.phase.name}, epoch {self.epoch + 1} of {self.phase.epochs}, loss {logs['loss']:.3f}"
            )
            self.training.progress(text, done, self.training.total_steps)

    def on_epoch_end(self, epoch, logs=None):
        training = self.training
        logs = {key: float(value) for key, value in logs.items()}
        for key in ("loss", "val_loss"):
            if not math.isfinite(logs[key]):
                raise InputError(
                    f"{training.run}: {key} is {logs[key]} in epoch {epoch + 1} of phase {self.phase.name}. "
                    "Start again with a lower learning rate or another seed."
                )
        path = checkpoint(training, self.phase, epoch + 1)
        with atomic_path(path) as temporary:
            self.model.save(temporary)
        row = {"phase": self.phase.name, "epoch": epoch + 1, "learning_rate": self.rate} | logs
        if self.pruning:
            self.pruning.save(pruning_state(path))
            row["sparsity"] = self.pruning.sparsity
        self.rows.append(row)
        training.history.append(row)
        write_history(training.run, training.history)  # from here on, this epoch has happened
        training.record["seconds"] = round(time.monotonic() - training.started, 1)
        update_run(training.run, training.record)
        keep = {path, checkpoint(training, self.phase, best_epoch(self.rows, self.phase.first_choice))}
        for old in path.parent.glob(f"{self.phase.name}-?????.keras"):
            if old not in keep:
                old.unlink()
                pruning_state(old).unlink(missing_ok=True)
        if phase_finished(self.phase, self.rows):
            self.model.stop_training = True


def checkpoint(training, phase, epoch):
    """Where the weights and the optimizer after an epoch of a phase are kept."""
    return training.checkpoints / f"{phase.name}-{epoch:05d}.keras"


def pruning_state(path):
    """Where the masks that belong to a checkpoint are kept."""
    return path.with_suffix(".npz")


def best_epoch(rows, first=1):
    """Number of the epoch with the lowest validation loss, the first of equals.

    Args:
        rows: of a phase, at least one.
        first: earlier epochs are out of the question; as long as there is none but those, the last one is taken.
    """
    return min([row for row in rows if row["epoch"] >= first] or rows[-1:], key=lambda row: row["val_loss"])[
        "epoch"
    ]


def phase_finished(phase, rows):
    """Whether a phase with these rows in its history has done all its epochs, or has stopped by its schedule."""
    if len(rows) >= phase.epochs:
        return True
    return (
        isinstance(phase.schedule, Plateau)
        and len(rows) >= phase.first_choice
        and plateau_stops(phase.learning_rate, _losses(rows), phase.schedule)
    )


def _losses(rows):
    return [row["val_loss"] for row in rows]
