"""Options of a training that do not belong to the recipe: how it is computed and watched."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitsseg.interfaces import Progress
from kitsseg.runtime.devices import ONE_DEVICE, Devices

__all__ = ["Progress", "TrainOptions"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training; the same for ``train_recipe``, fine-tuning, folds and the command line.

    Attributes:
        seed: of the initial weights and of the sampling. None: 0; if a run is pruned or shrunk, the seed of the run.
        epochs: epochs of every phase, instead of the recipe's.
        resume: go on with an unfinished run. All options except for ``loaders``, ``devices``, ``xla``,
            ``steps_per_execution``, ``tensorboard``, ``progress`` and ``say`` must be the same as when the run was
            started.
        start_from: folder of a finished run of the same network: the first phase starts from its weights instead of
            random ones. ``run.json`` and the model card record this.
        precision: one of ``kitsseg.runtime.execution.PRECISIONS``; the saved network is always of float32.
        accumulate: number of equal parts in which each batch is computed, one after the other, if a whole batch does
            not fit into the memory of the device. Batch normalization, and sums over the batch in a loss, then go over
            one part.
        ema: momentum, such as 0.999, of an average of the weights over the steps. The average is validated, kept and
            handed on instead of the weights (``kitsseg.optimizers.ema``). None: no averages.
        xla: "on" or "off": compile the steps with XLA or not; "auto": Keras decides on a GPU, and XLA is off on a CPU
            with TensorFlow, where it would take 2 to 13 times as long.
        steps_per_execution: number of steps in one call. More than one is possible only if nothing is set before each
            step (see ``kitsseg.runtime.execution``).
        loaders: number of processes that make the batches (``kitsseg.data.sampling.ahead``); 1: this process makes
            them. The batches are the same. With more, a script must train under ``if __name__ == "__main__":``.
        devices: result of ``kitsseg.runtime.devices.use_devices``. Several processes must get the same options.
        validate_cases_every: score whole validation cases every so many epochs of every phase, instead of the
            recipe's number; 0: never.
        tensorboard: folder for TensorBoard; may be another one, or None, when a run is resumed.
        progress: called as progress(description, done, total) in training steps.
        say: called as say(text) with scores of whole validation cases, the time left and warnings; without it
            only warnings are given, by ``warnings``.
        entries: further entries of ``run.json``, which a resumed run must share.
        when_finished: called with the folder of the finished run, while no other process trains it.
    """

    seed: int | None = None
    epochs: int | None = None
    resume: bool = False
    start_from: str | os.PathLike[str] | None = None
    precision: str = "float32"
    accumulate: int = 1
    ema: float | None = None
    xla: str = "auto"
    steps_per_execution: int = 1
    loaders: int = 1
    devices: Devices = ONE_DEVICE
    validate_cases_every: int | None = None
    tensorboard: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    say: Callable[[str], object] | None = None
    entries: Mapping[str, Any] = field(default_factory=dict)
    when_finished: Callable[[Path], object] | None = None

    @property
    def computing(self) -> dict[str, Any]:
        """The options that change the result, as ``run.json`` names them."""
        return {"precision": self.precision, "accumulate": self.accumulate, "ema": self.ema}
