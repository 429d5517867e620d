"""What the notebooks call beside the library: the runtime, folders, patients, and tables and pages to look at."""

import html
from pathlib import Path

from kitsseg.errors import InputError

__all__ = [
    "comparison_table",
    "demo_scores",
    "describe_device",
    "folders",
    "get_patients",
    "results_table",
    "show_page",
    "sparsity_chart",
    "train_or_resume",
]

# our metrics: where they stand in scores.json, and what they mean
DEFINITIONS = {
    "tk_dice": "KiTS19's TK Dice: kidney with tumor against the rest, per case, mean over cases",
    "tu_dice": "KiTS19's TU Dice: tumor against the rest, per case, mean over cases",
    "composite": "mean of TK and TU Dice",
    "kidney_label_dice": "Dice of the kidney label without tumor, per case, mean over cases",
    "macro_dice_with_background": "all voxels pooled, mean of the classes' Dice, background counted as a class "
    "(fastai's DiceMulti)",
    "pixel_accuracy": "share of all voxels with the right label",
}


def describe_device():
    """Say what the training will run on; on a machine without a GPU, how to get one on Colab, and go on.

    Returns: number of GPUs that Keras sees.
    """
    import keras

    gpus = len(keras.distribution.list_devices("gpu"))
    backend = f"Keras {keras.version()} on {keras.config.backend()}"
    if gpus:
        _say(f"{backend}, {gpus} GPU.")
    else:
        _say(
            f"{backend}, no GPU: the demo takes a minute or two on a CPU, KiTS19 itself would take days. "
            "On Colab: Runtime > Change runtime type > T4 GPU, then run this notebook from the top."
        )
    return gpus


def folders(name, use_drive=False, out=None):
    """Where things go: (fast local folder for data and cache, folder for runs and results that may be a drive).

    Args:
        name: of the sub-folder, such as the recipe's name.
        use_drive: keep runs on Google Drive, so that a disconnected Colab can go on where it was.
        out: folder to use for both instead, outside Colab.

    Raises: InputError if ``use_drive`` is asked for outside Colab.
    """
    local = Path(out or ("/content/kitsseg" if Path("/content").is_dir() else "kitsseg-notebooks")) / name
    kept = local
    if use_drive:
        try:
            from google.colab import drive
        except ImportError as error:
            raise InputError(
                "USE_DRIVE: expected to run on Colab, found no google.colab. Set it to False."
            ) from error
        drive.mount("/content/drive")
        kept = Path("/content/drive/MyDrive/kitsseg") / name
    for folder in (local, kept):
        folder.mkdir(parents=True, exist_ok=True)
    return local, kept


def get_patients(folder, demo, n_synthetic=10, cases=None):
    """Synthetic patients for the demo, KiTS19 otherwise; what is there already is not made or fetched again.

    Args:
        folder: for the cases, in KiTS19 layout.
        demo: synthetic patients of 40 x 128 x 128 voxels instead of KiTS19.
        n_synthetic: how many of them.
        cases: of KiTS19, such as "0-209"; all training cases by default.

    Returns: the folder.
    """
    folder = Path(folder)
    if not demo:
        from kitsseg.commands.data import download

        download(folder, cases)
    elif not any(folder.glob("case_*")):
        from kitsseg.commands.console import progress_bar
        from kitsseg.data.synthesize import synthesize_cases

        with progress_bar() as progress:
            synthesize_cases(folder, n_synthetic, (40, 128, 128), progress=progress)
    return folder


def train_or_resume(recipe, cache, split, run, epochs=None, seed=0):
    """``train_recipe``; goes on with an unfinished run of the same settings, and leaves a finished one alone.

    Args: as ``kitsseg.train.train_recipe``; ``epochs`` of 0 or None are the recipe's own.
    """
    from kitsseg.commands.console import progress_bar
    from kitsseg.train import train_recipe

    run = Path(run)
    if (run / "model.keras").is_file():
        _say(f"{run} has been trained already.")
        return run
    with progress_bar() as progress:
        return train_recipe(
            recipe, cache, split, run, seed, epochs or None, (run / "run.json").is_file(), progress
        )


def results_table(recipe, scores, same_metric):
    """The paper's figures beside ours and beside predicting nothing, each with its definition.

    Args:
        recipe: Recipe.
        scores: scores.csv of ``evaluate_folders``.
        same_metric: from the paper's own name of a figure (a key of ``recipe.reported``) to the name of our metric
            of the same definition. Figures of the paper without one are listed with nothing beside them.

    Returns: ``IPython.display.HTML``.
    """
    from IPython.display import HTML

    from kitsseg.scores_file import read_scores

    _, summary = read_scores(scores)
    rows = [
        (name, f"{value:,}", *_ours(summary, same_metric.get(name)))
        for name, value in recipe.reported.items()
    ]
    rows += [
        ("", "not reported", *_ours(summary, metric))
        for metric in ("tk_dice", "tu_dice", "macro_dice_with_background", "pixel_accuracy")
        if metric not in same_metric.values()
    ]
    heads = ("the paper's name", "paper", "ours", "predicting nothing", "what is measured")
    kind = "synthetic patients: phantom results" if summary.get("phantom") else "patients of KiTS19"
    return HTML(_table(heads, rows) + f"<p>Ours: {summary['n_cases']} {kind}, none of them trained on.</p>")


