"""Jobs spread over the workers of a Dask scheduler."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kitsseg.errors import InputError

__all__ = ["on_cluster"]

ANSWERS_WITHIN = 30  # seconds


def on_cluster(
    address: str, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Any, BaseException | None]]:
    """Call ``function(*job)`` for each job on the workers of a scheduler, one job at a time in each worker.

    The workers import the module of ``function``, so kitsseg must be installed there, and paths must mean the same.
    When the caller stops, jobs that have not begun are taken back.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.
        function: of a module. jobs: tuples of what ``pickle`` takes.

    Yields: (job, result, None), or (job, None, error) where its workers died, in the order in which they end.
    Raises: what ``function`` raises; InputError without the package, or if no scheduler answers.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise InputError(
            f"--scheduler: the package distributed is missing ({error}). "
            "Install it with: pip install distributed"
        ) from error
    try:
        client = Client(address, timeout=ANSWERS_WITHIN)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise InputError(
            f"--scheduler {address}: expected a Dask scheduler, found none that answers ({error}). "
            "Start one with: dask scheduler"
        ) from error
    with client:
        futures = {client.submit(_alone, function, *job, pure=False): job for job in jobs}
        try:
            for future in as_completed(futures):
                failure = future.exception()
                if failure and not isinstance(failure, KilledWorker):
                    raise failure
                yield futures[future], None if failure else future.result(), failure
        finally:
            client.cancel(list(futures))


_one_at_a_time = threading.Lock()  # a worker has several threads, but memory for one scan


def _alone(function: Callable[..., Any], *job: Any) -> Any:
    with _one_at_a_time:
        return function(*job)
