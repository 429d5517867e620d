"""Tables of scores, pages and charts for the notebooks."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.errors import InputError

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

    from kitsseg.recipe import Recipe
    from kitsseg.scoring.summary import Summary

__all__ = [
    "comparison_table",
    "page_frame",
    "receptive_field_chart",
    "results_table",
    "show_page",
    "sparsity_chart",
]


def results_table(recipe: Recipe, scores: str | os.PathLike[str]) -> HTML:
    """The paper's figures beside ours and beside predicting nothing, each with its definition.

    Args:
        recipe: Recipe.
        scores: scores.csv of ``evaluate_folders``.

    Returns: ``IPython.display.HTML``.
    """
    from IPython.display import HTML

    from kitsseg.report.sections import CLAIMS
    from kitsseg.scoring.scores_file import read_scores

    _, summary = read_scores(scores)
    rows = [(name, f"{value:,}", *_ours(summary, name)) for name, value in recipe.reported.items()]
    ours = {CLAIMS.get(name) for name in recipe.reported}
    rows += [
        ("", "not reported", *_score(summary, metric))
        for metric in ("tk_dice", "tu_dice", "macro_dice_with_background", "pixel_accuracy")
        if metric not in ours
    ]
    heads = ("quantity, in the words of the paper", "paper", "ours", "predicting nothing", "what is measured")
    kind = "synthetic patients: phantom results" if summary.phantom else "patients of KiTS19"
    return HTML(_table(heads, rows) + f"<p>Ours: {summary.n_cases} {kind}, none of them trained on.</p>")


def comparison_table(scores: Mapping[str, str | os.PathLike[str]]) -> HTML:
    """Compare runs on the patients on whom all runs were scored and whom no run has seen.

    Args:
        scores: dict from a name for each run to its scores.csv.

    Returns: ``IPython.display.HTML``.
    """
    from IPython.display import HTML

    from kitsseg.scoring.compare import compare_scores

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


def show_page(path: str | os.PathLike[str], height: int = 900) -> HTML:
    """Show an HTML page, such as a report, inside the notebook, separated from the notebook's own styles."""
    from IPython.display import HTML

    return HTML(page_frame(path, height))


def page_frame(path: str | os.PathLike[str], height: int = 900) -> str:
    """The HTML of ``show_page``."""
    page = html.escape(Path(path).read_text(encoding="utf-8"))
    # in a div: of a bare iframe IPython says that its own IFrame is better, which takes no page by its contents
    return f'<div><iframe srcdoc="{page}" width="100%" height="{height}" frameborder="0"></iframe></div>'


def receptive_field_chart(run: str | os.PathLike[str], recipe: Recipe) -> Figure:
    """A chart of the influence of voxels on the logits of another voxel, by their distance; needs matplotlib.

    Args:
        run: folder of a finished run.
        recipe: the Recipe that the run was trained with.
    """
    from matplotlib import pyplot

    from kitsseg.models.loading import read_network
    from kitsseg.models.receptive_field import influence_by_distance

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


def sparsity_chart(run: str | os.PathLike[str]) -> Figure:
    """The share of zeros in each pruned layer of a run, as bars; needs matplotlib.

    Raises: InputError if the run was not pruned.
    """
    from matplotlib import pyplot

    from kitsseg.records.run import read_sparsity

    rows = read_sparsity(run)
    if not rows:
        raise InputError(f"{Path(run) / 'sparsity.csv'}: missing; this run was not pruned.")
    figure, axes = pyplot.subplots(figsize=(7, 0.22 * len(rows) + 0.8), layout="constrained")
    rows = [row for row in rows if row["pruned"] == "yes"]
    axes.barh([row["weights"] for row in rows], [100 * row["sparsity"] for row in rows], color="#4a7ab5")
    axes.invert_yaxis()
    axes.set_xlabel("zeros, %")
    axes.tick_params(axis="y", labelsize=7)
    pyplot.close(figure)
    return figure


def _ours(summary: Summary, name: str) -> tuple[str, str, str]:
    """Cells beside a paper's figure: ours, predicting nothing, what is measured."""
    from kitsseg.report.sections import CLAIMS, without_counterpart

    if name in CLAIMS:
        return _score(summary, CLAIMS[name])
    if not name.startswith("parameters"):
        return "-", "-", without_counterpart(name)
    from kitsseg.models.loading import read_network

    if summary.run is None:
        return "-", "-", "the run is not known"
    trainable = read_network(Path(summary.run) / "model.keras").trainable_weights
    count = sum(math.prod(weights.shape) for weights in trainable)
    return f"{count:,}", "-", "trainable parameters of the network that was trained here, small in the demo"


def _score(summary: Summary, metric: str) -> tuple[str, str, str]:
    from kitsseg.scoring.ladder import RUNGS

    beside = summary.beside_all_background
    ours, nothing = beside.prediction[metric], beside.all_background[metric]
    return f"{ours:.3f}", f"{nothing:.3f}", RUNGS[metric].definition


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + f"</tr>{''.join(lines)}</table>"
