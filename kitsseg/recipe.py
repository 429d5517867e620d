"""The dataclasses in which a paper's experiment is written down, training included. They hold values and run nothing.

Reading a recipe imports neither NumPy nor Keras. A recipe therefore refers to functions that build models and losses,
and these functions import Keras when they are called.

The annotation of a field states its range (``kitsseg.ranges``); every dataclass checks the ranges of its own fields.
The ranges are wide: they refuse what cannot be meant, such as a probability of 5, not what is unusual.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any

from kitsseg.ranges import Lengths, NotEmpty, OneOf, Range, Rising, SettingError, check_ranges

__all__ = [
    "ADDED",
    "GIVEN",
    "METRIC_NAMES",
    "MOST_IMAGES",
    "OUTPUTS",
    "Augmentation",
    "InferenceSpec",
    "OneCycle",
    "PatchSampler",
    "Phase",
    "Plateau",
    "PreprocessSpec",
    "Progressive",
    "Pruning",
    "RandomAppearance",
    "ReassignSmall",
    "Recipe",
    "RemoveFar",
    "SliceSampler",
    "Statement",
    "Variant",
    "changed",
    "given_settings",
    "settings",
    "steps_of_epoch",
    "value_of",
    "vary",
]


# what a network's channels can mean, and how many there are: background, kidney and tumor; kidney, tumor; kidney with
# tumor, tumor; tumor
OUTPUTS = {"softmax": 3, "sigmoid": 2, "regions": 2, "tumor": 1}
GIVEN = "given: by the user"  # evidence of a setting that a command was given
MOST_IMAGES = 1 << 20  # in a batch; no device holds so many
# the names in kitsseg.metrics.METRICS, which needs Keras
METRIC_NAMES = ("pixel_accuracy", "mean_iou", "dice_multi")

# the ranges of settings
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, open_low=True)]
ShareBelow1 = Annotated[float, Range(0, 1, open_high=True)]
Amount = Annotated[float, Range(0, 1e6)]
Count = Annotated[int, Range(1, 10**9)]
CountFrom0 = Annotated[int, Range(0, 10**9)]
Images = Annotated[int, Range(1, MOST_IMAGES)]
Size = Annotated[int, Range(1, 1 << 15)]  # of an image or a patch along one axis, in pixels or voxels
Axis = Annotated[int, Range(0, 2)]
LearningRate = Annotated[float, Range(0, 1e38, open_low=True)]  # float32 holds no more
Divisor = Annotated[float, Range(1, 1e12)]
HU = Annotated[float, Range(-1e5, 1e5)]
Width = Annotated[float, Range(0.001, 1e5)]  # of a window or a distribution, in HU
Millimeters = Annotated[float, Range(0.01, 100)]  # of a voxel
Scale = Annotated[float, Range(0.1, 10)]  # of an augmentation
Volume = Annotated[float, Range(0, 1e9)]  # in mm3


@dataclass(frozen=True, kw_only=True)
class RandomAppearance:
    """Random contrast, texture, noise and objects in a training crop; the labels stay.

    A network that has seen every tissue in every brightness does not rely on the contrast of one scanner, nor on that
    of phantoms (the idea of SynthSeg, Billot et al., Medical Image Analysis 2023). None of the five papers does it.

    Attributes:
        probability: share of the crops that are changed.
        strength: factor on the deviations that ``augment.change_appearance`` states.
    """

    probability: Share
    strength: Annotated[float, Range(0, 10)] = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)


# groups that a user may give to a recipe without them (``changed``), by the name of their field
ADDED = {"appearance": RandomAppearance}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training crop; image and labels move together.

    Attributes:
        scale_range: (low, high) of the factor on the sampling grid; a factor below 1 zooms in. Factors below 1 and
            above 1 are drawn equally often.
        scale_probability: share of the crops that are scaled.
        flip_probability: for rows and for columns, independently.
        appearance: random changes of the HU of slices; None changes no HU.
    """

    scale_range: Annotated[tuple[Scale, Scale], Rising(equal=True)] = (1.0, 1.0)
    scale_probability: Share = 0.0
    flip_probability: Share = 0.0
    appearance: RandomAppearance | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class SliceSampler:
    """Batches of axial slices.

    Attributes:
        batch_size: slices in a batch.
        positive: exactly so many slices of a batch hold kidney or tumor; the others are drawn from all slices.
        positive_weights: "uniform" over the positive slices of a case, or by "area" of their foreground.
        patch_size: (rows, columns) of the random crop; smaller slices are padded.
        unit: "case" draws different cases for a batch, then a slice of each; "slice" goes through all slices of
            all cases in random order (``positive`` must be 0).
    """

    batch_size: Images
    positive: Annotated[int, Range(0, MOST_IMAGES)] = 0
    positive_weights: Annotated[str, OneOf("uniform", "area")] = "uniform"
    patch_size: tuple[Size, Size]
    unit: Annotated[str, OneOf("case", "slice")] = "case"

    def __post_init__(self) -> None:
        check_ranges(self)
        most = 0 if self.unit == "slice" else self.batch_size
        if self.positive > most:
            why = 'unit "slice" draws every slice alike' if self.unit == "slice" else "the batch_size"
            raise SettingError(
                "positive", f"a whole number from 0 to {most} ({why})", self.positive, "SliceSampler"
            )

    @property
    def images(self) -> int:
        """Images in a batch."""
        return self.batch_size


