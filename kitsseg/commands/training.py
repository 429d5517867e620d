"""Commands that make networks: kitsseg train, prune, shrink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kitsseg.commands.arguments import AddCommand, add_given, at_least, batch_size, share, shares
from kitsseg.commands.training_options import (
    add_hardware,
    add_quick_start,
    add_watching,
    options_of,
    quick_start,
    say,
    saying_what_computes,
)
from kitsseg.errors import InputError, command_line

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from kitsseg.data.splits import CaseSplit
    from kitsseg.recipe import Recipe
    from kitsseg.training.options import TrainOptions

__all__ = ["add", "choose_split", "train_on"]

# sparsity and schedule
PRESETS = {"paper": (0.5, "one-shot"), "fast": (0.8, "polynomial")}


def add(command: AddCommand) -> None:
    sub = command("train", _train, "train a recipe on cached cases")
    sub.add_argument("recipe", help="NAME, NAME:practical, NAME:tiny or NAME:VARIANT")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess")
    sub.add_argument("run", type=Path, help="new folder for the run")
    sub.add_argument("--epochs", type=at_least(1), help="epochs of every phase, instead of the recipe's")
    sub.add_argument(
        "--steps", type=at_least(1), help="steps of every epoch, instead of the recipe's: for a trial"
    )
    sub.add_argument(
        "--batch-size",
        metavar="N",
        type=batch_size,
        help="slices in a batch, instead of the recipe's; another number changes the training (--accumulate does not)",
    )
    add_given(
        sub,
        "another value of any setting, recorded as given by the user, such as phases.train.learning_rate=3e-4 or "
        "model.n_pools=4",
    )
    sub.add_argument(
        "--split",
        help="a split file or a named split (default: the paper's split if all 210 cases of KiTS19 are available, "
        "else 80/10/10 of the available cases)",
    )
    sub.add_argument(
        "--seed",
        default=0,
        type=at_least(0),
        help="of the initial weights and of the sampling; the split does not depend on it (default: 0)",
    )
    sub.add_argument(
        "--from",
        dest="start_from",
        type=Path,
        metavar="RUN",
        help="start from the weights of a finished run of the same network, as for fine-tuning",
    )
    sub.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    add_quick_start(sub)
    add_watching(sub)
    add_hardware(sub)

    sub = command("prune", _prune, "zero the smallest weights of a finished run while it is trained on")
    sub.add_argument("run", type=Path, help="folder of a finished run of any recipe; it is not changed")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess")
    sub.add_argument("out", type=Path, help="new folder for the pruned run")
    sub.add_argument(
        "--sparsity",
        type=shares,
        help="share of zeros in each pruned matrix, such as 0.8; several such as 0.5,0.8 make a table of them in OUT",
    )
    sub.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="paper: all at once, as the WP-UNet paper says, and half of the weights, which is our reading: the paper "
        "states no share; fast: 80 %%, step by step",
    )
    sub.add_argument(
        "--schedule",
        choices=("polynomial", "one-shot"),
        help="step by step (default), or all at the first step",
    )
    sub.add_argument(
        "--method",
        choices=("magnitude", "block", "channel"),
        default="magnitude",
        help="block: neighboring output channels of 1x1 convolutions together; channel, for a table only: whole "
        "channels, as kitsseg shrink (default: single weights)",
    )
    sub.add_argument("--block", type=int, choices=(2, 4), help="channels in a block (default: 2)")
    sub.add_argument("--epochs", type=at_least(1), help="epochs of fine-tuning (default: 20)")
    sub.add_argument("--resume", action="store_true", help="go on with an unfinished pruning")
    add_quick_start(sub)

    sub = command("shrink", _shrink, "remove whole channels from a finished run's network, then train on")
    sub.add_argument("run", type=Path, help="folder of a finished run of any recipe; it is not changed")
    sub.add_argument("cache", type=Path, help="folder given to kitsseg preprocess")
    sub.add_argument("out", type=Path, help="new folder for the smaller run")
    sub.add_argument(
        "--keep",
        type=share,
        help="share of the channels of every layer that stays, such as 0.5; multiply-adds go with its square "
        "(default: only channels whose weights are all zero are removed)",
    )
    sub.add_argument(
        "--by",
        choices=("magnitude", "batch_norm", "random"),
        default="magnitude",
        help="rank channels by their weights (default), by the scales of their batch normalization, or at random: the "
        "baseline of both",
    )
    sub.add_argument(
        "--multiple",
        type=at_least(1),
        default=8,
        help="leave a multiple of so many channels, which CPUs compute fastest (default: 8)",
    )
    sub.add_argument("--epochs", type=at_least(1), help="epochs of fine-tuning (default: 20)")
    sub.add_argument("--resume", action="store_true", help="go on with an unfinished fine-tuning")
    add_quick_start(sub)


def _train(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes
    from kitsseg.commands.given import with_given
    from kitsseg.runtime.start_keras import start_keras

    a = arguments
    # before Keras, whose import takes seconds: a misspelt name or a missing cache is told at once
    recipe = with_given(recipes.get(a.recipe), a.given, steps=a.steps, batch_size=a.batch_size)
    split = choose_split(a.cache, recipe, a.split)
    start_keras(trains=True)
    options = options_of(a)
    train_on(recipe, a.cache, split, a.run, options)


def _prune(arguments: argparse.Namespace) -> None:
    a = arguments
    if (a.sparsity is None) == (a.preset is None):
        raise InputError(
            "prune: give --sparsity, such as --sparsity 0.8, or --preset paper or --preset fast."
        )
    if a.preset and a.schedule:
        raise InputError("prune: a preset has its own schedule; give --sparsity with --schedule instead.")
    if a.block and a.method != "block":
        raise InputError("prune: --block goes with --method block.")
    several = a.sparsity and len(a.sparsity) > 1
    if several and (a.schedule or a.resume):
        raise InputError(
            "prune: a table of sparsities has its own schedule and resumes by itself. Omit --schedule and --resume."
        )
    if a.method == "channel" and not several:
        raise InputError(
            "prune: --method channel needs several values of --sparsity; for one use kitsseg shrink."
        )
    from kitsseg import recipes
    from kitsseg.records.run import read_run, read_sparsity
    from kitsseg.runtime.console import console, print_table, progress_bar
    from kitsseg.runtime.start_keras import start_keras

    recipe = recipes.of_record(read_run(a.run), a.run / "run.json")
    start_keras(trains=True)
    if several:
        _sweep(recipe, a)
        return
    from kitsseg.training.options import TrainOptions
    from kitsseg.workflows.fine_tune import FromRun
    from kitsseg.workflows.prune import prune_run

    sparsity, schedule = PRESETS[a.preset] if a.preset else (a.sparsity[0], a.schedule or "polynomial")
    block = (a.block or 2) if a.method == "block" else None
    with progress_bar() as progress:
        options = TrainOptions(
            epochs=a.epochs, resume=a.resume, progress=progress, when_finished=quick_start(a)
        )
        origin = FromRun(recipe, a.run, a.cache)
        prune_run(origin, a.out, sparsity, options, schedule=schedule, block=block)
    record = read_run(a.out)
    print_table(_sparsity_table(read_sparsity(a.out)))
    if record.sparsity is not None:
        console.print(_sparsity_line(record.sparsity))
    _say_made(f"pruned {recipe.name}", a.out, record.split.cases.test)


def _sweep(recipe: Recipe, a: argparse.Namespace) -> None:
    from rich.table import Table

    from kitsseg.runtime.console import console, done, print_table, progress_bar
    from kitsseg.training.options import TrainOptions
    from kitsseg.workflows.fine_tune import FromRun
    from kitsseg.workflows.sweep import sweep_run

    with progress_bar() as progress:
        options, origin = TrainOptions(epochs=a.epochs, progress=progress), FromRun(recipe, a.run, a.cache)
        rows = sweep_run(origin, a.out, a.sparsity, options, method=a.method, block=a.block or 2)
    table = Table("network", "zeros", "parameters", "not zero", "gzip", "G multiply-adds", "ms", "TK", "TU")
    for row in rows:
        table.add_row(
            row["network"],
            f"{row['sparsity']:.1%}",
            f"{row['parameters']:,}",
            f"{row['nonzero_parameters']:,}",
            f"{row['gzip_mb']:.2f} MB",
            f"{row['effective_mac'] / 1e9:.3f}",
            f"{row['milliseconds']:.1f}",
            f"{row['tk']:.3f}",
            f"{row['tu']:.3f}",
        )
    print_table(table)
    console.print(
        "Dice: validation cases on the grid of the cache. No engine here skips zeros of single weights."
    )
    done(f"wrote {a.out / 'sweep.csv'}")


def _shrink(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes
    from kitsseg.records.run import read_run
    from kitsseg.runtime.console import console, progress_bar
    from kitsseg.runtime.start_keras import start_keras

    a = arguments
    recipe = recipes.of_record(read_run(a.run), a.run / "run.json")
    start_keras(trains=True)
    from kitsseg.training.options import TrainOptions
    from kitsseg.workflows.fine_tune import FromRun
    from kitsseg.workflows.shrink import shrink_run

    with progress_bar() as progress:
        options = TrainOptions(
            epochs=a.epochs, resume=a.resume, progress=progress, when_finished=quick_start(a)
        )
        origin = FromRun(recipe, a.run, a.cache)
        shrink_run(origin, a.out, a.keep, options, by=a.by, multiple=a.multiple)
    record = read_run(a.out)
    if record.shrink is not None:
        before, after = record.shrink.parameters_before, record.shrink.parameters
        console.print(f"{after:,} of {before:,} parameters are left ({after / before:.1%})")
    _say_made(f"shrunk {recipe.name}", a.out, record.split.cases.test)


def _sparsity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each weight matrix."""
    from rich.table import Table

    table = Table("weights", "shape", "pruned", "size", "zeros", "sparsity")
    for row in rows:
        numbers = (f"{row['size']:,}", f"{row['zeros']:,}", f"{row['sparsity']:.1%}")
        table.add_row(row["weights"], row["shape"], row["pruned"], *numbers)
    return table


