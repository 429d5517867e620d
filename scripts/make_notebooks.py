"""Write the notebooks in colab/: python scripts/make_notebooks.py

One text for all papers, so that what is shown for one is shown for each; the words of a paper are in notebook_texts.py.
``--check`` writes nothing and fails if a notebook in colab/ is not what this script makes.
"""

import argparse
import json
import sys
from pathlib import Path

from notebook_texts import TEXTS

from kitsseg import recipes
from kitsseg.runtime.start_keras import start_keras

REPOSITORY = "kitsseg/kitsseg"
FOLDER = Path(__file__).parents[1] / "colab"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
INSTALL = f"""import importlib.util

if importlib.util.find_spec("kitsseg") is None:
    %pip install -q "kitsseg[colab] @ git+https://github.com/{REPOSITORY}"
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
`DEMO = False` the same cells download KiTS19 (20 GB; CC BY-NC-SA 4.0), train the paper's network and score it on patients it
has never seen. By arithmetic the training alone takes {hours(name)} on a T4 (`VARIANT = "practical"`:
{hours(f"{name}:practical")}); nobody has measured it. Begin with `CASES = "0-19"`, and see what the bar says is left.

With `USE_DRIVE = True` runs and results are kept on your Drive, and a disconnected Colab goes on where it was. Scans and
cache are not: a new machine downloads and prepares them again.

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
PATIENTS = 10  # @param {{type:"integer"}}
EPOCHS = {text["demo_epochs"]}  # @param {{type:"integer"}}
USE_DRIVE = False  # @param {{type:"boolean"}}

from kitsseg import notebook, recipes

notebook.describe_device()
local, kept = notebook.folders("{name}", USE_DRIVE)
recipe = recipes.get("{name}:tiny" if DEMO else "{name}" if VARIANT == "paper" else "{name}:practical")
""",
    )
    yield (
        "markdown",
        """## What is stated and what was chosen

`CASES` is for KiTS19, `PATIENTS` and `EPOCHS` (of each phase) for the demo; KiTS19 gets the recipe's own epochs. Every
setting below says where it comes from: the paper, the authors' code, or us.
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
        """from kitsseg import preprocess_cases

data = notebook.get_patients(local / "data", DEMO, PATIENTS, CASES)
preprocess_cases(data, local / "cache", recipe.preprocess)
""",
    )
    yield (
        "markdown",
        """## Training

Patients are split before anything is drawn from them: no patient is on two sides. After a disconnect run all cells again: training
goes on after its last finished epoch.
""",
    )
    yield (
        "code",
        """from kitsseg import load_split, make_split, open_cache

cases = open_cache(local / "cache", recipe.preprocess)
split = make_split(cases, (0.6, 0.2, 0.2)) if DEMO else load_split("80-10-10").among(cases)[0]
run = notebook.train_or_resume(recipe, local / "cache", split, kept / "run", EPOCHS if DEMO else None)
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
        """from kitsseg import evaluate_folders, predict_cases

predict_cases(run, [data], kept / "predictions", part="test")
result = evaluate_folders(kept / "predictions", data, kept / "scores.csv")
""",
    )
    yield (
        "code",
        """notebook.results_table(recipe, kept / "scores.csv")
""",
    )
    yield (
        "markdown",
        """A network that predicts nothing scores high wherever background counts: compare with its column, not with zero.
In the demo a small network has seen six patients for a minute or two: expect kidneys, roughly, and hardly a tumor.
`kitsseg demo` trains it longer, on ten.

## Pictures

Training curves, then each test patient, worst first: truth and prediction outlined in three planes.
""",
    )
    yield (
        "code",
        """from kitsseg import write_report

notebook.show_page(write_report(kept / "scores.csv", kept / "report.html"))
""",
    )
    if text.get("look"):
        yield (
            "markdown",
            """## How far the network looks

By how much the answer in the middle of a patch changes with what lies so far away, along each axis. Zero, where a curve
ends, is out of reach.
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
PATIENTS = 10  # @param {type:"integer"}
EPOCHS = 6  # @param {type:"integer"}
USE_DRIVE = False  # @param {type:"boolean"}

from kitsseg import notebook

notebook.describe_device()
local, kept = notebook.folders("compare", USE_DRIVE)
names = [name.strip() for name in RECIPES.split(",")]
""",
    )
    yield (
        "markdown",
        """## Runs

A recipe whose scores are there already (`kept/NAME/scores.csv`) is read; any other is trained in its small variant on the same
synthetic patients: phantom results.
""",
    )
    yield (
        "code",
        """scores = {name: notebook.demo_scores(name, local, kept / name, PATIENTS, EPOCHS) for name in names}
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
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
