"""Reading back what ``kitsseg evaluate`` wrote, and refusing what it did not."""

import csv
import json
import math
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.files.paths import absolute_paths
from kitsseg.scoring.dice import SCORES, VOLUMES
from kitsseg.scoring.kits23 import HEC_LABELS
from kitsseg.scoring.ladder import RUNGS
from kitsseg.scoring.slices import holds_slice_scores

__all__ = ["ANY", "COUNT", "NUMBER", "TEXT", "TEXT_COLUMNS", "check_form", "read_scores"]

TEXT_COLUMNS = ("case", "empty", "label_release", "split_hash")
NUMBER, COUNT, TEXT, ANY = (int, float), (int,), (str,), (int, float, str, list, dict, bool)
NONE = (type(None),)
MEANS = {"mean": NUMBER, "sd": NUMBER + NONE, "median": NUMBER, "interval_95": [NUMBER, NUMBER]}
DICE = {"mean": NUMBER, "defined": COUNT}
MEANS_OF_DEFINED = {"mean": NUMBER + NONE, "defined": COUNT}
LADDER = {key: NUMBER + NONE if "skipped" in key or "pooled_t" in key else NUMBER for key in RUNGS}
# What the report and the comparison take from scores.json. A dict with the key None has any keys; keys with a question
# mark may be missing or null; a list of one form has any length.
FORM = {
    "n_cases": COUNT,
    "empty_cases": COUNT,
    "empty_rule": TEXT,
    "truth_without_prediction": [TEXT],
    "composite_interval_95": [NUMBER, NUMBER],
    "resamples": COUNT,
    "bootstrap_seed": COUNT,
    "scores": dict.fromkeys(SCORES, MEANS),
    "beside_all_background": {"prediction": LADDER, "all_background": LADDER},
    "cases": {
        None: {"prediction": TEXT, "truth": TEXT, "image": TEXT + NONE, "label_values?": [COUNT + NONE]},
    },
    "label_release?": {None: COUNT},
    "hec?": {"dice": dict.fromkeys(HEC_LABELS, DICE), "mean_dice": NUMBER},
    "surface?": {
        "classes": {None: {"tolerance_mm": NUMBER, "surface_dice": DICE, "hd95_mm": MEANS_OF_DEFINED}},
        "mean_surface_dice": NUMBER,
        "surface_dice_rule": TEXT,
        "hd95_rule": TEXT,
    },
    "lesions?": {
        **dict.fromkeys(("lesions", "lesions_found", "predicted_lesions", "false_lesions"), COUNT),
        "rule": TEXT,
    },
    "run?": TEXT,
    "also?": [TEXT],
    "recipe?": TEXT,
    "paper?": TEXT,
    "reported?": {None: ANY},
    "split?": {"name?": TEXT, "hash?": TEXT, "part?": TEXT, "cases?": {None: [TEXT]}},
    "inference?": {None: ANY + NONE},
    "failed?": {None: {"reason": TEXT}},
}


def read_scores(path):
    """The rows of a scores.csv with numbers as numbers (None where a value is not defined), and its scores.json
    with the paths in it made absolute.

    Raises: InputError if either is missing, or not written by ``kitsseg evaluate``.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    again = "Run kitsseg evaluate again."
    if holds_slice_scores(path):
        raise InputError(
            f"{path}: expected scores of whole cases, found slice scores, which mean something else. Compare slice "
            "scores with each other: kitsseg compare."
        )
    if not beside.is_file():
        raise InputError(f"{beside}: expected the summary of {path.name} beside it, found nothing. {again}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_numbers(row) for row in csv.DictReader(file)]
        summary = json.loads(beside.read_text(encoding="utf-8"))
        expected, found = sorted(summary["cases"]), sorted(row["case"] for row in rows)
        means = {name: summary["scores"][name]["mean"] for name in SCORES}
        for row in rows:
            _ = [row[name] + 0 for name in (*SCORES, *VOLUMES)], row["empty"] + ""
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: expected the scores of kitsseg evaluate, found others ({error!r}). {again}"
        ) from error
    if not rows or expected != found:
        raise InputError(
            f"{path}: has {len(found)} cases, {beside.name} beside it {len(expected)} others. {again}"
        )
    check_form(summary, FORM, beside, again)
    summary = absolute_paths(summary, beside.parent)
    for name, mean in means.items():
        # written so that NaN fails too
        if not abs(mean - sum(row[name] for row in rows) / len(rows)) <= 1e-9:
            raise InputError(f"{path}: the mean of {name} is not the {mean:.6g} of {beside.name}. {again}")
    return rows, summary


def check_form(value, form, path, advice, where=""):
    """Raise InputError where ``value`` of the JSON file ``path`` is not of a form as ``FORM``."""

    def wrong(expected):
        shown = "nothing" if value is None else f"{value!r:.60}"
        return InputError(f"{path}: expected {expected} as {where or 'its content'}, found {shown}. {advice}")

    if isinstance(form, tuple):
        fits = isinstance(value, form) and (not isinstance(value, bool) or bool in form)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            names = {int: "a number", float: "a number", str: "text", type(None): "null", dict: "an object"}
            raise wrong(" or ".join(dict.fromkeys(names[kind] for kind in form if kind in names)))
    elif isinstance(form, list):
        if not isinstance(value, list) or (len(form) > 1 and len(value) != len(form)):
            raise wrong("a list" if len(form) == 1 else f"a list of {len(form)}")
        for i, item in enumerate(value):
            check_form(item, form[min(i, len(form) - 1)], path, advice, f"{where}[{i}]")
    elif not isinstance(value, dict):
        raise wrong("an object")
    elif None in form:
        for key, item in value.items():
            check_form(item, form[None], path, advice, f"{where}.{key}".lstrip("."))
    else:
        for key, inner in form.items():
            name, item = key.rstrip("?"), value.get(key.rstrip("?"))
            if name == key and name not in value:
                raise wrong(f"an object with {name}")
            if item is not None or name == key:
                check_form(item, inner, path, advice, f"{where}.{name}".lstrip("."))


def _numbers(row):
    numbers = {
        key: value if key in TEXT_COLUMNS else float(value) if value else None for key, value in row.items()
    }
    if not all(math.isfinite(value) for value in numbers.values() if isinstance(value, float)):
        raise ValueError(f"a number of {row['case']} is not finite")
    return numbers
