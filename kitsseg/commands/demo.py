"""kitsseg demo: the whole road on synthetic patients."""

import shutil
import time
from pathlib import Path

from kitsseg.commands.arguments import at_least
from kitsseg.commands.data import preprocess, synthesize
from kitsseg.commands.prediction import predict
from kitsseg.commands.scoring import evaluate, report
from kitsseg.commands.training import choose_split, train_on
from kitsseg.errors import InputError

__all__ = ["add", "demo"]


def add(command):
    sub = command("demo", _demo, "synthetic patients, training, prediction, scores and report in one go")
    sub.add_argument("--recipe", default="unet2d", help="NAME; its tiny variant is used (default: unet2d)")
    sub.add_argument("--out", default="demo", type=Path, help="new folder for everything (default: demo)")
    sub.add_argument("--cases", default=16, type=at_least(5), help="number of patients (default: 16)")
    sub.add_argument("--seed", default=0, type=at_least(0))


def _demo(arguments):
    from kitsseg import recipes
    from kitsseg.commands.quiet_keras import start_keras

    start_keras()
    demo(recipes.get(f"{arguments.recipe}:tiny"), arguments.out, arguments.cases, arguments.seed)


def demo(recipe, out, n_cases, seed):
    """The whole road on synthetic patients."""
    from kitsseg.commands.console import console

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise InputError(
            f"{out}: expected a new folder for the demo, found one in use. Remove it or give --out."
        )
    started = time.monotonic()
    console.print(
        f"[bold]kitsseg demo[/bold]: {recipe.name} on {n_cases} synthetic patients (phantoms) in {out}\n"
    )
    free = shutil.disk_usage(out.parent if out.parent.exists() else Path.cwd()).free
    if free < 500 << 20:
        raise InputError(
            f"{out}: the demo needs 500 MiB of disk, found {free >> 20} MiB free. Free some space."
        )
    synthesize(out / "data", n_cases, (40, 128, 128), seed, None)
    preprocess(recipe, out / "data", out / "cache")
    # a quarter for the test: with few patients a single one would say little
    split = choose_split(out / "cache", recipe, None, (0.6, 0.15, 0.25))
    train_on(split, recipe, out / "cache", out / "run", seed)
    predict(out / "run", [out / "data"], out / "predictions", "test", False, None)
    evaluate(out / "predictions", out / "data", out / "scores.csv")
    report(out / "scores.csv", out / "report.html")
    console.print(
        f"\nthe whole demo took {time.monotonic() - started:.0f} s; the report: {out / 'report.html'}"
    )
