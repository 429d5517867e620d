"""Exact statistics of the HU of kidney and tumor over any cases, from counts that preprocessing made of each case.

nnU-Net clips a CT to the percentiles 0.5 and 99.5 of all foreground voxels of the training cases and normalizes by
their mean and standard deviation. The counts of single cases add up, so that every split gets its own exact figures
without a second pass over the scans.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["HuCounts", "count_hu"]

_LOWEST = -32768  # of int16


@dataclass(frozen=True)
class HuCounts:
    """Number of voxels of each HU: ``counts[i]`` voxels have ``first + i`` HU.

    Attributes:
        first: HU of the first count.
        counts: int64 (values,), empty if there is no voxel. The first and the last count are not 0.
    """

    first: int
    counts: np.ndarray

    @property
    def voxels(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self._power_sum(1) / self.voxels

    @property
    def std(self) -> float:
        """Standard deviation, with the number of voxels as the divisor (not one less), as nnU-Net computes it."""
        n, total = self.voxels, self._power_sum(1)
        return math.sqrt(n * self._power_sum(2) - total**2) / n  # integers up to the root: exact

    def percentile(self, q: float) -> float:
        """The HU below which ``q`` percent of the voxels lie, interpolated linearly as ``numpy.percentile`` does."""
        position = (self.voxels - 1) * q / 100
        ends = np.cumsum(self.counts)
        low = math.floor(position)
        below, above = np.searchsorted(ends, [low, math.ceil(position)], side="right")
        return float(self.first + below + (above - below) * (position - low))

    def _power_sum(self, power: int) -> int:
        values = np.arange(self.first, self.first + len(self.counts))
        return int((values**power * self.counts).sum())

    def __add__(self, other: HuCounts) -> HuCounts:
        parts = [part for part in (self, other) if len(part.counts)]
        if not parts:
            return self
        first = min(part.first for part in parts)
        counts = np.zeros(max(part.first + len(part.counts) for part in parts) - first, np.int64)
        for part in parts:
            counts[part.first - first :][: len(part.counts)] += part.counts
        return HuCounts(first, counts)


def count_hu(planes: Iterable[npt.NDArray[np.int16]]) -> HuCounts:
    """HuCounts of all values of some int16 arrays."""
    counts = np.zeros(1 << 16, np.int64)
    for values in planes:
        if values.size:
            low = int(values.min())
            found = np.bincount(np.ravel(values).astype(np.intp) - low)
            counts[low - _LOWEST :][: len(found)] += found
    there = np.flatnonzero(counts)
    if not len(there):
        return HuCounts(0, np.zeros(0, np.int64))
    return HuCounts(int(there[0]) + _LOWEST, counts[there[0] : there[-1] + 1].copy())
