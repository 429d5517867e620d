"""Work on items in several processes that end with the one that started them."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any, TypeVar, cast

from kitsseg.errors import InputError

__all__ = ["answer_all", "in_processes", "one_by_one", "shared_bytes", "start_process"]

Item = TypeVar("Item")


def one_by_one(
    function: Callable[[Item], object], items: Iterable[Item]
) -> Generator[tuple[Item, InputError | None], None, None]:
    """Call ``function(item)`` for each item; yields (item, None), or (item, error) for an InputError."""
    for item in items:
        try:
            function(item)
        except InputError as error:
            yield item, error
        else:
            yield item, None


def in_processes(
    function: Callable[[Item], object], items: Iterable[Item], workers: int
) -> Generator[tuple[Item, InputError | None], None, None]:
    """As ``one_by_one``, in ``workers`` new processes, in the order in which the items are done.

    Nothing is inherited by the processes: they import the module of ``function`` and what that imports. When the
    caller stops, by Ctrl-C or an error, they are stopped too, each after it has cleared up. When the caller is
    killed they end after the item they are at.

    Args:
        function: of a module, not of ``__main__``.
        items: objects that ``pickle`` takes.
        workers: number of processes.

    Raises: what ``function`` raises, other than InputError; InputError if a process dies.
    """
    todo = list(items)[::-1]
    # of each process: what it is at work on; None before it has been given anything
    running: dict[Connection, tuple[SpawnProcess, Any]] = {}
    try:
        for _ in range(min(workers, len(todo))):
            process, here = start_process(_serve, function)
            running[here] = process, None
        for connection, (process, _) in running.items():
            running[connection] = process, _give(connection, todo)
        while running:
            for connection in cast("list[Connection]", wait(list(running))):
                process, item = running[connection]
                try:
                    error = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    raise InputError(
                        f"{item}: the worker process ended with code {process.exitcode}, perhaps because of too little "
                        "memory (code -9 often means this). Use fewer workers."
                    ) from None
                if error is not None and not isinstance(error, InputError):
                    raise error
                if todo:
                    running[connection] = process, _give(connection, todo)
                else:
                    del running[connection]
                    connection.close()
                    process.join()
                yield item, error
    finally:
        for process, _ in running.values():
            if process.pid is not None:
                process.terminate()
        for connection, (process, _) in running.items():
            connection.close()
            if process.pid is not None:
                process.join()


def start_process(serve: Callable[..., object], *arguments: object) -> tuple[SpawnProcess, Connection]:
    """Start a new process that ends with this one, never hears Ctrl-C, and calls ``serve(connection, *arguments)``.

    Args:
        serve: function of a module, not of ``__main__``; should return when nothing more comes from the connection.
        arguments: objects that ``pickle`` takes, or memory from ``shared_bytes``.

    Returns: (process, this side's end of the connection).
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *arguments), daemon=True)
    with _deaf_to_ctrl_c():
        process.start()
    there.close()  # so that the end of the process is the end of the connection
    return process, here


def shared_bytes(count: int) -> Any:
    """Zeroed memory, as an array of ctypes, that a process shares if it is an argument of ``start_process``."""
    return multiprocessing.get_context("spawn").RawArray("B", count)


def _give(connection: Connection, todo: list[Item]) -> Item:
    item = todo.pop()
    with suppress(OSError):  # it has died; noticed when its answer is waited for
        connection.send(item)
    return item


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started here never hears Ctrl-C: whoever started it does, and stops it."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def answer_all(connection: Connection, function: Callable[[Any], object]) -> None:
    """Call ``function(item)`` for each item that comes in, until the other side ends; answer with None or the error."""
    with suppress(EOFError, OSError):  # the other side has ended
        while True:
            item = connection.recv()
            try:
                function(item)
            except Exception as error:  # whatever it is belongs to the side that asked
                error.add_note(traceback.format_exc())
                connection.send(error)
            else:
                connection.send(None)


def _serve(connection: Connection, function: Callable[[Any], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    answer_all(connection, function)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
