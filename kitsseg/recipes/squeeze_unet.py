"""Ashlin Deepa et al.: U-Net on a SqueezeNet (and a ResNet) encoder, as fastai's ``unet_learner`` builds it.

Evidence: "paper" is stated in the text; "code" was read in fastai, which the paper used, or in the public liver
notebook whose steps it repeats; "ours" is a choice, with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.recipe import (
    Augmentation,
    InferenceSpec,
    OneCycle,
    Phase,
    PreprocessSpec,
    Recipe,
    SliceSampler,
    Statement,
    Variant,
)

if TYPE_CHECKING:
    import keras

__all__ = ["PAPER", "PRACTICAL", "TINY", "VARIANTS"]


def build_model(**options: Any) -> keras.Model:
    from kitsseg.models import build_squeeze_unet

    return build_squeeze_unet(**options)


def build_loss(**options: Any) -> keras.losses.Loss:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(**options)


def build_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    from kitsseg.optimizers.group_adamw import GroupAdamW

    return GroupAdamW(phase.learning_rate, phase.rate_factors)


_SHARE = "ours: scoring whole cases then takes less than a tenth of the training time"

_SAMPLER = SliceSampler(batch_size=16, unit="slice", patch_size=(128, 128))
_CYCLE = OneCycle(rise=0.25, start_divisor=25.0, end_divisor=1e5, momentum=(0.95, 0.85))

STATEMENTS = (
    Statement(
        "KiTS19, .nii.gz files read with nibabel.",
        "Read with our own reader on nibabel.",
        "",
    ),
    Statement(
        "A standard custom filter improves the component of interest.",
        "Two windows, (150, 30) and (200, 60), and the slice with its histogram scaled, as three channels.",
        "We infer these channels from a public notebook on the liver, whose steps the paper repeats.",
    ),
    Statement(
        "Scans are cut into two-dimensional slices and stored as jpg.",
        "Slices of 8 bits, stored without loss.",
        "Lossy storage adds nothing, and the quality is not given.",
    ),
    Statement(
        "A SqueezeNet encoder in the u-net learner, pretrained on ImageNet; 18 layers.",
        "SqueezeNet 1.1 in fastai's decoder, with skip connections.",
        "The version is not given. fastai attaches no skips to it: the variant without-skips.",
    ),
    Statement(
        "ResNet for comparison.",
        "ResNet-34, the variant resnet34.",
        "The depth is not given; 34 (or 18) fits the times per epoch.",
    ),
    Statement(
        "A 3D U-Net is named in the abstract.",
        "Not built.",
        "The paper gives no result of it.",
    ),
    Statement(
        "The score is the Dice coefficient; the logs have dice_multi: 0.9906 for ResNet, 0.9759 for "
        "SqueezeNet.",
        "Logged after every epoch as dice_multi and val_dice_multi.",
        "fastai's DiceMulti counts background as a class.",
    ),
    Statement(
        "The logs have 20 epochs of ResNet and 5 of SqueezeNet.",
        "As stated.",
        "The two are not compared at equal length.",
    ),
    Statement(
        "ResNet needs more time (text); 380 s an epoch against 2,670 s of SqueezeNet (logs).",
        "Multiply-adds are counted: 31 G and 316 G at 256 x 256.",
        "The logs are right: without skips the decoder computes 515 channels at full size.",
    ),
    Statement(
        "Table I sets the proposal's 0.97 beside other methods' Dice.",
        "Not repeated.",
        "Some of these are of other organs and of single classes: not the same quantity.",
    ),
)

# what no option changes: (value, evidence)
FIXED = {
    "dropout": ("none", "code: fastai's unet_learner has none"),
    "normalization": (
        "batch at the skips and after the encoder; momentum 0.9, epsilon 1e-5",
        "code: fastai's",
    ),
    "initializers": ("Kaiming normal; ICNR before pixel shuffles", "code: fastai's"),
    "optimizer": (
        "AdamW, beta_2 0.99, epsilon 1e-5, weight decay 0.01 but of biases and normalizations",
        "code: fastai's defaults",
    ),
    "freezing": (
        "all layers train from the first step",
        "ours: unet_learner freezes a pretrained encoder until it is unfrozen; whether that was done the "
        "paper does not say",
    ),
    "storage": (
        "slices of 8 bits, without loss",
        "ours: the paper stores jpg (3), of a quality it does not give",
    ),
    "validation": (
        "of every validation case as many slices as a batch holds, in the same mixture, always the same ones",
        "ours: the paper does not say what its validation loss is taken on",
    ),
}

PAPER = Recipe(
    name="squeeze_unet",
    paper='Ashlin Deepa et al., "A Novel Deep-Learning Based Segmentation Of Kidney Tumor"',
    claim="A SqueezeNet encoder in fastai's U-Net reaches 97.58 % Dice, a ResNet 99.05 %. The figure is "
    "fastai's "
    "DiceMulti, which counts background as a class, on what was very probably a random split of slices.",
    reported={
        "validation dice_multi, SqueezeNet": 0.975872,
        "seconds per epoch, SqueezeNet": 2670,
    },
    preprocess=PreprocessSpec(
        slice_size=(128, 128),
        windows=((150.0, 30.0), (200.0, 60.0)),
        channel_mean=(0.485, 0.456, 0.406),
        channel_std=(0.229, 0.224, 0.225),
    ),
    model={
        "input_shape": (128, 128, 3),
        "n_classes": 3,
        "encoder": "squeezenet1_1",
        "skips": True,
        "decoder": "fastai",
        "weights": "imagenet",
        "normalize": False,
    },
    loss={"from_logits": True},
    phases=(
        Phase(
            name="train",
            sampler=_SAMPLER,
            epochs=5,
            steps_per_epoch=2183,
            steps_from="full batches",
            learning_rate=1e-3,
            schedule=_CYCLE,
            validate_cases_every=1,
            validate_cases=12,
            kept_epoch="last",
        ),
    ),
    inference=InferenceSpec(tile=None),
    split="squeeze_unet",
    metrics=("dice_multi",),
    fixed={name: value for name, (value, _) in FIXED.items()},
    statements=STATEMENTS,
    link="No DOI was found.",
    evidence={
        **{f"fixed.{name}": text for name, (_, text) in FIXED.items()},
        "postprocess": "ours: none; the paper states none",
        "inference.mirror_axes": "ours: no mirroring; the paper states none",
        "preprocess.spacing_mm": "inferred: slices as they are; the paper does not say",
        "preprocess.crop_to_body": "inferred: whole slices; the paper does not say",
        "preprocess.slice_size": "code: 128 x 128 in the notebook the paper repeats",
        "preprocess.windows": "code: liver (150, 30) and custom (200, 60); the paper says a standard "
        "custom filter. The third channel is the slice with its histogram scaled",
        "preprocess.channel_mean": "code: ImageNet's",
        "preprocess.channel_std": "code: ImageNet's",
        "model.input_shape": "code: 128 x 128, three channels",
        "model.n_classes": "inferred: kidney and tumor are in the paper's figures",
        "model.encoder": "paper [4]: SqueezeNet; version 1.1 is ours, as accurate as 1.0 with fewer "
        "operations",
        "model.skips": "ours: a U-Net, as the paper says (4); fastai's unet_learner in fact attaches no "
        "skip to SqueezeNet (False)",
        "model.decoder": "code: fastai's DynamicUnet",
        "model.weights": "paper [4]: pretrained on ImageNet",
        "model.normalize": "architecture: the cache's channels are normalized already",
        "loss.from_logits": "code: cross-entropy of all pixels on logits",
        "phases.train.sampler.batch_size": "code: 16",
        "phases.train.sampler.positive": "ours: none is sampled for; the paper states none",
        "phases.train.sampler.positive_weights": "ours: unused without positive slices",
        "phases.train.sampler.patch_size": "code: whole slices",
        "phases.train.sampler.unit": "code: all slices in random order",
        "phases.train.augmentation.scale_range": "ours: no augmentation; the paper states none",
        "phases.train.augmentation.scale_probability": "ours: no augmentation; the paper states none",
        "phases.train.augmentation.flip_probability": "ours: no augmentation; the paper states none",
        "phases.train.epochs": "paper [8]: 5 for SqueezeNet, 20 for ResNet, by its logs",
        "phases.train.steps_per_epoch": "inferred: the 34,928 slices of the split squeeze_unet in full "
        "batches of 16",
        "phases.train.steps_from": "code: each slice once an epoch; fastai drops a last batch that is not "
        "full",
        "phases.train.learning_rate": "code: fastai's default, AdamW with weight decay 0.01",
        "phases.train.schedule.rise": "code: fit_one_cycle",
        "phases.train.schedule.start_divisor": "code: fit_one_cycle",
        "phases.train.schedule.end_divisor": "code: fit_one_cycle",
        "phases.train.schedule.momentum": "code: fit_one_cycle",
        "phases.train.validate_cases_every": _SHARE,
        "phases.train.validate_cases": _SHARE,
        "phases.train.kept_epoch": "paper [7]: 0.9906 is ResNet's last epoch, though an earlier one had 0.9908",
        "inference.tile": "inferred: whole slices; the paper does not say",
        "inference.overlap": "ours: unused without tiles",
        "inference.gaussian": "ours: unused without tiles",
        "inference.multiple": "architecture: any size",
        "inference.output": "code: cross-entropy of three classes",
        "inference.coarse": "ours: no coarse pass; no paper of this package states one",
        "split": "ours: 80/20 by case, as fastai splits slices; the paper states none",
        "metrics": "paper [7]: dice_multi after every epoch",
    },
    build_model=build_model,
    build_loss=build_loss,
    build_optimizer=build_optimizer,
)

# fastai's fine_tune: one epoch with the encoder frozen, then all layers at rates spread from 1/100 over its groups
# (features[0:5], features[5:], the rest)
FROZEN = (("encoder_", 0.0),)
SPREAD = (
    ("encoder_features_0", 0.01),
    ("encoder_features_3", 0.01),
    ("encoder_features_4", 0.01),
    ("encoder_", 0.1),
)


def _fine_tuning(phase: Phase) -> tuple[tuple[Phase, Phase], dict[str, str]]:
    """The two phases of fine_tune and their evidence."""
    first = replace(
        phase,
        name="frozen",
        epochs=1,
        learning_rate=2e-3,
        rate_factors=FROZEN,
        schedule=replace(_CYCLE, rise=0.99),
    )
    second = replace(
        phase,
        name="unfrozen",
        learning_rate=1e-3,
        rate_factors=SPREAD,
        schedule=replace(_CYCLE, rise=0.3, start_divisor=5.0),
    )
    evidence = {key: text for key, text in PAPER.evidence.items() if not key.startswith("phases.")}
    for stage in (first, second):
        prefix = f"phases.{stage.name}."
        evidence |= {
            key.replace("phases.train.", prefix): text
            for key, text in PAPER.evidence.items()
            if key.startswith("phases.")
        }
        evidence |= {
            f"{prefix}rate_factors": "code: fine_tune; batch normalization stays trainable while frozen",
            f"{prefix}schedule.rise": "code: fine_tune",
            f"{prefix}schedule.start_divisor": "code: fine_tune",
            f"{prefix}learning_rate": "code: fine_tune halves its 2e-3 when it unfreezes",
            f"{prefix}epochs": "code: fine_tune freezes for one epoch" if stage is first else "ours",
        }
    return (first, second), evidence


_PHASES, _EVIDENCE = _fine_tuning(
    replace(PAPER.phases[0], epochs=10, sampler=replace(_SAMPLER, patch_size=(256, 256)))
)
PRACTICAL = replace(
    PAPER,
    name="squeeze_unet:practical",
    preprocess=replace(PAPER.preprocess, slice_size=(256, 256)),
    model={**PAPER.model, "input_shape": (256, 256, 3)},
    phases=_PHASES,
    evidence=_EVIDENCE
    | {"preprocess.slice_size": "ours: 128 x 128 loses small tumors", "model.input_shape": "ours: 256 x 256"},
)

_TINY = "ours: small enough for the demo on two CPU cores"
TINY = replace(
    PAPER,
    name="squeeze_unet:tiny",
    model={**PAPER.model, "input_shape": (None, None, 3), "decoder": "lite", "weights": None},
    phases=(
        replace(
            PAPER.phases[0],
            sampler=SliceSampler(batch_size=8, positive=6, patch_size=(96, 96)),
            augmentation=Augmentation(scale_range=(0.8, 1.25), scale_probability=0.5, flip_probability=0.5),
            epochs=8,
            steps_per_epoch=80,
            steps_from=None,
            learning_rate=2e-3,
            validate_cases_every=4,
        ),
    ),
    evidence=PAPER.evidence
    | {
        "model.decoder": _TINY,
        "model.input_shape": "ours: crops of 96 x 96",
        **{
            f"phases.train.augmentation.{key}": "ours: the demo has too few patients to train without "
            "augmentation"
            for key in ("scale_range", "scale_probability", "flip_probability")
        },
        **{
            f"phases.train.{key}": _TINY
            for key in (
                "sampler.batch_size",
                "sampler.positive",
                "sampler.patch_size",
                "sampler.unit",
                "epochs",
                "steps_per_epoch",
                "learning_rate",
            )
        },
    },
)

VARIANTS = (
    Variant(
        name="resnet34",
        row="ResNet, 20 epochs (the paper's best score)",
        changes={"model.encoder": "resnet34", "phases.train.epochs": 20},
        evidence={
            "model.encoder": "inferred: a ResNet (5); of 34 layers by its time, a seventh of SqueezeNet's",
            "phases.train.epochs": "paper [8]: 20 for ResNet, 5 for SqueezeNet",
        },
        reported={
            "validation dice_multi, ResNet": 0.990568,
            "validation dice_multi, ResNet, best epoch": 0.990807,
            "seconds per epoch, ResNet": 380,
        },
        parameters=41_221_268,
    ),
    Variant(
        name="without-skips",
        row="SqueezeNet as fastai's unet_learner really builds it",
        changes={"model.skips": False},
        evidence={
            "model.skips": "code: unet_learner finds no change of size in SqueezeNet and attaches no skip"
        },
        reported=PAPER.reported,
        parameters=15_989_492,
    ),
)
