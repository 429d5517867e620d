"""Write the notebooks in colab/: python scripts/make_notebooks.py

All papers share the cells in this script, so that every notebook shows the same things. The texts that belong to one
paper are in notebook_texts.py.
``--check`` writes nothing and fails if a notebook in colab/ is not what this script makes.
"""

import argparse
import json
import sys
from pathlib import Path

from notebook_texts import TEXTS

from kitsseg import recipes
from kitsseg.runtime.start_keras import start_keras
from kitsseg.version import __version__

REPOSITORY = "kitsseg/kitsseg"
FOLDER = Path(__file__).parents[1] / "colab"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
# Only this cell holds the repository's address. A mere folder called kitsseg does not count as installed: its spec has
# no origin. If git or the repository is missing, the wheel of the release is installed instead.
INSTALL = f"""REPOSITORY = "https://github.com/{REPOSITORY}"
WHEEL = f"{{REPOSITORY}}/releases/download/v{__version__}/kitsseg-{__version__}-py3-none-any.whl"

import importlib.util

for source in (f"git+{{REPOSITORY}}", WHEEL):
    importlib.invalidate_caches()
    if not getattr(importlib.util.find_spec("kitsseg"), "origin", None):
        %pip install -q "kitsseg[colab] @ {{source}}"
"""


def paper_notebook(name):
    """Cells of one paper's notebook, as (kind, text)."""
    text, recipe = TEXTS[name], recipes.get(name)
    yield (
        "markdown",
        f"""{badge(name)}

# {text["title"]}

{recipe.paper}. {text["about"]}

**What the paper claims.** {recipe.claim}

**What you get here.** With `DEMO = True` ten synthetic patients, a small version of the network, and every step of the
road in about two minutes on a CPU: the figures are *phantom results* and say nothing about the paper's method. With
`DEMO = False` the same cells fetch KiTS19 (20 GB; CC BY-NC-SA 4.0), a scan at a time, train the paper's network and score it
on patients it has never seen. By arithmetic the training alone takes {hours(name)} on a T4 (`VARIANT = "practical"`:
{hours(f"{name}:practical")}); nobody has measured it. Begin with `CASES = "0-19"`; after the first epoch a line says what is
left at the measured rate, and what to choose if that is too long.

With `USE_DRIVE = True` runs, results and a packed copy of the cache are kept on your Drive: after a disconnect run all
cells again, and training goes on after its last finished epoch, on a cache that is back in minutes.

Research software for late-arterial contrast CT, not a medical device.
""",
    )
    yield "code", INSTALL
    yield (
        "code",
        f"""# @title Settings
DEMO = True  # @param {{type:"boolean"}}
VARIANT = "paper"  # @param ["paper", "practical"]
CASES = "0-209"  # @param {{type:"string"}}
PRECISION = "{text.get("precision", "float32")}"  # @param ["float32", "mixed_float16"]
ACCUMULATE = {text.get("accumulate", 1)}  # @param {{type:"integer"}}
FROM = ""  # @param {{type:"string"}}
PATIENTS = 10  # @param {{type:"integer"}}
EPOCHS = {text["demo_epochs"]}  # @param {{type:"integer"}}
USE_DRIVE = False  # @param {{type:"boolean"}}

from kitsseg import notebook

notebook.describe_device()
place = notebook.folders("{name}", DEMO, VARIANT, PATIENTS, CASES, USE_DRIVE)
recipe = notebook.choose_recipe("{name}", DEMO, VARIANT)
computing = {{}} if DEMO else {{"precision": PRECISION, "accumulate": ACCUMULATE}}
""",
    )
    yield (
        "markdown",
        """## What is stated and what was chosen

`PATIENTS` and `EPOCHS` (of each phase) are for the demo. KiTS19 gets the recipe's own epochs, on `CASES`; `PRECISION`
`mixed_float16` is what a T4 computes fastest, `ACCUMULATE` parts of a batch go one after the other where it does not fit 15 GB,
and `FROM` is the folder of a finished run to start from. Each choice has folders of its own: change one, run all cells again, and
what was done before is still there. Every setting below says where it comes from: the paper, the authors' code, or us.
""",
    )
    yield (
        "code",
        """notebook.show_recipe(recipe)
if not DEMO:
    notebook.describe_training(recipe)
""",
    )
    yield (
        "code",
        """recipe.build_model(**recipe.model).summary(line_length=100)
""",
    )
    yield (
        "markdown",
        """## Patients and cache
""",
    )
    yield (
        "code",
        """notebook.prepare(recipe, place)
""",
    )
    yield (
        "markdown",
        """## Training

Patients are divided into training, validation and test before any slice is drawn: no patient is in two parts. For KiTS19 the split is
`80-10-10` in all notebooks, whatever split the paper has. A run that is there already is taken up again
if recipe, patients, split and all settings are the same; else a line says what differs, and the new run gets its own folder.
""",
    )
    yield (
        "code",
        """split = notebook.choose_split(recipe, place)
run = notebook.train(recipe, place, split, EPOCHS if DEMO else None, start_from=FROM, **computing)
""",
    )
    if name == "wp_unet":
        yield (
            "markdown",
            """## What was pruned

The share of zeros in each layer that the schedule acts on. Depthwise kernels, batch normalization and biases are never pruned.
""",
        )
        yield (
            "code",
            """notebook.sparsity_chart(run)
""",
        )
    yield (
        "markdown",
        """## Prediction and scores on the test patients
""",
    )
    yield (
        "code",
        """scores = notebook.score_test_patients(run, place, split)
notebook.results_table(recipe, scores)
""",
    )
    yield (
        "markdown",
        """Predicting nothing scores high wherever background counts: compare with the column `predicting nothing`, not with zero.
In the demo a small network has seen six patients for a minute or two: expect kidneys, roughly, and hardly a tumor.
`kitsseg demo` makes 32 patients and trains longer.

## Pictures

Training curves, then each test patient, worst first: truth and prediction outlined in three planes.
""",
    )
    yield (
        "code",
        """from kitsseg import write_report

notebook.show_page(write_report(scores, scores.with_name("report.html")))
""",
    )
    if text.get("look"):
        yield (
            "markdown",
            """## How far the network looks

The chart shows, along each axis, by how much the output in the middle of a patch changes if the input at a distance changes. Where a curve
ends at zero, the network sees nothing.
""",
        )
        yield (
            "code",
            """notebook.receptive_field_chart(run, recipe)
""",
        )
    yield (
        "markdown",
        "## What does not add up in the paper\n\n" + "".join(f"* {line}\n" for line in text["fair"]),
    )
    yield (
        "markdown",
        """## Your own scan

Give the path of a NIfTI file, of a folder or a `.zip` archive of DICOM files in `SCAN`, or set `UPLOAD` and choose one. It is
segmented by the run above and by the starter network of the package, which learned from synthetic patients only. Scroll
through the slices with the wheel, the arrow keys or the slider; the box in the legend hides the outlines.
""",
    )
    yield (
        "code",
        """# @title Scan
SCAN = ""  # @param {type:"string"}
UPLOAD = False  # @param {type:"boolean"}

notebook.show_own_scan(run, SCAN, UPLOAD)
""",
    )
    yield (
        "markdown",
        f"""The same from a terminal: `kitsseg demo --recipe {name}`. Every setting: `docs/papers/{name}.md`.
""",
    )


