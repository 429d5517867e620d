"""Streaming segmentation metrics from one confusion matrix with exact counts.

All metrics take the labels and logits of one softmax head and use only the arg-max of the logits. The counts run over
every pixel since the last reset, so these are batch (global) scores: **not comparable with KiTS scores**,
which are means over cases (``kitsseg.scoring``).

The matrix is kept in two integer words, since a float32 count stands still at 2**24 (1,025 images of
128 x 128) and JAX has no int64 by default: exact to 2**55 pixels in all, 2**30 per batch.

A class that is in neither labels nor predictions is skipped. If no class is left (also before the first batch), the
score is 1, as ``kitsseg.scoring`` gives it for two empty masks.

Shapes: y_true (batch, *space) or (batch, *space, 1) integers; y_pred (batch, *space, classes) logits.
    Pixels whose label is not 0..classes-1 are not counted.
Raises: ValueError for a wrong number of classes, labels that do not fit the logits, or sample weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

if TYPE_CHECKING:
    from kitsseg.interfaces import Tensor

__all__ = ["METRICS", "ClassDice", "ConfusionMatrix", "DiceMulti", "MeanIoU", "PixelAccuracy"]

WORD = 2**24  # low word below this: a batch, or the sum of a few replicas' words, cannot overflow int32


@keras.saving.register_keras_serializable(package="kitsseg")
class ConfusionMatrix(keras.metrics.Metric):  # type: ignore[misc]  # Keras ships no types
    """Pixel counts by label (rows) and prediction (columns). It is the base class of the scores below.

    Args:
        n_classes: background included; the channels of the logits.
        name, dtype: as in ``keras.metrics.Metric``.

    ``result`` is float32 (n_classes, n_classes), rounded; ``counts`` is exact.
    """

    def __init__(self, n_classes: int = 3, name: str = "confusion_matrix", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.n_classes = n_classes
        shape = (n_classes, n_classes)
        # "int" is int32 on JAX and int64 on TensorFlow, which keeps int32 variables and work off the GPU
        self.low = self.add_variable(shape, "zeros", dtype="int", name="low")
        self.high = self.add_variable(shape, "zeros", dtype="int", name="high")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        if sample_weight is not None:
            raise ValueError(f"{self.name} counts pixels and takes no sample weights: list it in metrics.")
        n = self.n_classes
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] != n:
            raise ValueError(f"{self.name}: expected logits of {n} classes; got shape {tuple(y_pred.shape)}.")
        prediction = ops.cast(ops.argmax(y_pred, axis=-1), "float32")
        labels = ops.cast(y_true, "float32")
        if len(labels.shape) == len(y_pred.shape) and labels.shape[-1] == 1:
            labels = ops.squeeze(labels, axis=-1)
        if len(labels.shape) != len(prediction.shape):
            raise ValueError(
                f"{self.name}: expected integer labels {tuple(prediction.shape)}; got {tuple(y_true.shape)}."
            )
        # one pass per cell: exact integers, unlike a product of one-hot matrices in float32
        inside = ops.logical_and(labels >= 0, labels < n)
        cell = ops.where(inside, labels * n + prediction, -1.0)
        cells = [ops.count_nonzero(ops.equal(cell, float(i))) for i in range(n * n)]
        low = self.low + ops.reshape(ops.cast(ops.stack(cells), self.low.dtype), (n, n))
        carry = low // WORD
        self.low.assign(low - carry * WORD)
        self.high.assign(self.high + carry)

    def counts(self) -> npt.NDArray[np.int64]:
        """Exact counts so far, NumPy int64 (n_classes, n_classes)."""
        low, high = (ops.convert_to_numpy(word).astype(np.int64) for word in (self.low, self.high))
        exact: npt.NDArray[np.int64] = low + WORD * high
        return exact

    def result(self) -> Tensor:
        return ops.cast(self.low, "float32") + float(WORD) * ops.cast(self.high, "float32")

    def class_counts(self) -> tuple[Tensor, Tensor]:
        """True positives, and false negatives plus false positives, both float32 (n_classes,)."""
        matrix = ConfusionMatrix.result(self)
        hits = ops.diagonal(matrix)
        off = matrix * (1.0 - ops.eye(self.n_classes, dtype="float32"))
        return hits, ops.sum(off, axis=0) + ops.sum(off, axis=1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "n_classes": self.n_classes}


@keras.saving.register_keras_serializable(package="kitsseg")
class PixelAccuracy(ConfusionMatrix):
    """Share of pixels whose arg-max is the label (WP-UNet, eq. 4)."""

    def __init__(self, n_classes: int = 3, name: str = "pixel_accuracy", **kwargs: Any) -> None:
        super().__init__(n_classes, name, **kwargs)

    def result(self) -> Tensor:
        matrix = super().result()
        return _ratio(ops.trace(matrix), ops.sum(matrix))


@keras.saving.register_keras_serializable(package="kitsseg")
class MeanIoU(ConfusionMatrix):
    """Mean over the classes, background included, of TP / (TP + FP + FN) (WP-UNet, eq. 5)."""

    def __init__(self, n_classes: int = 3, name: str = "mean_iou", **kwargs: Any) -> None:
        super().__init__(n_classes, name, **kwargs)

    def result(self) -> Tensor:
        hits, misses = self.class_counts()
        return _mean_ratio(hits, hits + misses)


@keras.saving.register_keras_serializable(package="kitsseg")
class DiceMulti(ConfusionMatrix):
    """Mean over the classes of 2 TP / (2 TP + FP + FN), as fastai's ``DiceMulti`` (SqueezeNet U-Net).

    Args:
        include_background: True as in fastai, and hence in the paper. A prediction without any kidney then scores
            about a third, for the background alone.
    """

    def __init__(
        self, n_classes: int = 3, include_background: bool = True, name: str = "dice_multi", **kwargs: Any
    ) -> None:
        super().__init__(n_classes, name, **kwargs)
        self.include_background = include_background

    def result(self) -> Tensor:
        hits, misses = self.class_counts()
        first = 0 if self.include_background else 1
        return _mean_ratio(2.0 * hits[first:], (2.0 * hits + misses)[first:])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "include_background": self.include_background}


@keras.saving.register_keras_serializable(package="kitsseg")
class ClassDice(ConfusionMatrix):
    """Batch Dice of one region, a set of labels taken as one class. Not comparable with KiTS scores.

    Args:
        region: ``"kidney_label"`` (label 1), ``"tumor_label"`` (label 2) or ``"tk"`` (kidney and tumor
            together: every label from 1).
    Raises: ValueError for another region, or one whose label the classes do not have.
    """

    def __init__(self, region: str, n_classes: int = 3, name: str | None = None, **kwargs: Any) -> None:
        members = {"kidney_label": [1], "tumor_label": [2], "tk": list(range(1, n_classes))}.get(region)
        if not members or max(members) >= n_classes:
            raise ValueError(
                "region must be 'kidney_label', 'tumor_label' or 'tk', with its labels among the "
                f"{n_classes} classes; got {region!r}."
            )
        super().__init__(n_classes, name or f"batch_dice_{region}", **kwargs)
        self.region = region
        self._member = np.isin(np.arange(n_classes), members).astype("float32")

    def result(self) -> Tensor:
        matrix, member = super().result(), ops.convert_to_tensor(self._member)
        hits = ops.sum(matrix * member[:, None] * member)
        misses = ops.sum(matrix * ops.abs(member[:, None] - member))
        return _ratio(2.0 * hits, 2.0 * hits + misses)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "region": self.region}


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 1 where whole is 0."""
    return ops.where(whole > 0, part / ops.maximum(whole, 1.0), 1.0)


def _mean_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Mean of part / whole over the classes whose whole is not 0; 1 if there is none."""
    present = ops.cast(whole > 0, "float32")
    return _ratio(ops.sum(present * part / ops.maximum(whole, 1.0)), ops.sum(present))


# by the names that recipes give them
METRICS: dict[str, type[ConfusionMatrix]] = {
    "dice_multi": DiceMulti,
    "mean_iou": MeanIoU,
    "pixel_accuracy": PixelAccuracy,
}
