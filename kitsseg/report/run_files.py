"""What the report takes from a run folder, checked: these files may have been edited."""

import csv
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.records.run import read_run
from kitsseg.scoring.scores_file import ANY, COUNT, NUMBER, TEXT, check_form

__all__ = ["read_sparsity", "run_of_report"]

FORM = {
    "recipe?": TEXT,
    "paper?": TEXT,
    "reported?": {None: ANY},
    "versions?": {None: TEXT},
    "split?": {"name?": TEXT, "hash?": TEXT, "cases?": {None: [TEXT]}},
    "seconds?": NUMBER,
    "seed?": COUNT,
    "status?": TEXT,
    "kitsseg?": TEXT,
}
COLUMNS = ("weights", "shape", "pruned", "size", "zeros", "sparsity")


def run_of_report(folder):
    """The record of a run, with what the page prints of it checked.

    Raises: InputError.
    """
    record = read_run(folder)
    check_form(record, FORM, Path(folder) / "run.json", "Restore the file as kitsseg train wrote it.")
    return record


def read_sparsity(folder):
    """Rows of RUN/sparsity.csv with numbers as numbers; empty for a run that was not pruned.

    Raises: InputError if it is damaged.
    """
    path = Path(folder) / "sparsity.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: row[name] for name in COLUMNS} for row in csv.DictReader(file)]
        for row in rows:
            row |= {"size": int(row["size"]), "zeros": int(row["zeros"]), "sparsity": float(row["sparsity"])}
            if not (0 <= row["zeros"] <= row["size"] and 0 <= row["sparsity"] <= 1):
                raise ValueError(f"{row['zeros']} zeros of {row['size']}")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected a row for each weight matrix, found others ({error!r})."
        ) from error
    return rows
