"""The words in which a paper's experiment is written down. They hold values and run nothing.

Standard library only: reading a recipe imports neither NumPy nor Keras, so the functions that build models and
losses are referred to, and import what they need when they are called.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass

__all__ = [
    "Augmentation",
    "InferenceSpec",
    "Phase",
    "Plateau",
    "PreprocessSpec",
    "Recipe",
    "SliceSampler",
    "settings",
]


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """From a CT in HU to the numbers a network sees. Training and inference use this one description.

    Attributes:
        spacing_mm: (slices, rows, columns) voxel spacing the case is resampled to; None keeps an axis as it is.
        crop_to_body: keep only the box of voxels above the lower end of ``hu_window``.
        hu_window: HU are clipped to this (low, high).
        hu_mean, hu_std: the network sees (clipped HU - hu_mean) / hu_std.
    """

    spacing_mm: tuple[float | None, float | None, float | None]
    crop_to_body: bool
    hu_window: tuple[float, float]
    hu_mean: float
    hu_std: float

    def digest(self):
        """Twelve hexadecimal digits that name this specification, and the cache made by it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training crop; image and labels move together.

    Attributes:
        scale_range: (low, high) of the factor on the sampling grid; below 1 zooms in. Low and high sides are
            drawn equally often.
        scale_probability: share of the crops that are scaled.
        flip_probability: for rows and for columns, independently.
    """

    scale_range: tuple[float, float] = (1.0, 1.0)
    scale_probability: float = 0.0
    flip_probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SliceSampler:
    """Batches of axial slices with a fixed number of positive ones.

    Attributes:
        batch_size: slices in a batch, from that many different cases where there are enough.
        positive: how many of them hold kidney or tumor, exactly; the others are drawn from all slices.
        positive_weights: "uniform" over the positive slices of a case, or by "area" of their foreground.
        patch_size: (rows, columns) of the random crop.
    """

    batch_size: int
    positive: int
    positive_weights: str
    patch_size: tuple[int, int]

    def __post_init__(self):
        if not 0 <= self.positive <= self.batch_size:
            raise ValueError(
                f"SliceSampler: positive must lie in 0..{self.batch_size}, found {self.positive}."
            )
        if self.positive_weights not in ("uniform", "area"):
            raise ValueError(
                f'SliceSampler: positive_weights is "uniform" or "area", found "{self.positive_weights}".'
            )


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Multiply the learning rate by ``factor`` when the validation loss has not dropped by ``min_delta`` for
    ``patience`` epochs, down to ``min_learning_rate``."""

    factor: float
    patience: int
    min_delta: float
    min_learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training. A recipe's phases run in order and hand their best weights on."""

    name: str
    sampler: SliceSampler
    augmentation: Augmentation
    epochs: int
    steps_per_epoch: int
    learning_rate: float
    plateau: Plateau | None = None


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    """How a slice becomes class probabilities.

    Attributes:
        tile: (rows, columns) of overlapping windows; None takes the whole slice in one piece.
        overlap: share of a tile that its neighbor covers too.
        gaussian: weight a tile by a Gaussian around its center instead of evenly.
        mirror_axes: average over mirrored copies along these axes of the slice (0 rows, 1 columns).
        multiple: whole slices are padded to a multiple of this, the network's total stride.
    """

    tile: tuple[int, int] | None
    overlap: float = 0.5
    gaussian: bool = False
    mirror_axes: tuple[int, ...] = ()
    multiple: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything one paper states about one experiment, and what was chosen where it is silent.

    Attributes:
        name: the stem that model, recipe and notebook share; a variant follows a colon.
        paper: title and authors.
        claim: what the paper says it reached, in one sentence.
        reported: the paper's figures, under the paper's own names; printed beside ours.
        model, loss: keyword arguments of ``build_model`` and ``build_loss``.
        evidence: for every setting, by its dotted name, where its value comes from.
        build_model, build_loss: ``keras.Model`` and ``keras.losses.Loss`` from these arguments.
        build_optimizer: ``keras.optimizers.Optimizer`` from a learning rate.
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
    evidence: Mapping[str, str] = field(default_factory=dict)
    build_model: Callable = field(repr=False)
    build_loss: Callable = field(repr=False)
    build_optimizer: Callable = field(repr=False)

    def as_dict(self):
        """The recipe's values as JSON takes them; the functions are left out."""
        return {
            f.name: _plain(getattr(self, f.name)) for f in fields(self) if not f.name.startswith("build_")
        }


def settings(recipe):
    """Each setting of a recipe as (dotted name, value), in reading order. Phases go by their own names."""
    for group in ("preprocess", "model", "loss"):
        yield from _leaves(group, getattr(recipe, group))
    for phase in recipe.phases:
        yield from (
            (k, v) for k, v in _leaves(f"phases.{phase.name}", phase) if k != f"phases.{phase.name}.name"
        )
    yield from _leaves("inference", recipe.inference)


def _leaves(prefix, value):
    if is_dataclass(value):
        for f in fields(value):
            yield from _leaves(f"{prefix}.{f.name}", getattr(value, f.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{prefix}.{key}", item)
    else:
        yield prefix, value


def _plain(value):
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
