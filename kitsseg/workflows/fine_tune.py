"""Train a finished run on, in another form, into a new run that remembers where it came from."""

import json
from dataclasses import replace
from pathlib import Path

from kitsseg.data.splits import load_split
from kitsseg.errors import InputError
from kitsseg.files.checksums import sha256_of
from kitsseg.files.paths import relative_path
from kitsseg.recipe import settings
from kitsseg.records.run import finished_run
from kitsseg.training.train import train_recipe

__all__ = ["check_recipe", "fine_tune", "last_phase"]


def check_recipe(recipe, record, run):
    """Raise InputError unless the run was trained with this recipe: its cache and its loss are used again."""
    ours = json.loads(json.dumps(recipe.as_dict()))
    for key in ("preprocess", "model", "loss"):
        if ours[key] != record["settings"][key]:
            raise InputError(
                f"{run}: it was trained with other {key} settings than those of {recipe.name} in this version of "
                f"kitsseg: found {record['settings'][key]}, expected {ours[key]}. Train again, or use "
                f"kitsseg {record['kitsseg']}."
            )


def last_phase(recipe):
    """The phase that a fine-tuning repeats: the recipe's last one that does not prune."""
    return [phase for phase in recipe.phases if not phase.pruning][-1]


def fine_tune(
    recipe, run, cache, out, phase, build_model, command, details=None, resume=False, progress=None
):
    """Train in one phase from the network that ``build_model`` makes; split and seed are those of the run.

    Args:
        recipe: the Recipe the run was trained with.
        run: folder of the finished run; it is not changed.
        cache: folder given to ``preprocess_cases``.
        out: folder for the new run, an ordinary one for predict, evaluate and report.
        phase: ``last_phase(recipe)`` with what is different.
        build_model: of no arguments, to the network to start from; called again at the end and on resuming.
        command: the kitsseg command that asks for this; named as the source of the phase's settings.
        details: further entries of the new ``run.json``.
        resume: go on with an unfinished fine-tuning; everything else must be as it was.
        progress: called as progress(description, done, total) in training steps.

    Returns: ``out``.
    Raises: InputError for a run that is unfinished or of another recipe, or whatever ``train_recipe`` refuses.
    """
    network = finished_run(run)
    check_recipe(recipe, network.record, run)
    base = last_phase(recipe)
    tuned = replace(recipe, phases=(phase,), build_model=lambda **_: build_model())
    evidence = {key: text for key, text in recipe.evidence.items() if not key.startswith("phases.")}
    for key, value in settings(tuned):
        if key.startswith(f"phases.{phase.name}.") and value is not None and value != ():
            before = f"phases.{base.name}.{key.removeprefix(f'phases.{phase.name}.')}"
            evidence[key] = recipe.evidence.get(before, f"ours: given to kitsseg {command}")
    for name in ("epochs", "learning_rate"):
        if getattr(phase, name) != getattr(base, name):
            evidence[f"phases.{phase.name}.{name}"] = f"ours: given to kitsseg {command}"
    parent = {
        "run": relative_path(run, out),
        "recipe": recipe.name,
        "model_sha256": sha256_of(network.source),
    }
    return train_recipe(
        replace(tuned, evidence=evidence),
        cache,
        load_split(Path(run) / "split.json"),
        out,
        network.record["seed"],
        resume=resume,
        progress=progress,
        details={"parent": parent, **(details or {})},
    )