def _sparsity_line(totals: Mapping[str, Any]) -> str:
    return (
        f"{totals['nonzero_parameters']:,} of {totals['parameters']:,} parameters are not zero "
        f"({totals['sparsity']:.1%} zeros in what was pruned); weights {totals['bytes'] / 1e6:.2f} MB, "
        f"{totals['gzip_bytes'] / 1e6:.2f} MB with gzip"
    )


def choose_split(
    cache: Path, recipe: Recipe, name: str | None, fractions: tuple[float, float, float] | None = None
) -> CaseSplit:
    """The split of a training: the named split, the split of the paper if all its cases are available, or a new one.

    It does not depend on the seed of the training, so that runs with different seeds can be compared.

    Args:
        cache: folder given to ``preprocess_cases``.
        recipe: Recipe.
        name: of a split of the package, or path of a split file; None: the paper's split or a new one.
        fractions: of the available cases for training, validation and test; None: the paper's split if it fits, else
            80/10/10.
    """
    from kitsseg.data.cache.cases import open_cache
    from kitsseg.data.splits import load_split, make_split
    from kitsseg.runtime.console import console, warning

    cases = open_cache(cache, recipe.preprocess)
    missing: list[str] = []
    papers = load_split(recipe.split) if recipe.split and fractions is None else None
    if name:
        split = load_split(name)
        try:
            split, missing = split.among(cases)
        except InputError as error:
            raise InputError(f"--split {name}: {error}") from error
    elif papers and set(cases) == {*papers.train, *papers.validation, *papers.test}:
        split = papers
        console.print(f"all of KiTS19 is at hand: the split of {recipe.name} ({split.source})")
    else:
        split = make_split(cases, fractions or (0.8, 0.1, 0.1))
    counts = "/".join(str(len(part)) for part in (split.train, split.validation, split.test))
    console.print(f"split {split.name}, {counts} cases to train, validate and test, hash {split.hash}")
    if missing:
        of_all = len(missing) + sum(map(len, (split.train, split.validation, split.test)))
        warning(
            f"warning: --split {name}: {len(missing)} of its {of_all} cases are not in the cache, such as "
            f"{missing[0]}: figures will differ"
        )
    return split


