"""The protocol of a source of batches, and sources that change the batches of another source."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kitsseg.data.sampling.buffers import Buffers

__all__ = [
    "Arrays",
    "BatchForm",
    "Batches",
    "BatchesInParts",
    "CountedBatches",
    "DrawnBatches",
    "Draws",
    "RepeatedBatches",
]

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


@dataclass(frozen=True, kw_only=True)
class BatchForm:
    """The form of all batches of a source.

    Attributes:
        batch_size: number of images in a batch; with several processes, in the share of this process.
        image_shape: of one image, (rows, columns, channels) or (slices, rows, columns, channels).
        label_shape: the same without channels.
        shard: (index, count) of the process that draws; None for one that draws whole batches.
    """

    batch_size: int
    image_shape: tuple[int, ...]
    label_shape: tuple[int, ...]
    shard: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How a source of training batches draws.

    Attributes:
        seed: of everything random.
        path: "fast", or "batchgenerators" for the authors' own augmentation library (cubic, slower).
        shard: (index, count): only the images that process ``index`` of ``count`` draws, an even part of each batch.
            Those of all processes, in order, are the batch that one process would draw. None: the whole batch.
    """

    seed: int = 0
    path: str = "fast"
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.path not in ("fast", "batchgenerators"):
            raise ValueError(f'Draws: path is "fast" or "batchgenerators", found "{self.path}".')


class Batches(Protocol):
    """A source of batches: batch ``index`` is a function of its number alone."""

    form: BatchForm

    def batch(self, index: int) -> Arrays:
        """Images (batch, ..., channels) float32, and labels without the channels, int32."""
        ...


class DrawnBatches(Batches, Protocol):
    """A source of batches that may be sent to another process, and that makes them in memory of its user's choice."""

    def use_buffers(self, buffers: Buffers) -> None:
        """Make the arrays of all further batches in memory of these Buffers."""
        ...


class CountedBatches(Batches, Protocol):
    """A source of a fixed number of batches, such as those of validation."""

    def __len__(self) -> int: ...


class BatchesInParts:
    """Batches in n equal parts, from n sources: item ``i`` is part ``i % n`` of batch ``i // n``."""

    def __init__(self, parts: Sequence[DrawnBatches]) -> None:
        self.parts, self.form = parts, parts[0].form

    def batch(self, index: int) -> Arrays:
        return self.parts[int(index) % len(self.parts)].batch(int(index) // len(self.parts))

    def use_buffers(self, buffers: Buffers) -> None:
        for part in self.parts:
            part.use_buffers(buffers)


class RepeatedBatches:
    """Batches that are repeated ``times`` within a batch, so that each device gets a whole copy of them.

    The loss of the repeated batch is the loss of the batch, but the smoothing constant of a loss counts only once for
    all the copies.
    """

    def __init__(self, batches: CountedBatches, times: int) -> None:
        self.batches, self.times = batches, times
        self.form = replace(batches.form, batch_size=times * batches.form.batch_size, shard=None)

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, index: int) -> Arrays:
        images, labels = self.batches.batch(index)
        return np.concatenate([images] * self.times), np.concatenate([labels] * self.times)
