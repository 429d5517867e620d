"""Watch a training: the labels in its batches, scores of whole validation cases, TensorBoard, the time left.

Watching does not change the training: whole cases are labeled by a second network that gets a copy of the weights, and
no random number is drawn.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from kitsseg.data.sampling.batches import Batches
from kitsseg.errors import InputError
from kitsseg.inference.scan import Member, as_probabilities, mean_scores
from kitsseg.optimizers.ema import averaged_weights
from kitsseg.training.case_validation import CaseLog, cheap_inference, chosen_cases, is_due
from kitsseg.training.tensorboard import TensorBoardLog

if TYPE_CHECKING:
    import keras

    from kitsseg.data.cache.cases import CachedCase
    from kitsseg.data.splits import CaseSplit
    from kitsseg.recipe import InferenceSpec, Phase
    from kitsseg.training.state import Training

__all__ = ["LARGEST_SHARE", "Monitor", "WatchedBatches", "check_training_labels"]

Answer = TypeVar("Answer")
LARGEST_SHARE = 0.1  # of the time spent training, for whole cases
MANY_EPOCHS, EARLY_SHARE = 8, 0.25  # a phase of so many, of which one so early is kept, is worth a warning


def check_training_labels(
    cases: Mapping[str, CachedCase], split: CaseSplit, positive: bool = False
) -> list[str]:
    """Check before training starts that the labels hold kidney and tumor.

    Args:
        cases: dict from name to CachedCase.
        split: CaseSplit.
        positive: True if the recipe draws slices with kidney or tumor from every case.

    Returns: warnings, each a sentence.
    Raises: InputError if no training case holds kidney or tumor; with ``positive``, if any training case holds none.
    """
    found = {
        part: [cases[name] for name in getattr(split, part) if name in cases]
        for part in ("train", "validation")
    }
    kidney, tumor = (
        {part: any(getattr(case, area).any() for case in found[part]) for part in found}
        for area in ("kidney_area", "tumor_area")
    )
    n = len(found["train"])
    if n and not (kidney["train"] or tumor["train"]):
        raise InputError(
            f"{found['train'][0].folder.parent}: the labels of all {n} training cases are background; expected 1 for "
            "kidney and 2 for tumor. Look at the label maps with kitsseg verify, then preprocess them again."
        )
    said = []
    empty = [case for case in found["train"] if not (case.kidney_area.any() or case.tumor_area.any())]
    if empty:
        named = ", ".join(case.name for case in empty[:3]) + (" and others" if len(empty) > 3 else "")
        if positive:
            raise InputError(
                f"{empty[0].folder}: {len(empty)} of {n} training cases hold neither kidney nor tumor ({named}), and "
                "this recipe draws slices with kidney from every case. Look at their label maps with kitsseg verify; "
                "if they are right, train without these cases: move their folders out of the cache, or give --split a "
                "file that leaves them out."
            )
        said.append(f"{len(empty)} of {n} training cases hold neither kidney nor tumor: {named}.")
    if n and not tumor["train"]:
        said.append(f"none of the {n} training cases holds tumor (label 2): it cannot be learned.")
    if found["validation"] and not (kidney["validation"] or tumor["validation"]):
        said.append(
            "the labels of all validation cases are background: their loss and scores say nothing about kidneys."
        )
    return said


class WatchedBatches:
    """The training batches, with a record of which of them held kidney or tumor."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.form = batches, batches.form
        self.found: dict[int, bool] = {}

    def batch(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        images, labels = self.batches.batch(index)
        self.found[int(index)] = bool(labels.any())
        return images, labels

    def any_positive(self, start: int, stop: int) -> bool:
        """Whether a batch from ``start`` to ``stop`` held kidney or tumor. The record up to ``stop`` is dropped."""
        answer = any(self.found.get(index, True) for index in range(start, stop))
        for index in [index for index in self.found if index < stop]:  # later ones are drawn ahead
            del self.found[index]
        return answer


class Monitor:
    """Watches one run.

    Args:
        training: Training; its options hold the callbacks and the folder for TensorBoard.
        names: of the validation cases.
    """

    def __init__(self, training: Training, names: Iterable[str]) -> None:
        self.training, self.names, self.say = training, tuple(names), training.options.say
        tensorboard = training.options.tensorboard
        self.log = CaseLog(training.run, training.cases, training.begun)
        self.tensorboard = TensorBoardLog(tensorboard, training.history) if tensorboard else None
        self.batches: WatchedBatches | None = None
        self.pace: tuple[float, int] | None = None
        self.network: keras.Model = None
        recipe = training.recipe
        if any(
            phase.progressive or (phase.validate_cases_every or phase.epochs + 1) <= phase.epochs
            for phase in recipe.phases
        ):
            # once, as it is compiled at first use; here, before a phase sets the seed of its random numbers
            self.network = recipe.build_model(**recipe.model)
            self.predict = as_probabilities(self.network, recipe.inference.output)

    def warn(self, text: str) -> None:
        if self.say:
            self.say(f"warning: {text}")
        else:
            warnings.warn(text, stacklevel=2)

    def watch(self, batches: Batches) -> WatchedBatches:
        """Wrap the training batches of a phase. Training must draw from the batches that this returns."""
        self.batches = watched = WatchedBatches(batches)
        return watched

    def step(self, done: int) -> None:
        """Record that ``done`` steps of the run are done, from which the time left follows."""
        self.pace = self.pace or (time.monotonic(), done)

    def epoch_scores(self, model: keras.Model, phase: Phase, epoch: int) -> dict[str, float]:
        """Columns of history.csv with means over whole validation cases; empty if this epoch is not scored.

        Args:
            model: the network that is trained.
            phase: Phase.
            epoch: counted from 1.
        """
        if not is_due(phase, epoch):
            return {}
        recipe, weights = self.training.recipe, averaged_weights(model)
        names = chosen_cases(self.names, phase.validate_cases)

        def score() -> list[dict[str, Any]]:
            self.network.set_weights(weights)
            return self._score(phase.name, epoch, names, cheap_inference(recipe.inference))

        scores = mean_scores(self._outside(score))
        return {"val_case_tk_dice": scores["tk"], "val_case_tu_dice": scores["tu"]}

    def round_scores(self, name: str, epoch: int, weights: list[npt.NDArray[Any]]) -> dict[str, float]:
        """{"tk", "tu", "composite"} of all validation cases after a round, with the inference of the recipe.

        Args:
            name: of the round.
            epoch: number of the round's last epoch.
            weights: arrays of the round's weights.
        """
        self.network.set_weights(weights)
        rows = self._score(name, epoch, self.names, self.training.recipe.inference)
        scores = mean_scores(rows)
        if self.say:
            self.say(f"{name}: {_means(rows, scores['tk'], scores['tu'])}")
        if self.tensorboard:
            means = {"round_case_tk_dice": scores["tk"], "round_case_tu_dice": scores["tu"]}
            self.tensorboard.epoch(len(self.training.history), means, rows)
        return scores

    def _score(
        self, name: str, epoch: int, names: Sequence[str], inference: InferenceSpec
    ) -> list[dict[str, Any]]:
        recipe = self.training.recipe
        look = self.tensorboard.look if self.tensorboard else None
        member = Member(self.predict, recipe.preprocess, inference)
        return self.log.score(name, epoch, names, member, recipe.postprocess, look=look)

    def epoch_ended(self, phase: Phase, row: Mapping[str, Any], done: int) -> None:
        """Warn, report scores and write for TensorBoard, after an epoch was written to the history.

        Args:
            phase: Phase.
            row: of the history.
            done: steps of the run so far.
        """
        training = self.training
        steps = phase.steps_per_epoch * training.options.accumulate
        stop = row["epoch"] * steps
        if self.batches and not self.batches.any_positive(stop - steps, stop):
            self.warn(
                f"no kidney or tumor was drawn in epoch {row['epoch']} of phase {phase.name}: it taught the network "
                "background only. Look at the labels, or draw positive slices (SliceSampler.positive)."
            )
        cases = [r for r in self.log.rows if (r["phase"], r["epoch"]) == (phase.name, row["epoch"])]
        if "val_case_tk_dice" in row and self.say:
            self.say(
                f"{phase.name}, epoch {row['epoch']} of {phase.epochs}: loss {row['loss']:.3f}, validation loss "
                f"{row['val_loss']:.3f} (batches); "
                f"{_means(cases, row['val_case_tk_dice'], row['val_case_tu_dice'])}{self._left(done)}"
            )
        if tensorboard := self.tensorboard:
            self._outside(lambda: tensorboard.epoch(len(training.history), row, cases))

    def early_epoch(self, phase: Phase, kept: int, epochs: int) -> None:
        """Warn, at the end of a phase, of weights that are kept although most of the training came after them.

        A cross-entropy that grows with a few pixels of great confidence can hide that all other pixels get better.

        Args:
            phase: Phase.
            kept: number of the epoch that is kept.
            epochs: number of epochs that the phase had.
        """
        if epochs >= MANY_EPOCHS and kept <= EARLY_SHARE * epochs:
            self.warn(
                f"phase {phase.name}: the weights of epoch {kept} of {epochs} are kept, because its validation loss is "
                "the lowest. Compare the other columns of history.csv; to keep those of the last epoch, train again "
                f"with --set phases.{phase.name}.kept_epoch=last."
            )

    def finish(self) -> None:
        """Record and report the time that whole cases took, as a share of all other time."""
        if self.tensorboard:
            self.tensorboard.close()
        spent = self.training.begun.whole_case_validation
        if not spent:
            return
        training = max(time.monotonic() - self.training.started - spent.seconds, 1e-9)
        spent.share = share = round(spent.seconds / training, 4)  # one number, here and in the record
        text = f"whole validation cases took {spent.seconds:.1f} s, {share:.1%} of the {training:.1f} s of training"
        if share > LARGEST_SHARE and not any(phase.progressive for phase in self.training.recipe.phases):
            text = f"warning: {text}; that is more than a tenth. Give a larger --validate-cases-every."
        if self.say:
            self.say(text)

    def _left(self, done: int) -> str:
        """The time left at the pace of this process, as text; a phase that stops early will take less."""
        if not self.pace or done <= self.pace[1]:
            return ""
        started, first = self.pace
        seconds = (time.monotonic() - started) / (done - first) * (self.training.total_steps - done)
        if seconds < 1:
            return ""
        hours, rest = divmod(round(seconds), 3600)
        return f"; about {hours}:{rest // 60:02d}:{rest % 60:02d} left"

    def _outside(self, function: Callable[[], Answer]) -> Answer:
        """Call ``function`` in a new thread if several devices are used.

        A tf.distribute strategy is active per thread, so the new thread computes on one device.
        """
        if self.training.options.devices.count == 1:
            return function()
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function).result()


def _means(rows: Sequence[Mapping[str, Any]], tk: float, tu: float) -> str:
    cases = "whole validation case" if len(rows) == 1 else "whole validation cases"
    return f"{len(rows)} {cases}: mean TK Dice {tk:.3f}, TU {tu:.3f}"
