"""The five papers under one protocol: python benchmarks/comparison.py OUT --labels KITS19_LABELS [--share 1]

The same patients (real KiTS19 label maps, synthesized CT), the same split by case, about the same number of gradient
steps, 1,920 to 2,760: the epochs of each recipe's tiny variant times STRETCH. Preprocessing, network, loss, sampling,
phases and post-processing are each paper's own. Tested on those of MLPerf's 42 named cases that are there, with every
sixth of the others to choose epochs by. Without --labels procedural patients are made. What is in OUT already is kept,
so that a stopped call goes on. Written there: comparison.md, the table, and comparison.png.

Phantom results: they compare what these small networks learn from phantoms in little time, not the papers' methods on
CT of patients.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from kitsseg import recipes
from kitsseg.atomic import atomic_path
from kitsseg.compare import compare_scores
from kitsseg.data.cache import open_cache
from kitsseg.data.preprocess import preprocess_cases
from kitsseg.data.splits import CaseSplit, load_split, make_split
from kitsseg.data.synthesize import render_cases, synthesize_cases
from kitsseg.evaluate import evaluate_folders
from kitsseg.macs import count_macs
from kitsseg.networks import read_network
from kitsseg.phase import Plateau
from kitsseg.predict import predict_cases
from kitsseg.run import read_run
from kitsseg.scores_file import read_scores
from kitsseg.train import train_recipe
from kitsseg.training_state import steps_of

# how many times the epochs of the demo, which differ in number
STRETCH = {"unet2d": 3, "wp_unet": 3, "squeeze_unet": 8, "enhanced_unet": 5, "deeplab3d": 7}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=Path, help="folder of label maps in KiTS19 layout")
    parser.add_argument("--share", type=float, default=1.0, help="of those steps")
    parser.add_argument("--only", nargs="*", choices=STRETCH, default=STRETCH, metavar="RECIPE")
    a = parser.parse_args()
    data = a.out / "data"
    if not data.is_dir():
        if a.labels:
            render_cases(a.labels, data)
        else:
            synthesize_cases(data, 24, (40, 128, 128))
    facts = {name: measured(name, a.out, data, bool(a.labels), a.share) for name in a.only}
    if len(facts) > 1:
        write(a.out, facts)


def measured(name, out, data, real, share):
    """Preprocess, train, predict and score one recipe; returns what the table says of it."""
    recipe, folder = stretched(recipes.get(f"{name}:tiny"), share * STRETCH[name]), out / name
    written = folder / "facts.json"
    if written.is_file():
        return json.loads(written.read_text())
    preprocess_cases(data, folder / "cache", recipe.preprocess)
    cases = open_cache(folder / "cache", recipe.preprocess)
    split = named_split(cases) if real else make_split(cases, (0.6, 0.15, 0.25))
    run = folder / "run"
    if not (run / "model.keras").is_file():
        train_recipe(recipe, folder / "cache", split, run, resume=(run / "run.json").is_file())
    started = time.process_time()
    predict_cases(run, [data], folder / "predictions", part="test")
    seconds = time.process_time() - started
    evaluate_folders(folder / "predictions", data, folder / "scores.csv")
    model, patch = read_network(run / "model.keras"), recipe.phases[0].sampler.patch_size
    slices = sum(cases[case].geometry.scan_shape[0] for case in split.test)
    facts = {
        "parameters": model.count_params(),
        "macs": count_macs(model, (*patch, model.input_shape[-1])) / np.prod(patch),
        "steps": sum(map(steps_of, recipe.phases)),
        "train_s": read_run(run)["seconds"],
        "predict_ms": 1e3 * seconds / slices,
        "megabytes": (run / "model.keras").stat().st_size / 1e6,
    }
    with atomic_path(written) as temporary:
        temporary.write_text(json.dumps(facts))
    print(f"{name}: {facts}", flush=True)
    return facts


def named_split(cases):
    """Tested on the cases that MLPerf names; of the rest it leaves one of these 24 to choose by, which is too few."""
    test = load_split("mlperf42").among(cases)[0].test
    rest = sorted(set(cases) - set(test))
    return CaseSplit("mlperf42's test", tuple(c for c in rest if c not in rest[::6]), tuple(rest[::6]), test)


def stretched(recipe, factor):
    """The recipe with the epochs of all phases, and the patience of their plateaus, times one factor."""
    phases = []
    for phase in recipe.phases:
        if isinstance(phase.schedule, Plateau):
            patience = max(1, round(factor * phase.schedule.patience))
            phase = replace(phase, schedule=replace(phase.schedule, patience=patience))
        phases.append(replace(phase, epochs=max(1, round(factor * phase.epochs)), validate_cases_every=None))
    return replace(recipe, phases=tuple(phases))


def write(out, facts):
    """The table and the plot of all runs that are there."""
    scores = {name: out / name / "scores.csv" for name in facts}
    found = compare_scores(scores)
    rows = [
        "| paper | TK Dice | TU Dice | parameters | multiply-adds a pixel or voxel | training | CPU a slice | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, fact in facts.items():
        dice = ["{:.3f} ({:.3f} to {:.3f})".format(*found.means[name][key]) for key in ("tk_dice", "tu_dice")]
        rows.append(
            f"| `{name}` | {dice[0]} | {dice[1]} | {fact['parameters']:,} | {fact['macs'] / 1e3:.1f} k | "
            f"{fact['steps']} steps, {fact['train_s'] / 60:.1f} min | {fact['predict_ms']:.0f} ms | "
            f"{fact['megabytes']:.2f} MB |"
        )
    empty = read_scores(next(iter(scores.values())))[1]["beside_all_background"]["all_background"]
    rows.append(f"| all background | {empty['tk_dice']:.3f} | {empty['tu_dice']:.3f} | | | | | |")
    text = "\n".join([*rows, "", f"{len(found.cases)} test patients: {', '.join(found.cases)}.", ""])
    for row in found.differences:
        if row["metric"] != "composite":
            line = "{first} -> {second}, {metric}: {difference:+.3f} ({low:+.3f} to {high:+.3f}), p {p:.2f}\n"
            text += line.format(**row)
    with atomic_path(out / "comparison.md") as temporary:
        temporary.write_text(text)
    print(text)
    plot(out, scores)


def plot(out, scores):
    """A dot for each patient and paper."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
    for axis, key, title in zip(
        axes, ("tk_dice", "tu_dice"), ("kidney with tumor (TK)", "tumor (TU)"), strict=True
    ):
        for y, file in enumerate(scores.values()):
            values = [row[key] for row in read_scores(file)[0]]
            axis.plot(values, [y] * len(values), "o", color="#1769aa", alpha=0.5, markeredgewidth=0)
            axis.plot([np.mean(values)], [y], "|", color="black", markersize=16)
        axis.set_yticks(range(len(scores)), list(scores))
        axis.set(xlim=(-0.03, 1.03), title=f"Dice of {title}")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.suptitle(
        "phantoms: real label maps, synthesized CT; a dot is a test patient, a line the mean", fontsize=9
    )
    with atomic_path(out / "comparison.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png")


if __name__ == "__main__":
    main()
