"""Rao, Chatterjee and Sharma: WP-UNet, a weight-pruned U-Net with depth-wise separable convolutions.

Evidence: "paper" is stated in the text; "code" was read in public code the paper builds on; "ours" is a choice, with
its reason. The network is trained first, and then pruned while training goes on; the paper gives neither the share of
zeros nor the length of the pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.recipe import (
    Augmentation,
    InferenceSpec,
    Phase,
    PreprocessSpec,
    Pruning,
    Recipe,
    SliceSampler,
    Statement,
    Variant,
)

if TYPE_CHECKING:
    import keras

__all__ = ["PAPER", "PRACTICAL", "TINY", "VARIANTS"]


def build_model(norm_momentum: float = 0.99, **options: Any) -> keras.Model:
    from kitsseg.models import build_wp_unet
    from kitsseg.models.layers.blocks2d import set_norm_momentum

    model = build_wp_unet(**options)
    set_norm_momentum(model, norm_momentum)
    return model


def build_loss(**options: Any) -> keras.losses.Loss:
    from kitsseg.losses import CrossEntropySoftDice

    return CrossEntropySoftDice(**options)


def build_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.Adam(phase.learning_rate)


_TRAIN = Phase(
    name="train",
    sampler=SliceSampler(batch_size=16, unit="slice", patch_size=(256, 256)),
    epochs=100,
    steps_per_epoch=2240,
    steps_from="slices",
    learning_rate=1e-3,
    validate_cases_every=5,
)
_PRUNE = replace(
    _TRAIN,
    name="prune",
    epochs=10,
    learning_rate=1e-4,
    pruning=Pruning(sparsity=0.5, schedule="one-shot"),
)


def _of_both(evidence: Mapping[str, str]) -> dict[str, str]:
    """Evidence that holds for the training phase and the pruning phase."""
    return {f"phases.{phase}.{name}": text for name, text in evidence.items() for phase in ("train", "prune")}


_SHARE = "ours: scoring whole cases then takes less than a tenth of the training time"

STATEMENTS = (
    Statement(
        "KiTS19: 210 training volumes in the text; the abstract says 300 patients (the journal's says 210).",
        "210 cases.",
        "The labels of 90 patients are not public.",
    ),
    Statement(
        "Slices are resized to 256 x 256 and divided by 255.",
        "256 x 256 by area averaging; HU of -512 to 512 become 0 to 1.",
        "8-bit images need a window, and none is given.",
    ),
    Statement(
        "35,865 slices train, 10,158 validate.",
        "The split wp_unet: 158 and 52 cases, 35,826 and 9,598 slices.",
        "The sum, 46,023, is more than the 45,424 slices of KiTS19 today; cases are kept whole.",
    ),
    Statement(
        "An ordinary first convolution; all others are depth-wise separable.",
        "The layout was chosen by the parameter counts; some convolutions of dw_unet therefore stay ordinary.",
        "Only such layouts give the counts of table 2.",
    ),
    Statement(
        "A block is a separable convolution, ReLU, batch normalization, max-pooling.",
        "As stated.",
        "",
    ),
    Statement(
        "Two outputs, kidney and tumor; elsewhere kidney, tumor and background.",
        "A softmax of three classes.",
        "One channel has the parameters of table 2; three have 66 more.",
    ),
    Statement(
        "After training the weights of each matrix are ranked, the smallest S % set to zero, and the "
        "network is retrained.",
        "As stated, once, with half of the weights: the recipe's second phase.",
        "S is not given. Half of the 1.30M network is one reading; half of dw_unet, the variant "
        "dw_unet-pruned, the other.",
    ),
    Statement(
        "Loss: cross-entropy plus Dice loss of kidney plus Dice loss of tumor, with an epsilon.",
        "As stated, epsilon 1.",
        "The equations are lost in the text, epsilon is not given.",
    ),
    Statement(
        "Adam, 0.001.",
        "As stated; a tenth of it while pruning.",
        "The rate of retraining is not given.",
    ),
    Statement(
        "Batches of 16, 100 epochs.",
        "As stated; 10 more while pruning.",
        "The length of retraining is not given.",
    ),
    Statement(
        "Accuracy, mean IoU, Dice and FLOPs are reported.",
        "Accuracy and mean IoU of training and validation slices are logged after every epoch.",
        "",
    ),
    Statement(
        "Table 1: training accuracy 97.87, 93.62 and 98.43; mean IoU 0.435, 0.362 and 0.428 for U-Net, "
        "the depth-wise one and WP-UNet.",
        "Reported figures of the variants and the recipe.",
        "The plain U-Net has the higher mean IoU.",
    ),
    Statement(
        "Table 2: 5,680,353, 2,601,921 and 1,297,441 parameters.",
        "Exactly these, with one output channel; the recipes train three, which are 66 parameters more: "
        "5,680,419, 2,601,987 and 1,297,507.",
        "That the last is an architecture's count is inferred, not proved.",
    ),
    Statement(
        "Dice of 0.9799 while training, 0.9599 while validating.",
        "Reported figures of the recipe.",
        "Of which class is not said. Such a Dice means an IoU of at least 0.923: not 0.428.",
    ),
    Statement(
        "Three times smaller than other networks.",
        "4.4 times fewer parameters than its U-Net, 8.7 times fewer FLOPs by the table.",
        "",
    ),
    Statement(
        "Table 2: 62.4, 7.8 and 7.2 (e) FLOPs.",
        "Multiply-adds are counted: 11.95 G, 4.78 G and 2.01 G.",
        "Those printed fit a U-Net of 31.0M parameters and SD-UNet: an inference.",
    ),
)

# what no option changes: (value, evidence)
FIXED = {
    "dropout": ("0.5 after blocks 4 and 5", "ours: as in the common Keras U-Net; the text gives no rate"),
    "normalization": (
        "batch, epsilon 1e-3, one per block",
        "paper [5]: batch normalization; its numbers are Keras' defaults",
    ),
    "initializers": ("He normal; depth-wise filters by their own size", "ours: the paper does not say"),
    "optimizer": ("Adam with Keras' defaults", "paper [9]: Adam"),
    "pruned_share": ("half of the weights", "ours: the paper gives no share"),
    "best_epoch": (
        "lowest validation loss",
        "ours: the weights of the epoch with the lowest validation loss are kept, or the last ones if kept_epoch says "
        "so; the paper does not say",
    ),
    "validation": (
        "of every validation case as many slices as a batch holds, in the same mixture, always the same ones",
        "ours: the paper does not say what its validation loss is taken on",
    ),
}

PAPER = Recipe(
    name="wp_unet",
    paper='Rao, Chatterjee and Sharma, "WP-UNet: Weight Pruning U-Net with Depth-wise Separable '
    "Convolutions for "
    'Semantic Segmentation of Kidney Tumours"',
    claim="Depth-wise separable convolutions and weight pruning shrink a U-Net from 5.68M to 1.30M "
    "parameters with a "
    "Dice of 0.96 and more. Dice and mean IoU of the paper cannot both be class means of the same "
    "predictions.",
    reported={
        "training Dice": 0.9799,
        "validation Dice": 0.9599,
        "training accuracy": 0.9843,
        "training mean IoU": 0.428,
        "parameters": 1_297_441,
    },
    preprocess=PreprocessSpec(
        slice_size=(256, 256), hu_window=(-512.0, 512.0), hu_mean=-512.0, hu_std=1024.0
    ),
    model={
        "input_shape": (256, 256, 1),
        "n_classes": 3,
        "variant": "wp_unet",
        "filters": (32, 64, 128, 256, 256),
        "norm_momentum": 0.99,
    },
    loss={
        "smooth": 1.0,
        "include_background": False,
        "regions": False,
        "tumor_only": False,
        "class_reduction": "sum",
        "per_sample": False,
        "activation": "softmax",
    },
    phases=(_TRAIN, _PRUNE),
    inference=InferenceSpec(tile=None, multiple=16),
    split="wp_unet",
    metrics=("pixel_accuracy", "mean_iou"),
    fixed={name: value for name, (value, _) in FIXED.items()},
    statements=STATEMENTS,
    link="https://doi.org/10.4103/jmss.jmss_108_21 (journal), https://doi.org/10.21203/rs.3.rs-526418/v1 "
    "(preprint).",
    evidence={
        **{f"fixed.{name}": text for name, (_, text) in FIXED.items()},
        "postprocess": "ours: none; the paper states none",
        "inference.mirror_axes": "ours: no mirroring; the paper states none",
        "preprocess.spacing_mm": "inferred: slices as they are; the paper does not say",
        "preprocess.crop_to_body": "inferred: whole slices; the paper does not say",
        "preprocess.slice_size": "paper [2]: 256 x 256; area averaging is ours",
        "preprocess.hu_window": "ours: the paper divides by 255 (2), so it had 8-bit images; this is the "
        "default window of the challenge's own visualization script",
        "preprocess.hu_mean": "paper [2]: values in 0..1",
        "preprocess.hu_std": "paper [2]: values in 0..1",
        "model.input_shape": "paper [2]: 256 x 256; one channel follows from the parameter count",
        "model.n_classes": "paper [6]: kidney, tumor and background (its table 2 counts a binary network)",
        "model.variant": "inferred: the one of this family with exactly the 1,297,441 parameters of table 2",
        "model.filters": "inferred: the parameter counts of table 2 come out with these",
        "model.norm_momentum": "ours: Keras' default; the paper does not say",
        "loss.regions": "ours: unused by a softmax",
        "loss.tumor_only": "ours: unused by a softmax",
        "loss.per_sample": "ours: sums over the batch; most slices hold no tumor",
        "loss.activation": "inferred: three classes (6); elsewhere two outputs, which a sigmoid would be",
        "loss.smooth": "ours: with a tiny value, a slice without tumor adds almost 1 to the loss and teaches nothing",
        "loss.include_background": "paper [8]: cross-entropy + Dice loss of kidney + Dice loss of tumor",
        "loss.class_reduction": "paper [8]: the two Dice losses are added",
        **_of_both(
            {
                "sampler.batch_size": "paper [10]: 16",
                "sampler.positive": "ours: none is sampled for; the paper states none",
                "sampler.positive_weights": "ours: unused without positive slices",
                "sampler.patch_size": "paper [2]: whole slices",
                "sampler.unit": "paper [3]: all slices are training images",
                "augmentation.scale_range": "ours: no augmentation; the paper states none",
                "augmentation.scale_probability": "ours: no augmentation; the paper states none",
                "augmentation.flip_probability": "ours: no augmentation; the paper states none",
                "steps_per_epoch": "inferred: the 35,826 slices of the split wp_unet in batches of 16",
                "steps_from": "inferred: each slice once an epoch",
                "validate_cases_every": _SHARE,
            }
        ),
        "phases.train.epochs": "paper [10]: 100",
        "phases.train.learning_rate": "paper [9]: Adam, 0.001",
        "phases.prune.epochs": "ours: the paper says to retrain, not how long",
        "phases.prune.learning_rate": "ours: a tenth, as is usual for fine-tuning; the paper states none",
        "phases.prune.pruning.sparsity": "ours: about the factor between the two depth-wise rows of table "
        "2; the paper "
        "states no share",
        "phases.prune.pruning.schedule": "paper [7]: train, rank the weights of a matrix, zero the "
        "smallest, retrain",
        "phases.prune.pruning.until": "ours: unused by one-shot",
        "phases.prune.pruning.frequency": "ours: unused by one-shot",
        "phases.prune.pruning.initial_sparsity": "ours: a trained network has no zeros",
        "phases.prune.pruning.scope": "paper [7]: in each weight matrix",
        "phases.prune.pruning.depthwise": "ours: as in tensorflow-model-optimization; they are 1 % of the "
        "weights",
        "phases.prune.pruning.first_last": "ours: as in tensorflow-model-optimization",
        "inference.tile": "paper [2]: whole slices",
        "inference.overlap": "ours: unused without tiles",
        "inference.gaussian": "ours: unused without tiles",
        "inference.multiple": "architecture: four poolings",
        "inference.output": "paper [6]: kidney, tumor and background; elsewhere two outputs",
        "inference.coarse": "ours: no coarse pass; no paper of this package states one",
        "split": "ours: by case, as near as can be to the 35,865 and 10,158 slices (3)",
        "metrics": "paper [11]: accuracy and mean IoU",
    },
    build_model=build_model,
    build_loss=build_loss,
    build_optimizer=build_optimizer,
)

_SAMPLED = "ours: every batch contains kidneys, so that fewer steps are enough"
_RISING = "ours: masks that fill up while the network trains cost less accuracy than all at once"
_FEWER: dict[str, Any] = {
    "sampler": SliceSampler(batch_size=16, positive=8, patch_size=(256, 256)),
    "steps_per_epoch": 250,
    "steps_from": None,
    "validate_cases_every": 10,
    "validate_cases": 12,
}
PRACTICAL = replace(
    PAPER,
    name="wp_unet:practical",
    phases=(
        replace(_TRAIN, **_FEWER),
        replace(
            _PRUNE, **_FEWER, pruning=Pruning(sparsity=0.5, schedule="polynomial", until=0.5, frequency=100)
        ),
    ),
    evidence=PAPER.evidence
    | _of_both(
        {
            "sampler.positive": _SAMPLED,
            "sampler.positive_weights": _SAMPLED,
            "sampler.unit": _SAMPLED,
            "steps_per_epoch": _SAMPLED,
            "validate_cases": _SHARE,
        }
    )
    | {
        "phases.prune.pruning.schedule": _RISING,
        "phases.prune.pruning.until": "ours: the other half fine-tunes with the final masks",
        "phases.prune.pruning.frequency": "ours: as in tensorflow-model-optimization",
    },
)

_TINY = "ours: small enough for the demo on two CPU cores"
_FEW = "ours: the demo has too few patients to train without augmentation"
_QUICK: dict[str, Any] = {
    "sampler": SliceSampler(batch_size=8, positive=6, patch_size=(96, 96)),
    "augmentation": Augmentation(scale_range=(0.8, 1.25), scale_probability=0.5, flip_probability=0.5),
    "steps_per_epoch": 40,
    "steps_from": None,
    "validate_cases_every": 5,
}
TINY = replace(
    PRACTICAL,
    name="wp_unet:tiny",
    preprocess=replace(PAPER.preprocess, slice_size=(128, 128)),
    model={
        **PAPER.model,
        "input_shape": (None, None, 1),
        "filters": (12, 24, 48, 96, 96),
        "norm_momentum": 0.9,
    },
    phases=(
        replace(_TRAIN, **_QUICK, epochs=24, learning_rate=3e-3),
        replace(
            _PRUNE,
            **_QUICK,
            epochs=22,
            learning_rate=3e-3,
            pruning=Pruning(sparsity=0.5, schedule="polynomial", until=0.5, frequency=10),
        ),
    ),
    evidence=PRACTICAL.evidence
    | {
        "preprocess.slice_size": _TINY,
        "model.input_shape": _TINY,
        "model.filters": _TINY,
        "model.norm_momentum": "ours: Keras' 0.99 needs more steps than the demo has",
        "phases.prune.pruning.frequency": _TINY,
    }
    | _of_both(
        {
            "augmentation.scale_range": _FEW,
            "augmentation.scale_probability": _FEW,
            "augmentation.flip_probability": _FEW,
            "sampler.batch_size": _TINY,
            "sampler.positive": _TINY,
            "sampler.patch_size": _TINY,
            "epochs": _TINY,
            "steps_per_epoch": _TINY,
            "learning_rate": _TINY,
        }
    ),
)

_ROW = "paper [12, 13]: a row of its tables 1 and 2"
_COUNTED = "with one output channel, as the paper counts; the three of the recipe are 66 more"


def _not_pruned(
    variant: str, row: str, *, loss: float, accuracy: float, mean_iou: float, parameters: int
) -> Variant:
    """A row of the tables whose network is trained but not pruned."""
    return Variant(
        name=variant,
        row=row,
        changes={"model.variant": variant, "phases.prune": None},
        evidence={"model.variant": _ROW, "phases.prune": "paper [7, 12]: only WP-UNet is pruned"},
        reported={
            "training loss": loss,
            "training accuracy": accuracy,
            "training mean IoU": mean_iou,
            "parameters": parameters,
        },
        parameters=parameters,
        counted=_COUNTED,
    )


VARIANTS = (
    _not_pruned("unet", "U-Net", loss=0.5601, accuracy=0.9787, mean_iou=0.435, parameters=5_680_353),
    _not_pruned(
        "dw_unet",
        "U-Net (depth-wise + BN)",
        loss=0.4439,
        accuracy=0.9362,
        mean_iou=0.362,
        parameters=2_601_921,
    ),
    Variant(
        name="dw_unet-pruned",
        row="WP-UNet, read as the depth-wise U-Net with half of its weights set to zero",
        changes={"model.variant": "dw_unet"},
        evidence={
            "model.variant": "inferred: the other reading of the factor two between the depth-wise rows "
            "of table 2: "
            "1,311,521 weights are left, where it prints 1,297,441"
        },
        reported=PAPER.reported,
        parameters=2_601_921,
        counted=_COUNTED,
    ),
)
