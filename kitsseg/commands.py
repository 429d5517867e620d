"""What each command does: call the library, show progress, say what was written and what comes next."""

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kitsseg.errors import InputError
from kitsseg.recipe import settings

__all__ = [
    "demo",
    "evaluate",
    "predict",
    "preprocess",
    "report",
    "show_recipe",
    "show_recipes",
    "synthesize",
    "train",
]

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def _progress():
    """A bar with the time left; gives the callable progress(description, done, total) of the library."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    watched = console.is_terminal or console.is_jupyter  # elsewhere a bar is only an empty line
    with Progress(*columns, console=console, transient=True, disable=not watched) as bar:
        task = bar.add_task("start", total=None)
        yield lambda description, done, total: bar.update(
            task, description=escape(description), completed=done, total=total
        )


def _done(text, next_command=None):
    console.print(escape(text))
    if next_command:
        console.print(f"next: [bold]{escape(next_command)}[/bold]")


def show_recipes(recipes):
    """A row per paper."""
    table = Table("recipe", "paper", "what it claims")
    for recipe in recipes:
        table.add_row(recipe.name, escape(recipe.paper), escape(recipe.claim))
    console.print(table)
    _done("each also as NAME:practical and NAME:tiny", f"kitsseg recipes show {recipes[0].name}")


def show_recipe(recipe):
    """Claim, reported figures, and each setting with its evidence."""
    console.print(f"[bold]{recipe.name}[/bold]: {escape(recipe.paper)}\n{escape(recipe.claim)}\n")
    table = Table("setting", "value", "evidence")
    for name, value in settings(recipe):
        if value is not None and value != ():
            table.add_row(name, escape(str(value)), escape(recipe.evidence[name]))
    console.print(table)
    table = Table("reported by the paper", "value")
    for name, value in recipe.reported.items():
        table.add_row(escape(name), f"{value:g}")
    console.print(table)
    _done(
        f"cache folder: preprocess-{recipe.preprocess.digest()}",
        f"kitsseg preprocess {recipe.name} DATA CACHE",
    )


def synthesize(out, n_cases, size, seed, labels):
    from kitsseg.data.synthesize import render_cases, synthesize_cases

    with _progress() as progress:
        if labels is None:
            written = synthesize_cases(out, n_cases, size, seed, progress)
        else:
            written = render_cases(labels, out, seed, progress=progress)
    _done(f"wrote {len(written)} synthetic patients to {out}", f"kitsseg preprocess unet2d:tiny {out} CACHE")


def preprocess(recipe, data, cache):
    from kitsseg.data.preprocess import preprocess_cases

    with _progress() as progress:
        folder, done, kept = preprocess_cases(data, cache, recipe.preprocess, progress)
    there = f" ({len(kept)} were there already)" if kept else ""
    _done(f"preprocessed {len(done)} cases into {folder}{there}", f"kitsseg train {recipe.name} {cache} RUN")


def choose_split(cache, recipe, name, fractions=(0.8, 0.1, 0.1)):
    """The split of a training: a named one or a file, or one drawn from the cases at hand.

    It never depends on the seed of the training, so that runs with other seeds stay comparable.
    """
    from kitsseg.data.cache import open_cache
    from kitsseg.data.splits import load_split, make_split

    cases = open_cache(cache, recipe.preprocess)
    split, missing = load_split(name).among(cases) if name else (make_split(cases, fractions), 0)
    counts = "/".join(str(len(part)) for part in (split.train, split.validation, split.test))
    console.print(f"split {split.name}, {counts} cases to train, validate and test, hash {split.hash}")
    if missing:
        console.print(
            f"[yellow]{missing} cases of this split are not in the cache: figures will differ.[/yellow]"
        )
    return split


def train(recipe, cache, run, split, seed, epochs, resume):
    _train_on(choose_split(cache, recipe, split), recipe, cache, run, seed, epochs, resume)


def _train_on(split, recipe, cache, run, seed, epochs=None, resume=False):
    from kitsseg.train import train_recipe

    with _progress() as progress:
        train_recipe(recipe, cache, split, run, seed, epochs, resume, progress)
    part = " --part test" if split.test else " --part validation"
    _done(f"trained {recipe.name}: {run}", f"kitsseg predict {run} DATA --out PREDICTIONS{part}")


def predict(run, inputs, out, part, whole_slices, mirror):
    from kitsseg.predict import predict_cases

    with _progress() as progress:
        written = predict_cases(run, inputs, out, part, whole_slices, mirror, progress)
    _done(f"wrote {len(written)} label maps to {out}", f"kitsseg evaluate {out} TRUTH --out scores.csv")


def evaluate(prediction, truth, out):
    from kitsseg.evaluate import evaluate_folders, format_table

    with _progress() as progress:
        result = evaluate_folders(prediction, truth, out, progress)
    console.print(escape(format_table(result.rows, result.summary)))
    _done(f"wrote {out} and {out.with_suffix('.json')}", f"kitsseg report {out} --out report.html")


def report(source, out):
    from kitsseg.report import write_report

    with _progress() as progress:
        write_report(source, out, progress)
    _done(f"wrote {out}: open it in a browser")


def demo(recipe, out, n_cases, seed):
    """The whole road on synthetic patients."""
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
    _train_on(split, recipe, out / "cache", out / "run", seed)
    predict(out / "run", [out / "data"], out / "predictions", "test", False, None)
    evaluate(out / "predictions", out / "data", out / "scores.csv")
    report(out / "scores.csv", out / "report.html")
    console.print(
        f"\nthe whole demo took {time.monotonic() - started:.0f} s; the report: {out / 'report.html'}"
    )
