"""The networks on real KiTS19 images: python benchmarks/real_slices.py OUT --slices SLICES --labels KITS19_LABELS

SLICES holds 79 slices of 28 patients, chosen by somebody else, HU clipped to 0..255, with the official labels and
slices.csv. Small versions of the 2D networks (about 12 filters, 3 mm or 128 x 128 pixels), each with its paper's loss
and sampling as far as single slices allow, are trained and tested in four settings:

    a  on rendered CT only (real label maps of other patients, synthesized CT with random appearance, clipped to 0..255
       too), tested on all
    b  on real slices, four folds by patient
    c  on rendered CT first, then on real slices (``kitsseg train --from``), the same folds
    d  as b, but four folds of slices, so that a patient is in several folds: the leak

What is made of wp_unet, and the networks beside which it stands, have setting b alone. The table also shows an empty
label map, and a classifier of single pixels, which knows only the HU and the place of a pixel (four folds by patient).
Scores are taken on the images' own pixels. The Dice of each slice is averaged over the slices of a patient, then over
the patients.

Every job (network, setting, fold, seed) is an ordinary run in OUT/jobs. Finished jobs are kept, so that a stopped call
goes on. The tables (OUT/tables: the means, and all intervals, differences and pooled Dice) and the figure
(OUT/real_slices.png) are written anew after each job. At the end --pages also puts the tables between the marks of
those pages. --scores FILE.csv keeps the label counts of every job in a file, too, and a job in this file counts as
done. benchmarks/real_slices.csv holds the jobs behind the tables of docs/results.md and docs/real_slices.md, so that
nobody has to train them again to check the tables or to add to them. unet2d comes first, with one seed, then its other
seeds, then the other networks. --rows, --settings, --seeds and --steps choose the jobs.
"""

import argparse
import csv
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as kitsseg train

import keras
import numpy as np
import numpy.typing as npt
from comparison_page import put_tables
from phantom_statistics import OVERLAP
from real_slices_page import PIXELS, Facts, Summary, full_tables, patient_dice, plot, short_table, summary
from real_slices_rows import FIRST, ROWS, SETTINGS

from kitsseg import recipes
from kitsseg.data.cache.build import preprocess_cases
from kitsseg.data.cache.cases import open_cache
from kitsseg.data.formats.slices import SliceImage, read_mask, read_slice
from kitsseg.data.layouts.find import Layout
from kitsseg.data.layouts.slices import find_slices
from kitsseg.data.phantoms.synthesize import render_cases
from kitsseg.data.splits import CaseSplit
from kitsseg.export.check import LEAST_DICE, OtherLabels
from kitsseg.export.export import export_run
from kitsseg.export.writers import ExportOptions
from kitsseg.files.atomic import atomic_folder, atomic_path
from kitsseg.files.tables import read_rows, write_rows
from kitsseg.inference.ensemble import ensemble_of, open_ensemble
from kitsseg.inference.slices import label_slices
from kitsseg.recipe import Phase, Plateau, RandomAppearance, Recipe
from kitsseg.scoring.dice import count_labels
from kitsseg.training.epochs import steps_of
from kitsseg.training.options import TrainOptions
from kitsseg.training.train import train_recipe
from kitsseg.workflows.fine_tune import FromRun
from kitsseg.workflows.prune import prune_run
from kitsseg.workflows.shrink import shrink_run

HU = (0.0, 255.0)
APPEARANCE = RandomAppearance(probability=0.8)  # of rendered slices in HU
# what no paper does, for the rows that are "ours"; chosen on the first seed of unet2d in setting c
REAL_APPEARANCE = RandomAppearance(probability=0.5)
EMA = 0.99
FOLDS = 4


@dataclass(frozen=True, order=True)
class Job:
    """One network to make and score; jobs sort by how soon they are wanted."""

    rank: int
    row: str
    seed: int
    setting: str
    fold: int

    @property
    def folder(self) -> str:
        return f"{self.row}/{self.setting}-fold{self.fold}-seed{self.seed}"


