"""How long ``kitsseg --help`` takes as a whole process: python benchmarks/startup.py

The target is 0.5 s: a command line that answers at once. The first run after an installation compiles the byte
code and is not counted.
"""

import statistics
import subprocess
import sys
import time

TARGET_S = 0.5
RUNS = 9


def seconds(arguments):
    """Wall time of one process, from its start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kitsseg", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main():
    print(f"{'command':24}{'median s':>10}{'slowest s':>11}{'target s':>10}")
    missed = False
    for arguments in (["--help"], ["train", "--help"], ["recipes"]):
        seconds(arguments)
        times = [seconds(arguments) for _ in range(RUNS)]
        median = statistics.median(times)
        missed |= median > TARGET_S
        command = " ".join(["kitsseg", *arguments])
        print(f"{command:24}{median:10.3f}{max(times):11.3f}{TARGET_S:10.1f}")
    print("target missed" if missed else "target met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
