"""How many batches a second one, two and more loaders make: python benchmarks/loaders.py [--work FOLDER]

Batches of 7 slices of 224 x 224 as unet2d draws them, and of 39 patches of 48 x 48 x 48 as deeplab3d does, from 13
cached cases, as in benchmarks/data.py, or compressed (--compress). They are taken as fast as they come, as by a GPU
that never has enough. One loader is the process itself (kitsseg train); more are processes of their own (--loaders).
Numbers of loaders take turns within a round. Printed are medians over the rounds: batches a second of wall time,
processor time of all processes for a batch, and the median of the ratios of batches a second within a round. The
first batches of the loaders, which start meanwhile, are not counted. All numbers of loaders give equal bits, which is
checked first.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from data import PATCHES, SLICES, SPEC, batches_of, prepared

from kitsseg import open_cache, preprocess_cases
from kitsseg.data.cache.compressed import require_blosc2
from kitsseg.data.sampling.ahead import DEPTH, batches_ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, help="folder for cases and cache, kept; a temporary one otherwise"
    )
    parser.add_argument(
        "--batches", type=int, default=400, help="of slices in each round; a tenth of patches"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=os.cpu_count(), help="loaders (default: number of cores)")
    parser.add_argument("--compress", action="store_true", help="a compressed cache")
    a = parser.parse_args()
    if a.compress:
        require_blosc2()  # before a minute is spent on cases
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        cases = prepared(None, work, 56)
        if a.compress:
            preprocess_cases(work / "cases", work / "compressed", SPEC, compress=True)
            cases = open_cache(work / "compressed", SPEC)
        print(
            f"{os.cpu_count()} cores\n\n| batches | loaders | a second | CPU ms a batch | times one loader |"
        )
        print("|---|---|---|---|---|")
        for title, count in ((SLICES, a.batches), (PATCHES, max(a.batches // 10, 1))):
            numbers = range(1, a.most + 1)
            check(title, cases, a.most)
            spent = {loaders: [] for loaders in numbers}
            for _ in range(a.rounds):
                for loaders in numbers:
                    spent[loaders].append(measure(title, cases, loaders, count))
            for loaders, values in spent.items():
                rate, cpu = (statistics.median(column) for column in zip(*values, strict=True))
                pairs = zip(values, spent[1], strict=True)
                ratio = statistics.median(value[0] / one[0] for value, one in pairs)
                print(f"| {title} | {loaders} | {rate:.1f} | {1000 * cpu:.1f} | {ratio:.2f} |", flush=True)


def check(title: str, cases: dict, most: int) -> None:
    """Stop if the loaders' batches are not those of one process."""
    alone = batches_of(title, cases)
    with batches_ahead(batches_of(title, cases), 0, 4, max(most, 2)) as ahead:
        for index in range(4):
            for one, other in zip(ahead.batch(index), alone.batch(index), strict=True):
                np.testing.assert_array_equal(one, other)


def measure(title: str, cases: dict, loaders: int, count: int) -> tuple[float, float]:
    """(batches a second, CPU seconds of all processes for a batch)."""
    warm = 1 + DEPTH * loaders
    with batches_ahead(batches_of(title, cases), 0, warm + count, loaders) as ahead:
        for index in range(warm):
            ahead.batch(index)
        before, started = cpu_of(ahead), time.perf_counter()
        for index in range(warm, warm + count):
            ahead.batch(index)
        seconds = time.perf_counter() - started
        return count / seconds, (cpu_of(ahead) - before) / count


def cpu_of(ahead: object) -> float:
    """Processor seconds so far of this process and of the loaders."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for worker in getattr(ahead, "workers", ()):
        fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:13])) / ticks
    return total


if __name__ == "__main__":
    main()
