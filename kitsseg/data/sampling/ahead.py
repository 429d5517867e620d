"""Batches that other processes make ahead, where one core takes long for a batch: patches of a compressed cache.

A batch is a pure function of its number, so it does not matter which process makes it: the batches, and their order,
are those of one process, to the last bit. The processes write into memory that all share, and never import TensorFlow::

    with batches_ahead(batches, 0, 1000, processes=4) as ahead:
        model.fit(batch_dataset(ahead, 0, 1000))
"""

from __future__ import annotations

import itertools
import math
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from kitsseg.data.sampling.batches import Arrays, Batches, DrawnBatches
from kitsseg.data.sampling.buffers import Buffers
from kitsseg.data.sampling.draws import empty_batch
from kitsseg.errors import InputError
from kitsseg.runtime.workers import answer_all, shared_bytes, start_process

__all__ = ["BatchesAhead", "batches_ahead"]

DEPTH = 2  # batches that each process has in the making or ready


@contextmanager
def batches_ahead(batches: DrawnBatches, start: int, stop: int, processes: int = 1) -> Iterator[Batches]:
    """Give the same batches, made ahead by other processes for the length of a block.

    Args:
        batches: SliceBatches, PatchBatches or BatchesInParts.
        start, stop: numbers of the first batch that is used, and of the batch after the last one.
        processes: number of processes; 1: the batches are made by this process, when they are asked for.

    With more than one process a script must call this function under ``if __name__ == "__main__":``, because every
    process imports the script.
    """
    if processes == 1:
        yield batches
        return
    ahead = BatchesAhead(batches, start, stop, processes)
    try:
        yield ahead
    finally:
        ahead.close()


class BatchesAhead:
    """A source of batches whose batches are made by other processes, in the order of their numbers.

    A batch is made by process ``number % processes``, and the next ones of that process while it waits to be fetched.
    If the batches are not asked for one after the other, what was made ahead is thrown away.

    Args: as ``batches_ahead``.

    Attributes:
        form: BatchForm of the batches.
        workers: the processes.
    """

    def __init__(self, batches: DrawnBatches, start: int, stop: int, processes: int) -> None:
        self.form, self.buffers = batches.form, Buffers()
        self._stop = stop
        shapes = tuple(array.shape for array in empty_batch(self))
        self.workers = [_Worker(batches, shapes) for _ in range(processes)]
        self._closing = weakref.finalize(self, _close, self.workers)
        self._next: int | None = start
        self._ask_from(start)

    def batch(self, index: int) -> Arrays:
        """Batch ``index``, as ``Batches.batch`` gives it.

        Raises: what the source raises; InputError if a process dies.
        """
        index = int(index)
        if index != self._next:
            for worker in self.workers:
                worker.forget()
            self._ask_from(index)
        self._next = None  # after an error all is asked for again
        worker = self.workers[index % len(self.workers)]
        if not worker.asked:  # behind the last batch that was planned
            worker.ask(index)
        images, labels = empty_batch(self)
        worker.fetch(images, labels)
        self._next = index + 1
        self._ask(index + DEPTH * len(self.workers))
        return images, labels

    def close(self) -> None:
        """End the processes."""
        self._closing()

    def _ask_from(self, first: int) -> None:
        for index in range(first, first + DEPTH * len(self.workers)):
            self._ask(index)

    def _ask(self, index: int) -> None:
        if index < self._stop:
            self.workers[index % len(self.workers)].ask(index)


class _Worker:
    """A process that makes batches, and the memory that it shares with this one."""

    def __init__(self, batches: DrawnBatches, shapes: tuple[tuple[int, ...], ...]) -> None:
        # float32 and int32 take four bytes
        memory = [shared_bytes(4 * sum(map(math.prod, shapes))) for _ in range(DEPTH)]
        self.slots = [_arrays(each, shapes) for each in memory]
        self.process, self.connection = start_process(_serve, batches, memory, shapes)
        self.asked = 0  # batches that were asked for, and not fetched yet
        self.turn = 0

    def ask(self, index: int) -> None:
        self.asked += 1
        with suppress(OSError):  # it has died; noticed when its answer is waited for
            self.connection.send(index)

    def fetch(self, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        error = self._answer()
        if error is not None:
            raise error
        for out, made in zip((images, labels), self.slots[self.turn - 1], strict=True):
            np.copyto(out, made)

    def forget(self) -> None:
        while self.asked:
            self._answer()

    def _answer(self) -> BaseException | None:
        try:
            error: BaseException | None = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise InputError(
                f"--loaders: a process that makes batches ended with code {self.process.exitcode}, perhaps because of "
                "too little memory (code -9 often means this). Use fewer loaders, or 1."
            ) from None
        self.asked -= 1
        self.turn = (self.turn + 1) % DEPTH
        return error


class _Slot(Buffers):
    """Gives the memory of a slot, which this process shares with the one that uses the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays: tuple[npt.NDArray[Any], ...] = ()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        for array in self.arrays:
            if array.shape == shape and array.dtype == dtype:
                return array
        return super().empty(shape, dtype)


def _arrays(memory: Any, shapes: tuple[tuple[int, ...], ...]) -> tuple[npt.NDArray[Any], ...]:
    """Images and labels in shared memory."""
    images = np.frombuffer(memory, np.float32, math.prod(shapes[0])).reshape(shapes[0])
    labels = np.frombuffer(memory, np.int32, math.prod(shapes[1]), images.nbytes).reshape(shapes[1])
    return images, labels


def _serve(
    connection: Connection, batches: DrawnBatches, memory: list[Any], shapes: tuple[tuple[int, ...], ...]
) -> None:
    """Make the batches whose numbers come in, each in the next slot; answer with None or with an error."""
    # the process that started this one hears Ctrl-C, and ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slots, slot = itertools.cycle([_arrays(each, shapes) for each in memory]), _Slot()
    batches.use_buffers(slot)

    def make(index: int) -> None:
        slot.arrays = next(slots)
        for out, made in zip(slot.arrays, batches.batch(index), strict=True):
            if made is not out:
                np.copyto(out, made)

    answer_all(connection, make)


def _close(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join()
        # only now: a thread of tf.data may wait for an answer, and hears that there will be none
        worker.connection.close()
        worker.slots.clear()
