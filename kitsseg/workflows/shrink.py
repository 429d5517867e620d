"""Make a finished run smaller: remove channels of its network, then train the smaller network."""

import os
from dataclasses import replace
from pathlib import Path

from kitsseg.errors import InputError
from kitsseg.pruning.shrink import channel_scores, choose_channels, shrink_model
from kitsseg.records.networks import finished_run
from kitsseg.records.run import Shrunk
from kitsseg.training.options import TrainOptions
from kitsseg.workflows.fine_tune import FromRun, fine_tune, last_phase, network_of

__all__ = ["EPOCHS", "shrink_run"]

EPOCHS = 20  # ours: what is left of a network must find its way anew, which takes longer than after pruning


def shrink_run(
    origin: FromRun,
    out: str | os.PathLike[str],
    keep: float | None = None,
    options: TrainOptions | None = None,
    *,
    by: str = "magnitude",
    multiple: int = 8,
) -> Path:
    """Remove channels from the network of a finished run, and train the smaller network into a new, ordinary run.

    The recipe's last phase is repeated with its learning rate and schedule, but not in progressive rounds. The masks of
    a pruned run are not kept, so shrink a network before you prune it.

    Args:
        origin: the finished run, shrunk or pruned ones included, its recipe and cache.
        out: folder for the new run.
        keep, multiple: as in ``choose_channels``; if ``keep`` is None, only channels whose weights are all 0 are
            removed.
        by: as ``shrink.channel_scores``; random numbers have the seed of the options, or else of the run.
        options: TrainOptions; ``EPOCHS`` by default, each as long as one of the recipe's last phase.

    Returns: ``out``. The entry "shrink" of its ``run.json`` holds the parameters before and after.
    Raises: InputError if no channel would be removed or the choice is impossible, for a run that is unfinished or of
        another recipe, and as ``train_recipe``.
    """
    options, run = options or TrainOptions(), origin.run
    if (epochs := EPOCHS if options.epochs is None else options.epochs) < 1:
        raise InputError(f"epochs: expected at least 1, found {epochs}.")
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"--keep: expected a share above 0 and up to 1, such as 0.5; found {keep:g}.")
    network = finished_run(run)
    model = network_of(network)
    seed = network.record.seed if options.seed is None else options.seed
    try:
        removed = choose_channels(channel_scores(model, by, seed), keep, multiple)
    except ValueError as error:
        raise InputError(f"{run}: {error}") from error
    if not removed:
        sizes = f"keeping {keep:g} in multiples of {multiple}" if keep else "with all weights 0"
        raise InputError(f"{run}: no channel would be removed ({sizes}). Give a smaller share: --keep.")
    # with the recipe's own learning rate: a tenth of it, as after pruning, came back much more slowly
    phase = replace(last_phase(origin.recipe), name="shrink", epochs=epochs, progressive=None)
    small = shrink_model(model, removed)
    shrink = Shrunk(
        keep=keep,
        by=by,
        multiple=multiple,
        parameters_before=model.count_params(),
        parameters=small.count_params(),
    )
    options = replace(options, entries={**options.entries, "shrink": shrink})
    return fine_tune(origin, out, phase, lambda: shrink_model(model, removed), "shrink", options)
