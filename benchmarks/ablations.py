"""The rows of the papers' tables under one protocol: python benchmarks/ablations.py OUT [--seeds 3] [--share 1]

For deeplab3d and unet2d: the tiny recipe with the changes of each variant, trained on the same procedural phantoms with
the same split and the same number of steps, once per seed; tested on the patients that are left out. The table sets the
means beside the paper's own figures and says whether the two orders agree. What is in OUT is kept, so that a stopped
call goes on.

Phantom results: they compare what small networks learn from phantoms in little time, not the papers' methods on CT of
patients.
"""

import argparse
import csv
import os
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from scipy.stats import spearmanr

from kitsseg import (
    evaluate_folders,
    make_split,
    open_cache,
    predict_cases,
    preprocess_cases,
    recipes,
    train_recipe,
)
from kitsseg.data import synthesize_cases
from kitsseg.files.atomic import atomic_path
from kitsseg.recipe import Plateau, Recipe, changed
from kitsseg.training.options import TrainOptions

CASES, SIZE = 24, (40, 128, 128)
# where a variant's value is that of the full network, the tiny one changes by the same factor
SCALED: dict[str, Mapping[str, object]] = {"unet2d:filters-30": {"model.start_filters": 12}}
# figures of the paper that rank its rows: kidney and tumor label
PAPER = (
    "own validation (63 cases), kidney label Dice",
    "own validation (63 cases), tumor label Dice",
)
COLUMNS = ("network", "seed", "tk", "tu", "kidney_label")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default: 3)")
    parser.add_argument("--share", type=float, default=1.0, help="of the tiny recipe's epochs (default: 1)")
    parser.add_argument("--papers", nargs="+", default=["deeplab3d", "unet2d"], choices=recipes.names())
    a = parser.parse_args()
    data = a.out / "data"
    if not data.is_dir():
        synthesize_cases(data, CASES, SIZE, 0)
    for paper in a.papers:
        rows = []
        for name, recipe in rows_of(paper, a.share).items():
            rows += [measured(name, recipe, data, a.out, seed) for seed in range(a.seeds)]
        with atomic_path(a.out / f"{paper}.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        text = table(paper, rows)
        with atomic_path(a.out / f"{paper}.md") as temporary:
            temporary.write_text(text)
        print(text)


def rows_of(paper: str, share: float) -> dict[str, Recipe]:
    """The tiny recipe and each variant of it, none of them with whole cases scored meanwhile."""
    tiny = recipes.get(f"{paper}:tiny")
    phases = []
    for phase in tiny.phases:
        if isinstance(phase.schedule, Plateau):
            patience = max(1, round(share * phase.schedule.patience))
            phase = replace(phase, schedule=replace(phase.schedule, patience=patience))
        epochs = max(1, round(share * phase.epochs))
        phases.append(replace(phase, epochs=epochs, validate_cases_every=None))
    tiny = replace(tiny, phases=tuple(phases))
    rows = {paper: tiny}
    for variant in recipes.variants(paper):
        name = f"{paper}:{variant.name}"
        changes = {**variant.changes, **SCALED.get(name, {})}
        rows[name] = replace(changed(tiny, changes, variant.evidence), name=name)
    return rows


def measured(name: str, recipe: Recipe, data: Path, out: Path, seed: int) -> dict[str, Any]:
    """Train, predict and score one row with one seed."""
    folder = out / name.replace(":", "-") / str(seed)
    cache, run, scores = out / "cache", folder / "run", folder / "scores.csv"
    preprocess_cases(data, cache, recipe.preprocess)
    split = make_split(open_cache(cache, recipe.preprocess), (0.6, 0.15, 0.25))
    if not (run / "model.keras").is_file():
        train_recipe(recipe, cache, split, run, TrainOptions(seed=seed, resume=(run / "run.json").is_file()))
    predict_cases(run, [data], folder / "predictions", part="test")
    rows = evaluate_folders(folder / "predictions", data, scores).rows
    means = {
        key: statistics.mean(row[f"{column}_dice"] for row in rows)
        for key, column in (("tk", "tk"), ("tu", "tu"), ("kidney_label", "kidney_label"))
    }
    return {"network": name, "seed": seed, **means}


def table(paper: str, rows: list[dict[str, Any]]) -> str:
    """The means and deviations over seeds, beside the paper's figures; and whether the orders agree."""
    reported = {f"{paper}:{variant.name}": variant for variant in recipes.variants(paper)}
    names = list(dict.fromkeys(row["network"] for row in rows))
    lines = [
        "Phantom results.",
        "",
        "| network | row of the paper | TK | TU | kidney label | paper: kidney label | paper: tumor label |",
        "|---|---|---|---|---|---|---|",
    ]
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for name in names:
        of_name = [row for row in rows if row["network"] == name]
        cells = []
        for key in ("tk", "tu", "kidney_label"):
            values = [row[key] for row in of_name]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        variant = reported.get(name)
        figures = [variant.reported.get(key) if variant else None for key in PAPER]
        row = variant.row if variant else "the recipe"
        cells += ["" if figure is None else f"{figure:.3f}" for figure in figures]
        lines.append(f"| `{name}` | {row} | {' | '.join(cells)} |")
        if variant and None not in figures:
            ours[name] = statistics.mean((row["kidney_label"] + row["tu"]) / 2 for row in of_name)
            theirs[name] = sum(figures) / 2
    return "\n".join([*lines, "", _agreement(ours, theirs), ""])


def _agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    if len(ours) < 3:
        return "The paper reports too few of these rows to have an order of its own."
    names = list(ours)
    rank = spearmanr([ours[name] for name in names], [theirs[name] for name in names]).statistic
    same = sorted(names, key=ours.get, reverse=True) == sorted(names, key=theirs.get, reverse=True)
    return (
        f"By the mean of kidney and tumor label the order of the rows {'is' if same else 'is not'} the paper's; "
        f"Spearman's rank correlation with it is {rank:.2f} over {len(names)} rows. The paper's rows are of two "
        "tables that cannot be one protocol."
    )


if __name__ == "__main__":
    main()