def jobs(rows: list[str], settings: str, seeds: int) -> list[Job]:
    """All jobs: unet2d with one seed, its other seeds, the other networks with one seed, and all else."""
    order = {name: i for i, name in enumerate(ROWS)}
    found = [
        Job(2 * (name != FIRST) + (seed > 0), name, seed, setting, fold)
        for name in rows
        for seed in range(1 if ROWS[name].seeds else seeds)
        for setting in settings
        if setting in ROWS[name].settings
        for fold in range(1 if setting == "a" else FOLDS)
    ]
    return sorted(found, key=lambda job: (job.rank, job.seed, order[job.row], job.setting, job.fold))


class Bench:
    """The work folder: data, caches, runs and scores.

    Args:
        out: the folder. slices: of real slices. labels: label maps in KiTS19 layout to render. steps: of a training.
        scores: the file that keeps the label counts of all jobs, if there is one.
    """

    def __init__(self, out: Path, slices: Path, labels: Path, steps: int, scores: Path | None = None) -> None:
        self.out, self.labels, self.steps, self.file = out, labels, steps, scores
        self.kept = read_scores(scores, steps) if scores and scores.is_file() else {}
        self.layout = Layout(hu_window=HU)
        out.mkdir(parents=True, exist_ok=True)
        self._same_steps()
        self.items = find_slices(slices, self.layout, need_labels=True)
        self.patients = sorted({item.patient for item in self.items})
        self.folders = {"patients": slices, "slices": self._each_its_own(slices)}

    def _same_steps(self) -> None:
        """Refuse a folder whose trainings have another number of steps, because one table must not mix both."""
        file = self.out / "steps.json"
        if not file.is_file():
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(self.steps))
        if (before := json.loads(file.read_text())) != self.steps:
            raise SystemExit(
                f"{self.out}: holds trainings of {before} steps. Give --steps {before}, or another folder."
            )

    def _each_its_own(self, slices: Path) -> Path:
        """Copy the slices to a folder whose table calls each slice a patient; this makes a split by slice possible."""
        folder = self.out / "by_slice"
        if not folder.is_dir():
            with atomic_folder(folder) as temporary:
                for kind in ("images", "labels"):
                    shutil.copytree(slices / kind, temporary / kind)
                with (slices / "slices.csv").open(newline="") as file:
                    rows = [row | {"case": Path(row["file"]).stem} for row in csv.DictReader(file)]
                with (temporary / "slices.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
        return folder

    def rendered(self) -> Path:
        """Rendered CT for the label maps of other patients."""
        folder = self.out / "rendered"
        names = sorted(path.name for path in self.labels.iterdir() if path.is_dir())
        for name in names:
            if name not in (*OVERLAP, *self.patients) and not (folder / name).is_dir():
                render_cases(self.labels, folder, cases=[name])
        return folder

    def cache(self, recipe: Recipe, kind: str) -> Path:
        """The preprocessed cases of "rendered", "patients" or "slices"."""
        folder = self.out / "cache" / kind
        data = self.rendered() if kind == "rendered" else self.folders[kind]
        preprocess_cases(data, folder, recipe.preprocess, layout=None if kind == "rendered" else self.layout)
        return folder

    def split(self, kind: str, fold: int, cases: list[str]) -> CaseSplit:
        """The split of a fold: every sixth case that is not tested is used to choose the best epoch.

        The folds do not depend on the seed.
        """
        names = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
        test = () if kind == "rendered" else tuple(names[fold::FOLDS])
        rest = [name for name in names if name not in test]
        chosen_by = tuple(rest[::6])
        train = tuple(name for name in rest if name not in chosen_by)
        return CaseSplit(f"{kind}, fold {fold}", train, chosen_by, test, source="benchmarks/real_slices.py")

    def recipe(self, name: str, setting: str = "b") -> Recipe:
        """The tiny variant with HU clipped as in the images, trained for ``steps`` steps without scoring whole cases.

        Rendered CT, and in "our" rows real slices too, get a random appearance, unless the recipe turns HU into several
        windows.
        """
        row = ROWS[name]
        tiny = recipes.get(f"{row.recipe}:tiny")
        phases = [phase for phase in tiny.phases if not phase.pruning]
        factor = row.length * self.steps / sum(map(steps_of, phases))
        appearance = APPEARANCE if setting == "a" else REAL_APPEARANCE if row.ours else None
        if tiny.preprocess.windows is None:
            phases = [
                replace(phase, augmentation=replace(phase.augmentation, appearance=appearance))
                for phase in phases
            ]
        return replace(
            tiny,
            preprocess=replace(tiny.preprocess, clip_hu=HU),
            model={**tiny.model, **dict(row.model)},
            inference=replace(tiny.inference, mirror_axes=(0, 1)) if row.ours else tiny.inference,
            phases=tuple(_stretched(phase, factor) for phase in phases),
        )

    def made(self, job: Job) -> Path | None:
        """The network of a job: its run folder, or its exported file, None if that was refused.

        It is trained if it is not there.
        """
        folder, row, recipe = self.out / "jobs" / job.folder, ROWS[job.row], self.recipe(job.row, job.setting)
        run, kind = folder / "run", {"a": "rendered", "d": "slices"}.get(job.setting, "patients")
        if row.precision:
            return self._exported(job, recipe)
        if (run / "model.keras").is_file():
            return run
        cache = self.cache(recipe, kind)
        resume = (run / "run.json").is_file()
        parent = self.made(replace(job, row=row.parent)) if row.parent else None
        if parent is None or job.row.endswith("longer"):
            start = self.made(replace(job, setting="a", fold=0)) if job.setting == "c" else parent
            split = self.split(kind, job.fold, sorted(open_cache(cache, recipe.preprocess)))
            options = TrainOptions(
                seed=job.seed, resume=resume, start_from=start, ema=EMA if row.ours else None
            )
            train_recipe(recipe, cache, split, run, options)
            return run
        last = recipe.phases[-1]
        epochs = max(2, round(self.steps / last.steps_per_epoch))
        origin, options = FromRun(recipe, parent, cache), TrainOptions(epochs=epochs, resume=resume)
        if "shrunk" in job.row:
            shrink_run(origin, run, 0.5, options, by="random" if job.row.endswith("random") else "magnitude")
        else:
            prune_run(origin, run, int(job.row.rpartition("-")[2]) / 100, options)
        return run

    def _exported(self, job: Job, recipe: Recipe) -> Path | None:
        """The exported file of a job, in the size of the recipe's slices; None if kitsseg export refuses it."""
        row, file = ROWS[job.row], self.out / "jobs" / job.folder / "network.tflite"
        if file.is_file():
            return file
        parent = self.made(replace(job, row=row.parent))
        size, cache = recipe.preprocess.slice_size or (160, 160), self.cache(recipe, "patients")
        file.parent.mkdir(parents=True, exist_ok=True)
        least = (0.0, 0.0) if row.unchecked else LEAST_DICE[row.precision]
        try:
            with patch.dict(LEAST_DICE, {row.precision: least}):
                export_run(parent, file, ExportOptions(precision=row.precision, size=size, cache=cache))
        except OtherLabels as error:
            print(error, flush=True)
            return None
        return file

    def scored(self, job: Job) -> list[dict[str, Any]]:
        """A row for each test slice: its name, patient and table of labels; computed once.

        None at all for a file that kitsseg export refused, because it gives other labels than the network.
        """
        if (there := self.there(job)) is not None:
            return there
        file = self.out / "jobs" / job.folder / "scores.json"
        if not file.is_file():
            networks, rows = self._networks(job), []
            if networks:
                members, postprocess, _ = open_ensemble(ensemble_of(networks))
                for items in self._tested(job):
                    found = label_slices(items, members, postprocess)
                    rows += [_row(item, labels) for item, labels in zip(items, found, strict=True)]
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(rows))
            keras.backend.clear_session()
        rows = json.loads(file.read_text())
        if self.file:
            self.kept[job.folder] = rows
            write_scores(self.file, self.steps, self.kept)
        return rows

    def _networks(self, job: Job) -> tuple[Path, ...]:
        """The networks that predict together in a job; none for a file that was refused."""
        row = ROWS[job.row]
        if row.seeds and row.parent:
            made = [self.made(replace(job, row=row.parent, seed=seed)) for seed in range(row.seeds)]
        else:
            made = [self.made(job)]
        return tuple(path for path in made if path is not None)

    def there(self, job: Job) -> list[dict[str, Any]] | None:
        """The rows of a job that was scored before, here or in the file of scores."""
        if job.folder in self.kept:
            return self.kept[job.folder]
        file = self.out / "jobs" / job.folder / "scores.json"
        return json.loads(file.read_text()) if file.is_file() and not self.file else None

    def _tested(self, job: Job) -> Iterator[list[SliceImage]]:
        """The test slices of a job, patient by patient."""
        if job.setting == "a":
            names, by = set(self.patients), "patient"
        else:
            by = "name" if job.setting == "d" else "patient"
            kind = "slices" if job.setting == "d" else "patients"
            everything = sorted({getattr(item, by) for item in self.items})
            names = set(self.split(kind, job.fold, everything).test)
        for patient in self.patients:
            if items := [
                item for item in self.items if item.patient == patient and getattr(item, by) in names
            ]:
                yield items

    def all_scores(self, row: str, setting: str, seed: int) -> list[dict[str, Any]] | None:
        """The rows of all folds, if all are there."""
        rows: list[dict[str, Any]] = []
        for fold in range(1 if setting == "a" else FOLDS):
            found = self.there(Job(0, row, seed, setting, fold))
            if not found:
                return None
            rows += found
        return rows

    def refused(self, row: str, setting: str, seeds: int) -> str:
        """What the table says of a row whose files were refused; nothing if none was."""
        there = [
            self.there(Job(0, row, seed, setting, fold)) for seed in range(seeds) for fold in range(FOLDS)
        ]
        tried = [rows for rows in there if rows is not None]
        refusals = sum(not rows for rows in tried)
        return f"refused by `kitsseg export`: {refusals} of {len(tried)}" if refusals else ""

    def empty_map(self) -> list[dict[str, Any]]:
        return [_row(item, np.zeros_like(read_mask(item))) for item in self.items]

    def single_pixels(self) -> list[dict[str, Any]]:
        """Scores of a classifier that knows only a pixel's HU and place; four folds by patient.

        Each pixel gets the label that was most frequent in training for this HU and place.
        """
        file = self.out / "single_pixels.json"
        if not file.is_file():
            rows = []
            for fold in range(FOLDS):
                test = self.split("patients", fold, self.patients).test
                counts = np.full((len(PLACES), len(PLACES), BINS, 3), 1e-3)
                for item in self.items:
                    if item.patient not in test:
                        np.add.at(counts, (*_cells(item), read_mask(item)), 1)
                best = counts.argmax(axis=-1).astype(np.uint8)
                rows += [_row(item, best[_cells(item)]) for item in self.items if item.patient in test]
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(rows))
        return json.loads(file.read_text())