def demo_scores(name, local, kept, n_synthetic=10, epochs=None):
    """The scores.csv of a recipe: that in ``kept`` if there is one, else of a demo run made here.

    Args:
        name: of the recipe; its tiny variant is trained.
        local: folder for synthetic patients and caches, the same for all recipes to be compared.
        kept: folder for run, predictions and scores.
        n_synthetic, epochs: as in ``get_patients`` and ``train_or_resume``.
    """
    from kitsseg import recipes
    from kitsseg.data.cache import open_cache
    from kitsseg.data.preprocess import preprocess_cases
    from kitsseg.data.splits import make_split
    from kitsseg.evaluate import evaluate_folders
    from kitsseg.predict import predict_cases

    scores = Path(kept) / "scores.csv"
    if scores.is_file():
        return scores
    recipe = recipes.get(f"{name}:tiny")
    data = get_patients(Path(local) / "data", True, n_synthetic)
    preprocess_cases(data, Path(local) / "cache", recipe.preprocess)
    # the names of the patients alone decide: every recipe gets the same split
    split = make_split(open_cache(Path(local) / "cache", recipe.preprocess), (0.6, 0.2, 0.2))
    run = train_or_resume(recipe, Path(local) / "cache", split, Path(kept) / "run", epochs)
    predict_cases(run, [data], Path(kept) / "predictions", part="test")
    evaluate_folders(Path(kept) / "predictions", data, scores)
    return scores


def comparison_table(scores):
    """Runs side by side on the patients that all were scored on and none has seen.

    Args:
        scores: dict from what to call a run to its scores.csv.

    Returns: ``IPython.display.HTML``.
    """
    from IPython.display import HTML

    from kitsseg.compare import compare_scores

    found = compare_scores(scores)
    rows = [
        (name, *(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in means.values()))
        for name, means in found.means.items()
    ]
    pairs = [
        (f"{row['second']} - {row['first']}", row["metric"], f"{row['difference']:+.3f}")
        + (f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['p']:.3g}")
        for row in found.differences
    ]
    kind = "synthetic patients: phantom results" if found.phantom else "patients"
    return HTML(
        _table(("run", "TK Dice", "TU Dice", "composite"), rows)
        + f"<p>Mean over {len(found.cases)} {kind}, 95 % interval by bootstrap over patients.</p>"
        + _table(("second minus first", "metric", "difference", "95 % interval", "p (Wilcoxon)"), pairs)
    )


def _ours(summary, metric):
    if metric is None:
        return "-", "-", "the paper does not define it well enough to compute it"
    beside = summary["beside_all_background"]
    if metric in beside["prediction"]:
        ours, nothing = beside["prediction"][metric], beside["all_background"][metric]
    else:
        ours, nothing = summary["scores"][metric]["mean"], 0.0
    return f"{ours:.3f}", f"{nothing:.3f}", DEFINITIONS[metric]


def show_page(path, height=900):
    """An HTML page of ours inside the notebook, apart from the notebook's own styles."""
    from IPython.display import HTML

    page = html.escape(Path(path).read_text(encoding="utf-8"))
    return HTML(f'<iframe srcdoc="{page}" width="100%" height="{height}" frameborder="0"></iframe>')


def sparsity_chart(run):
    """The share of zeros in each pruned layer of a run, as bars; needs matplotlib.

    Raises: InputError if the run was not pruned.
    """
    import csv

    from matplotlib import pyplot

    path = Path(run) / "sparsity.csv"
    if not path.is_file():
        raise InputError(f"{path}: missing; this run was not pruned.")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(figsize=(7, 0.22 * len(rows) + 0.8), layout="constrained")
    rows = [row for row in rows if row["pruned"] == "yes"]
    axes.barh(
        [row["weights"] for row in rows], [100 * float(row["sparsity"]) for row in rows], color="#4a7ab5"
    )
    axes.invert_yaxis()
    axes.set_xlabel("zeros, %")
    axes.tick_params(axis="y", labelsize=7)
    pyplot.close(figure)
    return figure


def _table(heads, rows):
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + f"</tr>{''.join(lines)}</table>"


def _say(text):
    from kitsseg.commands.console import console

    console.print(text)
