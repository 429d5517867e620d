"""Daza, Gomez and Arbelaez: 3D DeepLab v3+ with an Xception encoder of fewer than 560k parameters (KiTS19 entry).

Evidence: "paper" is stated in the text; "code" was read in later public code of the same authors (ROG) or in nnU-Net,
which the paper follows; "ours" is a choice, with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    Statement,
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
    steps_from="cases",
    learning_rate=1e-3,
    schedule=_PLATEAU,
    validate_cases_every=100,
    validate_cases=2,
)
_SHARE = "ours: scoring whole cases then takes less than a tenth of the training time"
_PHASE_EVIDENCE = {
    "sampler.cases_per_batch": "paper [12]: 39 patches from 13 patients",
    "sampler.patch_size": "paper [11]: 48 x 48 x 48",
    "sampler.mode": "paper [11, 12]: the central voxel is equally likely of each class; one of each is "
    "ours, as 39 = 13 x 3",
    "augmentation.scale_range": "ours: no augmentation; the paper states none",
    "augmentation.scale_probability": "ours: no augmentation; the paper states none",
    "augmentation.flip_probability": "ours: no augmentation; the paper states none",
    "epochs": "paper [13]: at most 300",
    "steps_per_epoch": "ours: 147 training patients in batches of 13",
    "steps_from": "ours: each patient once an epoch",
    "learning_rate": "paper [14]: Adam, 1e-3",
    "schedule.factor": "paper [14]: 0.1",
    "schedule.patience": "paper [14]: 20 epochs without a lower loss",
    "schedule.min_delta": "ours: any lower loss counts; the paper does not say",
    "schedule.min_learning_rate": "ours: no lower end but the stop below 1e-8",
    "schedule.stop_below": "paper [13]: 1e-8",
    "validate_cases_every": _SHARE,
    "validate_cases": _SHARE,
}
_SECOND = "inferred: as in the first stage"
_FINETUNE_EVIDENCE = _PHASE_EVIDENCE | {
    "sampler.cases_per_batch": f"{_SECOND} (12); the paper states the patches alone",
    "sampler.patch_size": "paper [15]: 44 x 44 x 44",
    "sampler.mode": f"{_SECOND} (11, 12)",
    "epochs": f"{_SECOND} (13)",
    "learning_rate": "ours: a tenth of the first stage's (14), as is usual for fine-tuning; the paper states none",
    "schedule.factor": f"{_SECOND} (14)",
    "schedule.patience": f"{_SECOND} (14)",
    "schedule.stop_below": f"{_SECOND} (13)",
}


@dataclass(frozen=True)
class _Figures:
    """The figures in a row of the paper's tables, each for the kidney label and the tumor label."""

    dice: tuple[float, float]
    recall: tuple[float, float]
    precision: tuple[float, float]

    def reported(self, where: str = "own validation (63 cases)") -> dict[str, float]:
        return {
            f"{where}, {label} label {name}": values[i]
            for name, values in (("Dice", self.dice), ("recall", self.recall), ("precision", self.precision))
            for i, label in enumerate(("kidney", "tumor"))
        }