JOB = ("row", "setting", "fold", "seed", "steps")


def read_scores(path: Path, steps: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by the folder of their job; a file of trainings of another length is refused."""
    kinds = dict.fromkeys(JOB, str) | dict.fromkeys(("fold", "seed", "steps"), int)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in read_rows(path, kinds, str, "label counts of this benchmark", "Give another --scores."):
        if line["steps"] != steps:
            raise SystemExit(f"{path}: holds trainings of {line['steps']} steps, expected {steps}.")
        rows = found[Job(0, line["row"], line["seed"], line["setting"], line["fold"]).folder] = []
        for place, text in line.items():
            if place not in JOB and text:
                patient, _, name = place.partition(" ")
                counts = np.array(text.split(), np.int64).reshape(3, 3).tolist()
                rows.append({"slice": name, "patient": patient, "counts": counts})
    return found


def write_scores(path: Path, steps: int, kept: dict[str, list[dict[str, Any]]]) -> None:
    """A line for each job, a column for each slice (patient and name); counts are truth by prediction, rows after rows.

    The line of a network whose file was refused has no counts.
    """
    lines, places = [], set[str]()
    for folder, rows in sorted(kept.items()):
        name, setting, fold, seed = re.fullmatch(r"(.+)/(.)-fold(\d+)-seed(\d+)", folder).groups()
        counts = {
            f"{row['patient']} {row['slice']}": " ".join(str(n) for line in row["counts"] for n in line)
            for row in rows
        }
        job = {"row": name, "setting": setting, "fold": fold, "seed": seed, "steps": steps}
        lines.append(job | counts)
        places |= counts.keys()
    write_rows(path, [dict.fromkeys(places, "") | line for line in lines], (*JOB, *sorted(places)))


BINS, PLACES = 16, range(16)


def _cells(item: SliceImage) -> tuple[npt.NDArray[np.intp], ...]:
    """The cell of each pixel: place in the body's box, and HU."""
    hu = read_slice(item)
    body = hu > 20
    rows, columns = (np.flatnonzero(body.mean(axis=axis) > 0.05) for axis in (1, 0))
    cells = []
    for n, found in zip(hu.shape, (rows, columns), strict=True):
        place = (np.arange(n) - found[0]) / max(found[-1] - found[0], 1)
        cells.append(np.clip((place * len(PLACES)).astype(np.intp), 0, len(PLACES) - 1))
    y, x = np.meshgrid(*cells, indexing="ij")
    return y, x, np.clip(hu * BINS // 256, 0, BINS - 1).astype(np.intp)


def _row(item: SliceImage, labels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    return {
        "slice": item.name,
        "patient": item.patient,
        "counts": count_labels(labels, read_mask(item)).tolist(),
    }


def _stretched(phase: Phase, factor: float) -> Phase:
    if isinstance(phase.schedule, Plateau):
        patience = max(1, round(factor * phase.schedule.patience))
        phase = replace(phase, schedule=replace(phase.schedule, patience=patience))
    return replace(phase, epochs=max(1, round(factor * phase.epochs)), validate_cases_every=None)


def collected(bench: Bench, seeds: int) -> dict[tuple[str, str], Summary]:
    """Summaries by (row, setting) of what is there already."""
    found = {}
    for name, row in ROWS.items():
        for setting in SETTINGS:
            every = {seed: bench.all_scores(name, setting, seed) for seed in range(seeds)}
            there = {seed: rows for seed, rows in every.items() if rows is not None}
            if there:
                found[name, setting] = summary(list(there.values()), () if row.seeds else tuple(there))
    return found


def facts_of(bench: Bench, seeds: int) -> Facts:
    refused = {(name, setting): bench.refused(name, setting, seeds) for name in ROWS for setting in SETTINGS}
    beside = {"empty label map": summary([bench.empty_map()]), PIXELS: summary([bench.single_pixels()])}
    return Facts(collected(bench, seeds), refused, beside, bench.steps, seeds)


def write_pages(bench: Bench, seeds: int, pages: list[Path]) -> str:
    """Write the tables and the figure, and the tables into ``pages``; the short table."""
    facts = facts_of(bench, seeds)
    tables = {"real-slices": short_table(facts), "real-slices-full": full_tables(facts)}
    (bench.out / "tables").mkdir(exist_ok=True)
    for name, text in tables.items():
        with atomic_path(bench.out / "tables" / f"{name}.md") as temporary:
            temporary.write_text(text + "\n")
    if facts.found:
        plot(bench.out / "real_slices.png", facts.found)
    for page in pages:
        put_tables(page, tables)
    return tables["real-slices"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--slices", type=Path, required=True, help="folder with images, labels and slices.csv"
    )
    parser.add_argument(
        "--labels", type=Path, required=True, help="label maps in KiTS19 layout, to be rendered"
    )
    parser.add_argument(
        "--rows", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--settings", default="abcd", help="some of a, b, c and d (default: abcd)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of a training (default: 600)")
    parser.add_argument(
        "--scores", type=Path, metavar="FILE.csv", help="keep label counts here; jobs that are there are done"
    )
    parser.add_argument(
        "--table", action="store_true", help="train nothing: write the table of what is there"
    )
    parser.add_argument("--pages", nargs="*", type=Path, default=[], help="pages to write the table into")
    a = parser.parse_args()
    bench, started = Bench(a.out, a.slices, a.labels, a.steps, a.scores), time.monotonic()
    for job in [] if a.table else jobs(a.rows, a.settings, a.seeds):
        if bench.there(job) is not None:
            continue
        begun = time.monotonic()
        if rows := bench.scored(job):
            tk, tu = np.mean(list(patient_dice(rows).values()), axis=0)
            print(f"{job.folder}: TK {tk:.3f} TU {tu:.3f}, {time.monotonic() - begun:.0f} s", flush=True)
        write_pages(bench, a.seeds, [])
    print(write_pages(bench, a.seeds, a.pages))
    print(f"{(time.monotonic() - started) / 60:.0f} min in all")


if __name__ == "__main__":
    main()
