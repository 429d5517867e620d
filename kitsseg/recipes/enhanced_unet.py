"""He, Leung and Wang: enhanced attention U-Net with progressive training (KiTS19 entry).

Evidence: "paper" is stated in the text; "code" was read in the public code of its base network (Abraham and Khan,
focal-tversky-unet); "ours" is a choice, with its reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.recipe import (
    Augmentation,
    InferenceSpec,
    Phase,
    PreprocessSpec,
    Progressive,
    Recipe,
    RemoveFar,
    SliceSampler,
    Statement,
    Variant,
)

if TYPE_CHECKING:
    import keras

    from kitsseg.interfaces import Tensor

__all__ = ["PAPER", "PRACTICAL", "TINY", "VARIANTS"]


def build_model(
    gates: bool = True,
    top_gate: bool = True,
    gate3_from: str = "up2",
    norm_momentum: float = 0.99,
    **options: Any,
) -> keras.Model:
    from kitsseg.models import AttentionGates, build_enhanced_unet
    from kitsseg.models.layers.blocks2d import set_norm_momentum

    chosen = AttentionGates(
        top=top_gate, third_from=gate3_from
    )  # also where it is not used: a wrong value is told
    model = build_enhanced_unet(**options, gates=chosen if gates else None)
    set_norm_momentum(model, norm_momentum)
    return model


def build_loss(heads: int, **options: Any) -> keras.losses.Loss | tuple[list[keras.losses.Loss], list[float]]:
    from kitsseg.losses import HEAD_WEIGHTS, FocalTversky

    if heads == 1:
        return FocalTversky(**options)
    if heads != len(HEAD_WEIGHTS):
        raise ValueError(f"enhanced_unet: heads is {len(HEAD_WEIGHTS)} or 1; found {heads!r}.")
    return [FocalTversky(**options) for _ in HEAD_WEIGHTS], list(HEAD_WEIGHTS)


def build_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.SGD(phase.learning_rate, momentum=0.9, global_clipnorm=1.0)


def build_targets(labels: Tensor) -> tuple[Tensor, ...]:
    from kitsseg.losses import deep_supervision_targets

    return deep_supervision_targets(labels)


_ROUNDS = Progressive(rounds=10, subset=0.5, round_decay=0.5, min_delta=0.001, patience=1)

STATEMENTS = (
    Statement(
        "The network is the attention U-Net of Abraham and Khan with input pyramid and deep supervision.",
        "Its filters, gates and heads as in that code.",
        "No filters are given in the paper.",
    ),
    Statement(
        "An attention gate on the top level too: four, where the base network has three.",
        "As stated; 16 inner channels.",
        "16 continues the halving of the others: ours.",
    ),
    Statement(
        "Input pyramid by repeated 2x2 average pooling: four scales.",
        "As stated.",
        "",
    ),
    Statement(
        "A convolutional head on each decoder level: four outputs at four scales.",
        "As stated; three classes on each.",
        "The base network is binary.",
    ),
    Statement(
        "Focal Tversky loss on all four outputs, weighted 0.2, 0.2, 0.2 and 0.4 from bottom to top.",
        "As stated; weights 0.7 and 0.3, exponent 0.75 as in the base network's code.",
        "None of its parameters is given.",
    ),
    Statement(
        "Training with the focal Tversky loss was unstable.",
        "Gradients are clipped at a norm of 1.",
        "The gradient of the loss is unbounded as the overlap nears 1.",
    ),
    Statement(
        "Progressive training: fine-tune from the weights so far on a random subset of the training set, "
        "evaluate, repeat until there is no improvement.",
        "Ten rounds at most, half of the patients each, from the best weights so far.",
        "Sizes, rates and lengths are not given.",
    ),
    Statement(
        "The rounds are evaluated on the test set.",
        "On validation patients.",
        "Stopping by the test set selects on it.",
    ),
    Statement(
        "Kidney and tumor are merged; the two main volumes are the two kidneys; every other object "
        "farther than a distance threshold is removed.",
        "10 mm; a second kidney has at least 5 % of the first.",
        "No threshold is given. In 2 of the 210 cases there is one component: two must not be assumed.",
    ),
    Statement(
        "Tested on 40 subjects drawn at random from the 90 test cases.",
        "A split of the 210 training cases.",
        "The labels of the 90 are not public.",
    ),
    Statement(
        "Dice 0.953 for kidney, 0.572 for tumor, 0.763 on average.",
        "Reported beside TK, TU and composite.",
        "Whether kidney counts tumor is not said; the mean of the two is 0.7625.",
    ),
    Statement(
        "Small tumors of low contrast and very large ones are missed.",
        "Seen in every case's row of the report.",
        "",
    ),
)

# what no option changes: (value, evidence)
FIXED = {
    "dropout": ("none", "code: the base network has none"),
    "normalization": ("batch, epsilon 1e-3", "code: Keras' defaults"),
    "initializers": ("Glorot normal", "code: as the base network"),
    "optimizer": (
        "SGD, momentum 0.9, gradients clipped at a norm of 1",
        "code: SGD with momentum 0.9; the clipping is ours",
    ),
    "head_targets": ("every 8th, 4th, 2nd and every pixel of the labels", "code: strided labels"),
    "best_epoch": (
        "the last epoch of a round, the best round by whole validation cases",
        "paper [7]: from the weights so far; that the best round counts is ours",
    ),
    "validation": (
        "of every validation case as many slices as a batch holds, in the same mixture, always the same ones",
        "ours: the paper does not say what its validation loss is taken on",
    ),
}

PAPER = Recipe(
    name="enhanced_unet",
    paper="He, Leung and Wang (ASTRI), enhanced attention U-Net with progressive training, KiTS19 "
    "challenge, 2019",
    claim="An attention U-Net with an input pyramid, deep supervision and one more gate, trained round "
    "after round on "
    "random subsets, reaches 0.953 kidney and 0.572 tumor Dice on 40 of the 90 test patients.",
    reported={
        "40 test cases, kidney Dice": 0.953,
        "40 test cases, tumor Dice": 0.572,
        "40 test cases, average": 0.763,
    },
    preprocess=PreprocessSpec(in_plane_factor=0.5, hu_window=(-79.0, 304.0), hu_mean=101.0, hu_std=76.9),
    model={
        "input_shape": (None, None, 1),
        "n_classes": 3,
        "widths": "reference",
        "gates": True,
        "top_gate": True,
        "gate3_from": "up2",
        "multiscale": True,
        "deep_supervision": True,
        "base": 1,
        "norm_momentum": 0.99,
    },
    loss={
        "heads": 4,
        "fn_weight": 0.7,
        "fp_weight": 0.3,
        "exponent": 0.75,
        "smooth": 1.0,
        "include_background": False,
        "class_reduction": "mean",
        "per_sample": False,
        "activation": "softmax",
    },
    phases=(
        Phase(
            name="progressive",
            sampler=SliceSampler(batch_size=16, positive=11, patch_size=(256, 256)),
            epochs=20,
            steps_per_epoch=100,
            learning_rate=0.01,
            progressive=_ROUNDS,
        ),
    ),
    inference=InferenceSpec(tile=None, multiple=16),
    postprocess=RemoveFar(max_distance_mm=10.0, min_ratio=0.05, n_main=2),
    fixed={name: value for name, (value, _) in FIXED.items()},
    statements=STATEMENTS,
    link="No DOI was found; a manuscript of the KiTS19 challenge, 2019 (https://kits19.grand-challenge.org).",
    evidence={
        **{f"fixed.{name}": text for name, (_, text) in FIXED.items()},
        "metrics": "ours: none but the loss; the paper logs none",
        "split": "ours: 80/10/10; the paper states none",
        "inference.mirror_axes": "ours: no mirroring; the paper states none",
        "preprocess.spacing_mm": "ours: slices as they are; the paper states none",
        "preprocess.crop_to_body": "ours: no crop; the paper states none",
        "preprocess.in_plane_factor": "ours: 512 to 256, which fits a T4; a perfect network loses 0.003 "
        "of Dice by it",
        "preprocess.hu_window": "ours: nnU-Net's foreground percentiles of KiTS19",
        "preprocess.hu_mean": "ours: nnU-Net's foreground mean of KiTS19",
        "preprocess.hu_std": "ours: nnU-Net's foreground standard deviation of KiTS19",
        "model.input_shape": "ours: any multiple of 16",
        "model.n_classes": "ours: background, kidney, tumor on every head",
        "model.widths": "code: the base network's filters; its 64 and 32 on deep levels look like slips",
        "model.gates": "paper [1]: attention gates on the skip connections",
        "model.top_gate": "paper [2]: a gate on the top level too, which the base network has not",
        "model.gate3_from": "ours: the decoder level directly below, as the other gates; the code takes "
        "it from up1",
        "model.multiscale": "paper [3]: an input pyramid of four scales",
        "model.deep_supervision": "paper [4]: a head on each of the four decoder levels",
        "model.base": "architecture: 1 leaves every layer as wide as the code's",
        "model.norm_momentum": "ours: Keras' default, as in the code",
        "loss.heads": "paper [5]: the loss of all four heads, weighted 0.2, 0.2, 0.2 and 0.4 from bottom "
        "to top",
        "loss.fn_weight": "code: 0.7",
        "loss.fp_weight": "code: 0.3",
        "loss.exponent": "code: 0.75, that is 1/gamma for gamma 4/3",
        "loss.smooth": "code: 1",
        "loss.include_background": "ours: kidney and tumor; the code is binary",
        "loss.class_reduction": "ours: the mean keeps the size of the loss whatever the number of "
        "classes; the base "
        "network's equation adds",
        "loss.per_sample": "code: sums over batch and pixels together",
        "loss.activation": "ours: softmax of three classes; the code is a binary sigmoid",
        "phases.progressive.sampler.batch_size": "code: 16",
        "phases.progressive.sampler.positive": "ours: two of three slices hold kidney or tumor; the paper "
        "states none",
        "phases.progressive.sampler.positive_weights": "ours: every positive slice of a case alike",
        "phases.progressive.sampler.patch_size": "ours: whole slices at half size",
        "phases.progressive.sampler.unit": "ours: a batch from different cases",
        "phases.progressive.augmentation.scale_range": "ours: no augmentation; the paper states none",
        "phases.progressive.augmentation.scale_probability": "ours: no augmentation; the paper states none",
        "phases.progressive.augmentation.flip_probability": "ours: no augmentation; the paper states none",
        "phases.progressive.epochs": "ours: of each round; the base network's code trains 50 to 100 in "
        "one run",
        "phases.progressive.steps_per_epoch": "ours: 1,600 slices an epoch; the paper states none",
        "phases.progressive.learning_rate": "code: SGD, 0.01, momentum 0.9; the gradient clipping at 1 is "
        "ours, since "
        "the loss has an unbounded gradient",
        "phases.progressive.progressive.rounds": "ours: at most ten; the paper goes on until there is no "
        "improvement",
        "phases.progressive.progressive.subset": "paper [7]: a random subset; its size is ours",
        "phases.progressive.progressive.round_decay": "ours: every round fine-tunes at half the rate; the "
        "paper gives no rate",
        "phases.progressive.progressive.min_delta": "paper [7]: until there is no improvement; the number "
        "is ours",
        "phases.progressive.progressive.patience": "paper [7, 8]: until there is no improvement. Ours: "
        "judged on validation cases; the paper judges on its test set",
        "inference.tile": "ours: whole slices",
        "inference.overlap": "ours: unused without tiles",
        "inference.gaussian": "ours: unused without tiles",
        "inference.multiple": "architecture: four poolings",
        "inference.output": "ours: softmax of background, kidney and tumor, as the loss",
        "inference.coarse": "ours: no coarse pass; no paper of this package states one",
        "postprocess.max_distance_mm": "paper [9]: a distance threshold; 10 mm is ours, it removes no "
        "real tissue of the 210 cases",
        "postprocess.min_ratio": "ours: a second kidney has at least 5 % of the first's volume",
        "postprocess.n_main": "paper [9]: two kidneys",
    },
    build_model=build_model,
    build_loss=build_loss,
    build_optimizer=build_optimizer,
    build_targets=build_targets,
)

_BACKGROUND = (
    "ours: without background in the loss, a network that has not learned tumor yet pays nothing for calling all "
    "background tumor; short trainings ended in this state"
)
_FLIPS = "ours: augmentation, of which the paper states none"
PRACTICAL = replace(
    PAPER,
    name="enhanced_unet:practical",
    model={**PAPER.model, "widths": "regular"},
    loss={**PAPER.loss, "include_background": True},
    phases=(
        replace(
            PAPER.phases[0],
            augmentation=Augmentation(scale_range=(0.85, 1.25), scale_probability=0.2, flip_probability=0.5),
            progressive=replace(_ROUNDS, patience=2),
        ),
    ),
    evidence=PAPER.evidence
    | {
        "loss.include_background": _BACKGROUND,
        "model.widths": "ours: the base code's 64 and 32 filters on deep levels look like slips",
        "phases.progressive.augmentation.scale_range": _FLIPS,
        "phases.progressive.augmentation.scale_probability": _FLIPS,
        "phases.progressive.augmentation.flip_probability": _FLIPS,
        "phases.progressive.progressive.patience": "ours: one bad round may be chance",
    },
)

_TINY = "ours: small enough for the demo on two CPU cores"
_FEW = "ours: the demo has too few patients to train without augmentation"
TINY = replace(
    PAPER,
    name="enhanced_unet:tiny",
    preprocess=replace(
        PAPER.preprocess, in_plane_factor=None, spacing_mm=(None, 3.0, 3.0), crop_to_body=True
    ),
    model={**PAPER.model, "base": 4, "norm_momentum": 0.9},
    loss={**PAPER.loss, "include_background": True},
    phases=(
        replace(
            PAPER.phases[0],
            sampler=SliceSampler(batch_size=8, positive=6, patch_size=(96, 96)),
            augmentation=Augmentation(scale_range=(0.8, 1.25), scale_probability=0.5, flip_probability=0.5),
            epochs=9,
            steps_per_epoch=40,
            learning_rate=0.1,
            progressive=Progressive(rounds=3, subset=0.8, round_decay=0.7, min_delta=0.001, patience=2),
        ),
    ),
    evidence=PAPER.evidence
    | {
        "preprocess.spacing_mm": _TINY,
        "preprocess.crop_to_body": _TINY,
        "loss.include_background": _BACKGROUND,
        "model.base": _TINY,
        "model.norm_momentum": "ours: Keras' 0.99 needs more steps than the demo has",
        "phases.progressive.augmentation.scale_range": _FEW,
        "phases.progressive.augmentation.scale_probability": _FEW,
        "phases.progressive.augmentation.flip_probability": _FEW,
        "phases.progressive.sampler.batch_size": _TINY,
        "phases.progressive.sampler.positive": _TINY,
        "phases.progressive.sampler.patch_size": _TINY,
        "phases.progressive.epochs": _TINY,
        "phases.progressive.steps_per_epoch": _TINY,
        "phases.progressive.learning_rate": _TINY,
        "phases.progressive.progressive.rounds": _TINY,
        "phases.progressive.progressive.subset": _TINY,
        "phases.progressive.progressive.patience": _TINY,
    },
)

_OFF = "ours: the paper names this part and reports no network without it"
VARIANTS = (
    Variant(
        name="without-gates",
        row="without attention gates (not reported)",
        changes={"model.gates": False},
        evidence={"model.gates": _OFF},
    ),
    Variant(
        name="without-pyramid",
        row="without the input pyramid (not reported)",
        changes={"model.multiscale": False},
        evidence={"model.multiscale": _OFF},
    ),
    Variant(
        name="without-deep-supervision",
        row="one head, at full size (not reported)",
        changes={"model.deep_supervision": False, "loss.heads": 1},
        evidence={"model.deep_supervision": _OFF, "loss.heads": "architecture: the one head there is"},
    ),
)
