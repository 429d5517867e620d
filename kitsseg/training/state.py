"""The state that all phases of one training share, and the checks of an unfinished run before it goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kitsseg.data.cache.cases import CachedCase
from kitsseg.data.splits import CaseSplit
from kitsseg.errors import InputError
from kitsseg.files.atomic import remove_unfinished
from kitsseg.files.json_records import as_builtins
from kitsseg.recipe import Recipe
from kitsseg.records.run import RunRecord, read_history, read_run, versions
from kitsseg.training.epochs import checkpoints_of, steps_of
from kitsseg.training.options import TrainOptions

__all__ = ["Training", "clear_up", "differences", "unfinished"]


@dataclass(kw_only=True)
class Training:
    """The state that all phases of one run share.

    Attributes:
        recipe: Recipe with the epochs of the options.
        cases: name -> CachedCase.
        run: the folder that this process writes to.
        seed: of the initial weights and of the sampling.
        options: TrainOptions.
        record: content of ``run.json``.
        history: rows of ``history.csv``.
        started: ``time.monotonic`` at which training would have started without interruptions.
        start: file of the weights that the first phase starts from; None: random weights.
    """

    recipe: Recipe
    cases: dict[str, CachedCase] = field(default_factory=dict)
    run: Path = Path()
    seed: int = 0
    options: TrainOptions = field(default_factory=TrainOptions)
    record: RunRecord | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    started: float = 0.0
    start: Path | None = None

    @property
    def begun(self) -> RunRecord:
        """The record of a training that has begun.

        Raises: ValueError if the training has not begun.
        """
        if self.record is None:
            raise ValueError(f"{self.run}: this training has no record yet.")
        return self.record

    @property
    def checkpoints(self) -> Path:
        return checkpoints_of(self.run)

    @property
    def total_steps(self) -> int:
        return sum(steps_of(phase) for phase in self.recipe.phases)


def _settings_as_in(record: RunRecord, recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe in the form of the kitsseg version that began the run."""
    settings: dict[str, Any] = as_builtins(recipe.as_dict())
    if settings["postprocess"] and "kind" not in (record.settings.get("postprocess") or {}):
        del settings["postprocess"]["kind"]
    for phase, before in zip(settings["phases"], record.settings["phases"], strict=False):
        for key in [key for key, value in phase.items() if value is None and key not in before]:
            del phase[key]  # a setting that this version added, which leaves the phase as it was
    return settings


def clear_up(run: str | os.PathLike[str]) -> None:
    """Remove files that a process left in a finished run because it was killed at the end of training."""
    if (Path(run) / "model.keras").is_file():
        shutil.rmtree(checkpoints_of(Path(run)), ignore_errors=True)
    remove_unfinished(run)


def unfinished(
    run: str | os.PathLike[str], recipe: Recipe, split: CaseSplit, seed: int, details: Mapping[str, Any]
) -> tuple[RunRecord, list[dict[str, Any]]]:
    """Record and history of an unfinished run, after a check that it was started with the same arguments.

    Args:
        run: folder of the run.
        recipe, split, seed, details: as in ``create_run``.

    Raises: InputError for a finished run, and for a run that was started with other arguments.
    """
    record = read_run(run)
    if record.status == "finished":
        clear_up(run)
        raise InputError(f"{run}: this run has finished; there is nothing to resume. Choose another folder.")
    if differing := differences(record, recipe, split, seed, details):
        raise InputError(
            f"{run}: this run was started with {differing}; resuming would mix different options. "
            f"Give the same options as before, such as --epochs, --set, --split and --seed, or choose another folder."
        )
    if record.versions != versions():
        record.versions_resumed = versions()
    return record, read_history(run)


def differences(
    record: RunRecord, recipe: Recipe, split: CaseSplit, seed: int, details: Mapping[str, Any]
) -> str | None:
    """The differences between a run and the arguments of this call, in words; None if there is none.

    Args:
        record: of the run.
        recipe, split, seed, details: as in ``create_run``.
    """
    for key, then, now in (
        ("recipe", _values(record.settings), _values(_settings_as_in(record, recipe))),
        ("split", record.split.hash, split.hash),
        ("seed", record.seed, seed),
        *((key, getattr(record, key), value) for key, value in details.items()),
    ):
        if then == now:
            continue
        if key == "recipe":
            said = "; ".join(_changed(then, now, "")[:3]) if record.recipe == recipe.name else record.recipe
            return f"another {key} than the one given ({said})"
        if key == "patients":
            return "other patients of the same names than those given (other scans, or phantoms)"
        return f"another {key} than the one given ({then}, now {now})"
    return None


def _values(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without their evidence, because a user may give the recipe's own value, which is no difference."""
    return {key: value for key, value in settings.items() if key != "evidence"}


def _changed(then: Any, now: Any, name: str) -> list[str]:
    """The settings that differ, each as "name: then, now"."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*then, *now])
        return [
            text
            for key in keys
            for text in _changed(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            text
            for i, pair in enumerate(zip(then, now, strict=True))
            for text in _changed(*pair, f"{name}[{i}]")
        ]
    return [] if then == now else [f"{name} was {then}, is {now}"]
