"""The rows of the papers' tables under one protocol: python benchmarks/ablations.py OUT [--pages docs/phantoms.md]
    [--scores benchmarks/ablations.csv]

For deeplab3d and unet2d, a row is the tiny recipe, made narrower and put on a coarser grid, with the changes of one
variant. All rows are trained on the same procedural phantoms, with the same split and the same number of steps, once
for each seed, on one thread. They are tested on patients that no training saw. Rows that differ in post-processing
alone share their trainings, as in the paper.

Each table sets the means beside the paper's own figures and says where the order of the rows agrees. One row counts as
better than another only if it is better with every seed. The tables go to OUT/tables/ablations-PAPER.md, with --pages
also between the marks of those pages. Finished trainings in OUT are kept, so that a stopped call goes on. --only and
--seeds choose what is trained (--seeds 0 trains nothing); the tables always hold all finished rows. --scores FILE.csv
keeps the Dice of every test patient in a file, too. Rows and seeds in this file count as done, even if OUT is empty.

Phantom results: they compare what small networks learn from phantoms in little time, not the papers' methods on CT of
patients.
"""

import argparse
import itertools
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as kitsseg train

import keras
from comparison_page import put_tables

from kitsseg import (
    PredictOptions,
    TrainOptions,
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
from kitsseg.files.locks import folder_lock
from kitsseg.files.tables import read_rows, write_rows
from kitsseg.recipe import Recipe, changed
from kitsseg.scoring import read_scores

CASES, SIZE = 30, (32, 96, 96)
PARTS = (0.5, 0.1, 0.4)  # to train, to choose epochs by, to test
LABELS = {"kidney_label": "kidney", "tu": "tumor", "tk": "kidney with tumor"}
COLUMNS = ("row", "seed", "steps", "case", *(f"{column}_dice" for column in LABELS))
# Every row changes the tiny recipe in these ways. Width and resolution are about halved. deeplab3d trains for more
# steps, because 360 steps on such small patches reach a TK Dice of only 0.3. Its first phase keeps one learning rate,
# because the plateau schedule would lower the rate while the loss still falls, and its loss is the paper recipe's.
# unet2d trains for fewer epochs.
# (For deeplab3d, patches of half the size, at 8 x 5 x 5 mm, found no kidney in two trainings of three.)
COARSE = {
    "deeplab3d": {
        "preprocess.spacing_mm": (6.0, 4.0, 4.0),
        "model.width_divisor": 4,
        "loss.fn_weight": 0.7,
        "loss.fp_weight": 0.3,
        "phases.scratch.sampler.cases_per_batch": 3,
        "phases.scratch.sampler.patch_size": (16, 24, 24),
        "phases.scratch.epochs": 14,
        "phases.scratch.steps_per_epoch": 40,
        "phases.scratch.learning_rate": 3e-3,
        "phases.scratch.schedule.patience": 14,
        "phases.finetune.sampler.cases_per_batch": 3,
        "phases.finetune.sampler.patch_size": (16, 20, 20),
        "phases.finetune.steps_per_epoch": 40,
        "inference.tile": (32, 64, 64),
        "inference.margin": 8,
        "phases.scratch.validate_cases_every": None,
        "phases.finetune.validate_cases_every": None,
        "phases.scratch.kept_epoch": None,
        "phases.finetune.kept_epoch": None,
    },
    "unet2d": {
        "preprocess.spacing_mm": (None, 4.0, 4.0),
        "model.start_filters": 4,
        "phases.train.sampler.patch_size": (64, 64),
        "phases.train.epochs": 20,
        "phases.train.validate_cases_every": None,
    },
}
# these variants state a value for the full network; the small network is changed by the same factor instead
SCALED = {"unet2d:filters-30": {"model.start_filters": 6}}
# which rows a paper compares with each other: name of the table -> its rows
TABLES = {
    "deeplab3d": {
        "Table of architectures": (
            "deeplab3d:proposed",
            "deeplab3d:bigger-encoder",
            "deeplab3d:bigger-aspp",
            "deeplab3d:decoder-every-stage-1-conv",
            "deeplab3d:decoder-every-stage-2-convs",
        ),
        "Table of focal weights": (
            "deeplab3d:focal-5",
            "deeplab3d:focal-2",
            "deeplab3d:focal-0.5",
            "deeplab3d:focal-0.2",
        ),
        "Post-processing": ("deeplab3d", "deeplab3d:without-refinement"),
    },
    "unet2d": {},
}
# what a paper says without figures: (name, the better row, the worse one)
CLAIMS = {
    "deeplab3d": (),
    "unet2d": (
        ('"A sigmoid version scored better"', "unet2d:sigmoid", "unet2d"),
        ('"30 or more filters are recommended"', "unet2d:filters-30", "unet2d"),
    ),
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of the recipe or variant.
        label: what the paper calls it.
        recipe: what is trained and how it predicts.
        trained_as: the row whose trainings it shares, or its own name.
        paper: column of ours -> the paper's Dice.
    """

    name: str
    label: str
    recipe: Recipe
    trained_as: str
    paper: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """What a paper says of two rows in one score."""

    where: str
    column: str
    better: str
    worse: str


Scores = dict[str, dict[int, dict[str, float]]]
"""Row -> seed -> column -> mean Dice of the test patients."""
Kept = dict[tuple[str, int], list[dict[str, Any]]]
"""Row and seed -> a line of ``COLUMNS`` for each test patient."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="such as unet2d deeplab3d:focal-5")
    parser.add_argument("--pages", type=Path, nargs="*", default=[])
    parser.add_argument("--scores", type=Path, metavar="FILE.csv", help="keep the Dice of each patient here")
    a = parser.parse_args()
    one_thread()
    rows = {paper: rows_of(paper) for paper in TABLES}
    known = [row.name for each in rows.values() for row in each]
    if unknown := sorted(set(a.only or ()) - set(known)):
        parser.error(f"--only: expected some of {', '.join(known)}; found {', '.join(unknown)}.")
    every = [*itertools.chain(*rows.values())]
    kept = keep(every, a.out, a.scores)
    if a.seeds:
        synthesize_cases(a.out / "data", CASES, SIZE, 0)
    for row in every:
        for seed in range(a.seeds):
            if (a.only is None or row.name in a.only) and (row.name, seed) not in kept:
                run_row(row, a.out, seed)
                kept = keep(every, a.out, a.scores)
    tables = {f"ablations-{paper}": table(paper, each, means(each, kept)) for paper, each in rows.items()}
    for name, text in tables.items():
        print(f"{name}\n\n{text}\n")
        with atomic_path(a.out / "tables" / f"{name}.md") as temporary:
            temporary.write_text(text + "\n")
    for page in a.pages:
        put_tables(page, tables)


def one_thread() -> None:
    """Compute on one thread, so that sums are added in a fixed order and other processes do not change a row's cost."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def rows_of(paper: str) -> list[Row]:
    """The coarse tiny recipe, then each variant of it."""
    coarse = changed(recipes.get(f"{paper}:tiny"), COARSE[paper], dict.fromkeys(COARSE[paper], "ours"))
    rows = [Row(paper, "the recipe", replace(coarse, name=paper), paper, figures(coarse.reported))]
    for variant in recipes.variants(paper):
        name = f"{paper}:{variant.name}"
        changes = {**variant.changes, **SCALED.get(name, {})}
        recipe = replace(changed(coarse, changes, variant.evidence), name=name)
        shared = next((row.name for row in rows if trains_alike(row.recipe, recipe)), name)
        rows.append(Row(name, variant.row, recipe, shared, figures(variant.reported)))
    return rows


def trains_alike(one: Recipe, other: Recipe) -> bool:
    return all(
        getattr(one, group) == getattr(other, group) for group in ("preprocess", "model", "loss", "phases")
    )


def figures(reported: Mapping[str, float]) -> dict[str, float]:
    """The paper's Dice of kidney and tumor label, by the columns of ours."""
    named = dict(reported)
    found = {}
    for column, label in (("kidney_label", "kidney"), ("tu", "tumor")):
        of_label = [value for key, value in named.items() if key.endswith(f"{label} label Dice")]
        if of_label:
            (found[column],) = of_label
    return found


def run_row(row: Row, out: Path, seed: int) -> None:
    """Train, predict and score one row with one seed."""
    folder, run = folder_of(row.name, out, seed), folder_of(row.trained_as, out, seed) / "run"
    if (folder / "scores.csv").is_file():
        return
    data, recipe = out / "data", row.recipe
    preprocess_cases(data, out / "cache", recipe.preprocess)
    split = make_split(open_cache(out / "cache", recipe.preprocess), PARTS)
    if not (run / "model.keras").is_file():
        resume = (run / "run.json").is_file()
        train_recipe(recipe, out / "cache", split, run, TrainOptions(seed=seed, resume=resume))
    options = PredictOptions(refine_labels=recipe.postprocess is not None)
    predict_cases(run, [data], folder / "predictions", "test", options)
    evaluate_folders(folder / "predictions", data, folder / "scores.csv")


def folder_of(name: str, out: Path, seed: int) -> Path:
    return out / name.replace(":", "-") / str(seed)


def keep(rows: list[Row], out: Path, file: Path | None) -> Kept:
    """Collect the finished scores from OUT and from the file, if one is given, and write all of them to the file.

    A lock is held meanwhile, so that calls at the same time do not lose each other's scores.
    """
    with folder_lock(out, "scores"):
        kept = read_kept(file, rows) if file and file.is_file() else {}
        for row in rows:
            for scores in folder_of(row.name, out, 0).parent.glob("*/scores.csv"):
                seed = int(scores.parent.name)
                head = {"row": row.name, "seed": seed, "steps": steps_of(row.recipe)}
                kept[row.name, seed] = [
                    head | {name: case[name] for name in COLUMNS if name not in head}
                    for case in read_scores(scores)[0]
                ]
        if file:
            write_rows(file, (line for key in sorted(kept) for line in kept[key]), COLUMNS)
    return kept


def read_kept(file: Path, rows: list[Row]) -> Kept:
    """The lines of the file; trainings of another length than today's are refused."""
    kinds = {"row": str, "seed": int, "steps": int, "case": str} | dict.fromkeys(COLUMNS[4:], float)
    steps = {row.name: steps_of(row.recipe) for row in rows}
    kept: Kept = {}
    for line in read_rows(file, kinds, None, "the scores of this benchmark", "Give another --scores."):
        if line["steps"] != steps.get(line["row"]):
            raise SystemExit(
                f"{file}: holds {line['row']} after {line['steps']} steps, expected {steps.get(line['row'])}. "
                "Give another --scores."
            )
        kept.setdefault((line["row"], line["seed"]), []).append(line)
    return kept


def means(rows: list[Row], kept: Kept) -> Scores:
    """Means over the test patients, of the seeds that are there."""
    return {
        row.name: {
            seed: {column: statistics.mean(case[f"{column}_dice"] for case in cases) for column in LABELS}
            for (name, seed), cases in sorted(kept.items())
            if name == row.name
        }
        for row in rows
    }


def table(paper: str, rows: list[Row], scores: Scores) -> str:
    """Means and range over seeds beside the paper's figures; then where the orders agree."""
    test = round(CASES * PARTS[2])
    lines = [
        f"Phantom results: {CASES} phantoms of {' x '.join(map(str, SIZE))} voxels, {test} of them to test; mean over "
        f"the seeds of the mean Dice (lowest and highest seed); {steps_of(rows[0].recipe)} steps a training.",
        "",
        "| row | in the paper | seeds | kidney label | tumor label (TU) | TK | paper: kidney | paper: tumor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of_row = scores[row.name]
        cells = [cell([of_row[seed][column] for seed in of_row]) for column in LABELS]
        cells += [
            f"{row.paper[column]:.3f}" if column in row.paper else "" for column in ("kidney_label", "tu")
        ]
        lines.append(f"| `{row.name}` | {row.label} | {len(of_row)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *agreement(pairs_of(paper, rows), scores)])


def steps_of(recipe: Recipe) -> int:
    return sum(phase.epochs * phase.steps_per_epoch for phase in recipe.phases)


def cell(values: list[float]) -> str:
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def pairs_of(paper: str, rows: list[Row]) -> Iterator[Pair]:
    """Yield pairs of rows in a paper's table whose figures differ, for each score; then the claims without figures."""
    by_name = {row.name: row.paper for row in rows}
    for where, names in TABLES[paper].items():
        for column in ("kidney_label", "tu"):
            for one, other in itertools.combinations(names, 2):
                if by_name[one][column] != by_name[other][column]:
                    better, worse = sorted((one, other), key=lambda name: -by_name[name][column])
                    yield Pair(where, column, better, worse)
    for where, better, worse in CLAIMS[paper]:
        for column in ("tk", "tu"):
            yield Pair(where, column, better, worse)


def agreement(pairs: Iterator[Pair], scores: Scores) -> Iterator[str]:
    """A sentence or two for each table of the paper."""
    for where, group in itertools.groupby(pairs, key=lambda pair: pair.where):
        each = list(group)
        missing = sorted({name for pair in each for name in (pair.better, pair.worse) if not scores[name]})
        if missing:
            yield f"- {where}: {', '.join(f'`{name}`' for name in missing)} not run."
            continue
        same, opposite, undecided = [], [], 0
        for pair in each:
            better, worse = scores[pair.better], scores[pair.worse]
            signs = {
                (better[seed][pair.column] > worse[seed][pair.column])
                - (better[seed][pair.column] < worse[seed][pair.column])
                for seed in better.keys() & worse.keys()
            }
            if signs == {1}:
                same.append(pair)
            elif signs == {-1}:
                opposite.append(pair)
            else:
                undecided += 1
        seeds = min(len(scores[name]) for pair in each for name in (pair.better, pair.worse))
        verdict = "is the paper's" if len(same) == len(each) else "is not the paper's"
        if len(same) < len(each) and not opposite:
            verdict = "cannot be told, the differences lie within the spread of the seeds"
        yield (
            f"- {where}: the order {verdict}. Of {len(each)} comparisons of two rows in one Dice all {seeds} seeds "
            f"agree with the paper in {len(same)}{listed(same)}, oppose it in {len(opposite)}"
            f"{listed(opposite)}, and differ among themselves in {undecided}. Seeds that know nothing would agree "
            f"with the paper in {len(each) / 2**seeds:.2g} and oppose it in as many."
        )


def listed(pairs: list[Pair]) -> str:
    if not pairs:
        return ""
    texts = [f"`{short(p.better)}` over `{short(p.worse)}` ({LABELS[p.column]})" for p in pairs]
    return f" ({'; '.join(texts)})"


def short(name: str) -> str:
    return name.partition(":")[2] or name


if __name__ == "__main__":
    main()
