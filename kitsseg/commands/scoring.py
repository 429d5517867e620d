"""Commands about scores: kitsseg evaluate, compare, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.commands.arguments import AddCommand, add_layout, layout_of
from kitsseg.errors import InputError, command_line, some_of
from kitsseg.files.paths import as_given

if TYPE_CHECKING:
    import argparse

    from kitsseg.data.layouts.kits import Layout

__all__ = ["add", "evaluate", "report"]

NAMED = 3  # missing pictures whose reasons are told; the page tells all


def add(command: AddCommand) -> None:
    sub = command("evaluate", _evaluate, "score label maps against the truth with the KiTS19 metric")
    sub.add_argument("prediction", type=Path, help="label map or folder of them")
    sub.add_argument(
        "truth", type=Path, help="label map or folder of cases, in any layout of kitsseg preprocess"
    )
    sub.add_argument("--out", required=True, type=Path, help="scores.csv; a summary goes beside it as .json")
    add_layout(sub)
    sub.add_argument(
        "--classes",
        choices=["kits19", "kits23"],
        default="kits19",
        help="kits23: label 3 is cyst; adds the classes of KiTS21 and KiTS23 (default: kits19)",
    )
    sub.add_argument(
        "--surface", action="store_true", help="also surface Dice, HD95 and which tumors were found"
    )

    sub = command("compare", _compare, "compare runs patient by patient, on patients none of them has seen")
    sub.add_argument(
        "scores", nargs="+", metavar="[NAME=]SCORES", help="scores.csv of kitsseg evaluate, two or more"
    )
    sub.add_argument("--out", type=Path, help="a .csv file for the differences")

    sub = command("report", _report, "one self-contained HTML page about a run, scores or predictions")
    sub.add_argument(
        "source",
        type=Path,
        help="a run folder, the scores.csv of kitsseg evaluate, or a folder of kitsseg predict without truth",
    )
    sub.add_argument(
        "--out", type=Path, help="the HTML file (default: report.html, or none where --preview is given)"
    )
    sub.add_argument(
        "--preview",
        metavar="PNG",
        type=Path,
        help="a picture of one case: the one of --case, else the worst; without scores, the first with a doubt",
    )
    sub.add_argument("--case", help="the case of --preview")


def _evaluate(arguments: argparse.Namespace) -> None:
    layout = layout_of(arguments)
    evaluate(
        arguments.prediction, arguments.truth, arguments.out, layout, arguments.classes, arguments.surface
    )


def evaluate(
    prediction: Path,
    truth: Path,
    out: Path,
    layout: Layout | None = None,
    classes: str = "kits19",
    surface: bool = False,
) -> None:
    from kitsseg.commands.score_table import print_scores, print_slices
    from kitsseg.data.layouts.slices import has_slices
    from kitsseg.runtime.console import console, done, progress_bar
    from kitsseg.scoring.evaluate import evaluate_folders
    from kitsseg.scoring.slices import evaluate_slices

    with progress_bar() as progress:
        if classes == "kits19" and not surface and truth.is_dir() and has_slices(truth):
            of_slices = evaluate_slices(prediction, truth, out, progress, layout)
            print_slices(of_slices.rows, of_slices.summary, console)
            done(f"wrote slice scores to {out} and {out.with_suffix('.json')}")
            return
        result = evaluate_folders(prediction, truth, out, progress, layout, classes, surface)
    print_scores(result.rows, result.summary, console)
    done(f"wrote {out} and {out.with_suffix('.json')}", command_line("report", out, "--out", "report.html"))


def _compare(arguments: argparse.Namespace) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kitsseg.runtime.console import console, done, print_table
    from kitsseg.scoring.compare import compare_scores

    files = _named(arguments.scores)
    result = compare_scores(files, arguments.out)
    for case, why in sorted(result.left_out.items()):
        console.print(escape(f"left out: {case} ({why})"))
    if result.unchecked:
        names = ", ".join(result.unchecked)
        console.print(
            escape(
                f"no run folder of {names}: whether they were trained on any of these patients is not known"
            )
        )
    kind = "synthetic patients, phantom results" if result.phantom else "patients"
    if result.synthetic and not result.phantom:
        kind += f", {len(result.synthetic)} of them synthetic"
    kind += "; slice scores, no case scores" if result.of_slices else ""
    table = Table("run", "TK Dice", "TU Dice", "composite", title=f"mean over {len(result.cases)} {kind}")
    for name, means in result.means.items():
        table.add_row(
            escape(name), *(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in means.values())
        )
    print_table(table)
    table = Table("second minus first", "metric", "difference", "95 % interval", "p (Wilcoxon)")
    for row in result.differences:
        table.add_row(
            escape(f"{row['second']} - {row['first']}"),
            row["metric"],
            f"{row['difference']:+.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}",
            f"{row['p']:.3g}",
        )
    print_table(table)
    if not result.of_slices:
        _print_ranking(files)
    if arguments.out:
        done(f"wrote {arguments.out}")


def _print_ranking(files: Mapping[str, Path]) -> None:
    """Rank the runs as KiTS23 does, if all were scored on the same cases with --classes kits23 --surface."""
    from rich.markup import escape
    from rich.table import Table

    from kitsseg.runtime.console import print_table
    from kitsseg.scoring.compare import rank_runs
    from kitsseg.scoring.scores_file import read_scores

    read = {name: read_scores(path) for name, path in files.items()}
    cases = {frozenset(row["case"] for row in rows) for rows, _ in read.values()}
    entries = {}
    for name, (_, summary) in read.items():
        hec, surface_scores = summary.hec, summary.surface
        if hec is None or surface_scores is None or hec.dice.tumor.mean is None:
            return
        entries[name] = hec.mean_dice, surface_scores.mean_surface_dice, hec.dice.tumor.mean
    if len(cases) > 1:
        return
    table = Table("run", "mean Dice", "mean surface Dice", "ranks", "mean rank", title="ranking of KiTS23")
    for name, first, second, mean in rank_runs(entries):
        dice, surface, _ = entries[name]
        table.add_row(escape(name), f"{dice:.4f}", f"{surface:.4f}", f"{first} and {second}", f"{mean:g}")
    print_table(table)


def _named(texts: Sequence[str]) -> dict[str, Path]:
    """Name -> scores file. The name is NAME of NAME=FILE, else the file's folder, else the name of the file.

    Links keep their own names: what a store calls the file tells nobody which run it is of.
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.rpartition("=")
        if not name:  # two files of one folder by their own names
            folders = [as_given(other).parent for other in texts if "=" not in other]
            folder = as_given(path).parent
            name = Path(path).stem if folders.count(folder) > 1 else folder.name
        if name in files:
            raise InputError(
                f"{path}: {name} is the name of {files[name]} already. Give another: NAME={path}"
            )
        files[name] = Path(path)
    return files


