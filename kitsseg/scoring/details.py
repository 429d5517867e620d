"""What ``kitsseg evaluate`` adds on request: the class of cysts, surfaces, lesions; and the release of the labels."""

from functools import lru_cache

import numpy as np

from kitsseg.data.kits19.manifest import read_manifest
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.scoring.kits23 import HEC_LABELS, TOLERANCES_MM, hec_dice, surface_scores
from kitsseg.scoring.lesions import LESION_RULE, find_lesions, lesion_counts

__all__ = [
    "CLASSES",
    "cysts_as_kidney",
    "detail_columns",
    "hec_scores",
    "label_release",
    "summarize_details",
    "surface_and_lesions",
    "values_with_cysts",
]

CLASSES = {"kits19": ("kidney_and_mass", "tumor"), "kits23": tuple(HEC_LABELS)}
LESIONS = ("lesions", "lesions_found", "predicted_lesions", "false_lesions")
SURFACE_RULE = (
    "surface elements weighted by area (DeepMind's surface-distance); both surfaces empty: 1, exactly one: 0"
)
HD95_RULE = "the same surface elements, 95 % of their area; not defined where a mask is empty"


def detail_columns(classes, surface):
    """Columns of scores.csv that ``classes`` ("kits19" or "kits23") and ``surface`` add."""
    columns = [f"{name}_dice" for name in HEC_LABELS] if classes == "kits23" else []
    if surface:
        columns += [f"{name}_surface_dice" for name in CLASSES[classes]]
        columns += [f"{name}_hd95_mm" for name in CLASSES[classes]]
        columns += LESIONS
    return tuple(columns)


def values_with_cysts(pair):
    """The labels of a pair's truth with cysts kept, as KiTS21 and KiTS23 number them: (0, 1, 2, 3).

    Raises: InputError where the dataset numbers them otherwise.
    """
    # as the layout says it: cysts not mentioned, or named by the dataset and refused without --cyst
    if pair.label_values not in ((0, 1, 2), (0, 1, 2, None)):
        raise InputError(
            f"{pair.truth}: --classes kits23 expects the labels 1 kidney, 2 tumor, 3 cyst and no --cyst, found "
            f"{pair.label_values}. Renumber the labels, or leave --classes out."
        )
    return (0, 1, 2, 3)


def cysts_as_kidney(tables):
    """Tables of four labels (slices, truth, predicted) as KiTS19 labels the same voxels: cysts are kidney."""
    folded = tables[:, :3, :3].copy()
    folded[:, 1] += tables[:, 3, :3]
    folded[:, :, 1] += tables[:, :3, 3]
    folded[:, 1, 1] += tables[:, 3, 3]
    return folded


def hec_scores(tables):
    """``CLASS_dice`` of the three hierarchical classes from tables of four labels."""
    return {f"{name}_dice": value for name, value in hec_dice(tables.sum(axis=0)).items()}


def surface_and_lesions(prediction, truth, spacing_mm, classes):
    """The other columns of ``detail_columns`` for one case, and the lesions of its truth (see ``find_lesions``).

    Args:
        prediction, truth: uint8 (slices, rows, columns), the box of ``read_boxes``.
    """
    lesions = find_lesions(prediction, truth, spacing_mm)
    scores = surface_scores(prediction, truth, spacing_mm, CLASSES[classes])
    return scores | lesion_counts(lesions), lesions["truth"]


def summarize_details(rows, classes, surface):
    """What the summary says about these columns: entries ``hec``, ``surface`` and ``lesions``."""
    summary = {"classes": classes}
    if classes == "kits23":
        dice = {name: _describe(rows, f"{name}_dice") for name in HEC_LABELS}
        summary["hec"] = {
            "dice": dice,
            "mean_dice": float(np.mean([values["mean"] for values in dice.values()])),
        }
    if surface:
        found = {
            name: {"tolerance_mm": TOLERANCES_MM[name]}
            | {key: _describe(rows, f"{name}_{key}") for key in ("surface_dice", "hd95_mm")}
            for name in CLASSES[classes]
        }
        mean = float(np.mean([values["surface_dice"]["mean"] for values in found.values()]))
        summary["surface"] = {"classes": found, "mean_surface_dice": mean}
        summary["surface"] |= {"surface_dice_rule": SURFACE_RULE, "hd95_rule": HD95_RULE}
        summary["lesions"] = {name: int(sum(row[name] for row in rows)) for name in LESIONS}
        summary["lesions"]["rule"] = LESION_RULE
    return summary


def _describe(rows, column):
    """Mean, standard deviation and median over the cases where the value is defined, and how many these are."""
    values = np.array([row[column] for row in rows if row[column] is not None], float)
    many = len(values) > 1
    return {
        "mean": float(values.mean()) if len(values) else None,
        "sd": float(values.std(ddof=1)) if many else None,
        "median": float(np.median(values)) if len(values) else None,
        "defined": len(values),
    }


def label_release(case, path):
    """Which labels a case was scored against: ("kits19" or "other", SHA-256 of the file).

    "kits19" are those the official repository holds today, by the hash in the package's manifest. Labels were
    corrected after most papers: scores against others are not comparable.
    """
    found = sha256_of(path)
    known = _manifest().get(case)
    return "kits19" if known is not None and known.label_sha256 == found else "other", found


@lru_cache(maxsize=1)
def _manifest():
    return read_manifest()
