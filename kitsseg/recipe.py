"""The words in which a paper's experiment is written down. They hold values and run nothing.

Standard library only: reading a recipe imports neither NumPy nor Keras, so the functions that build models and
losses are referred to, and import what they need when they are called.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass

from kitsseg.phase import (
    Augmentation,
    OneCycle,
    PatchSampler,
    Phase,
    Plateau,
    Progressive,
    Pruning,
    SliceSampler,
)

__all__ = [
    "Augmentation",
    "InferenceSpec",
    "OneCycle",
    "PatchSampler",
    "Phase",
    "Plateau",
    "PreprocessSpec",
    "Progressive",
    "Pruning",
    "ReassignSmall",
    "Recipe",
    "RemoveFar",
    "SliceSampler",
    "settings",
]


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """From a CT in HU to the numbers a network sees. Training and inference use this one description.

    The network sees either one channel, (HU clipped to ``hu_window`` - ``hu_mean``) / ``hu_std``, or, with
    ``windows``, one 8-bit channel for each of them and a histogram-scaled one.

    Attributes:
        spacing_mm: (slices, rows, columns) voxel spacing the case is resampled to; None keeps an axis as it is.
        in_plane_factor: rows and columns are scaled by this (0.5: half the size), linearly.
        slice_size: (rows, columns) every slice is resized to, by area averaging.
        crop_to_body: keep only the box of voxels above the lower end of ``hu_window``.
        longest_scan: for training, a scan of more slices is cut to about that many; all foreground is kept.
        cut_margin: slices kept on either side of the foreground by that cut.
        hu_window, hu_mean, hu_std: of the one channel.
        windows: (width, level) in HU of the first channels.
        channel_mean, channel_std: of the channels in 0..1.
    """

    spacing_mm: tuple[float | None, float | None, float | None] = (None, None, None)
    in_plane_factor: float | None = None
    slice_size: tuple[int, int] | None = None
    crop_to_body: bool = False
    longest_scan: int | None = None
    cut_margin: int | None = None
    hu_window: tuple[float, float] | None = None
    hu_mean: float | None = None
    hu_std: float | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None

    def __post_init__(self):
        one, several = (
            (self.hu_window, self.hu_mean, self.hu_std),
            (self.windows, self.channel_mean, self.channel_std),
        )
        if (None in one) == (None in several) or (one != (None,) * 3 and several != (None,) * 3):
            raise ValueError(
                "PreprocessSpec: give hu_window, hu_mean and hu_std, or windows, channel_mean and channel_std; "
                f"found {one} and {several}."
            )
        if self.crop_to_body and self.hu_window is None:
            raise ValueError(
                "PreprocessSpec: crop_to_body needs hu_window, whose lower end is its threshold."
            )

    @property
    def channels(self):
        """Number of channels the network sees."""
        return 1 if self.windows is None else len(self.windows) + 1

    def digest(self):
        """Twelve hexadecimal digits that name this specification, and the cache made by it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    """How a scan becomes class probabilities.

    Attributes:
        tile: (rows, columns) of overlapping windows, or (slices, rows, columns) for a 3D network; None takes
            whole slices in one piece.
        overlap: share of a tile that its neighbor covers too; for a 3D tile, where ``margin`` is None.
        gaussian: weight overlapping tiles by a Gaussian around their centers instead of evenly.
        margin: voxels at each border of a 3D tile that are discarded; the cores lie side by side. None: they overlap.
        mirror_axes: average over mirrored copies along these axes of the slice (0 rows, 1 columns) or of the 3D tile
            (0 slices, 1 rows, 2 columns).
        multiple: whole slices are padded to a multiple of this, the network's total stride.
    """

    tile: tuple[int, ...] | None
    overlap: float = 0.5
    gaussian: bool = False
    margin: int | None = None
    mirror_axes: tuple[int, ...] = ()
    multiple: int = 1


@dataclass(frozen=True, kw_only=True)
class RemoveFar:
    """Remove what lies farther than ``max_distance_mm`` from the two kidneys (postprocess.remove_far_components)."""

    max_distance_mm: float
    min_ratio: float
    n_main: int


@dataclass(frozen=True, kw_only=True)
class ReassignSmall:
    """Give components smaller than this, in mm3, to their nearest neighbor class
    (postprocess.reassign_small_components)."""

    background_mm3: float
    kidney_mm3: float
    tumor_mm3: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything one paper states about one experiment, and what was chosen where it is silent.

    Attributes:
        name: the stem that model, recipe and notebook share; a variant follows a colon.
        paper: title and authors.
        claim: what the paper says it reached, in one sentence.
        reported: the paper's figures, under the paper's own names; printed beside ours.
        model, loss: keyword arguments of ``build_model`` and ``build_loss``.
        postprocess: what is done to the predicted labels, or None.
        evidence: for every setting, by its dotted name, where its value comes from.
        build_model: ``keras.Model`` from its arguments.
        build_loss: ``keras.losses.Loss``, or for a network with several outputs (losses, weights), in their order.
        build_optimizer: ``keras.optimizers.Optimizer`` from a Phase.
        build_targets: labels of a batch to the targets of the outputs, where they are not the labels themselves.
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
    evidence: Mapping[str, str] = field(default_factory=dict)
    build_model: Callable = field(repr=False)
    build_loss: Callable = field(repr=False)
    build_optimizer: Callable = field(repr=False)
    build_targets: Callable | None = field(default=None, repr=False)

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
    yield from _leaves("postprocess", recipe.postprocess)


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
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
