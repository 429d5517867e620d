"""What the notebooks call beside the library: the runtime, folders, patients, and tables and pages to look at."""

import html
import math
from pathlib import Path

from kitsseg.errors import InputError

__all__ = [
    "comparison_table",
    "demo_scores",
    "describe_device",
    "describe_training",
    "folders",
    "get_patients",
    "receptive_field_chart",
    "results_table",
    "show_page",
    "sparsity_chart",
    "train_or_resume",
]


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


def results_table(recipe, scores):
    """The paper's figures beside ours and beside predicting nothing, each with its definition.

    Args:
        recipe: Recipe.
        scores: scores.csv of ``evaluate_folders``.

    Returns: ``IPython.display.HTML``.
    """
    from IPython.display import HTML

    from kitsseg.report_sections import CLAIMS
    from kitsseg.scores_file import read_scores

    _, summary = read_scores(scores)
    rows = [(name, f"{value:,}", *_ours(summary, name)) for name, value in recipe.reported.items()]
    ours = {CLAIMS.get(name) for name in recipe.reported}
    rows += [
        ("", "not reported", *_score(summary, metric))
        for metric in ("tk_dice", "tu_dice", "macro_dice_with_background", "pixel_accuracy")
        if metric not in ours
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


def _ours(summary, name):
    """Cells beside a paper's figure: ours, predicting nothing, what is measured."""
    from kitsseg.report_sections import CLAIMS, without_counterpart

    if name in CLAIMS:
        return _score(summary, CLAIMS[name])
    if not name.startswith("parameters"):
        return "-", "-", without_counterpart(name)
    from kitsseg.networks import read_network

    trainable = read_network(Path(summary["run"]) / "model.keras").trainable_weights
    count = sum(math.prod(weights.shape) for weights in trainable)
    return f"{count:,}", "-", "trainable parameters of the network that was trained here, small in the demo"


def _score(summary, metric):
    from kitsseg.ladder import RUNGS

    ours, nothing = (
        summary["beside_all_background"][which][metric] for which in ("prediction", "all_background")
    )
    return f"{ours:.3f}", f"{nothing:.3f}", RUNGS[metric].definition


def show_page(path, height=900):
    """An HTML page of ours inside the notebook, apart from the notebook's own styles."""
    from IPython.display import HTML

    page = html.escape(Path(path).read_text(encoding="utf-8"))
    return HTML(f'<iframe srcdoc="{page}" width="100%" height="{height}" frameborder="0"></iframe>')


def describe_training(recipe):
    """Say how much arithmetic the recipe's training is, and how long that would take on Colab's T4."""
    from kitsseg.training_work import training_work

    work = training_work(recipe)
    least, most = (
        f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" for hours in work.hours()
    )
    _say(
        f"{work.steps:,} steps, {work.images:,} {work.what}, {work.flops / 1e12:,.0f} Tflop. On a T4 that is {least} "
        f"to {most}: arithmetic with a share of its 8.1 Tflop/s as CPUs reach here, not a measurement; reading and "
        "validation come on top. The bar below says what is left on this machine."
    )


def receptive_field_chart(run, recipe):
    """How much what lies so far from a place matters for the network's answer there; needs matplotlib.

    Args:
        run: folder of a finished run. recipe: the Recipe it was trained with.
    """
    from matplotlib import pyplot

    from kitsseg.networks import read_network
    from kitsseg.receptive_field import influence_by_distance

    model = read_network(Path(run) / "model.keras")
    patch = recipe.phases[0].sampler.patch_size
    found = influence_by_distance(model, (*patch, model.input_shape[-1]))
    figure, axes = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    for name, (distances, influence) in zip(("columns", "rows", "slices"), reversed(found)):
        axes.semilogy(distances, influence, label=name)
    axes.set(
        ylim=(1e-4, 1.5), xlabel="distance, voxels of the network's grid", ylabel="influence, nearest: 1"
    )
    axes.legend()
    pyplot.close(figure)
    return figure


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
