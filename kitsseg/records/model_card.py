"""The model card that every finished run carries: RUN/model_card.md, written from what the run folder records."""

import os
from pathlib import Path
from typing import Any

from kitsseg.files.atomic import atomic_path
from kitsseg.records.run import Parent, RunRecord, read_history, read_run

__all__ = ["write_model_card"]


def write_model_card(folder: str | os.PathLike[str]) -> Path:
    """Write the card of a finished run.

    Args:
        folder: run folder; ``run.json`` and ``history.csv`` are read.

    Returns: path of the card.
    """
    folder = Path(folder)
    path = folder / "model_card.md"
    with atomic_path(path) as temporary:
        temporary.write_text(_card(read_run(folder), read_history(folder)), encoding="utf-8")
    return path


def _card(record: RunRecord, history: list[dict[str, Any]]) -> str:
    split, settings = record.split, record.settings
    counts = ", ".join(f"{len(cases)} {part}" for part, cases in vars(split.cases).items())
    synthetic = "**Trained on synthetic patients (phantoms).** " if record.phantom else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines = [
        f"# {record.recipe}",
        "",
        f"{synthetic}A network that labels kidney (1) and kidney tumor (2) in abdominal CT, after {record.paper}",
        "",
        "## Use",
        "",
        "Research on kidney and kidney tumor segmentation. **Not a medical device**: not for diagnosis, treatment or "
        "any decision about a patient. Made for late-arterial contrast CT of adults with kidney tumors, as in KiTS19; "
        "other phases, scans without contrast, cysts alone, transplants and children were never seen.",
        "",
        "## Data",
        "",
        f"Split `{split.name}` by patient, hash `{split.hash}`: {counts}. The names are in split.json. KiTS19 is "
        "CC BY-NC-SA 4.0; a network trained on it inherits the question of what that permits.",
        "",
        *_of_slices(record),
        "## Training",
        "",
        "| phase | epochs | first loss | last loss |",
        "|---|---|---|---|",
    ]
    for phase in dict.fromkeys(row["phase"] for row in history):
        rows = [row for row in history if row["phase"] == phase]
        lines.append(f"| {phase} | {len(rows)} | {rows[0]['loss']:.4f} | {rows[-1]['loss']:.4f} |")
    if given := record.given:
        said = ", ".join(f"`{name}` = {value}" for name, value in given.items())
        lines += ["", f"Given by the user, instead of the recipe's: {said}."]
    if parent := record.parent:
        lines += ["", _origin(parent)]
    lines += [
        "",
        f"{record.seconds:.0f} s, seed {record.seed}. {versions}.",
        "",
        "## Input and output",
        "",
        f"Preprocessing: `{settings['preprocess']}`",
        "",
        f"Inference: `{settings['inference']}`; post-processing: `{settings['postprocess']}`",
        "",
        "## Scores",
        "",
        "None are written here: a score belongs to a set of patients. Get it by `kitsseg predict RUN DATA --part test` "
        "and `kitsseg evaluate`, and read it beside what predicting nothing scores, which the report shows.",
        "",
        "## Known limits",
        "",
        "Small tumors are missed more often than large ones, and very large ones that displace the kidney are labeled "
        "in part. The labels of KiTS19 count cysts inside a tumor as tumor and carry the judgment of their annotators.",
        "",
    ]
    return "\n".join(lines)


def _of_slices(record: RunRecord) -> list[str]:
    """What a reader has to know of a network that was not trained on whole scans with all their HU."""
    lines = []
    if record.single_slices:
        lines.append("Trained on single slices of these patients, not on whole scans.")
    if clip := record.settings["preprocess"].get("clip_hu"):
        lines.append(
            f"HU are clipped to {clip[0]:g} to {clip[1]:g}, in training and in prediction: what lies beyond was not to "
            "be had."
        )
    return [" ".join(lines), ""] if lines else []


def _origin(parent: Parent) -> str:
    """The sentence about the run that the weights come from."""
    where = f"`{parent.run}` ({parent.recipe}, SHA-256 {parent.model_sha256})"
    text = f"Started from the weights of the run {where}"
    if parent.phantom:
        text += ", which was trained on synthetic patients (phantoms)"
    if parent.patients:
        n = len({*parent.patients["train"], *parent.patients["validation"]})
        text += f"; that run had seen {n} patients, whose names are in run.json"
    return f"{text}."
