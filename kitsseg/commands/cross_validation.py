"""kitsseg cross-validate: the folds of a recipe, and one table and report over all cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.commands.arguments import (
    AddCommand,
    add_given,
    add_layout,
    at_least,
    layout_of,
    layout_options,
    part,
)
from kitsseg.commands.training_options import (
    add_hardware,
    add_quick_start,
    options_of,
    say,
    saying_what_computes,
)
from kitsseg.errors import command_line

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from kitsseg.interfaces import Progress
    from kitsseg.workflows.cross_validate import CrossValidation, Scans

__all__ = ["add"]


def add(command: AddCommand) -> None:
    sub = command(
        "cross-validate", _cross_validate, "train the folds of a recipe, and score every case unseen"
    )
    sub.add_argument("recipe", help="NAME, NAME:practical, NAME:tiny or NAME:VARIANT")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess; its cases are divided")
    sub.add_argument("out", type=Path, help="folder for everything; the same command goes on where it was")
    sub.add_argument("--folds", type=at_least(2), default=5, help="number of folds (default: 5)")
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--fold", type=at_least(0), metavar="I", help="only this fold, from 0")
    group.add_argument(
        "--shard", type=part, metavar="I/N", help="only part I of N of the folds, I from 0, for job arrays"
    )
    sub.add_argument(
        "--data",
        type=Path,
        help="folder of the scans and their label maps: predict the cases of each fold, and score all when all folds "
        "are trained (default: train only)",
    )
    sub.add_argument("--epochs", type=at_least(1), help="epochs of every phase, instead of the recipe's")
    sub.add_argument(
        "--steps", type=at_least(1), help="steps of every epoch, instead of the recipe's: for a trial"
    )
    add_given(
        sub,
        "another value of any setting, in all folds, recorded as given by the user, such as "
        "phases.train.learning_rate=3e-4",
    )
    sub.add_argument(
        "--seed", default=0, type=at_least(0), help="of the training; the folds do not depend on it"
    )
    add_layout(sub)
    add_quick_start(sub)
    add_hardware(sub)


def _cross_validate(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from kitsseg import recipes
    from kitsseg.commands.given import with_given
    from kitsseg.runtime.console import done, progress_bar
    from kitsseg.runtime.start_keras import start_keras

    a = arguments
    # a misspelt name is told before Keras starts
    recipe = with_given(recipes.get(a.recipe), a.given, steps=a.steps)
    start_keras(trains=True)
    from kitsseg.workflows.cross_validate import Scans, score_folds, train_folds

    options = options_of(a)
    scans = None if a.data is None else Scans(a.data, layout_of(a))
    only = list(range(a.folds))
    if a.shard:
        only = only[a.shard[0] :: a.shard[1]]
    if a.fold is not None:
        only = [a.fold]
    with progress_bar("steps") as progress:
        options = replace(options, progress=saying_what_computes(progress, options), say=say)
        left = train_folds(recipe, a.cache, a.out, options, folds=a.folds, only=only, scans=scans)
    if left:
        numbers = ", ".join(map(str, left))
        done(f"{a.folds - len(left)} of {a.folds} folds are trained; not yet: {numbers}", _command(a))
    elif scans is None or len(only) < a.folds:
        done(f"all {a.folds} folds are trained", _command(a))
    else:
        _score(a, score_folds, scans)


def _command(a: argparse.Namespace) -> str:
    """The command that trains the remaining folds and scores all cases."""
    words: list[object] = ["cross-validate", a.recipe, a.cache, a.out, "--data", a.data or "DATA"]
    defaults: dict[str, object] = {"folds": 5, "epochs": None, "steps": None, "seed": 0}
    defaults |= {"precision": "float32", "accumulate": 1, "ema": None}
    defaults |= {"xla": "auto", "steps_per_execution": 1, "loaders": 1}
    for name, default in defaults.items():
        if (value := getattr(a, name)) != default:
            words += [f"--{name.replace('_', '-')}", value]
    words += layout_options(layout_of(a))
    words += ["--no-quick-start"] * a.no_quick_start
    for text in a.given:
        words += ["--set", text]
    return command_line(*words)


def _score(
    a: argparse.Namespace, score_folds: Callable[[Path, Scans, Progress], CrossValidation], scans: Scans
) -> None:
    from kitsseg.records.predictions import synthetic_among
    from kitsseg.runtime.console import console, done, print_table, progress_bar

    with progress_bar() as progress:
        result = score_folds(a.out, scans, progress)
    print_table(_table(result.folds))
    if result.summary.phantom:
        console.print("Synthetic patients: phantom results, no statement about CT scans.")
    elif mixed := synthetic_among(result.summary.synthetic, len(result.summary.cases)):
        console.print(f"{mixed} The means are over all.", markup=False)
    done(f"wrote {a.out / 'folds.csv'}, {a.out / 'scores.csv'} and {a.out / 'report.html'}")


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    heads = ("fold", "cases", "trained on", "TK", "TU", "composite")
    table = Table(*heads, title="every case by the run that never saw it")
    for row in rows:
        scores = [f"{row[name]:.4f}" for name in ("tk_dice", "tu_dice", "composite")]
        table.add_row(row["fold"], str(row["cases"]), str(row["train"]), *scores, end_section=row is rows[-2])
    return table
