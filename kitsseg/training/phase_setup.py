"""Set up a phase: its network with optimizer and loss, its pruning, its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from kitsseg.data.sampling.batches import (
    BatchesInParts,
    CountedBatches,
    DrawnBatches,
    Draws,
    RepeatedBatches,
)
from kitsseg.data.sampling.patches import PatchBatches, ValidationPatches
from kitsseg.data.sampling.slices import SliceBatches, ValidationSlices
from kitsseg.errors import InputError
from kitsseg.metrics import METRICS
from kitsseg.models.loading import read_network
from kitsseg.optimizers.ema import averaged_weights, keep_averages
from kitsseg.optimizers.group_adamw import freeze
from kitsseg.pruning.callback import PruneLowMagnitude
from kitsseg.pruning.schedules import schedule_of
from kitsseg.recipe import PatchSampler
from kitsseg.runtime.execution import set_execution
from kitsseg.training.epochs import checkpoint, pruning_state

if TYPE_CHECKING:
    import numpy.typing as npt

    from kitsseg.data.sampling.batches import CountedBatches
    from kitsseg.data.splits import CaseSplit
    from kitsseg.recipe import Phase
    from kitsseg.training.state import Training

__all__ = ["batches_of", "compiled_network", "load_checkpoint", "pruning_of", "weights_of"]


def batches_of(
    training: Training, phase: Phase, split: CaseSplit, seed: int
) -> tuple[DrawnBatches, CountedBatches]:
    """The training and validation batches that this process draws. If gradients are accumulated, batches come in parts.

    Args:
        training: Training.
        phase: Phase.
        split: CaseSplit, in a round the split of the round.
        seed: of the sampling.
    """
    spec, devices, parts = training.recipe.preprocess, training.options.devices, training.options.accumulate
    cases, sampler = training.cases, phase.sampler

    def training_batches(part: int) -> DrawnBatches:
        draws = Draws(seed=seed, shard=devices.shard(part, parts))
        if isinstance(sampler, PatchSampler):
            return PatchBatches(cases, split, "train", sampler, phase.augmentation, spec, draws)
        return SliceBatches(cases, split, "train", sampler, phase.augmentation, spec, draws)

    def validation_batches(shard: tuple[int, int] | None = None) -> CountedBatches:
        if isinstance(sampler, PatchSampler):
            return ValidationPatches(cases, split, "validation", sampler, spec, shard=shard)
        return ValidationSlices(cases, split, "validation", sampler, spec, shard=shard)

    samplers = [training_batches(part) for part in range(parts)]
    validation = validation_batches()
    if validation.form.batch_size % devices.count:
        validation = RepeatedBatches(validation, devices.count // devices.processes)
    elif devices.processes > 1:
        validation = validation_batches(devices.shard())
    return samplers[0] if parts == 1 else BatchesInParts(samplers), validation


def compiled_network(
    training: Training, phase: Phase, rows: Sequence[Mapping[str, Any]], weights: Path | None
) -> keras.Model:
    """The compiled network: from the last checkpoint of the phase, or with the weights of the phase before.

    Args:
        training: Training.
        phase: Phase.
        rows: of the phase in the history; if there are any, the last checkpoint is loaded.
        weights: file of the weights to start from; None: new weights.
    """
    recipe, devices = training.recipe, training.options.devices
    if rows:
        model = load_checkpoint(checkpoint(training.checkpoints, phase, rows[-1]["epoch"]), compile=True)
        _set_execution(model, training, phase)
        return model
    model = recipe.build_model(**recipe.model)
    if weights is not None:
        model.set_weights(weights_of(training, weights))
    freeze(model, phase.rate_factors)
    loss, loss_weights = recipe.build_loss(**recipe.loss), None
    if isinstance(loss, tuple):
        loss, loss_weights = loss
    if devices.mirrored:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
    optimizer = recipe.build_optimizer(phase)
    if training.options.accumulate > 1:
        optimizer.gradient_accumulation_steps = training.options.accumulate
    if training.options.ema:
        keep_averages(optimizer, training.options.ema, training.options.accumulate)
    if devices.mirrored:
        _check_mirrored(optimizer, training)
    metrics = [METRICS[name](n_classes=model.outputs[-1].shape[-1]) for name in recipe.metrics]
    model.compile(optimizer, loss, loss_weights=loss_weights, metrics=metrics or None)
    _set_execution(model, training, phase)
    model.optimizer.build(model.trainable_variables)  # now: a schedule sets beta_1 before the first step
    return model


def pruning_of(training: Training, phase: Phase, rows: Sequence[Mapping[str, Any]]) -> PruneLowMagnitude:
    """The callback that prunes: a new one, or in the state after the last epoch; None for a phase without pruning.

    Args:
        training: Training.
        phase: Phase.
        rows: of the phase in the history.
    """
    words = phase.pruning
    if words is None:
        raise ValueError(f"Phase {phase.name}: expected one with pruning.")
    pruning = _Pruning(
        schedule_of(phase),
        words.m_by_n,
        block=words.block,
        scope=words.scope,
        depthwise=words.depthwise,
        first_last=words.first_last,
    )
    pruning.parts = training.options.accumulate
    if rows:
        pruning.load(pruning_state(checkpoint(training.checkpoints, phase, rows[-1]["epoch"])))
    return pruning


def weights_of(training: Training, path: Path) -> list[npt.NDArray[Any]]:
    """The weights of a checkpoint that validation and later phases use: the averages if the run keeps averages."""
    # another run's network is saved as it is used, without an optimizer that could hold averages
    averaged = training.options.ema is not None and path != training.start
    return averaged_weights(load_checkpoint(path, compile=averaged))


def load_checkpoint(path: Path, compile: bool = False) -> keras.Model:
    """A network of the run folder.

    Raises: InputError if it is missing or damaged.
    """
    return read_network(path, compile, "Start the run again.")


def _set_execution(model: keras.Model, training: Training, phase: Phase) -> None:
    options = training.options
    set_execution(
        model,
        phase,
        options.devices,
        xla=options.xla,
        steps_per_execution=options.steps_per_execution,
        accumulate=options.accumulate,
    )


def _check_mirrored(optimizer: keras.optimizers.Optimizer, training: Training) -> None:
    """Refuse options that need the gradients of the whole batch: Keras 3 adds those of the replicas only afterwards."""
    clipped = any(getattr(optimizer, name) for name in ("clipnorm", "clipvalue", "global_clipnorm"))
    for found, what in (
        (clipped, "gradient clipping"),
        (training.options.accumulate > 1, "--accumulate"),
        (training.options.precision == "mixed_float16", "mixed_float16 (mixed_bfloat16 does)"),
    ):
        if found:
            raise InputError(
                f"{training.recipe.name}: {what} does not work on several devices with Keras 3 on TensorFlow. "
                "Set KERAS_BACKEND=jax, or use one device."
            )


class _Pruning(PruneLowMagnitude):
    """PruneLowMagnitude that counts one step for a batch in several parts."""

    parts = 1

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if batch % self.parts == 0:
            super().on_train_batch_begin(batch, logs)