STATEMENTS = (
    Statement(
        "One network, trained end to end, of fewer than 560k parameters.",
        "559,667 trainable parameters; 562,307 with the statistics of batch normalization.",
        "Of 384 possible readings of the paper, we chose this one by its parameter count.",
    ),
    Statement(
        "Encoder (table 1): a 1x1x1 convolution of 8 maps; stages of depth-wise separable convolutions of "
        "16, 16 / 32, 32 / 32, 64 / 96, 128 maps; two of them strided, the last stage dilated by 2; the "
        "stage-2 map and the last one go to the decoder.",
        "As stated.",
        "One normalization per separable convolution, after its 1x1x1 part; no biases: ours.",
    ),
    Statement(
        "A block is residual; with a stride one more separable convolution stands before the residual "
        "connection (figure 2).",
        "As stated.",
        "Where channels change, the shortcut is a 1x1x1 convolution, as in Xception.",
    ),
    Statement(
        "ASPP with rates 1, 1, 2 and 3, 32 maps per layer, dropout 0.5.",
        "As stated; the first branch is 1x1x1, no image pooling.",
        "The kernel of the first branch is that of the group's later code.",
    ),
    Statement(
        "Decoder: the ASPP's output is upsampled to the stage-2 map and concatenated; two convolutions of "
        "48 maps with dropout 0.5 and 0.1; upsampled; a 1x1x1 output.",
        "As stated, trilinear; the output convolution runs before the last upsampling.",
        "The two commute; dense convolutions, since separable ones are far from 560k parameters.",
    ),
    Statement(
        "Batch normalization and ReLU after each convolution but the output's.",
        "As stated; momentum 0.9, epsilon 1e-5.",
        "PyTorch's defaults: an epoch of 12 steps is too short for Keras' 0.99.",
    ),
    Statement(
        "Tversky loss plus w times focal loss, gamma 2; w of 5, 2, 0.5 and 0.2 were tried, 0.5 is best "
        "overall.",
        "w = 0.5; every w is a variant.",
        "The paper does not give the Tversky weights 0.7 and 0.3. In its table w = 2 is best (mean Dice 56.11 "
        "against 55.58).",
    ),
    Statement(
        'Intensities as nnU-Net: clipped to foreground percentiles "0.05 and 99.5", then z-scored by '
        "foreground mean and deviation.",
        "Clipped to -79 and 304 HU, mean 101, deviation 76.9.",
        'nnU-Net\'s values of KiTS19, of percentiles 0.5 and 99.5; "0.05" is taken for a misprint.',
    ),
    Statement(
        "Scans of more than 200 slices are cut along z for training; all foreground is kept.",
        "As stated, with 30 slices on either side of the foreground.",
        "The margin is that of the group's later code.",
    ),
    Statement(
        "All scans are resampled to the median spacing of the data set, trilinearly.",
        "3.0 x 0.78125 x 0.78125 mm; labels by the nearest neighbor.",
        "The median of the 210 cases, axis by axis.",
    ),
    Statement(
        "First stage: from scratch, random patches of 48 voxels a side, the central voxel equally likely "
        "of each category.",
        "As stated: of each patient one patch per class.",
        "39 = 13 x 3.",
    ),
    Statement(
        "39 patches from 13 patients per worker, on two Titan Xp.",
        "39 patches a step on one device.",
        "Two workers make 78 patches an update; --devices 2 shares 39 between two.",
    ),
    Statement(
        "At most 300 epochs, or until the learning rate is below 1e-8.",
        "As stated, of 12 steps each: every training patient once.",
        "The length of an epoch is not given.",
    ),
    Statement(
        "Adam, 1e-3, times 0.1 after 20 epochs without a lower loss.",
        "As stated; the validation loss is watched.",
        '"The loss" is not said to be of training or validation.',
    ),
    Statement(
        "Second stage: fine-tuned from the first on the challenge's interpolated data, patches of 44 "
        "voxels a side.",
        "The same cache, patches of 44, rate 1e-4.",
        "The interpolated release has the grid of the first stage (3.0 x 0.7816 mm); the rate is ours.",
    ),
    Statement(
        "Prediction: patches are extracted uniformly, outer voxels discarded, the volume reassembled.",
        "Tiles of 48 of which the core of 32 counts, side by side.",
        "The number of discarded voxels is not given.",
    ),
    Statement(
        "Morphological refinement: voxels of a predicted component below a threshold go to the closest "
        "category.",
        "Below 100 (background), 500 (kidney) and 200 mm3 (tumor).",
        "No threshold is given; these change the 210 true label maps by less than 0.0003 in mean Dice.",
    ),
    Statement(
        "147 patients train, 63 validate.",
        "The split deeplab3d: 147 and 63, drawn with seed 0.",
        "It names no patients.",
    ),
    Statement(
        "Dice, recall and precision per label on the validation set.",
        "Reported figures of the recipe and its variants; kitsseg evaluate gives them per case.",
        "Mean of cases or pooled voxels is not said.",
    ),
    Statement(
        "Rows of the tables: bigger encoder, bigger ASPP, decoder on every stage with one or two "
        "convolutions, proposed; focal weights 5, 2, 0.5, 0.2; best after post-processing.",
        "Each is a variant.",
        "How much bigger is not said: one more block of 128 maps, and 64 maps in the ASPP, are ours.",
    ),
)