def _report(arguments: argparse.Namespace) -> None:
    if arguments.case and not arguments.preview:
        raise InputError(
            "report: --case names the case of --preview FILE.png, found no --preview. Give both, or leave --case out."
        )
    if arguments.preview:
        _preview(arguments.source, arguments.preview, arguments.case)
    if arguments.out or not arguments.preview:
        report(arguments.source, arguments.out or Path("report.html"))


def _preview(source: Path, out: Path, case: str | None = None) -> None:
    from kitsseg.report.report import write_preview
    from kitsseg.runtime.console import done

    case = write_preview(source, out, case)
    done(f"wrote {out}: {case}")


def report(source: Path, out: Path) -> None:
    from kitsseg.report.report import make_report
    from kitsseg.runtime.console import done, progress_bar, warning

    with progress_bar() as progress:
        written = make_report(source, out, progress)
    if lacking := written.missing:
        reasons = some_of([f"{name}: {why.rstrip('.')}" for name, why in lacking.items()], NAMED, "; ")
        n = written.pictures
        warning(f"warning: {len(lacking)} of {n} picture{'s' * (n != 1)} missing: {reasons}")
    scores = source / "scores.csv" if source.is_dir() else source
    following = evaluate = None
    if scores.exists():
        following = command_line("compare", scores, "OTHER_SCORES")
    elif (source / "run.json").exists():
        following = command_line("predict", source, "DATA", "--out", "PREDICTIONS")
    else:
        evaluate = command_line("evaluate", source, "TRUTH", "--out", "scores.csv")
    done(f"wrote {out}: open it in a browser", following, with_truth=evaluate)
