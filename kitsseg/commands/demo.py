"""kitsseg demo: all steps from data to report on synthetic patients."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.commands.arguments import AddCommand, at_least
from kitsseg.commands.data import preprocess, synthesize
from kitsseg.commands.prediction import predict
from kitsseg.commands.scoring import evaluate, report
from kitsseg.commands.training import choose_split, train_on
from kitsseg.errors import InputError, command_line

if TYPE_CHECKING:
    import argparse

    from kitsseg.recipe import Recipe

__all__ = ["add", "demo"]


def add(command: AddCommand) -> None:
    sub = command("demo", _demo, "synthetic patients, training, prediction, scores and report in one go")
    sub.add_argument("--recipe", default="unet2d", help="NAME; its tiny variant is used (default: unet2d)")
    sub.add_argument("--out", default="demo", type=Path, help="new folder for everything (default: demo)")
    sub.add_argument("--cases", default=32, type=at_least(5), help="number of patients (default: 32)")
    sub.add_argument(
        "--seed", default=0, type=at_least(0), help="of the patients and of the training (default: 0)"
    )


def _demo(arguments: argparse.Namespace) -> None:
    from kitsseg import recipes
    from kitsseg.runtime.start_keras import start_keras

    recipe = recipes.get(f"{arguments.recipe}:tiny")  # a misspelt name is told before Keras starts
    start_keras(trains=True)
    demo(recipe, arguments.out, arguments.cases, arguments.seed)


def demo(recipe: Recipe, out: Path, n_cases: int, seed: int) -> None:
    """Run all steps from data to report on synthetic patients, and show each step as the command that does the same.

    Args:
        recipe: Recipe.
        out: folder for everything.
        n_cases: number of patients.
        seed: of the patients and of the training.
    """
    from kitsseg.data.splits import save_split
    from kitsseg.runtime.console import console, without_next
    from kitsseg.training.options import TrainOptions

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out}: expected a new folder for the demo, found one in use. Remove it or give --out."
        )
    started = time.monotonic()
    console.print(
        f"[bold]kitsseg demo[/bold]: {recipe.name} on {n_cases} synthetic patients (phantoms) in {out}"
    )
    free = shutil.disk_usage(out.parent if out.parent.exists() else Path.cwd()).free
    if free < 500 << 20:
        raise InputError(
            f"{out}: the demo needs 500 MiB of disk, found {free >> 20} MiB free. Free some space."
        )
    data, cache, split_file, run = out / "data", out / "cache", out / "split.json", out / "run"
    predictions, scores, page = out / "predictions", out / "scores.csv", out / "report.html"
    with without_next():
        _show("synthesize", data, "--cases", n_cases, "--seed", seed)
        synthesize(data, n_cases, (40, 128, 128), seed, None)
        _show("preprocess", recipe.name, data, cache)
        preprocess(recipe, data, cache)
        _show("train", recipe.name, cache, run, "--split", split_file, "--seed", seed)
        # a quarter for the test: with few patients a single one would say little
        split = choose_split(cache, recipe, None, (0.6, 0.15, 0.25))
        save_split(split, split_file)
        train_on(recipe, cache, split, run, TrainOptions(seed=seed))
        _show("predict", run, data, "--part", "test", "--out", predictions)
        predict(run, [data], predictions, "test")
        _show("evaluate", predictions, data, "--out", scores)
        evaluate(predictions, data, scores)
        _show("report", scores, "--out", page)
        report(scores, page)
    console.print(f"\nthe whole demo took {time.monotonic() - started:.0f} s")
    _say_what_next(recipe.name.split(":")[0], out, cache, run)


def _show(*command: object) -> None:
    from rich.markup import escape

    from kitsseg.runtime.console import console

    console.print("\n[bold]$ kitsseg " + escape(shlex.join(map(str, command))) + "[/bold]")


def _say_what_next(name: str, out: Path, cache: Path, run: Path) -> None:
    from rich.markup import escape

    from kitsseg.runtime.console import console

    other = "wp_unet" if name != "wp_unet" else "unet2d"
    lines = {
        f"open {out / 'report.html'}": "scores, training curves and pictures, in a browser",
        f"kitsseg recipes show {name}": "what the paper states, and where each setting comes from",
        f"kitsseg demo --recipe {other} --out demo-{other}": "another paper on the same patients",
        command_line(
            "prune", run, cache, out / "pruned", "--sparsity", 0.8
        ): "zero four fifths of the weights",
        "kitsseg download DATA": "KiTS19 itself, 20 GB; then the commands above without :tiny",
    }
    console.print("\n[bold]what to do next[/bold]")
    for command, words in lines.items():
        console.print(f"  [bold]{escape(command)}[/bold]  {words}")
    here = Path(sys.argv[0]).resolve()
    if here.stem == "kitsseg" and shutil.which("kitsseg") != str(here):
        console.print(
            f"  (kitsseg lies in {here.parent}: source {here.parent / 'activate'} to have it at hand)"
        )