# what no option changes: (value, evidence)
FIXED = {
    "dropout": ("0.5 after the ASPP; 0.5 and 0.1 in the decoder", "paper [4, 5]: 0.5; 0.5 and 0.1"),
    "normalization": (
        "batch, momentum 0.9, epsilon 1e-5",
        "paper [6]: batch normalization; its numbers are ours, PyTorch's defaults",
    ),
    "initializers": ("He normal", "ours: the paper does not say"),
    "upsampling": ("trilinear", "ours: the paper does not say; it agrees with tiles"),
    "optimizer": ("Adam with Keras' defaults", "paper [14]: Adam"),
    "plateau": ("of the validation loss", 'ours: the paper says "the loss"'),
    "percentiles": ("0.5 and 99.5", "code: nnU-Net's; the paper prints 0.05 and 99.5, taken for a misprint"),
    "batch": (
        "39 patches a step, however many devices",
        "ours: the paper has 39 on each of two workers, 78 an update",
    ),
    "second_stage": (
        "the cache of the first stage",
        "ours: the paper takes the challenge's interpolated release, which has the same grid",
    ),
    "label_resampling": ("nearest neighbor", "ours: the paper says trilinear, of scans"),
    "best_epoch": (
        "lowest validation loss",
        "ours: the weights of the epoch with the lowest validation loss are kept, or the last ones if kept_epoch says "
        "so; the paper does not say",
    ),
    "validation": (
        "of every validation case one patch of each class, always the same ones",
        "ours: the paper does not say what its validation loss is taken on",
    ),
}

