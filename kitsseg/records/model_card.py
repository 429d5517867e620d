"""The model card of a finished run, RUN/model_card.md, made from the records in the run folder."""

import os
from pathlib import Path
from typing import Any

from kitsseg.files.atomic import atomic_path
from kitsseg.files.templates import render_markdown
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
    phases = []
    for phase in dict.fromkeys(row["phase"] for row in history):
        losses = [row["loss"] for row in history if row["phase"] == phase]
        phases.append({"name": phase, "epochs": len(losses), "first": losses[0], "last": losses[-1]})
    counts = vars(record.split.cases).items()
    return render_markdown(
        "kitsseg.records",
        "model_card.md",
        record=record,
        counts=", ".join(f"{len(cases)} {part}" for part, cases in counts),
        limits=_limits_of_slices(record),
        phases=phases,
        seen=_patients_of(record.parent),
        seconds=f"{record.seconds:.0f}",
        versions=", ".join(f"{name} {version}" for name, version in record.versions.items()),
    )


def _limits_of_slices(record: RunRecord) -> str:
    """Sentences about the limits of a network that was not trained on whole scans with all their HU."""
    lines = []
    if record.single_slices:
        lines.append("Trained on single slices of these patients, not on whole scans.")
    if clip := record.settings["preprocess"].get("clip_hu"):
        lines.append(
            f"HU are clipped to {clip[0]:g} to {clip[1]:g}, in training and in prediction: what lies beyond was not to "
            "be had."
        )
    return " ".join(lines)


def _patients_of(parent: Parent | None) -> int:
    """Number of patients in the training of the run from which the first weights come."""
    if parent is None or not parent.patients:
        return 0
    return len({*parent.patients["train"], *parent.patients["validation"]})