def compare_notebook():
    """Cells of the notebook that puts several runs side by side."""
    yield (
        "markdown",
        f"""{badge("compare")}

# Several papers, the same patients

Reads the `scores.csv` of runs made by the other notebooks or by the command line, and compares them patient by patient. Only
runs scored on the same patients can be compared; the table says which those are.
""",
    )
    yield "code", INSTALL
    yield (
        "code",
        """# @title Settings
RECIPES = "unet2d, wp_unet"  # @param {type:"string"}
DEMO = True  # @param {type:"boolean"}
VARIANT = "paper"  # @param ["paper", "practical"]
CASES = "0-209"  # @param {type:"string"}
PATIENTS = 10  # @param {type:"integer"}
EPOCHS = 6  # @param {type:"integer"}
USE_DRIVE = False  # @param {type:"boolean"}

from kitsseg import notebook

notebook.describe_device()
names = [name.strip() for name in RECIPES.split(",")]
places = {name: notebook.folders(name, DEMO, VARIANT, PATIENTS, CASES, USE_DRIVE) for name in names}
""",
    )
    yield (
        "markdown",
        """## Runs

The scores of a notebook that has run with the same settings, in this session or on the same Drive, are read from where they are.
With `DEMO = True` any other recipe is trained in its small variant on the same synthetic patients: phantom results.
""",
    )
    yield (
        "code",
        """scores = {name: notebook.demo_scores(name, places[name], EPOCHS) for name in names}
""",
    )
    yield (
        "code",
        """notebook.comparison_table(scores)
""",
    )


def hours(recipe):
    """What ``training_work`` says of a T4, in words."""
    from kitsseg.training.work import training_work

    least, most = training_work(recipes.get(recipe)).hours()
    if most < 2:
        return f"{60 * least:.0f} to {60 * most:.0f} minutes"
    return f"{least:.1f} to {most:.0f} hours" if most < 48 else f"{least / 24:.1f} to {most / 24:.0f} days"


def badge(name):
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/colab/{name}.ipynb"
    return f'<a href="{address}"><img src="{BADGE}" alt="Open in Colab"></a>'


def as_notebook(cells):
    """nbformat 4.5 without outputs."""
    made = []
    for number, (kind, text) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"cell-{number:02}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell | {"source": text.rstrip("\n").splitlines(keepends=True)})
    return {
        "cells": made,
        "metadata": {
            "accelerator": "GPU",
            "colab": {"provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    start_keras()
    made = {name: paper_notebook(name) for name in recipes.names()} | {"compare": compare_notebook()}
    stale = []
    for name, cells in made.items():
        path, text = FOLDER / f"{name}.ipynb", json.dumps(as_notebook(cells), indent=1) + "\n"
        if check and (not path.is_file() or path.read_text() != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what scripts/make_notebooks.py makes; run it.")


if __name__ == "__main__":
    main()
