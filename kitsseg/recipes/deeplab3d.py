"""Daza, Gomez and Arbelaez: 3D DeepLab v3+ with an Xception encoder of fewer than 560k parameters (KiTS19 entry).

Evidence: "paper" is stated in the text; "code" was read in later public code of the same authors (ROG) or in nnU-Net,
which the paper follows; "ours" is a choice, with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.recipe import (
    Augmentation,
    InferenceSpec,
    PatchSampler,
    Phase,
    Plateau,
    PreprocessSpec,
    ReassignSmall,
    Recipe,
    Variant,
)

if TYPE_CHECKING:
    import keras

__all__ = ["PAPER", "PRACTICAL", "TINY", "VARIANTS"]


def build_model(**options: Any) -> keras.Model:
    from kitsseg.models import build_deeplab3d

    return build_deeplab3d(**options)


def build_loss(**options: Any) -> keras.losses.Loss:
    from kitsseg.losses import TverskyFocal

    return TverskyFocal(**options)


def build_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.Adam(phase.learning_rate)


_SAMPLER = PatchSampler(cases_per_batch=13, patch_size=(48, 48, 48))
_PLATEAU = Plateau(factor=0.1, patience=20, stop_below=1e-8)
_SCRATCH = Phase(
    name="scratch",
    sampler=_SAMPLER,
    epochs=300,
    steps_per_epoch=12,
    learning_rate=1e-3,
    schedule=_PLATEAU,
    validate_cases_every=100,
    validate_cases=2,
)
_SHARE = "ours: whole cases then take less than a tenth of the time spent training"
_PHASE_EVIDENCE = {
    "sampler.cases_per_batch": "paper: 39 patches from 13 patients",
    "sampler.patch_size": "paper: 48 x 48 x 48 from scratch, 44 x 44 x 44 to fine-tune",
    "sampler.mode": "paper: the central voxel is equally likely of each class; 39 = 13 x 3 suggests one of each",
    "augmentation.scale_range": "paper: none stated",
    "augmentation.scale_probability": "paper: none stated",
    "augmentation.flip_probability": "paper: none stated",
    "epochs": "paper: at most 300",
    "steps_per_epoch": "ours: 147 training patients in batches of 13",
    "learning_rate": "paper: Adam, 1e-3; to fine-tune a tenth of it is ours",
    "schedule.factor": "paper: 0.1",
    "schedule.patience": "paper: 20 epochs without a lower loss",
    "schedule.min_delta": "paper: none stated",
    "schedule.min_learning_rate": "paper: none; training stops below 1e-8",
    "schedule.stop_below": "paper: 1e-8",
    "validate_cases_every": _SHARE,
    "validate_cases": _SHARE,
}

PAPER = Recipe(
    name="deeplab3d",
    paper='Daza, Gomez and Arbelaez, "Semantic Segmentation of Kidney Tumor using Convolutional Neural Networks", '
    "KiTS19 challenge, 2019",
    claim="A 3D DeepLab v3+ of fewer than 560k parameters segments kidney and tumor end to end. By the paper's own "
    "table a focal weight of 2 is better than the 0.5 its text calls best.",
    reported={
        "own validation after post-processing, kidney label Dice": 0.8723,
        "own validation after post-processing, tumor label Dice": 0.3841,
        "parameters (fewer than)": 560_000,
    },
    preprocess=PreprocessSpec(
        spacing_mm=(3.0, 0.78125, 0.78125),
        longest_scan=200,
        cut_margin=30,
        hu_window=(-79.0, 304.0),
        hu_mean=101.0,
        hu_std=76.9,
    ),
    model={
        "input_shape": (None, None, None, 1),
        "n_classes": 3,
        "encoder_extra": False,
        "aspp_channels": 32,
        "decoder": "stage2",
        "decoder_convs": 2,
        "width_divisor": 1,
    },
    loss={
        "focal_weight": 0.5,
        "gamma": 2.0,
        "fn_weight": 0.7,
        "fp_weight": 0.3,
        "smooth": 1e-5,
        "include_background": False,
        "class_reduction": "mean",
        "per_sample": False,
        "activation": "softmax",
    },
    phases=(
        _SCRATCH,
        replace(
            _SCRATCH,
            name="finetune",
            sampler=replace(_SAMPLER, patch_size=(44, 44, 44)),
            learning_rate=1e-4,
        ),
    ),
    inference=InferenceSpec(tile=(48, 48, 48), margin=8),
    postprocess=ReassignSmall(background_mm3=100.0, kidney_mm3=500.0, tumor_mm3=200.0),
    reported_unrefined={
        "own validation (63 cases), kidney label Dice": 0.8672,
        "own validation (63 cases), tumor label Dice": 0.2443,
    },
    evidence={
        "preprocess.spacing_mm": "paper: the median spacing of the data set; the value is that of the 210 cases",
        "preprocess.crop_to_body": "paper: none stated",
        "preprocess.longest_scan": "paper: scans of more than 200 slices are cut for training, all foreground kept",
        "preprocess.cut_margin": "code: 30 slices on either side",
        "preprocess.hu_window": "paper: foreground percentiles as nnU-Net; the values are nnU-Net's of KiTS19",
        "preprocess.hu_mean": "paper: foreground mean; the value is nnU-Net's of KiTS19",
        "preprocess.hu_std": "paper: foreground standard deviation; the value is nnU-Net's of KiTS19",
        "model.input_shape": "architecture: any multiple of 4",
        "model.n_classes": "paper: background, kidney, tumor",
        "model.encoder_extra": 'paper: table 1 ends with two blocks; one more is its row "bigger encoder"',
        "model.aspp_channels": "paper: 32 maps in every layer",
        "model.decoder": "paper: the ASPP's output meets the map of stage 2",
        "model.decoder_convs": "paper: two convolutions of 48 maps",
        "model.width_divisor": "architecture: 1 leaves every layer as wide as table 1 states",
        "loss.focal_weight": "paper: 0.5, best overall by its text",
        "loss.gamma": "paper: 2",
        "loss.fn_weight": "ours: 0.7, as usually cited for the Tversky loss",
        "loss.fp_weight": "ours: 0.3, likewise",
        "loss.smooth": "ours: keeps 0/0 away; every batch holds all classes, so that its size hardly matters",
        "loss.include_background": "ours: kidney and tumor only; the paper does not say",
        "loss.class_reduction": "ours: the mean of both classes; the paper does not say",
        "loss.per_sample": "ours: sums over the batch, which holds all classes; by patch a class that is not there "
        "costs a constant",
        "loss.activation": "ours: softmax; the paper does not say",
        **{
            f"phases.{name}.{key}": text
            for name in ("scratch", "finetune")
            for key, text in _PHASE_EVIDENCE.items()
        },
        "inference.tile": "paper: patches extracted uniformly, outer voxels discarded",
        "inference.overlap": "ours: unused, the cores lie side by side",
        "inference.gaussian": "ours: unused, the cores lie side by side",
        "inference.margin": "paper: outer voxels are discarded; their number is ours, a core of 32",
        "inference.multiple": "architecture: four; the tile is a multiple of it",
        "inference.output": "ours: softmax of background, kidney and tumor, as the loss",
        "postprocess.background_mm3": "paper: a threshold; the value is ours, safe on the 210 true label maps",
        "postprocess.kidney_mm3": "paper: a threshold; the value is ours, safe on the 210 true label maps",
        "postprocess.tumor_mm3": "paper: a threshold; the value is ours, safe on the 210 true label maps",
    },
    build_model=build_model,
    build_loss=build_loss,
    build_optimizer=build_optimizer,
)

PRACTICAL = replace(
    PAPER,
    name="deeplab3d:practical",
    loss={**PAPER.loss, "focal_weight": 2.0},
    phases=tuple(
        replace(
            phase,
            augmentation=Augmentation(flip_probability=0.5),
            steps_per_epoch=24,
            validate_cases_every=25,
            validate_cases=4,
        )
        for phase in PAPER.phases
    ),
    inference=replace(PAPER.inference, tile=(64, 128, 128)),
    evidence=PAPER.evidence
    | {
        "loss.focal_weight": "paper: 2 has the best mean of the two Dice values in its table",
        **{f"phases.{name}.augmentation.flip_probability": "ours: flips" for name in ("scratch", "finetune")},
        **{
            f"phases.{name}.steps_per_epoch": "ours: more patches a patient"
            for name in ("scratch", "finetune")
        },
        "inference.tile": "ours: larger tiles, a smaller share of discarded voxels",
    },
)

_TINY = "ours: small enough for the demo on two CPU cores"
_TINY_SETTINGS = (
    "sampler.cases_per_batch",
    "sampler.patch_size",
    "epochs",
    "steps_per_epoch",
    "learning_rate",
)
TINY = replace(
    PAPER,
    name="deeplab3d:tiny",
    # whatever the slices of a scan are, a patch is a cube of 96 mm
    preprocess=replace(PAPER.preprocess, spacing_mm=(4.0, 3.0, 3.0), crop_to_body=True),
    model={**PAPER.model, "width_divisor": 2},
    phases=(
        replace(
            PAPER.phases[0],
            sampler=PatchSampler(cases_per_batch=3, patch_size=(24, 32, 32)),
            augmentation=Augmentation(flip_probability=0.5),
            epochs=7,
            steps_per_epoch=40,
            learning_rate=3e-3,
            schedule=replace(_PLATEAU, patience=3),
            validate_cases_every=7,
        ),
        replace(
            PAPER.phases[1],
            sampler=PatchSampler(cases_per_batch=3, patch_size=(24, 28, 28)),
            augmentation=Augmentation(flip_probability=0.5),
            epochs=2,
            steps_per_epoch=40,
            learning_rate=5e-4,
            validate_cases_every=2,
            validate_cases=1,
        ),
    ),
    inference=InferenceSpec(tile=(32, 64, 64), margin=8),
    evidence=PAPER.evidence
    | {
        "preprocess.spacing_mm": _TINY,
        "model.width_divisor": _TINY,
        "preprocess.crop_to_body": "ours: of the patches drawn from the background fewer are then of air",
        **{f"phases.{name}.{key}": _TINY for name in ("scratch", "finetune") for key in _TINY_SETTINGS},
        **{
            f"phases.{name}.augmentation.flip_probability": "ours: the demo has too few patients to train without"
            for name in ("scratch", "finetune")
        },
        "phases.scratch.schedule.patience": _TINY,
        "inference.tile": _TINY,
    },
)

_ROW = "paper: a row of its table"
_PLAIN = "paper: a row of its own says what post-processing adds, so that this one has none"


def _row(
    name: str,
    row: str,
    dice: tuple[float, float],
    changes: dict[str, object],
    *,
    parameters: int,
    evidence: dict[str, str] | None = None,
) -> Variant:
    """A row of the paper's table of results: none of them but the last has post-processing."""
    kidney, tumor = dice
    return Variant(
        name=name,
        row=row,
        changes={**changes, "postprocess": None},
        evidence=dict.fromkeys(changes, _ROW) | (evidence or {}) | {"postprocess": _PLAIN},
        reported={
            "own validation (63 cases), kidney label Dice": kidney,
            "own validation (63 cases), tumor label Dice": tumor,
        },
        parameters=parameters,
    )


