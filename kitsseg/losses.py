"""Losses of the five papers, on logits and integer labels, for slices and volumes alike.

- 2D U-Net (Chen and Jin): ``CrossEntropySoftDice()``
- WP-UNet (Rao et al.): ``CrossEntropySoftDice(1.0, include_background=False, class_reduction="sum")``
- SqueezeNet U-Net (Deepa et al.): ``keras.losses.SparseCategoricalCrossentropy(from_logits=True)``
- Enhanced attention U-Net (He et al.): ``FocalTversky()`` or ``Tversky()`` per head (see ``deep_supervision_targets``)
- 3D DeepLab v3+ (Daza et al.): ``TverskyFocal()``

Options of every loss:
    per_sample: by default the sums of the overlap terms run over the whole batch, as in the papers' code
        (most slices hold no tumor, and an absent class gives a poor ratio). The loss is then one number per
        batch, which the reduction leaves as it is. ``True`` gives one number per image instead.
    activation: ``"softmax"``, or ``"sigmoid"`` for heads with one channel per foreground label and none for
        the background; a single channel is foreground against background (label >= 1).
    include_background: background is one of the overlap classes; without effect on a sigmoid head.
    class_reduction: ``"mean"`` or ``"sum"`` of the overlap terms of the classes.

Shapes: y_pred (batch, *space, channels) logits of any float type, computed in float32.
    y_true (batch, *space) or (batch, *space, 1) integers, or one-hot (batch, *space, labels), of which
    the arg-max is taken. Label values are not checked here: a value without a channel belongs to no class.
    The result of ``call`` is (), with ``per_sample`` (batch,).
Raises: ValueError for a bad argument, for labels that do not fit the logits, and for sample or class weights
    without ``per_sample``.

Deep supervision of the enhanced attention U-Net gives targets and weights to heads at several resolutions. Keras has
the rest: one loss and one loss weight per output. The targets follow the order of the outputs, coarsest first::

    losses = [FocalTversky() for _ in HEAD_WEIGHTS]          # or Tversky() as the last of them
    model.compile(optimizer, loss=losses, loss_weights=list(HEAD_WEIGHTS))
    dataset.map(lambda image, labels: (image, deep_supervision_targets(labels)))

Stated: four heads, weights 0.2, 0.2, 0.2, 0.4 from bottom to top.
Code:   strided labels (the public code of Abraham and Khan).
Ours:   ``"priority"``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from kitsseg.runtime.replicas import replica_count, sum_over_replicas

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = [
    "HEAD_STRIDES",
    "HEAD_WEIGHTS",
    "CrossEntropySoftDice",
    "FocalTversky",
    "Tversky",
    "TverskyFocal",
    "deep_supervision_targets",
]


class _OverlapLoss(keras.losses.Loss):  # type: ignore[misc]  # Keras ships no types
    """Base of the losses below: the options of the module, labels and logits, soft counts, reductions."""

    regions = tumor_only = False
    options: tuple[str, ...] = ("smooth", "include_background", "class_reduction", "per_sample", "activation")

    def __init__(
        self,
        smooth: float,
        include_background: bool,
        class_reduction: str = "mean",
        per_sample: bool = False,
        activation: str = "softmax",
        **kw: Any,
    ) -> None:
        super().__init__(**kw)
        _require(class_reduction in ("mean", "sum"), "class_reduction", "'mean' or 'sum'", class_reduction)
        _require(activation in ("softmax", "sigmoid"), "activation", "'softmax' or 'sigmoid'", activation)
        _require(smooth > 0, "smooth", "positive (a class absent from a batch gives 0/0 without it)", smooth)
        self.smooth, self.activation, self.per_sample = smooth, activation, per_sample
        self.include_background, self.class_reduction = include_background, class_reduction

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if sample_weight is not None and not self.per_sample:
            raise ValueError(
                f"{self.name}: got sample or class weights, but one number for the whole batch leaves "
                "nothing to weight. Use per_sample=True or drop the weights."
            )
        return super().__call__(y_true, y_pred, sample_weight) / (1 if self.per_sample else replica_count())

    def read(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and logits, both float32 (batch, *space, channels)."""
        logits = ops.cast(y_pred, "float32")
        n = logits.shape[-1]
        _require(n > 1 or self.activation == "sigmoid", "activation", "'sigmoid' for one channel", "softmax")
        first = 0 if self.activation == "softmax" else 1  # a sigmoid head has no background channel
        labels = _plain_labels(y_true, logits, n_labels=first + n)[..., None]
        if self.tumor_only:
            _require(n == 1, "tumor_only", "False for several channels", self.tumor_only)
            first = 2
        values = ops.arange(first, first + n, dtype="float32")
        # a single sigmoid channel is foreground against background: tumor belongs to it
        nested = self.regions or (n == 1 and not self.tumor_only)
        targets = ops.greater_equal(labels, values) if nested else ops.equal(labels, values)
        return ops.cast(targets, "float32"), logits

    def soft_counts(self, targets: Tensor, logits: Tensor) -> list[Tensor]:
        """TP, FN and FP of the classes that take part, each (classes,) or (batch, classes)."""
        if self.activation == "sigmoid":
            p = ops.sigmoid(logits)
        else:
            first = 0 if self.include_background else 1
            p, targets = ops.softmax(logits)[..., first:], targets[..., first:]
        parts = (p * targets, (1.0 - p) * targets, p * (1.0 - targets))
        counts = [ops.sum(part, axis=self.pixel_axes(p)) for part in parts]
        return counts if self.per_sample else [sum_over_replicas(count) for count in counts]

    def pixel_axes(self, x: Tensor) -> tuple[int, ...]:
        """The axes to sum over: space and, unless ``per_sample``, the batch."""
        return tuple(range(1 if self.per_sample else 0, len(x.shape) - 1))

    def over_classes(self, values: Tensor) -> Tensor:
        """(classes,) to (), (batch, classes) to (batch,)."""
        return ops.mean(values, axis=-1) if self.class_reduction == "mean" else ops.sum(values, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{name: getattr(self, name) for name in self.options}}


