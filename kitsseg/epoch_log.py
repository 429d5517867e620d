"""What happens around each epoch: learning rate, history, checkpoints, progress."""

import math
import time

import keras

from kitsseg.atomic import atomic_path
from kitsseg.errors import InputError
from kitsseg.recipe import OneCycle, Plateau
from kitsseg.run import update_run, write_history
from kitsseg.schedules import one_cycle, plateau_learning_rate, plateau_stops

__all__ = ["EpochLog", "best_epoch", "checkpoint", "phase_finished"]


class EpochLog(keras.callbacks.Callback):
    """Callback of one phase.

    Args:
        training: ``kitsseg.train.Training``.
        phase: Phase.
        rows: the phase's rows of the history so far; new ones are added here and to ``training.history``.
    """

    def __init__(self, training, phase, rows):
        super().__init__()
        self.training, self.phase, self.rows, self.epoch = training, phase, rows, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.rate, schedule = epoch, self.phase.learning_rate, self.phase.schedule
        if isinstance(schedule, Plateau):
            self.rate = plateau_learning_rate(self.rate, _losses(self.rows), schedule)
        self.model.optimizer.learning_rate.assign(self.rate)

    def on_train_batch_begin(self, batch, logs=None):
        if isinstance(self.phase.schedule, OneCycle):
            steps = self.phase.steps_per_epoch
            self.rate, beta_1 = one_cycle(
                self.epoch * steps + batch,
                self.phase.epochs * steps,
                self.phase.learning_rate,
                self.phase.schedule,
            )
            self.model.optimizer.learning_rate.assign(self.rate)
            self.model.optimizer.beta_1.assign(beta_1)

    def on_train_batch_end(self, batch, logs=None):
        if self.training.progress:
            done = self.training.done_steps + self.epoch * self.phase.steps_per_epoch + batch + 1
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
        self.rows.append(row)
        training.history.append(row)
        write_history(training.run, training.history)  # from here on, this epoch has happened
        training.record["seconds"] = round(time.monotonic() - training.started, 1)
        update_run(training.run, training.record)
        keep = {path, checkpoint(training, self.phase, best_epoch(self.rows))}
        for old in path.parent.glob(f"{self.phase.name}-?????.keras"):
            if old not in keep:
                old.unlink()
        if phase_finished(self.phase, self.rows):
            self.model.stop_training = True


def checkpoint(training, phase, epoch):
    """Where the weights and the optimizer after an epoch of a phase are kept."""
    return training.checkpoints / f"{phase.name}-{epoch:05d}.keras"


def best_epoch(rows):
    """Number of the epoch with the lowest validation loss; the first of equals."""
    return min(rows, key=lambda row: row["val_loss"])["epoch"]


def phase_finished(phase, rows):
    """Whether a phase with these rows in its history has done all its epochs, or has stopped by its schedule."""
    if len(rows) >= phase.epochs:
        return True
    return isinstance(phase.schedule, Plateau) and plateau_stops(
        phase.learning_rate, _losses(rows), phase.schedule
    )


def _losses(rows):
    return [row["val_loss"] for row in rows]
