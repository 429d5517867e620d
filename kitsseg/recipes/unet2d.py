"""Chen and Jin: A 2D U-Net for automated kidney and renal tumor segmentation (KiTS19 entry).

Evidence: "paper" is stated in the text; "code" was read in the authors' own tf.keras code of the challenge's
deadline (jchen42703/kits19-cnn); "ours" is a choice, with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.recipe import (
    Augmentation,
    InferenceSpec,
    Phase,
    Plateau,
    PreprocessSpec,
    Recipe,
    SliceSampler,
    Statement,
    Variant,
)

if TYPE_CHECKING:
    import keras

__all__ = ["PAPER", "PRACTICAL", "TINY", "VARIANTS"]


def build_model(use_bias: bool = True, norm_first: bool = False, **options: Any) -> keras.Model:
    from kitsseg.models import SubBlock, build_unet2d

    return build_unet2d(**options, block=SubBlock(use_bias=use_bias, norm_first=norm_first))


def build_loss(**options: Any) -> keras.losses.Loss:
    from kitsseg.losses import CrossEntropySoftDice

    return CrossEntropySoftDice(**options)


def build_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.Adam(phase.learning_rate)


_SHARE = "ours: scoring whole cases then takes less than a tenth of the training time"

_SAMPLER = SliceSampler(batch_size=7, positive=5, positive_weights="area", patch_size=(224, 224))
_PLATEAU = Plateau(factor=0.8, patience=30, min_delta=0.005, min_learning_rate=1e-6)

STATEMENTS = (
    Statement(
        "A recursive 2D U-Net: sub-blocks on each level, of which the last is the skip; bilinear "
        "upsampling, concatenation and two sub-blocks; five upsamplings; a final 1x1 convolution.",
        "As stated; a sub-block is 3x3 convolution, LeakyReLU of slope 0.3, batch normalization.",
        "The order inside a sub-block is that of the authors' code.",
    ),
    Statement(
        "20 filters on the top level, doubled with each below.",
        "As stated.",
        "",
    ),
    Statement(
        "12M parameters.",
        "12,298,643, of which 12,291,123 train.",
        "Only two sub-blocks a level give 12M.",
    ),
    Statement(
        "Cross-entropy plus mean soft Dice, of logits and integer labels.",
        "Cross-entropy + 1 - Dice, sums over batch and pixels, background included.",
        "The equations add the Dice, which would reward errors; the code subtracts it, per pixel position.",
    ),
    Statement(
        "Adam, 1e-4; times 0.8 when the validation loss has not dropped by 0.005 for 30 epochs; at least "
        "1e-6.",
        "As stated.",
        "80 epochs are long enough for two drops.",
    ),
    Statement(
        "1920 iterations, batches of 7.",
        "80 epochs of 24 steps.",
        "168 cases in batches of 7 are 24; 1920 / 24 = 80.",
    ),
    Statement(
        "5 of the 7 slices contain foreground, 2 are random.",
        "As stated; positive slices by the area of their foreground.",
        "The weights are those of the code.",
    ),
    Statement(
        "Random crops of 224 x 224; scale in (0.6, 1.25) with probability 0.1; flips of both axes half "
        "the time.",
        "As stated.",
        "",
    ),
    Statement(
        "Prediction as nnU-Net: overlapping tiles of 224 x 224, mirroring, no Gaussian noising.",
        "Half a tile of overlap, four mirrorings, plain mean.",
        "The overlap is that of the code; its flag of that name is a Gaussian weight map.",
    ),
    Statement(
        "Post-processing nearly as nnU-Net's.",
        "None.",
        "nnU-Net's rule keeps only the largest component of a class that forms one component in every "
        "training case. No class does, and the code has no post-processing.",
    ),
    Statement(
        "The challenge's interpolated data (3 mm), batchgenerators, tensorflow.keras, on Colab's K80 and T4.",
        "Scans resampled to that grid, 3.0 x 0.78162497 mm.",
        "The interpolated release is no longer needed.",
    ),
    Statement(
        "Split 0.8 / 0.1 / 0.1: 168, 21 and 21 of 210.",
        "The split 80-10-10, drawn with seed 0.",
        "It names no cases.",
    ),
    Statement(
        "Own test: precision 0.914 and 0.334, recall 0.883 and 0.238 for kidney and tumor, TK Dice 0.91, "
        "TU Dice 0.25.",
        "Reported figures; precision and recall per case by kitsseg evaluate.",
        "Mean of cases or pooled voxels is not said.",
    ),
    Statement(
        "Leaderboard: TK 0.858, TU 0.224 (abstract: 0.85, 0.22).",
        "Reported figures.",
        "The 90 test labels are not public.",
    ),
    Statement(
        "A sigmoid version scored better; 30 or more filters are recommended.",
        "Variants sigmoid, sigmoid-regions and filters-30.",
        "No figures and no details of them are given.",
    ),
)

# what no option changes: (value, evidence)
FIXED = {
    "dropout": ("none", "code: none"),
    "normalization": ("batch, momentum 0.99, epsilon 1e-3", "code: Keras' defaults"),
    "initializers": ("Glorot uniform", "code: Keras' default"),
    "activation": ("LeakyReLU of slope 0.3", "code: Keras' default slope of that time"),
    "optimizer": ("Adam with Keras' defaults", "paper [5]: Adam"),
    "percentiles": ("0.5 and 99.5", "code: nnU-Net's; the values are nnU-Net's too"),
    "best_epoch": (
        "lowest validation loss",
        "ours: the weights of the epoch with the lowest validation loss are kept, or the last ones if kept_epoch says "
        "so; the paper does not say",
    ),
    "validation": (
        "of every validation case 7 center crops, 5 of them positive, always the same ones",
        "ours: the paper does not say what its validation loss is taken on",
    ),
}

PAPER = Recipe(
    name="unet2d",
    paper='Chen and Jin, "A 2D U-Net for Automated Kidney and Renal Tumor Segmentation", KiTS19 '
    "challenge, 2019",
    claim="A plain recursive 2D U-Net of 12M parameters, trained on Colab, reaches 0.858 kidney and 0.224 "
    "tumor Dice "
    "on the challenge's leaderboard.",
    reported={
        "leaderboard TK Dice": 0.858,
        "leaderboard TU Dice": 0.224,
        "own test (21 cases) TK Dice": 0.91,
        "own test (21 cases) TU Dice": 0.25,
        "own test (21 cases) kidney precision": 0.914,
        "own test (21 cases) tumor precision": 0.334,
        "own test (21 cases) kidney recall": 0.883,
        "own test (21 cases) tumor recall": 0.238,
    },
    preprocess=PreprocessSpec(
        spacing_mm=(3.0, 0.78162497, 0.78162497),
        crop_to_body=True,
        hu_window=(-79.0, 304.0),
        hu_mean=101.0,
        hu_std=76.9,
    ),
    model={
        "input_shape": (None, None, 1),
        "n_classes": 3,
        "start_filters": 20,
        "n_pools": 5,
        "sub_blocks": 2,
        "upsampling": "bilinear",
        "use_bias": True,
        "norm_first": False,
    },
    loss={
        "smooth": 1e-5,
        "include_background": True,
        "regions": False,
        "tumor_only": False,
        "class_reduction": "mean",
        "per_sample": False,
        "activation": "softmax",
    },
    phases=(
        Phase(
            name="train",
            sampler=_SAMPLER,
            augmentation=Augmentation(scale_range=(0.6, 1.25), scale_probability=0.1, flip_probability=0.5),
            epochs=80,
            steps_per_epoch=24,
            steps_from="cases",
            learning_rate=1e-4,
            schedule=_PLATEAU,
            validate_cases_every=40,
            validate_cases=2,
        ),
    ),
    inference=InferenceSpec(tile=(224, 224), overlap=0.5, gaussian=False, mirror_axes=(0, 1), multiple=32),
    split="80-10-10",
    fixed={name: value for name, (value, _) in FIXED.items()},
    statements=STATEMENTS,
    link="No DOI was found; https://www.researchgate.net/publication/336247303.",
    evidence={
        **{f"fixed.{name}": text for name, (_, text) in FIXED.items()},
        "metrics": "ours: precision and recall (13) are those of whole cases, by kitsseg evaluate",
        "postprocess": "ours: none; the paper nearly follows nnU-Net's rule (10), which concerns only classes that "
        "form one component in every training case; no class of KiTS19 does",
        "preprocess.spacing_mm": "paper [11]: the challenge's interpolated data; its README gives the "
        "numbers",
        "preprocess.crop_to_body": "code: crops to the voxels above the lower clip",
        "preprocess.hu_window": "ours: foreground percentiles 0.5 and 99.5 as in nnU-Net. The code's "
        "[-75.76, 349.49] "
        "come from image times label, so tumor voxels count with doubled HU",
        "preprocess.hu_mean": "ours: nnU-Net's foreground mean of KiTS19; the code normalizes crops, in "
        "training only",
        "preprocess.hu_std": "ours: nnU-Net's foreground standard deviation of KiTS19",
        "model.input_shape": "paper [8]: 224 x 224 crops; fully convolutional, so any multiple of 32 fits",
        "model.n_classes": "inferred: background, kidney and tumor; two labels are scored",
        "model.start_filters": "paper [2]: 20",
        "model.n_pools": "paper [1]: five upsamplings; with the paper's 20 filters and two sub-blocks a level "
        "the stated 12M parameters come out",
        "model.sub_blocks": "code: 2; with the paper's 20 filters only two give the stated 12M parameters",
        "model.upsampling": "paper [1]: bilinear",
        "model.use_bias": "code: convolutions have one",
        "model.norm_first": "code: the activation comes before the normalization",
        "loss.smooth": "code: 1e-5",
        "loss.include_background": "code: Dice over all three classes; batch and pixels summed together "
        "as in nnU-Net "
        "(the code's sum over the batch alone is a per-pixel Dice)",
        "loss.regions": "ours: unused by a softmax",
        "loss.tumor_only": "ours: unused by a softmax",
        "loss.class_reduction": "paper [4]: the mean of the classes",
        "loss.per_sample": "ours: sums over the batch, as nnU-Net's 2D trainer",
        "loss.activation": "paper [4]: softmax, inside the loss",
        "phases.train.sampler.batch_size": "paper [6]: 7",
        "phases.train.sampler.positive": "paper [7]: 5 of 7 slices contain foreground",
        "phases.train.sampler.positive_weights": "code: the slice of a random foreground pixel",
        "phases.train.sampler.patch_size": "paper [8]: 224 x 224",
        "phases.train.sampler.unit": "code: a batch from different cases of a shuffled list",
        "phases.train.augmentation.scale_range": "paper [8]: (0.6, 1.25)",
        "phases.train.augmentation.scale_probability": "paper [8]: 0.1",
        "phases.train.augmentation.flip_probability": "paper [8]: horizontal and vertical, half the time "
        "each",
        "phases.train.epochs": "inferred: 1920 iterations (6) of 24 steps",
        "phases.train.steps_per_epoch": "inferred: 168 training cases (12) in batches of 7",
        "phases.train.steps_from": "inferred: each training case once an epoch",
        "phases.train.learning_rate": "paper [5]: Adam, 1e-4",
        "phases.train.schedule.factor": "paper [5]: 0.8",
        "phases.train.schedule.patience": "paper [5]: 30 epochs",
        "phases.train.schedule.min_delta": "paper [5]: 0.005",
        "phases.train.schedule.min_learning_rate": "paper [5]: 1e-6",
        "phases.train.validate_cases_every": _SHARE,
        "phases.train.validate_cases": _SHARE,
        "inference.tile": "paper [9]: overlapping 224 x 224 tiles",
        "inference.overlap": "code: half a tile",
        "inference.gaussian": 'code: off; the paper\'s "no Gaussian noising" is this flag, a Gaussian '
        "weight map",
        "inference.mirror_axes": "paper [9]: test-time mirroring; code: both axes",
        "inference.multiple": "architecture: five poolings",
        "inference.output": "paper [4]: a softmax",
        "inference.coarse": "ours: no coarse pass; no paper of this package states one",
        "split": "paper [12]: 168, 21 and 21; it names no cases, these are drawn with seed 0",
    },
    build_model=build_model,
    build_loss=build_loss,
    build_optimizer=build_optimizer,
)

_LONGER = "ours: 1920 iterations see each slice less than once"
PRACTICAL = replace(
    PAPER,
    name="unet2d:practical",
    model={**PAPER.model, "start_filters": 32},
    phases=(
        replace(
            PAPER.phases[0],
            epochs=250,
            steps_per_epoch=100,
            steps_from=None,
            validate_cases_every=25,
            validate_cases=6,
        ),
    ),
    inference=replace(PAPER.inference, tile=None),
    evidence=PAPER.evidence
    | {
        "model.start_filters": "paper [15]: the authors advise 30 or more; 32 suits the hardware",
        "phases.train.epochs": _LONGER,
        "phases.train.steps_per_epoch": _LONGER,
        "inference.tile": "ours: whole slices, a third of the work of overlapping tiles",
    },
)

_TINY = "ours: small enough for the demo on two CPU cores"
TINY = replace(
    PAPER,
    name="unet2d:tiny",
    preprocess=replace(PAPER.preprocess, spacing_mm=(None, 3.0, 3.0)),
    model={**PAPER.model, "start_filters": 8, "n_pools": 4},
    phases=(
        replace(
            PAPER.phases[0],
            sampler=replace(_SAMPLER, patch_size=(96, 96)),
            epochs=30,
            steps_per_epoch=40,
            steps_from=None,
            learning_rate=2e-3,
            schedule=replace(_PLATEAU, patience=3),
            validate_cases_every=5,
        ),
    ),
    inference=replace(PAPER.inference, tile=None, mirror_axes=(), multiple=16),
    evidence=PAPER.evidence
    | {
        "preprocess.spacing_mm": _TINY,
        "model.start_filters": _TINY,
        "model.n_pools": _TINY,
        "phases.train.sampler.patch_size": _TINY,
        "phases.train.epochs": _TINY,
        "phases.train.steps_per_epoch": _TINY,
        "phases.train.learning_rate": _TINY,
        "phases.train.schedule.patience": _TINY,
        "inference.tile": _TINY,
        "inference.mirror_axes": _TINY,
        "inference.multiple": "architecture: four poolings",
    },
)

VARIANTS = (
    Variant(
        name="filters-30",
        row="30 filters on the top level, which the authors recommend",
        changes={"model.start_filters": 30},
        evidence={"model.start_filters": "paper [15]: 30 or more are recommended; no figures are given"},
        parameters=27_646_383,
    ),
    Variant(
        name="sigmoid",
        row="sigmoid outputs, which the authors say scored better",
        changes={"model.n_classes": 2, "loss.activation": "sigmoid", "inference.output": "sigmoid"},
        evidence={
            "model.n_classes": "ours: a channel for kidney and one for tumor",
            "loss.activation": "paper [15]: a sigmoid version scored better; no figures and no details "
            "are given",
            "inference.output": "ours: a channel for each label, background where neither is above one half",
        },
    ),
    Variant(
        name="sigmoid-regions",
        row="sigmoid outputs for what KiTS19 scores: kidney with tumor, and tumor",
        changes={
            "model.n_classes": 2,
            "loss.activation": "sigmoid",
            "loss.regions": True,
            "inference.output": "regions",
        },
        evidence={
            "model.n_classes": "ours: a channel for kidney with tumor and one for tumor",
            "loss.activation": "paper [15]: a sigmoid version scored better; no figures and no details "
            "are given",
            "loss.regions": "ours: the regions that the challenge scores",
            "inference.output": "ours: as the loss",
        },
    ),
    Variant(
        name="binary-tumor",
        row="one sigmoid output for the tumor; its TK Dice is that of the tumor alone",
        changes={
            "model.n_classes": 1,
            "loss.activation": "sigmoid",
            "loss.tumor_only": True,
            "inference.output": "tumor",
        },
        evidence={
            "model.n_classes": "code: a branch of the authors' code trains on binary tumor labels",
            "loss.activation": "code: sigmoid",
            "loss.tumor_only": "code: tumor against all else",
            "inference.output": "ours: as the loss",
        },
    ),
)
