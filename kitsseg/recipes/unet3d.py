"""MLPerf's reference for KiTS19: a plain 3D U-Net. It is not one of the five papers, but a public reference.

Evidence: "code" was read in mlcommons/training
(image_segmentation/pytorch) or mlcommons/inference (3d-unet-kits19); "ours" is a choice, with its reason.

Left out, because ``kitsseg.recipe`` has no setting for it: flips of the slices' axis; brightness (a tenth of the
patches, whose normalized HU are multiplied by 1.7 to 2.3) and Gaussian noise (a tenth of the patches, deviation up to
0.1); batches of two patches from two patients, of which 40 % are centered on a whole kidney or tumor and the others
anywhere; the linear warm-up; windows that overlap by half with Gaussian weights; the stop when the 42 reported patients
score 0.908.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kitsseg.recipe import Augmentation, InferenceSpec, PatchSampler, Phase, Plateau, PreprocessSpec, Recipe

if TYPE_CHECKING:
    import keras

__all__ = ["PAPER", "PRACTICAL", "TINY", "VARIANTS"]


def build_model(**options: Any) -> keras.Model:
    from kitsseg.models import build_unet3d

    return build_unet3d(**options)


def build_loss(**options: Any) -> keras.losses.Loss:
    from kitsseg.losses import CrossEntropySoftDice

    return CrossEntropySoftDice(**options)


def build_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    import keras

    return keras.optimizers.SGD(phase.learning_rate, momentum=0.9, nesterov=True)


_SAMPLER = PatchSampler(cases_per_batch=1, patch_size=(128, 128, 128), mode="random")
_TRAIN = Phase(
    name="train",
    sampler=_SAMPLER,
    augmentation=Augmentation(flip_probability=1 / 3),
    epochs=3800,
    steps_per_epoch=84,
    learning_rate=0.4,
    validate_cases_every=20,
    validate_cases=8,
)
_SHARE = "ours: scoring whole cases then takes less than a tenth of the training time"
_PHASE_EVIDENCE = {
    "sampler.cases_per_batch": "ours: three patches of one patient; the code takes two of two",
    "sampler.patch_size": "code: 128 x 128 x 128",
    "sampler.mode": "ours: two thirds of the centers are kidney or tumor; the code draws 40 % of the "
    "patches around "
    "one, and the others anywhere",
    "augmentation.scale_range": "code: no scaling",
    "augmentation.scale_probability": "code: no scaling",
    "augmentation.flip_probability": "code: a third for each axis; that of the slices is left out",
    "epochs": "code: at most 4000, the warm-up among them",
    "steps_per_epoch": "code: 168 patients, each once, in batches of two",
    "learning_rate": "code: SGD with Nesterov momentum 0.9 and a rate of 0.8, for half the loss used "
    "here: 0.4",
    "validate_cases_every": _SHARE,
    "validate_cases": _SHARE,
}

# what no option changes: (value, evidence)
FIXED = {
    "dropout": ("none", "code: none"),
    "normalization": ("instance, with scale and shift, epsilon 1e-5", "code: instance normalization"),
    "initializers": (
        "uniform within 1 / sqrt(fan-in); biases zero",
        "code: PyTorch's kernels; zero biases are ours",
    ),
    "optimizer": ("SGD with Nesterov momentum 0.9", "code: SGD with Nesterov momentum 0.9"),
    "best_epoch": (
        "lowest validation loss",
        "ours: the code stops at a score of the 42 cases that it reports",
    ),
    "validation": (
        "of every validation case one patch of each class, always the same ones",
        "ours: the code validates on whole cases",
    ),
}

PAPER = Recipe(
    name="unet3d",
    paper='MLPerf\'s reference (not one of the five papers), "3D U-Net on KiTS19", MLCommons benchmarks, '
    "2021",
    claim="A plain 3D U-Net of 31M parameters, trained by public code to a public stopping score, "
    "segments 42 named "
    "patients with a kidney Dice of 0.934 and a tumor Dice of 0.792; its weights are public.",
    reported={
        "42 named cases, kidney label Dice": 0.9342,
        "42 named cases, tumor label Dice": 0.7924,
        "42 named cases, mean of both": 0.8633,
        "same weights, case_00185 counted twice, kidney label Dice": 0.9347,
        "same weights, case_00185 counted twice, tumor label Dice": 0.7887,
        "same weights, case_00185 counted twice, mean of both": 0.8617,
        "training stops at a mean of": 0.908,
    },
    preprocess=PreprocessSpec(
        spacing_mm=(1.6, 1.2, 1.2),
        hu_window=(-79.0, 304.0),
        hu_mean=101.0,
        hu_std=76.9,
    ),
    model={"input_shape": (None, None, None, 1), "n_classes": 3, "filters": (32, 64, 128, 256, 320)},
    loss={
        "smooth": 1e-6,
        "include_background": False,
        "regions": False,
        "tumor_only": False,
        "class_reduction": "mean",
        "per_sample": True,
        "activation": "softmax",
    },
    phases=(replace(_TRAIN, name="warmup", epochs=200, learning_rate=0.2), _TRAIN),
    inference=InferenceSpec(tile=(128, 128, 128), margin=32),
    split="mlperf42",
    fixed={name: value for name, (value, _) in FIXED.items()},
    link="https://github.com/mlcommons/training (image_segmentation/pytorch), "
    "https://github.com/mlcommons/inference (vision/medical_imaging/3d-unet-kits19).",
    evidence={
        **{f"fixed.{name}": text for name, (_, text) in FIXED.items()},
        "inference.mirror_axes": "code: no mirroring",
        "postprocess": "code: none",
        "metrics": "code: none but the Dice of whole cases",
        "preprocess.spacing_mm": "code: 1.6 x 1.2 x 1.2 mm",
        "preprocess.crop_to_body": "code: none",
        "preprocess.hu_window": "code: -79 to 304",
        "preprocess.hu_mean": "code: 101",
        "preprocess.hu_std": "code: 76.9",
        "model.input_shape": "architecture: any multiple of 32 that leaves the bottleneck more than one "
        "voxel",
        "model.n_classes": "code: background, kidney, tumor",
        "model.filters": "code: 32, 64, 128, 256, 320 and a bottleneck of 320",
        "loss.smooth": "code: 1e-6",
        "loss.include_background": "code: off for the Dice term, by default",
        "loss.regions": "ours: unused by a softmax",
        "loss.tumor_only": "ours: unused by a softmax",
        "loss.class_reduction": "code: the mean",
        "loss.activation": "code: softmax",
        "loss.per_sample": "code: Dice of each patch and class, then their mean; the loss here is twice "
        "the code's",
        **{
            f"phases.{name}.{key}": text
            for name in ("warmup", "train")
            for key, text in _PHASE_EVIDENCE.items()
        },
        "phases.warmup.epochs": "code: 200",
        "phases.warmup.learning_rate": "ours: half the rate throughout, the mean of the code's linear rise",
        "inference.tile": "code: 128 x 128 x 128; instance normalization wants tiles of the training "
        "patch's size",
        "inference.overlap": "ours: unused, the cores lie side by side",
        "inference.gaussian": "ours: unused; the code weights its windows by a Gaussian of deviation 16",
        "inference.margin": "ours: a core of 64, the distance between the code's windows; this gives as many windows, "
        "but without averaging",
        "inference.multiple": "architecture: 32; the tile is a multiple of it",
        "inference.output": "code: softmax",
        "inference.coarse": "ours: no coarse pass; no paper of this package states one",
        "split": "code: the 42 cases of the reported figures are the test part",
    },
    build_model=build_model,
    build_loss=build_loss,
    build_optimizer=build_optimizer,
)

_SMALLER = "ours: for a GPU of 16 GB, by the size of the activations; not tried on one"
_SHORTER = "ours: less than a fifth of the code's steps, with a rate that falls"
PRACTICAL = replace(
    PAPER,
    name="unet3d:practical",
    phases=(
        replace(
            _TRAIN,
            sampler=replace(_SAMPLER, patch_size=(96, 96, 96), mode="stratified"),
            augmentation=Augmentation(flip_probability=0.5),
            epochs=400,
            steps_per_epoch=150,
            learning_rate=0.1,
            schedule=Plateau(factor=0.5, patience=20, min_learning_rate=1e-4),
            validate_cases_every=10,
            validate_cases=6,
        ),
    ),
    inference=InferenceSpec(tile=(96, 96, 96), margin=16),
    evidence={key: text for key, text in PAPER.evidence.items() if not key.startswith("phases.warmup.")}
    | {
        "phases.train.sampler.patch_size": _SMALLER,
        "phases.train.sampler.mode": "ours: a patch of each class in every batch",
        "phases.train.augmentation.flip_probability": "ours: all four orientations equally often",
        "phases.train.epochs": _SHORTER,
        "phases.train.steps_per_epoch": _SHORTER,
        "phases.train.learning_rate": "ours: no warm-up, so a quarter of the code's rate",
        **{
            f"phases.train.schedule.{key}": _SHORTER
            for key in ("factor", "patience", "min_delta", "min_learning_rate")
        },
        "inference.tile": "ours: the size of the training patches",
        "inference.margin": "ours: a core of 64",
    },
)

_TINY = "ours: small enough for the demo on two CPU cores"
TINY = replace(
    PAPER,
    name="unet3d:tiny",
    preprocess=replace(PAPER.preprocess, spacing_mm=(None, 4.0, 4.0)),
    model={**PAPER.model, "filters": (8, 16, 32)},
    phases=(
        replace(
            _TRAIN,
            sampler=PatchSampler(cases_per_batch=1, patch_size=(40, 40, 40)),
            augmentation=Augmentation(flip_probability=0.5),
            epochs=16,
            steps_per_epoch=40,
            learning_rate=0.2,
            schedule=Plateau(factor=0.3, patience=3),
            validate_cases_every=4,
        ),
    ),
    inference=InferenceSpec(tile=(48, 48, 48), margin=4),
    evidence=PRACTICAL.evidence
    | {
        "preprocess.spacing_mm": _TINY,
        "model.filters": _TINY,
        "phases.train.sampler.patch_size": _TINY,
        "phases.train.epochs": _TINY,
        "phases.train.steps_per_epoch": _TINY,
        "phases.train.learning_rate": _TINY,
        "phases.train.schedule.factor": _TINY,
        "phases.train.schedule.patience": _TINY,
        "phases.train.schedule.min_delta": _TINY,
        "phases.train.schedule.min_learning_rate": _TINY,
        "inference.tile": _TINY,
        "inference.margin": _TINY,
    },
)

VARIANTS = ()
