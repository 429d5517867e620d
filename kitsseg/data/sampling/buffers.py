"""Memory that is used again for each batch, because new memory costs as much time as writing the batch does."""

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Buffers"]

ALIGNMENT = 64  # TensorFlow takes an array over that starts at such an address, and copies others


class Buffers:
    """Gives uninitialized arrays. The memory of an array is used again when nothing refers to it or to a view of it.

    Args:
        most: how many unused pieces are kept.
    """

    def __init__(self, most: int = 6) -> None:
        self.most = most
        self._unused: list[bytearray] = []

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array as of ``numpy.empty``."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._take(size + ALIGNMENT)
        # the owner of the memory is no array: so every view of a view refers to ``whole`` at last
        whole = np.frombuffer(memory, np.uint8)
        weakref.finalize(whole, self._give_back, memory).atexit = False
        start = -whole.ctypes.data % ALIGNMENT
        return whole[start : start + size].view(dtype).reshape(shape)

    def _take(self, size: int) -> bytearray:
        for _ in range(len(self._unused)):
            try:
                memory = self._unused.pop(0)
            except IndexError:  # another thread was faster
                break
            if len(memory) == size:
                return memory
            self._give_back(memory)
        return bytearray(size)

    def _give_back(self, memory: bytearray) -> None:
        if len(self._unused) < self.most:
            self._unused.append(memory)