PAPER = Recipe(
    name="deeplab3d",
    paper='Daza, Gomez and Arbelaez, "Semantic Segmentation of Kidney Tumor using Convolutional Neural '
    'Networks", '
    "KiTS19 challenge, 2019",
    claim="A 3D DeepLab v3+ of fewer than 560k parameters segments kidney and tumor end to end. By the "
    "paper's own "
    "table a focal weight of 2 is better than the 0.5 its text calls best.",
    reported=_Figures((0.8723, 0.3841), recall=(0.8426, 0.4106), precision=(0.7899, 0.2921)).reported(
        "own validation after post-processing"
    )
    | {"parameters (fewer than)": 560_000},
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
    reported_unrefined=_Figures(
        (0.8672, 0.2443), recall=(0.8968, 0.414), precision=(0.7748, 0.1684)
    ).reported(),
    split="deeplab3d",
    fixed={name: value for name, (value, _) in FIXED.items()},
    statements=STATEMENTS,
    link="No DOI was found; a manuscript of the KiTS19 challenge, 2019 (https://kits19.grand-challenge.org). A copy: "
    "https://attachments.academia-assets.com/97761546/1.html.",
    evidence={
        **{f"fixed.{name}": text for name, (_, text) in FIXED.items()},
        "metrics": "ours: Dice, recall and precision (paper) are those of whole cases, by kitsseg evaluate",
        "inference.mirror_axes": "ours: no mirroring; the paper states none",
        "preprocess.spacing_mm": "paper [10]: the median spacing of the data set; the value is that of "
        "the 210 cases",
        "preprocess.crop_to_body": "ours: no crop; the paper states none",
        "preprocess.longest_scan": "paper [9]: scans of more than 200 slices are cut for training, all "
        "foreground kept",
        "preprocess.cut_margin": "code: 30 slices on either side",
        "preprocess.hu_window": "paper [8]: foreground percentiles as nnU-Net; the values are nnU-Net's "
        "of KiTS19, of percentiles 0.5 and 99.5",
        "preprocess.hu_mean": "paper [8]: foreground mean; the value is nnU-Net's of KiTS19",
        "preprocess.hu_std": "paper [8]: foreground standard deviation; the value is nnU-Net's of KiTS19",
        "model.input_shape": "architecture: any multiple of 4",
        "model.n_classes": "ours: background, kidney and tumor, each with a Dice in the paper's tables",
        "model.encoder_extra": 'paper [2, 20]: table 1 ends with two blocks; one more is the row "bigger '
        'encoder"',
        "model.aspp_channels": "paper [4]: 32 maps in every layer",
        "model.decoder": "paper [5]: the ASPP's output meets the map of stage 2",
        "model.decoder_convs": "paper [5]: two convolutions of 48 maps",
        "model.width_divisor": "architecture: 1 leaves every layer as wide as table 1 states",
        "loss.focal_weight": "paper [7]: 0.5, best overall by its text",
        "loss.gamma": "paper [7]: 2",
        "loss.fn_weight": "ours: 0.7, as usually cited for the Tversky loss",
        "loss.fp_weight": "ours: 0.3, likewise",
        "loss.smooth": "ours: keeps 0/0 away; every batch holds all classes, so that its size hardly matters",
        "loss.include_background": "ours: kidney and tumor only; the paper does not say",
        "loss.class_reduction": "ours: the mean of both classes; the paper does not say",
        "loss.per_sample": "ours: sums over the batch, which holds all classes; with sums over each patch, a "
        "class that the patch lacks would add a constant to the loss",
        "loss.activation": "ours: softmax; the paper does not say",
        **{
            f"phases.{name}.{key}": text
            for name, evidence in (("scratch", _PHASE_EVIDENCE), ("finetune", _FINETUNE_EVIDENCE))
            for key, text in evidence.items()
        },
        "inference.tile": "paper [16]: patches of the training size, extracted uniformly",
        "inference.overlap": "ours: unused, the cores lie side by side",
        "inference.gaussian": "ours: unused, the cores lie side by side",
        "inference.margin": "paper [16]: outer voxels are discarded; their number is ours, a core of 32",
        "inference.multiple": "architecture: unused, since the tile is a multiple of the network's stride, four",
        "inference.output": "ours: softmax of background, kidney and tumor, as the loss",
        "inference.coarse": "ours: no coarse pass; no paper of this package states one",
        "split": "paper [18]: 147 to train, 63 to validate; it names no cases, these are drawn with seed 0",
        "postprocess.background_mm3": "paper [17]: a threshold; the value is ours, safe on the 210 true "
        "label maps",
        "postprocess.kidney_mm3": "paper [17]: a threshold; the value is ours, safe on the 210 true label "
        "maps",
        "postprocess.tumor_mm3": "paper [17]: a threshold; the value is ours, safe on the 210 true label "
        "maps",
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
            steps_from=None,
            validate_cases_every=25,
            validate_cases=4,
        )
        for phase in PAPER.phases
    ),
    inference=replace(PAPER.inference, tile=(64, 128, 128)),
    evidence=PAPER.evidence
    | {
        "loss.focal_weight": "paper [7]: 2 was tried, and has the best mean of the two Dice values in its "
        "table",
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
    # a patch is a slab of 80 mm that holds the body from side to side: with cubes of 96 mm the few patches of the demo
    # showed too little of what is neither kidney nor tumor
    preprocess=replace(PAPER.preprocess, spacing_mm=(5.0, 5.0, 5.0), crop_to_body=True),
    model={**PAPER.model, "width_divisor": 2},
    loss={**PAPER.loss, "fn_weight": 0.5, "fp_weight": 0.5},
    phases=(
        replace(
            PAPER.phases[0],
            sampler=PatchSampler(cases_per_batch=1, patch_size=(16, 64, 64)),
            augmentation=Augmentation(flip_probability=0.5),
            epochs=7,
            steps_per_epoch=60,
            steps_from=None,
            learning_rate=5e-3,
            schedule=replace(_PLATEAU, patience=3),
            validate_cases_every=7,
            kept_epoch="last",
        ),
        replace(
            PAPER.phases[1],
            sampler=PatchSampler(cases_per_batch=1, patch_size=(16, 56, 56)),
            augmentation=Augmentation(flip_probability=0.5),
            epochs=2,
            steps_per_epoch=60,
            steps_from=None,
            learning_rate=5e-4,
            validate_cases_every=2,
            validate_cases=1,
            kept_epoch="last",
        ),
    ),
    inference=InferenceSpec(tile=(16, 64, 64), margin=4),
    fixed={name: value for name, value in PAPER.fixed.items() if name != "best_epoch"},
    evidence={name: text for name, text in PAPER.evidence.items() if name != "fixed.best_epoch"}
    | {
        "preprocess.spacing_mm": _TINY,
        "model.width_divisor": _TINY,
        "preprocess.crop_to_body": "ours: of the patches drawn from the background fewer are then of air",
        **{
            f"loss.{key}": "ours: 0.5, since the short training of the demo found tumors far from the kidneys with "
            "0.7 and 0.3"
            for key in ("fn_weight", "fp_weight")
        },
        **{f"phases.{name}.{key}": _TINY for name in ("scratch", "finetune") for key in _TINY_SETTINGS},
        **{
            f"phases.{name}.augmentation.flip_probability": "ours: the demo has too few patients to train "
            "without"
            for name in ("scratch", "finetune")
        },
        **{
            f"phases.{name}.kept_epoch": "ours: the loss of a few patches of two validation cases tells little"
            for name in ("scratch", "finetune")
        },
        "phases.scratch.schedule.patience": _TINY,
        "inference.tile": "ours: the patch of the training",
        "inference.margin": "ours: fewer voxels are discarded than of the paper's patches, since the slab is thin",
    },
)