def train_on(recipe: Recipe, cache: Path, split: CaseSplit, run: Path, options: TrainOptions) -> None:
    """Train, and show progress and messages to the user.

    Args:
        recipe, cache, split, run: as in ``train_recipe``.
        options: TrainOptions; progress and messages are added here.
    """
    from dataclasses import replace

    from kitsseg.runtime.console import progress_bar
    from kitsseg.training.train import train_recipe

    if options.devices.process:  # the first process shows the progress of all
        options = replace(options, tensorboard=None, say=lambda text: None)
        train_recipe(recipe, cache, split, run, options)
        return

    with progress_bar("steps") as progress:
        told = saying_what_computes(progress, options)
        train_recipe(recipe, cache, split, run, replace(options, progress=told, say=say))
    _say_made(f"trained {recipe.name}", run, split.test)


def _say_made(what: str, run: Path, test: Sequence[str]) -> None:
    """Print what was made, and the command that predicts the patients whom the network has not seen."""
    from kitsseg.runtime.console import done

    part = "test" if test else "validation"
    files = "its weights in model.keras, its losses in history.csv, a card of it in model_card.md"
    done(
        f"{what}: wrote {run}, {files}",
        command_line("predict", run, "DATA", "--out", "PREDICTIONS", "--part", part),
    )