@dataclass(frozen=True, kw_only=True)
class PatchSampler:
    """Batches of 3D patches, an equal number or an equal chance for each class of the center voxel.

    Attributes:
        cases_per_batch: different cases in a batch; each gives three patches.
        patch_size: (slices, rows, columns).
        mode: "stratified": one patch of a case for each class; "random": a class with probability 1/3.
    """

    cases_per_batch: Images
    patch_size: tuple[Size, Size, Size]
    mode: Annotated[str, OneOf("stratified", "random")] = "stratified"

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def images(self) -> int:
        """Images in a batch."""
        return 3 * self.cases_per_batch


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Multiply the learning rate by ``factor`` when the validation loss has not dropped by ``min_delta`` for
    ``patience`` epochs, down to ``min_learning_rate``; end the phase when it falls below ``stop_below``."""

    factor: PositiveShare
    patience: CountFrom0
    min_delta: Amount = 0.0
    min_learning_rate: Amount = 0.0
    stop_below: Amount | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """fastai's one-cycle policy, by step: the rate rises from learning_rate / ``start_divisor`` along a cosine for
    ``rise`` of the phase, then falls to learning_rate / ``end_divisor``; Adam's beta_1 does the opposite between
    ``momentum``'s two values."""

    rise: PositiveShare
    start_divisor: Divisor
    end_divisor: Divisor
    momentum: tuple[ShareBelow1, ShareBelow1]

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Progressive:
    """He et al.'s progressive training: rounds on random subsets, each from the best weights so far.

    Attributes:
        rounds: at most so many.
        subset: share of the training cases of a round, drawn anew.
        round_decay: the learning rate of a round is this times that of the round before.
        min_delta: a round counts as better if the validation score, a Dice, rises by at least this; with -1 every
            round counts as better.
        patience: stop after so many rounds that are not better.
    """

    rounds: Count
    subset: PositiveShare
    round_decay: PositiveShare
    min_delta: Annotated[float, Range(-1, 1)]
    patience: CountFrom0

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Magnitude pruning while a phase trains (see ``kitsseg.pruning.callback``).

    Attributes:
        sparsity: share of zeros in the pruned tensors at the end, below 1.
        schedule: "one-shot" prunes to ``sparsity`` at the first step; "polynomial" raises the sparsity step by step,
            fast at first, with power 3.
        until: share of the phase after which a polynomial schedule has reached ``sparsity``; the rest fine-tunes.
        frequency: a polynomial schedule draws masks every so many steps.
        initial_sparsity: sparsity at which a polynomial schedule begins: that of the network which is pruned.
        m_by_n: (2, 4) drops two of each four consecutive weights, at the first step; ``sparsity`` is then 0.5.
        block: so many neighboring output channels of a 1x1 convolution are kept or dropped together (our addition).
        scope: "layer" ranks the weights of each tensor separately; "global" ranks the weights of all tensors together
            (our addition).
        depthwise: prune depth-wise kernels too (our addition).
        first_last: prune the first convolution and the head too, as tfmot does; False leaves them dense.
    """

    sparsity: ShareBelow1
    schedule: Annotated[str, OneOf("one-shot", "polynomial")] = "polynomial"
    until: PositiveShare = 0.5
    frequency: Count = 100
    initial_sparsity: ShareBelow1 = 0.0
    m_by_n: tuple[Count, Count] | None = None
    block: Annotated[int, Range(2, 10**9)] | None = None
    scope: Annotated[str, OneOf("layer", "global")] = "layer"
    depthwise: bool = False
    first_last: bool = True

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.initial_sparsity > self.sparsity:
            expected = f"a number from 0 to {self.sparsity:g} (the sparsity)"
            raise SettingError("initial_sparsity", expected, self.initial_sparsity, "Pruning")
        if sum((self.m_by_n is not None, self.block is not None, self.scope == "global")) > 1:
            raise ValueError('Pruning: give only one of m_by_n, block and scope "global".')
        if self.m_by_n is not None:
            m, n = self.m_by_n
            if not 0 < m < n or self.sparsity != m / n or self.schedule != "one-shot":
                raise ValueError(
                    f"Pruning: m_by_n (m, n), 0 < m < n, goes with sparsity m / n and the schedule one-shot; found "
                    f"{self.m_by_n}, {self.sparsity} and {self.schedule!r}."
                )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training. A recipe's phases run in order and hand their best weights on.

    Attributes:
        epochs, steps_per_epoch: of the phase, or of each round of a progressive one.
        steps_from: how many steps an epoch has with the training cases of the split in use: each case once ("cases"),
            each slice once ("slices"), or each slice once without the last batch unless that batch is full ("full
            batches"). ``steps_per_epoch`` is then the number for the paper's split. None: always ``steps_per_epoch``.
        pruning: how weights are pruned. The best weights of a pruned phase come from an epoch at the final sparsity.
        rate_factors: pairs (prefix, factor): the learning rate of a layer is multiplied by the factor of the first
            prefix with which the layer's name starts. Factor 0 freezes the layer, but batch normalization goes on
            learning, as in fastai.
        validate_cases_every: score whole validation cases every so many epochs; in a progressive phase, every so many
            epochs of a round. None: only at the end of a round, or never in a phase without rounds. These scores
            decide which round is kept, and nothing else.
        validate_cases: number of validation cases that are scored. They are spread evenly over all validation cases
            and are the same each time. None: all.
        kept_epoch: "last" keeps the weights of the phase's last epoch and hands them on; None those of the epoch with
            the lowest validation loss. A progressive phase keeps those of its best round.
    """

    name: str
    sampler: SliceSampler | PatchSampler
    augmentation: Augmentation = Augmentation()
    epochs: Count
    steps_per_epoch: Count
    steps_from: Annotated[str, OneOf("cases", "slices", "full batches")] | None = None
    learning_rate: LearningRate
    schedule: Plateau | OneCycle | None = None
    progressive: Progressive | None = None
    pruning: Pruning | None = None
    rate_factors: tuple[tuple[str, Annotated[float, Range(0, 1000)]], ...] = ()
    validate_cases_every: Count | None = None
    validate_cases: Count | None = None
    kept_epoch: Annotated[str, OneOf("last")] | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.kept_epoch and self.progressive:
            raise ValueError(
                f"Phase {self.name}: kept_epoch goes with a phase without rounds; the best round is kept here."
            )
        if self.pruning and self.progressive:
            raise ValueError(
                f"Phase {self.name}: pruning in progressive rounds is not supported; add a phase."
            )
        if self.pruning and self.pruning_steps < 1:
            raise ValueError(
                f"Phase {self.name}: no multiple of the pruning frequency, {self.pruning.frequency} steps, lies "
                f"within {self.pruning.until:g} of its {self.epochs * self.steps_per_epoch} steps, so the final "
                "sparsity would never be reached. Lower the frequency, or train longer."
            )

    @property
    def pruning_steps(self) -> int:
        """The step, counted from 1, at which the final sparsity is reached. It is a multiple of the frequency."""
        if self.pruning is None:
            raise ValueError(f"Phase {self.name}: without pruning there is no step that reaches a sparsity.")
        if self.pruning.schedule == "one-shot":
            return 1
        steps = int(self.pruning.until * self.epochs * self.steps_per_epoch)
        return steps - steps % self.pruning.frequency

    @property
    def first_choice(self) -> int:
        """The first epoch whose weights may be the phase's best: with pruning, one that ends at the final sparsity."""
        return -(-self.pruning_steps // self.steps_per_epoch) if self.pruning else 1


def steps_of_epoch(phase: Phase, slices: Sequence[int]) -> int:
    """Steps of an epoch of a phase that goes through the training cases of a split (see ``Phase.steps_from``).

    Args:
        slices: number of slices of each training case.

    Returns: ``steps_per_epoch`` for a phase whose steps follow from nothing.
    """
    if phase.steps_from is None:
        return phase.steps_per_epoch
    if isinstance(phase.sampler, PatchSampler):
        size = phase.sampler.cases_per_batch
    else:
        size = phase.sampler.batch_size
    images = len(slices) if phase.steps_from == "cases" else sum(slices)
    return max(1, images // size if phase.steps_from == "full batches" else -(-images // size))


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """From a CT in HU to the numbers a network sees. Training and inference use this one description.

    The network sees either one channel, (HU clipped to ``hu_window`` - ``hu_mean``) / ``hu_std``, or, with
    ``windows``, one 8-bit channel for each of them and a histogram-scaled one.

    Attributes:
        spacing_mm: (slices, rows, columns) voxel spacing the case is resampled to; None keeps an axis as it is.
        in_plane_factor: rows and columns are scaled by this (0.5: half the size), linearly.
        slice_size: (rows, columns) every slice is resized to, by area averaging.
        clip_hu: (low, high) to which the HU of every scan are clipped first. A network that was trained on images
            whose HU were clipped to such a window needs scans that are clipped to the same one. None: no clipping.
        crop_to_body: keep only the box of voxels above ``lowest_hu``.
        longest_scan: for training, a scan of more slices is cut to about that many; all foreground is kept.
        cut_margin: slices that this cut keeps on either side of the foreground.
        hu_window, hu_mean, hu_std: clipping and normalization of the one channel, in HU.
        windows: (width, level) in HU of each window; the channels come in this order.
        channel_mean, channel_std: mean and standard deviation of each channel, whose values lie in 0..1.
    """

    spacing_mm: tuple[Millimeters | None, Millimeters | None, Millimeters | None] = (None, None, None)
    in_plane_factor: Annotated[float, Range(0.01, 100)] | None = None
    slice_size: tuple[Size, Size] | None = None
    crop_to_body: bool = False
    longest_scan: Count | None = None
    cut_margin: CountFrom0 | None = None
    hu_window: Annotated[tuple[HU, HU], Rising()] | None = None
    hu_mean: HU | None = None
    hu_std: Width | None = None
    windows: tuple[tuple[Width, HU], ...] | None = None
    channel_mean: tuple[HU, ...] | None = None
    channel_std: tuple[Width, ...] | None = None
    clip_hu: Annotated[tuple[HU, HU], Rising()] | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        one, several = (
            (self.hu_window, self.hu_mean, self.hu_std),
            (self.windows, self.channel_mean, self.channel_std),
        )
        if (None in one) == (None in several) or (one != (None,) * 3 and several != (None,) * 3):
            raise ValueError(
                "PreprocessSpec: give hu_window, hu_mean and hu_std, or windows, channel_mean and channel_std; "
                f"found {one} and {several}."
            )
        for name in ("channel_mean", "channel_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                expected = f"{self.channels} values, one for each channel ({self.channels - 1} windows and a histogram)"
                raise SettingError(name, expected, values, "PreprocessSpec")
        if self.longest_scan is not None and self.cut_margin is None:
            expected = "a whole number from 0, which longest_scan goes with"
            raise SettingError("cut_margin", expected, self.cut_margin, "PreprocessSpec")
        if self.crop_to_body and self.hu_window is None:
            raise ValueError(
                "PreprocessSpec: crop_to_body needs hu_window, whose lower end is its threshold."
            )

    @property
    def channels(self) -> int:
        """Number of channels the network sees."""
        return 1 if self.windows is None else len(self.windows) + 1

    @property
    def lowest_hu(self) -> float | None:
        """Lower end of the HU window: lower HU look the same to the network. None for a recipe of several channels."""
        if self.hu_window is None:
            return None
        return self.hu_window[0] if self.clip_hu is None else max(self.hu_window[0], self.clip_hu[0])

    @property
    def seen_hu(self) -> tuple[float, float] | None:
        """(low, high) of the HU that the network can tell apart; None if it can tell all HU apart.

        A recipe of several channels tells all HU apart unless ``clip_hu`` clips them: its histogram counts all.
        """
        if self.hu_window is None or self.clip_hu is None:
            return self.clip_hu or self.hu_window
        return max(self.hu_window[0], self.clip_hu[0]), min(self.hu_window[1], self.clip_hu[1])

    def digest(self) -> str:
        """Twelve hexadecimal digits that name this specification, and the cache made by it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    """How a scan becomes class probabilities.

    Attributes:
        tile: (rows, columns) of overlapping windows, or (slices, rows, columns) for a 3D network; None takes
            whole slices in one piece.
        overlap: share of a tile that its neighbor covers too; of a 3D tile only if ``margin`` is None.
        gaussian: weight overlapping tiles by a Gaussian around their centers instead of evenly.
        margin: voxels at each border of a 3D tile whose probabilities are discarded, so that the tiles' cores lie side
            by side. None: tiles overlap by ``overlap``.
        mirror_axes: average over mirrored copies along these axes of the slice (0 rows, 1 columns) or of the 3D tile
            (0 slices, 1 rows, 2 columns).
        multiple: whole slices are padded to a multiple of this, the network's total stride.
        output: what the network's channels mean, see ``OUTPUTS``.
        coarse: ``kitsseg predict`` shows the network only the region in which the package's starter network finds
            kidneys, and 20 mm around it; the whole scan where that is doubtful (``kitsseg.inference.coarse``). Cached
            cases, by which training chooses an epoch, are seen whole.
    """

    tile: Annotated[tuple[Size, ...], Lengths(2, 3)] | None
    overlap: Annotated[float, Range(0, 0.95)] = 0.5
    gaussian: bool = False
    margin: Annotated[int, Range(0, 1 << 15)] | None = None
    mirror_axes: tuple[Axis, ...] = ()
    multiple: Size = 1
    output: Annotated[str, OneOf(*OUTPUTS)] = "softmax"
    coarse: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(set(self.mirror_axes)) < len(self.mirror_axes):
            raise SettingError("mirror_axes", "each axis once", self.mirror_axes, "InferenceSpec")
        if self.margin is not None and self.tile is not None and 2 * self.margin >= min(self.tile):
            expected = f"less than half of each axis of the tile {tuple(self.tile)}"
            raise SettingError("margin", expected, self.margin, "InferenceSpec")

    @property
    def tile_3d(self) -> tuple[int, ...] | None:
        """The tile (slices, rows, columns) of a 3D network; None for a network that sees single slices."""
        return self.tile if self.tile is not None and len(self.tile) == 3 else None


@dataclass(frozen=True, kw_only=True)
class RemoveFar:
    """Remove what lies farther than ``max_distance_mm`` from the two kidneys (postprocess.remove_far_components)."""

    max_distance_mm: Amount
    min_ratio: Share
    n_main: Count

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class ReassignSmall:
    """Give components smaller than this, in mm3, to their nearest neighbor class
    (postprocess.reassign_small_components)."""

    background_mm3: Volume
    kidney_mm3: Volume
    tumor_mm3: Volume

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Statement:
    """What a paper says in one place, in our words, and what became of it here.

    Attributes:
        says: the paper's statement; it is numbered by its place in ``Recipe.statements``, from 1.
        here: what this package does.
        why: the reason, if this package does not do what the paper says.
    """

    says: str
    here: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything one paper states about one experiment, and what was chosen where it is silent.

    Attributes:
        name: the stem that model, recipe and notebook share; a variant follows a colon.
        paper: title and authors.
        claim: what the paper says it reached, in one sentence.
        reported: the paper's figures, under the paper's own names; printed beside ours.
        reported_unrefined: the paper's figures for the labels before ``postprocess``, if it gives such figures.
        model, loss: keyword arguments of ``build_model`` and ``build_loss``.
        postprocess: what is done to the predicted labels, or None.
        split: name of the split that the paper states, used where all of KiTS19 is at hand; None: 80/10/10.
        metrics: what the paper logs of training and validation batches: names of metrics in ``kitsseg.metrics``.
        fixed: what the code does and no option changes, by name. Each has its evidence, such as ``fixed.dropout``.
        statements: what the paper says, in order; evidence that begins with "paper [n]" is found in the n-th.
        link: where the paper is found, a DOI if it has one.
        evidence: for every setting, by its dotted name, where its value comes from.
        build_model: ``keras.Model`` from its arguments.
        build_loss: ``keras.losses.Loss``, or for a network with several outputs (losses, weights), in their order.
        build_optimizer: ``keras.optimizers.Optimizer`` from a Phase.
        build_targets: labels of a batch to the targets of the outputs, for a network with several.
    """

    name: str
    paper: str
    claim: str
    reported: Mapping[str, float]
    preprocess: PreprocessSpec
    model: Mapping[str, object]
    loss: Mapping[str, object]
    phases: tuple[Phase, ...]
    inference: InferenceSpec
    postprocess: RemoveFar | ReassignSmall | None = None
    split: Annotated[str, NotEmpty()] | None = None
    metrics: tuple[Annotated[str, OneOf(*METRIC_NAMES)], ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    statements: tuple[Statement, ...] = field(default=(), repr=False)
    link: str = ""
    evidence: dict[str, str] = field(default_factory=dict)
    reported_unrefined: Mapping[str, float] = field(default_factory=dict)
    build_model: Callable[..., Any] = field(repr=False)
    build_loss: Callable[..., Any] = field(repr=False)
    build_optimizer: Callable[[Phase], Any] = field(repr=False)
    build_targets: Callable[[Any], tuple[Any, ...]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_output(self)
        _check_axes(self)
        _check_appearance(self)

    @property
    def is_3d(self) -> bool:
        """Whether the network sees volumes, not slices."""
        return any(isinstance(phase.sampler, PatchSampler) for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """The recipe's values as JSON takes them; the functions are left out, post-processing names its class."""
        values = {
            f.name: _plain(getattr(self, f.name))
            for f in fields(self)
            if not f.name.startswith("build_") and f.name != "statements"
        }
        if self.postprocess is not None:
            values["postprocess"] = {"kind": type(self.postprocess).__name__, **values["postprocess"]}
        return values


def _check_output(recipe: Recipe) -> None:
    """Raise ValueError unless a channel means the same to network, loss and prediction."""
    output, loss = recipe.inference.output, recipe.loss
    means = {
        "model.n_classes": (recipe.model.get("n_classes", OUTPUTS[output]), OUTPUTS[output]),
        "loss.activation": (
            loss.get("activation", "softmax"),
            "softmax" if output == "softmax" else "sigmoid",
        ),
        "loss.regions": (loss.get("regions", False), output == "regions"),
        "loss.tumor_only": (loss.get("tumor_only", False), output == "tumor"),
    }
    for name, (found, expected) in means.items():
        if found != expected:
            raise ValueError(
                f"inference.output {output!r} goes with {name} {expected!r}; found {found!r}. The loss would train "
                "other channels than those that are predicted from. Set what belongs together."
            )
    if recipe.metrics and output != "softmax":
        raise ValueError(
            f"metrics {', '.join(recipe.metrics)} go with inference.output 'softmax'; found {output!r}."
        )
    heads = 4 if recipe.model.get("deep_supervision") else 1
    if "heads" in loss and loss["heads"] != heads:
        raise ValueError(
            f"model.deep_supervision {recipe.model.get('deep_supervision')!r} goes with loss.heads {heads}; found "
            f"{loss['heads']!r}."
        )


def _check_axes(recipe: Recipe) -> None:
    """Raise SettingError unless the prediction goes along the axes that the network sees."""
    inference, axes = recipe.inference, 3 if recipe.is_3d else 2
    network = f"for a {axes}D network"
    if (inference.tile is None and recipe.is_3d) or (
        inference.tile is not None and len(inference.tile) != axes
    ):
        sizes = "sizes (slices, rows, columns)" if recipe.is_3d else "sizes (rows, columns), or none,"
        raise SettingError("inference.tile", f"{sizes} {network}", inference.tile)
    if inference.margin is not None and not recipe.is_3d:
        raise SettingError("inference.margin", f"none {network}", inference.margin)
    if any(axis >= axes for axis in inference.mirror_axes):
        known = "0 (slices), 1 (rows) and 2 (columns)" if recipe.is_3d else "0 (rows) and 1 (columns)"
        raise SettingError("inference.mirror_axes", f"some of {known} {network}", inference.mirror_axes)


def _check_appearance(recipe: Recipe) -> None:
    """Raise SettingError if a random appearance is wanted for other images than slices in HU."""
    for phase in recipe.phases:
        if phase.augmentation.appearance is not None:
            name = f"phases.{phase.name}.augmentation.appearance"
            if isinstance(phase.sampler, PatchSampler):
                raise SettingError(name, "none for a 3D network", "one: it is drawn for slices only")
            if recipe.preprocess.hu_window is None:
                raise SettingError(
                    name, "none for a recipe without hu_window", "one: it changes HU, not 8-bit windows"
                )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a paper's tables: the paper's recipe with named changes, and nothing else.

    Attributes:
        name: what follows the colon, as in ``deeplab3d:bigger-encoder``.
        row: what the paper calls it, in a few words.
        changes: dotted name of a setting -> its value; None for a phase or for ``postprocess`` leaves it out.
        evidence: for each change, where its value comes from.
        reported: the paper's figures of this row, as in ``Recipe.reported``.
        parameters: trainable parameters of its network; None where neither paper nor code says.
        counted: what ``parameters`` counts, if it does not count the network that the recipe trains.
    """

    name: str
    row: str
    changes: Mapping[str, object]
    evidence: Mapping[str, str]
    reported: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    counted: str = ""

    def __post_init__(self) -> None:
        if set(self.changes) != set(self.evidence):
            raise ValueError(
                f"Variant {self.name}: each change needs its evidence, and nothing else has any; found changes of "
                f"{sorted(self.changes)} and evidence of {sorted(self.evidence)}."
            )


def vary(recipe: Recipe, variant: Variant) -> Recipe:
    """The recipe as a variant of its paper: the changes, their evidence, the figures of that row."""
    return replace(
        changed(recipe, variant.changes, variant.evidence),
        name=f"{recipe.name.partition(':')[0]}:{variant.name}",
        reported=variant.reported,
        reported_unrefined={},
    )


def changed(recipe: Recipe, changes: Mapping[str, object], evidence: Mapping[str, str]) -> Recipe:
    """A recipe with other values of some settings; the recipe itself stays as it is.

    Args:
        recipe: any.
        changes: dotted name, as of ``settings``, -> value. A name may be that of a group (``postprocess``,
            ``phases.prune``), whose value None leaves the group out. Names in a group of ``ADDED`` that the recipe
            lacks add the group.
        evidence: for each of these names; settings that are gone lose theirs.

    Raises: KeyError for a name that is no setting; SettingError for a value outside its range, by its dotted name;
        ValueError for values that do not go together.
    """
    tree: dict[str, Any] = {}
    for name, value in changes.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = _Value(value)
    varied: Recipe = _changed(recipe, tree, "")
    there = dict(settings(varied))
    kept = {name: text for name, text in {**recipe.evidence, **evidence}.items() if name in there}
    return replace(varied, evidence=kept)


@dataclass(frozen=True)
class _Value:
    """A leaf of the tree of changes. It tells a value that is a dictionary from an inner node of the tree."""

    value: object


def _changed(owner: Any, tree: Mapping[str, Any], prefix: str) -> Any:
    """``owner`` with all changes of a tree made at once, because some of the changes alone would be refused."""
    if isinstance(owner, tuple):
        by_name = {phase.name: phase for phase in owner}
        for name in tree:
            if name not in by_name:
                raise KeyError(f"{prefix}{name}")
        return tuple(
            new
            for name, phase in by_name.items()
            if (new := _new(phase, tree[name], f"{prefix}{name}") if name in tree else phase) is not None
        )
    if isinstance(owner, Mapping):
        for name in tree:
            if name not in owner:
                raise KeyError(f"{prefix}{name}")
        return {**owner, **{name: _new(owner[name], tree[name], f"{prefix}{name}") for name in tree}}
    if not is_dataclass(owner) or isinstance(owner, type):
        raise KeyError(f"{prefix}{next(iter(tree))}")
    names = {f.name for f in fields(owner)}
    for name in tree:
        if name not in names:
            raise KeyError(f"{prefix}{name}")
    new = {name: _new(getattr(owner, name), tree[name], f"{prefix}{name}") for name in tree}
    try:
        return replace(owner, **new)
    except SettingError as error:
        raise error.within(prefix) from error


def _new(old: Any, change: Any, name: str) -> Any:
    if isinstance(change, _Value):
        return change.value
    if old is None and (kind := ADDED.get(name.rpartition(".")[2])):
        return _added(kind, change, f"{name}.")
    return _changed(old, change, f"{name}.")


def _added(kind: type, tree: Mapping[str, Any], prefix: str) -> Any:
    """A new group; what is not given has its default."""
    optional = {f.name: f.default is not MISSING for f in fields(kind)}
    for name, change in tree.items():
        if name not in optional or not isinstance(change, _Value):
            raise KeyError(f"{prefix}{name}")
    for name, has_default in optional.items():
        if name not in tree and not has_default:
            raise SettingError(f"{prefix}{name}", "a value too, because the recipe has none", "none")
    try:
        return kind(**{name: change.value for name, change in tree.items()})
    except SettingError as error:
        raise error.within(prefix) from error


def value_of(recipe: Recipe, name: str) -> Any:
    """The value of a setting or of a group of them, by its dotted name.

    Raises: KeyError for a name that is none.
    """
    value: Any = recipe
    for part in name.split("."):
        if isinstance(value, tuple):
            value = {phase.name: phase for phase in value}[part]
        elif isinstance(value, Mapping):
            value = value[part]
        elif part in ({f.name for f in fields(value)} if is_dataclass(value) else ()):
            value = getattr(value, part)
        else:
            raise KeyError(name)
    return value


def settings(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Each setting of a recipe as (dotted name, value), in reading order. Phases go by their own names."""
    for group in ("preprocess", "model", "loss"):
        yield from _leaves(group, getattr(recipe, group))
    for phase in recipe.phases:
        yield from (
            (k, v) for k, v in _leaves(f"phases.{phase.name}", phase) if k != f"phases.{phase.name}.name"
        )
    yield from _leaves("inference", recipe.inference)
    yield from _leaves("postprocess", recipe.postprocess)
    yield "split", recipe.split
    yield "metrics", recipe.metrics
    yield from _leaves("fixed", recipe.fixed)


def given_settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted name -> value, as JSON takes it, of the settings that a user gave."""
    return {name: _plain(value_of(recipe, name)) for name, text in recipe.evidence.items() if text == GIVEN}


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for f in fields(value):
            yield from _leaves(f"{prefix}.{f.name}", getattr(value, f.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{prefix}.{key}", item)
    else:
        yield prefix, value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
