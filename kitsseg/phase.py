"""The words for how a network is trained: sampling, augmentation, schedules, phases. They hold values, run nothing."""

from dataclasses import dataclass

__all__ = [
    "Augmentation",
    "OneCycle",
    "PatchSampler",
    "Phase",
    "Plateau",
    "Progressive",
    "Pruning",
    "SliceSampler",
]


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
    """Batches of axial slices.

    Attributes:
        batch_size: slices in a batch.
        positive: how many of them hold kidney or tumor, exactly; the others are drawn from all slices.
        positive_weights: "uniform" over the positive slices of a case, or by "area" of their foreground.
        patch_size: (rows, columns) of the random crop; smaller slices are padded.
        unit: "case" draws different cases for a batch, then a slice of each; "slice" goes through all slices of
            all cases in random order (``positive`` must be 0).
    """

    batch_size: int
    positive: int = 0
    positive_weights: str = "uniform"
    patch_size: tuple[int, int]
    unit: str = "case"

    def __post_init__(self):
        if not 0 <= self.positive <= self.batch_size:
            raise ValueError(
                f"SliceSampler: positive must lie in 0..{self.batch_size}, found {self.positive}."
            )
        _check("SliceSampler", "positive_weights", self.positive_weights, ("uniform", "area"))
        _check("SliceSampler", "unit", self.unit, ("case", "slice"))
        if self.unit == "slice" and self.positive:
            raise ValueError('SliceSampler: unit "slice" draws every slice alike; positive must be 0.')


@dataclass(frozen=True, kw_only=True)
class PatchSampler:
    """Batches of 3D patches, an equal number or an equal chance for each class of the center voxel.

    Attributes:
        cases_per_batch: different cases in a batch; each gives three patches.
        patch_size: (slices, rows, columns).
        mode: "stratified": one patch of a case for each class; "random": a class with probability 1/3.
    """

    cases_per_batch: int
    patch_size: tuple[int, int, int]
    mode: str = "stratified"

    def __post_init__(self):
        _check("PatchSampler", "mode", self.mode, ("stratified", "random"))


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Multiply the learning rate by ``factor`` when the validation loss has not dropped by ``min_delta`` for
    ``patience`` epochs, down to ``min_learning_rate``; end the phase when it falls below ``stop_below``."""

    factor: float
    patience: int
    min_delta: float = 0.0
    min_learning_rate: float = 0.0
    stop_below: float | None = None


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """fastai's one-cycle policy, by step: the rate rises from learning_rate / ``start_divisor`` along a cosine for
    ``rise`` of the phase, then falls to learning_rate / ``end_divisor``; Adam's beta_1 does the opposite between
    ``momentum``'s two values."""

    rise: float
    start_divisor: float
    end_divisor: float
    momentum: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Progressive:
    """He et al.'s progressive training: rounds on random subsets, each from the best weights so far.

    Attributes:
        rounds: at most so many.
        subset: share of the training cases of a round, drawn anew.
        round_decay: the learning rate of a round is this times that of the round before.
        min_delta: by how much the validation score must rise to count.
        patience: stop after so many rounds without that.
    """

    rounds: int
    subset: float
    round_decay: float
    min_delta: float
    patience: int


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Magnitude pruning while a phase trains (see ``kitsseg.pruning.callback``).

    Attributes:
        sparsity: share of zeros in the pruned tensors at the end, below 1.
        schedule: "one-shot": all at the first step; "polynomial": step by step, fast at first, with power 3.
        until: share of the phase after which a polynomial schedule has reached ``sparsity``; the rest fine-tunes.
        frequency: a polynomial schedule draws masks every so many steps.
        initial_sparsity: where a polynomial schedule begins: the sparsity of the network it is given.
        m_by_n: (2, 4) drops two of each four consecutive weights, at the first step; ``sparsity`` is then 0.5.
        block: ours: so many neighboring output channels of a 1x1 convolution are kept or dropped together.
        scope: "layer" ranks the weights of each tensor by themselves; "global", ours, those of all together.
        depthwise: ours: prune depth-wise kernels too.
        first_last: prune the first convolution and the head too, as tfmot does; False leaves them dense.
    """

    sparsity: float
    schedule: str = "polynomial"
    until: float = 0.5
    frequency: int = 100
    initial_sparsity: float = 0.0
    m_by_n: tuple[int, int] | None = None
    block: int | None = None
    scope: str = "layer"
    depthwise: bool = False
    first_last: bool = True

    def __post_init__(self):
        _check("Pruning", "schedule", self.schedule, ("one-shot", "polynomial"))
        _check("Pruning", "scope", self.scope, ("layer", "global"))
        if not 0 <= self.initial_sparsity <= self.sparsity < 1:
            raise ValueError(
                f"Pruning: expected 0 <= initial_sparsity <= sparsity < 1, found {self.initial_sparsity} "
                f"and {self.sparsity}."
            )
        if not 0 < self.until <= 1 or self.frequency < 1:
            raise ValueError(
                f"Pruning: until is a share in 0..1 and frequency a number of steps from 1; found {self.until} "
                f"and {self.frequency}."
            )
        if self.block is not None and self.block < 2:
            raise ValueError(f"Pruning: block is a number of channels from 2, or None; found {self.block}.")
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
        pruning: the best weights of such a phase are those of an epoch at the final sparsity.
        rate_factors: factor on the learning rate for the layers whose names start so; 0 freezes them (batch
            normalization goes on learning, as in fastai). The first prefix that fits counts.
        validate_cases_every: score whole validation cases every so many epochs (of a round, too); None: not between
            rounds, or not at all. No score of theirs decides anything but which round is kept.
        validate_cases: so many of them, spread evenly over all, the same ones each time; None: all.
    """

    name: str
    sampler: SliceSampler | PatchSampler
    augmentation: Augmentation = Augmentation()
    epochs: int
    steps_per_epoch: int
    learning_rate: float
    schedule: Plateau | OneCycle | None = None
    progressive: Progressive | None = None
    pruning: Pruning | None = None
    rate_factors: tuple[tuple[str, float], ...] = ()
    validate_cases_every: int | None = None
    validate_cases: int | None = None

    def __post_init__(self):
        for name in ("validate_cases_every", "validate_cases"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"Phase {self.name}: {name} is a number from 1, or None; found {value}.")
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
    def pruning_steps(self):
        """The step, counted from 1, at which the final sparsity is reached: a multiple of the frequency."""
        if self.pruning.schedule == "one-shot":
            return 1
        steps = int(self.pruning.until * self.epochs * self.steps_per_epoch)
        return steps - steps % self.pruning.frequency

    @property
    def first_choice(self):
        """The first epoch whose weights may be the phase's best: with pruning, one that ends at the final sparsity."""
        return -(-self.pruning_steps // self.steps_per_epoch) if self.pruning else 1


def _check(owner, name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{owner}: {name} is one of {', '.join(allowed)}; found {value!r}.")
