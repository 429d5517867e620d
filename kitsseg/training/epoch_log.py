"""Callback for the beginning and the end of each epoch: learning rate, history, checkpoints, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.optimizers.schedules import one_cycle, plateau_learning_rate
from kitsseg.recipe import OneCycle, Plateau
from kitsseg.records.checkpoints import check_there
from kitsseg.records.run import update_run, write_history
from kitsseg.training.epochs import checkpoint, losses_of, needed_checkpoints, phase_finished, pruning_state

if TYPE_CHECKING:
    from kitsseg.pruning.callback import PruneLowMagnitude
    from kitsseg.recipe import Phase
    from kitsseg.training.monitor import Monitor
    from kitsseg.training.state import Training

__all__ = ["EpochLog"]


class EpochLog(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
    """Callback of one phase.

    Args:
        training: ``kitsseg.training.state.Training``.
        phase: Phase.
        rows: the phase's rows of the history so far; new ones are added here and to ``training.history``.
        steps_before: steps of the run in the phases and rounds before this one.
        pruning: PruneLowMagnitude of the phase, or None; it comes before this one in the list of callbacks.
        monitor: Monitor of the run, or None.

    Raises: InputError from ``fit`` at the first step whose loss is NaN or infinite.
    """

    def __init__(
        self,
        training: Training,
        phase: Phase,
        rows: list[dict[str, Any]],
        *,
        steps_before: int = 0,
        pruning: PruneLowMagnitude | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        super().__init__()
        self.training, self.phase, self.rows, self.pruning, self.epoch = training, phase, rows, pruning, 0
        self.steps_before, self.monitor = steps_before, monitor

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.epoch, self.rate, schedule = epoch, self.phase.learning_rate, self.phase.schedule
        if isinstance(schedule, Plateau):
            self.rate = plateau_learning_rate(self.rate, losses_of(self.rows), schedule)
        self.model.optimizer.learning_rate.assign(self.rate)
        _seed_dropout(self.model, (self.training.seed, *self.phase.name.encode(), epoch))

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if isinstance(self.phase.schedule, OneCycle):
            if batch % self.training.options.accumulate:  # a further part of the same batch
                return
            steps = self.phase.steps_per_epoch
            self.rate, beta_1 = one_cycle(
                self.epoch * steps + batch // self.training.options.accumulate,
                self.phase.epochs * steps,
                self.phase.learning_rate,
                self.phase.schedule,
            )
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()  # or fit on JAX would not see what is assigned within an epoch
            self.model.optimizer.learning_rate.assign(self.rate)
            # where the loss is scaled, the optimizer is wrapped in another
            getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer).beta_1.assign(beta_1)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        accumulate, loss = self.training.options.accumulate, float((logs or {})["loss"])
        step = batch // accumulate + 1
        if not math.isfinite(loss):  # it is the mean of the epoch so far: this step is the first
            until = "by" if self.model.steps_per_execution > accumulate else "at"
            self._stop("loss", loss, f", {until} step {step} of {self.phase.steps_per_epoch}")
        if (batch + 1) % accumulate == 0:
            done = self.steps_before + self.epoch * self.phase.steps_per_epoch + step
            if self.monitor:
                self.monitor.step(done)
            if self.training.options.progress:
                text = f"{self.phase.name}, epoch {self.epoch + 1} of {self.phase.epochs}, loss {loss:.3f}"
                self.training.options.progress(text, done, self.training.total_steps)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        training = self.training
        logs = {key: float(value) for key, value in (logs or {}).items()}
        for key in ("loss", "val_loss"):
            if not math.isfinite(logs[key]):
                self._stop(key, logs[key], ", at its end")
        check_there(training.run)
        path = checkpoint(training.checkpoints, self.phase, epoch + 1)
        with atomic_path(path) as temporary:
            self.model.save(temporary)
        row = {"phase": self.phase.name, "epoch": epoch + 1, "learning_rate": self.rate} | logs
        if self.pruning:
            self.pruning.save(pruning_state(path))
            row["sparsity"] = self.pruning.sparsity
        if self.monitor:
            row |= self.monitor.epoch_scores(self.model, self.phase, epoch + 1)
        self.rows.append(row)
        training.history.append(row)
        write_history(training.run, training.history)  # from here on, this epoch has happened
        training.begun.seconds = round(time.monotonic() - training.started, 1)
        update_run(training.run, training.begun)
        # of the epoch before as well: the newest file may turn out to be damaged
        keep = {
            file
            for rows in (self.rows, self.rows[:-1])
            for file in needed_checkpoints(training.checkpoints, self.phase, rows)
        }
        for old in path.parent.glob(f"{self.phase.name}-?????.keras"):
            if old not in keep:
                old.unlink()
                pruning_state(old).unlink(missing_ok=True)
        if self.monitor:
            done = self.steps_before + (epoch + 1) * self.phase.steps_per_epoch
            self.monitor.epoch_ended(self.phase, row, done)
        if phase_finished(self.phase, self.rows):
            self.model.stop_training = True

    def _stop(self, name: str, value: float, where: str) -> None:
        kept = "No epoch was finished before."
        if self.rows:
            last = checkpoint(self.training.checkpoints, self.phase, self.rows[-1]["epoch"])
            kept = f"The last epoch before it is kept: {last}."
        raise InputError(
            f"{self.training.run}: {name} is {value} in epoch {self.epoch + 1} of phase {self.phase.name}{where}. "
            f"{kept} Start again with a lower learning rate or another seed."
        )


def _seed_dropout(model: keras.Model, key: Sequence[int]) -> None:
    """Set the random state of dropout from the number of the epoch, because Keras does not save it with a network."""
    for i, layer in enumerate(model.layers):
        if generator := getattr(layer, "seed_generator", None):
            # 31 bits: JAX takes uint32, TensorFlow int64
            seed = np.random.SeedSequence((*key, i)).generate_state(1)[0] >> 1
            generator.state.assign(np.array([seed, 0], generator.state.dtype))