VARIANTS = (
    _row("proposed", "proposed, in the table of architectures", (0.756, 0.1403), {}, parameters=559_667),
    _row(
        "bigger-encoder",
        "bigger encoder",
        (0.7541, 0.1489),
        {"model.encoder_extra": True},
        parameters=579_763,
        evidence={
            "model.encoder_extra": "paper: a row of its table; that it is one more block of 128 maps is ours"
        },
    ),
    _row(
        "bigger-aspp",
        "bigger ASPP",
        (0.707, 0.1264),
        {"model.aspp_channels": 64},
        parameters=949_619,
        evidence={"model.aspp_channels": "paper: a row of its table; 64 maps, twice as many, is ours"},
    ),
    _row(
        "decoder-every-stage-1-conv",
        "decoder on every stage, 1 convolution",
        (0.7883, 0.1681),
        {"model.decoder": "every_stage", "model.decoder_convs": 1},
        parameters=725_651,
    ),
    _row(
        "decoder-every-stage-2-convs",
        "decoder on every stage, 2 convolutions",
        (0.75206, 0.1385),
        {"model.decoder": "every_stage"},
        parameters=912_563,
    ),
    _row("focal-5", "Tversky + 5 focal", (0.8641, 0.2355), {"loss.focal_weight": 5.0}, parameters=559_667),
    _row("focal-2", "Tversky + 2 focal", (0.8725, 0.2497), {"loss.focal_weight": 2.0}, parameters=559_667),
    _row("focal-0.5", "Tversky + 0.5 focal", (0.8672, 0.2443), {}, parameters=559_667),
    _row(
        "focal-0.2", "Tversky + 0.2 focal", (0.8641, 0.2549), {"loss.focal_weight": 0.2}, parameters=559_667
    ),
    _row(
        "without-refinement",
        "the recipe before post-processing; the same settings as focal-0.5",
        (0.8672, 0.2443),
        {},
        parameters=559_667,
    ),
)
