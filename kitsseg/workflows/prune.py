"""Fine-tune a finished run with masks: rank the weights of each matrix, zero the smallest, train on."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from keras import ops

from kitsseg.errors import InputError
from kitsseg.pruning.weights import prunable_weights
from kitsseg.recipe import Pruning
from kitsseg.records.networks import FinishedRun, finished_run
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun, check_recipe, fine_tune, last_phase, network_of

__all__ = ["EPOCHS", "prune_run"]

EPOCHS = 20  # ours: the paper says retrain, not how long
DRAWINGS = 10  # of masks, where the phase is too short for one every hundred steps


def prune_run(
    origin: FromRun,
    out: str | os.PathLike[str],
    sparsity: float,
    options: TrainOptions | None = None,
    *,
    schedule: str = "polynomial",
    block: int | None = None,
) -> Path:
    """Prune a finished run of any recipe into a new run, which predict, evaluate and report take like any other.

    A polynomial schedule begins at the sparsity of the run, reaches ``sparsity`` after half of the epochs, and
    fine-tunes in the other half. "one-shot" sets weights to zero before the first batch, as the paper's text says. The
    new run has the split and the seed of the run. The best epoch is chosen among epochs with the final sparsity.

    Args:
        origin: the finished run, its recipe and cache.
        out: folder for the new run.
        sparsity: share of zeros in each pruned matrix, in 0..1.
        options: TrainOptions; ``EPOCHS`` by default, each as long as one of the recipe's last phase.
        schedule: "polynomial" or "one-shot".
        block: prune so many neighboring output channels of 1x1 convolutions together; None: single weights.

    Returns: ``out``.
    Raises: InputError for a run that is unfinished, of another recipe, or sparser already, and as ``train_recipe``.
    """
    if not 0 < sparsity < 1:
        raise InputError(f"sparsity: expected a share of zeros between 0 and 1, found {sparsity:g}.")
    options, recipe, run = options or TrainOptions(), origin.recipe, origin.run
    if (epochs := EPOCHS if options.epochs is None else options.epochs) < 1:
        raise InputError(f"epochs: expected at least 1, found {epochs}.")
    network = finished_run(run)
    check_recipe(recipe, network.record, run)
    reached = _sparsity_of(network)
    if reached > sparsity + 0.005:  # a small matrix cannot hit a share exactly
        raise InputError(
            f"{run}: its weights are sparser already, {reached:.1%} against {sparsity:.1%}. Give a higher sparsity, "
            "or prune the run that this run was made from."
        )
    base = last_phase(recipe)
    steps = epochs * base.steps_per_epoch
    pruning = Pruning(
        sparsity=sparsity,
        schedule=schedule,
        frequency=min(100, max(1, steps // 2 // DRAWINGS)),
        initial_sparsity=min(reached, sparsity) if schedule == "polynomial" else 0.0,
        block=block,
    )
    if schedule == "polynomial" and steps < 2:
        raise InputError(f"epochs: a polynomial schedule needs two steps, found {steps}. Train longer.")
    # the recipe's own learning rate: with a tenth of it, a WP-UNet of 80 % zeros lost 0.04 of Dice and did not come
    # back; with all of it, it lost nothing (docs/phantoms.md)
    phase = replace(
        base,
        name="prune",
        epochs=epochs,
        schedule=None,
        progressive=None,
        pruning=pruning,
    )
    return fine_tune(origin, out, phase, lambda: network_of(network), "prune", options)


def _sparsity_of(run: FinishedRun) -> float:
    matrices = [ops.convert_to_numpy(variable) for _, variable in prunable_weights(network_of(run))]
    zeros = sum(int(np.count_nonzero(matrix == 0)) for matrix in matrices)
    size: int = sum(matrix.size for matrix in matrices)
    return zeros / size
