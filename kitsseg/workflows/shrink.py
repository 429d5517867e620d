"""Make a finished run smaller: remove channels of its network, then train on what is left."""

from dataclasses import replace

from kitsseg.errors import InputError
from kitsseg.models.loading import read_network
from kitsseg.pruning.shrink import channel_scores, choose_channels, shrink_model
from kitsseg.records.run import finished_run
from kitsseg.workflows.fine_tune import fine_tune, last_phase

__all__ = ["EPOCHS", "shrink_run"]

EPOCHS = 20  # ours: what is left of a network must find its way anew, which takes longer than after pruning


def shrink_run(
    recipe,
    run,
    cache,
    out,
    keep=None,
    by="magnitude",
    multiple=8,
    epochs=None,
    resume=False,
    progress=None,
):
    """Remove channels from the network of a finished run and train it on into a new run, an ordinary one.

    The recipe's last phase is repeated, with its learning rate and schedule, but not in progressive rounds.
    The masks of a pruned run are not kept: shrink first, then prune what is left.

    Args:
        recipe: the Recipe the run was trained with.
        run: folder of the finished run, shrunk or pruned ones included; it is not changed.
        cache: folder given to ``preprocess_cases``.
        out: folder for the new run.
        keep, multiple: as ``shrink.choose_channels``; without ``keep`` only the channels go whose weights are all 0.
        by: as ``shrink.channel_scores``.
        epochs: of fine-tuning; ``EPOCHS`` by default, each as long as one of the recipe's last phase.
        resume: go on with an unfinished fine-tuning; everything else must be as it was.
        progress: called as progress(description, done, total) in training steps.

    Returns: ``out``. The entry "shrink" of its ``run.json`` holds the parameters before and after.
    Raises: InputError for a choice that removes nothing or cannot be made, for a run that is unfinished or of
        another recipe, or whatever ``train_recipe`` refuses.
    """
    if (epochs := EPOCHS if epochs is None else epochs) < 1:
        raise InputError(f"epochs: expected at least 1, found {epochs}.")
    model = read_network(finished_run(run).source)
    try:
        removed = choose_channels(channel_scores(model, by), keep, multiple)
    except ValueError as error:
        raise InputError(f"{run}: {error}") from error
    if not removed:
        sizes = f"keeping {keep:g} in multiples of {multiple}" if keep else "with all weights 0"
        raise InputError(f"{run}: no channel would be removed ({sizes}). Give a smaller share to keep.")
    # with the recipe's own learning rate: a tenth of it, as after pruning, came back much more slowly
    phase = replace(last_phase(recipe), name="shrink", epochs=epochs, progressive=None)
    small = shrink_model(model, removed)
    shrink = {"keep": keep, "by": by, "multiple": multiple}
    shrink |= {"parameters_before": model.count_params(), "parameters": small.count_params()}
    return fine_tune(
        recipe,
        run,
        cache,
        out,
        phase,
        lambda: shrink_model(model, removed),
        "shrink",
        {"shrink": shrink},
        resume,
        progress,
    )
