"""What all phases of one training share, and what an unfinished run is checked for before it goes on."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.records.run import read_history, read_run, versions
from kitsseg.runtime.devices import ONE_DEVICE, Devices
from kitsseg.training.epoch_log import needed_checkpoints, phase_finished, pruning_state
from kitsseg.training.progressive import read_rounds

__all__ = ["Training", "needed_files", "steps_of", "unfinished"]


@dataclass
class Training:
    """What all phases of one run share.

    Attributes:
        started: when training would have started, by ``time.monotonic``, had it never been interrupted.
        monitor: Monitor of the run.
        ema: momentum of the averages of the weights; None: there are none.
        start: file of the weights that the first phase starts from; None: random ones.
    """

    recipe: object
    cases: dict
    split: object
    run: Path
    seed: int
    record: dict
    history: list
    started: float
    progress: object
    precision: str = "float32"
    accumulate: int = 1
    devices: Devices = ONE_DEVICE
    monitor: object = None
    ema: float | None = None
    xla: str = "auto"
    steps_per_execution: int = 1
    start: Path | None = None

    @property
    def checkpoints(self):
        return self.run / "checkpoint"

    @property
    def total_steps(self):
        return sum(steps_of(phase) for phase in self.recipe.phases)


def steps_of(phase):
    """Training steps of a phase, of all its rounds together."""
    rounds = phase.progressive.rounds if phase.progressive else 1
    return rounds * phase.epochs * phase.steps_per_epoch


def needed_files(training, history):
    """Files without which training cannot go on after these rows of the history.

    Of the last phase in it: its best epoch, and its last one unless it is over. Of a round: its last epoch, unless the
    round is over: the loop of the rounds sees to what those have left.
    """
    name = history[-1]["phase"]
    for phase in training.recipe.phases:
        number = name.removeprefix(f"{phase.name}-")
        if phase.progressive and number != name and number.isdecimal():
            over = int(number) < len(read_rounds(training.run))
            return [] if over else needed_checkpoints(training, replace(phase, name=name), history[-1:])[:1]
        if name == phase.name:
            rows = [row for row in history if row["phase"] == name]
            files = needed_checkpoints(training, phase, rows)[phase_finished(phase, rows) :]
            return [*files, *map(pruning_state, files)] if phase.pruning else files
    return []


def unfinished(run, recipe, split, seed, details):
    """Record and history of the run to go on with.

    Raises: InputError for a finished run, and for one that was started with something else.
    """
    record = read_run(run)
    if record["status"] == "finished":
        if (Path(run) / "model.keras").is_file():
            shutil.rmtree(
                Path(run) / "checkpoint", ignore_errors=True
            )  # the process was killed at its very end
        raise InputError(f"{run}: this run has finished; there is nothing to resume. Choose another folder.")
    for key, expected, found in (
        ("recipe", record["settings"], json.loads(json.dumps(recipe.as_dict()))),
        ("split", record["split"]["hash"], split.hash),
        ("seed", record["seed"], seed),
        *((key, record.get(key), value) for key, value in details.items()),
    ):
        if expected != found:
            raise InputError(
                f"{run}: this run was started with another {key} than the one given; resuming would mix the two. "
                f"Give the same options as then, such as --epochs, --set, --split and --seed, or choose another folder."
            )
    if record["versions"] != versions():
        record = record | {"versions_resumed": versions()}
    return record, read_history(run)