@keras.saving.register_keras_serializable(package="kitsseg")
class CrossEntropySoftDice(_OverlapLoss):
    """Cross-entropy plus soft Dice.

    With p the softmax of the logits, g the one-hot labels, and sums over batch and pixels::

        CE   = mean over all pixels of -log p[label]
        D    = (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth)        for each class
        loss = CE + mean over classes of (1 - D)

    The 2D U-Net paper prints CE + D, which would reward errors; its code subtracts. 1 - D has the gradient
    of the code and is never negative. WP-UNet sums the terms of kidney and tumor (module table); it clips p
    at 1e-7 in the cross-entropy, where the log-softmax used here keeps the gradient of badly wrong pixels.

    Args:
        smooth: with 1e-5 a class absent from the batch costs almost 1 and gives no gradient; with 1.0 its
            cost follows its false positives.
        activation: with ``"sigmoid"`` CE is the mean binary cross-entropy over pixels and channels.
        regions: with a sigmoid, channel i is the region label >= i + 1 (kidney and tumor together, then
            tumor, as KiTS19 scores them) instead of label == i + 1.
        tumor_only: with a sigmoid of one channel, the channel is the tumor, label 2, instead of label >= 1.

    Source: Chen and Jin, KiTS19 2D U-Net, and their code (background included, 1e-5); Rao et al., WP-UNet.
    """

    options = (*_OverlapLoss.options, "regions", "tumor_only")

    def __init__(
        self,
        smooth: float = 1e-5,
        include_background: bool = True,
        regions: bool = False,
        tumor_only: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(smooth, include_background, **kwargs)
        for name, value in (("regions", regions), ("tumor_only", tumor_only)):
            _require(not value or self.activation == "sigmoid", name, "False with a softmax", value)
        _require(not (regions and tumor_only), "tumor_only", "False with regions", tumor_only)
        self.regions, self.tumor_only = regions, tumor_only

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        targets, logits = self.read(y_true, y_pred)
        if self.activation == "sigmoid":
            entropy = ops.mean(ops.binary_crossentropy(targets, logits, from_logits=True), axis=-1)
        else:
            entropy = -ops.sum(targets * ops.log_softmax(logits), axis=-1)
        entropy = ops.mean(entropy, axis=self.pixel_axes(logits))
        tp, fn, fp = self.soft_counts(targets, logits)
        dice = (2.0 * tp + self.smooth) / (2.0 * tp + fn + fp + self.smooth)
        return entropy + self.over_classes(1.0 - dice)


@keras.saving.register_keras_serializable(package="kitsseg")
class Tversky(_OverlapLoss):
    """Tversky loss.

    With p the softmax (or sigmoid) of the logits, g the one-hot labels, and sums over batch and pixels::

        TP, FN, FP = sum(p g), sum((1 - p) g), sum(p (1 - g))        for each class
        TI         = (TP + smooth) / (TP + fn_weight FN + fp_weight FP + smooth)
        loss       = mean over classes of 1 - TI

    Args:
        fn_weight, fp_weight: cost of a missed and of a false voxel. They are not named alpha and beta, because alpha
            weighs FN in Abraham and Khan, FP in Salehi et al., and FN in ``keras.losses.Tversky``: in all releases up
            to 3.15.1, although the documentation of Keras says that it weighs FP.
        smooth: the code of Abraham and Khan uses 1; a class absent from the batch then costs nothing
            without false positives.
        kwargs: options of every loss; ``class_reduction="sum"`` is what Abraham and Khan write.

    Source: Salehi et al., MLMI 2017; the values are those of the code of Abraham and Khan, ISBI 2019.
    """

    options = (*_OverlapLoss.options, "fn_weight", "fp_weight")

    def __init__(
        self,
        fn_weight: float = 0.7,
        fp_weight: float = 0.3,
        smooth: float = 1.0,
        include_background: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(smooth, include_background, **kwargs)
        _require(min(fn_weight, fp_weight) >= 0, "fn_weight, fp_weight", ">= 0", (fn_weight, fp_weight))
        self.fn_weight, self.fp_weight = fn_weight, fp_weight

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.over_classes(self.tversky(*self.read(y_true, y_pred)))

    def tversky(self, targets: Tensor, logits: Tensor) -> Tensor:
        """1 - TI of each class, (classes,) or (batch, classes)."""
        tp, fn, fp = self.soft_counts(targets, logits)
        weighted = self.fn_weight * fn + self.fp_weight * fp
        return weighted / (tp + weighted + self.smooth)  # no cancellation as in 1 - TI when TI is almost 1


@keras.saving.register_keras_serializable(package="kitsseg")
class FocalTversky(Tversky):
    """Focal Tversky loss: mean over classes of max(1 - TI, 1e-6) ** exponent, TI as in ``Tversky``.

    Args:
        exponent: 1/gamma with the gamma = 4/3 of Abraham and Khan, whose code names this 0.75 ``gamma``.
            Below 1 the gradient grows without bound as TI nears 1; the floor 1e-6 bounds its factor at
            23.7, and a perfect batch costs 3.2e-5.
        kwargs: the arguments of ``Tversky``.

    Source: Abraham and Khan, ISBI 2019, as used by He, Leung and Wang for KiTS19.
    """

    options = (*Tversky.options, "exponent")

    def __init__(self, exponent: float = 0.75, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _require(exponent > 0, "exponent", "positive", exponent)
        self.exponent = exponent

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        distance = self.tversky(*self.read(y_true, y_pred))
        return self.over_classes(ops.maximum(distance, 1e-6) ** self.exponent)


@keras.saving.register_keras_serializable(package="kitsseg")
class TverskyFocal(Tversky):
    """Tversky loss plus a weighted focal loss, on softmax heads::

        loss = mean over kidney and tumor of (1 - TI) + focal_weight * mean over voxels of
               (1 - p[label]) ** gamma * -log p[label]

    Args:
        focal_weight: 0.5 in the paper's text, which tried 5, 2, 0.5 and 0.2.
        gamma: at least 1, since below that the gradient is infinite for a perfect voxel.
        smooth: a class absent from the sums costs almost 1 with 1e-5 and has no gradient, so ``per_sample``
            is only for patches that hold all classes.
        kwargs: the arguments of ``Tversky``; its weights 0.7 and 0.3 are those usually cited from Salehi et
            al., the paper gives none.

    Source: Daza, Gomez and Arbelaez, KiTS19.
    """

    options = (*Tversky.options, "focal_weight", "gamma")

    def __init__(
        self, focal_weight: float = 0.5, gamma: float = 2.0, smooth: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(smooth=smooth, **kwargs)
        _require(self.activation == "softmax", "activation", "'softmax'", self.activation)
        _require(focal_weight >= 0, "focal_weight", ">= 0", focal_weight)
        _require(gamma >= 1, "gamma", ">= 1", gamma)
        self.focal_weight, self.gamma = focal_weight, gamma

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        targets, logits = self.read(y_true, y_pred)
        log_p = ops.sum(targets * ops.log_softmax(logits), axis=-1)
        # -expm1(log p) is 1 - p without cancellation
        focal = ops.mean(ops.power(-ops.expm1(log_p), self.gamma) * -log_p, axis=self.pixel_axes(logits))
        return self.over_classes(self.tversky(targets, logits)) + self.focal_weight * focal


def _plain_labels(y_true: Tensor, logits: Tensor, n_labels: int) -> Tensor:
    """(batch, *space) of any accepted label shape; float32, as TensorFlow keeps int32 work off the GPU."""
    labels, space = y_true, tuple(logits.shape[:-1])
    if len(y_true.shape) == len(space) + 1 and y_true.shape[-1] in (1, n_labels):
        labels = ops.squeeze(y_true, -1) if y_true.shape[-1] == 1 else ops.argmax(y_true, axis=-1)
    fits = len(labels.shape) == len(space)
    if not fits or any(None not in pair and pair[0] != pair[1] for pair in zip(labels.shape, space)):
        raise ValueError(
            f"labels: expected integers {space} or {(*space, 1)} or one-hot {(*space, n_labels)} for logits "
            f"{tuple(logits.shape)}; got {tuple(y_true.shape)}. Pass labels at the resolution of the logits."
        )
    return ops.cast(labels, "float32")


def _require(condition: bool, what: str, expected: str, found: object) -> None:
    if not condition:
        raise ValueError(f"{what} must be {expected}; got {found!r}.")


HEAD_STRIDES = (8, 4, 2, 1)
HEAD_WEIGHTS = (0.2, 0.2, 0.2, 0.4)


def deep_supervision_targets(
    labels: Tensor, strides: Sequence[int] = HEAD_STRIDES, how: str = "stride"
) -> tuple[Tensor, ...]:
    """Labels at the resolution of every head.

    Written with slices and operators only, so that it takes NumPy arrays, JAX arrays and TensorFlow tensors
    alike and runs inside ``tf.data`` whatever the Keras backend is.

    Args:
        labels: (..., rows, columns) signed integers; no class axis.
        strides: pixels of ``labels`` per pixel of each head, in the order of the outputs.
        how: ``"stride"`` takes the first pixel of every block; ``"priority"`` the highest label (tumor over
            kidney over background), which keeps structures thinner than a block.

    Returns: tuple of (..., rows // stride, columns // stride), one per stride.
    Raises: ValueError for an unknown ``how``, unsigned or float labels, or rows or columns that are known
        and not a multiple of the largest stride.
    """
    if how not in ("stride", "priority"):
        raise ValueError(f"how must be 'stride' or 'priority'; got {how!r}.")
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not dtype.startswith("int"):
        raise ValueError(f"labels must be signed integers, such as int32; got {dtype}. Cast them first.")
    if any(size is not None and size % stride for size in labels.shape[-2:] for stride in strides):
        raise ValueError(
            f"rows and columns of the labels must be multiples of the strides {tuple(strides)}; got "
            f"{tuple(labels.shape)}. Pad or crop the slices, or drop the class axis if there is one."
        )
    if how == "stride":
        return tuple(labels[..., ::stride, ::stride] for stride in strides)
    return tuple(_block_maximum(labels, stride) for stride in strides)


def _block_maximum(labels: Tensor, stride: int) -> Tensor:
    rows = functools.reduce(_maximum, [labels[..., i::stride, :] for i in range(stride)])
    return functools.reduce(_maximum, [rows[..., i::stride] for i in range(stride)])


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    # no `maximum` works on the tensors of all three libraries; a - b must not wrap, hence signed integers
    return (a + b + abs(a - b)) // 2