_ROW = "paper [20]: a row of its table"
_PLAIN = "paper [20]: a separate row shows the effect of post-processing, so this row has none"


def _row(
    name: str,
    row: str,
    figures: _Figures,
    changes: dict[str, object],
    *,
    parameters: int,
    evidence: dict[str, str] | None = None,
) -> Variant:
    """A row of the paper's table of results. Only the last row has post-processing."""
    return Variant(
        name=name,
        row=row,
        changes={**changes, "postprocess": None},
        evidence=dict.fromkeys(changes, _ROW) | (evidence or {}) | {"postprocess": _PLAIN},
        reported=figures.reported(),
        parameters=parameters,
    )


VARIANTS = (
    _row(
        "proposed",
        "proposed, in the table of architectures",
        _Figures((0.756, 0.1403), recall=(0.8295, 0.336), precision=(0.6183, 0.0886)),
        {},
        parameters=559_667,
    ),
    _row(
        "bigger-encoder",
        "bigger encoder",
        _Figures((0.7541, 0.1489), recall=(0.8939, 0.4188), precision=(0.6212, 0.098)),
        {"model.encoder_extra": True},
        parameters=579_763,
        evidence={
            "model.encoder_extra": "paper [20]: a row of its table; that it is one more block of 128 maps "
            "is ours"
        },
    ),
    _row(
        "bigger-aspp",
        "bigger ASPP",
        _Figures((0.707, 0.1264), recall=(0.831, 0.3421), precision=(0.566, 0.0816)),
        {"model.aspp_channels": 64},
        parameters=949_619,
        evidence={"model.aspp_channels": "paper [20]: a row of its table; 64 maps, twice as many, is ours"},
    ),
    _row(
        "decoder-every-stage-1-conv",
        "decoder on every stage, 1 convolution",
        _Figures((0.7883, 0.1681), recall=(0.9306, 0.4067), precision=(0.6639, 0.1136)),
        {"model.decoder": "every_stage", "model.decoder_convs": 1},
        parameters=725_651,
    ),
    _row(
        "decoder-every-stage-2-convs",
        "decoder on every stage, 2 convolutions",
        _Figures((0.75206, 0.1385), recall=(0.8912, 0.4369), precision=(0.6201, 0.0899)),
        {"model.decoder": "every_stage"},
        parameters=912_563,
    ),
    _row(
        "focal-5",
        "Tversky + 5 focal",
        _Figures((0.8641, 0.2355), recall=(0.8928, 0.4155), precision=(0.7701, 0.1608)),
        {"loss.focal_weight": 5.0},
        parameters=559_667,
    ),
    _row(
        "focal-2",
        "Tversky + 2 focal",
        _Figures((0.8725, 0.2497), recall=(0.8756, 0.3566), precision=(0.783, 0.1743)),
        {"loss.focal_weight": 2.0},
        parameters=559_667,
    ),
    _row(
        "focal-0.5",
        "Tversky + 0.5 focal",
        _Figures((0.8672, 0.2443), recall=(0.8968, 0.414), precision=(0.7748, 0.1684)),
        {},
        parameters=559_667,
    ),
    _row(
        "focal-0.2",
        "Tversky + 0.2 focal",
        _Figures((0.8641, 0.2549), recall=(0.8842, 0.4197), precision=(0.7698, 0.1769)),
        {"loss.focal_weight": 0.2},
        parameters=559_667,
    ),
    _row(
        "without-refinement",
        "the recipe before post-processing; the same settings as focal-0.5",
        _Figures((0.8672, 0.2443), recall=(0.8968, 0.414), precision=(0.7748, 0.1684)),
        {},
        parameters=559_667,
    ),
)
