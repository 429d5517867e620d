"""Commands about scores: kitsseg evaluate, report."""

from pathlib import Path

__all__ = ["add", "evaluate", "report"]


def add(command):
    sub = command("evaluate", _evaluate, "score label maps against the truth with the KiTS19 metric")
    sub.add_argument("prediction", type=Path, help="label map or folder of them")
    sub.add_argument("truth", type=Path, help="label map or folder of cases")
    sub.add_argument("--out", required=True, type=Path, help="scores.csv; a summary goes beside it as .json")

    sub = command("report", _report, "one self-contained HTML page about a run or about scores")
    sub.add_argument("source", type=Path, help="a run folder, or the scores.csv of kitsseg evaluate")
    sub.add_argument("--out", required=True, type=Path, help="the HTML file")


def _evaluate(arguments):
    evaluate(arguments.prediction, arguments.truth, arguments.out)


def evaluate(prediction, truth, out):
    from rich.markup import escape

    from kitsseg.commands.console import console, done, progress_bar
    from kitsseg.evaluate import evaluate_folders, format_table

    with progress_bar() as progress:
        result = evaluate_folders(prediction, truth, out, progress)
    console.print(escape(format_table(result.rows, result.summary)))
    done(f"wrote {out} and {out.with_suffix('.json')}", f"kitsseg report {out} --out report.html")


def _report(arguments):
    report(arguments.source, arguments.out)


def report(source, out):
    from kitsseg.commands.console import done, progress_bar
    from kitsseg.report import write_report

    with progress_bar() as progress:
        write_report(source, out, progress)
    done(f"wrote {out}: open it in a browser")
