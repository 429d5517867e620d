"""Where the time of ``kitsseg predict`` goes: python benchmarks/predict_stages.py [NETWORK ...]

NETWORK, the scan and the ways in which it is labelled are those of whole_scan.py. Each way is one process on one core.
Printed is the CPU time of each stage:

    start        Python, imports (TensorFlow's, too), looking for the scan
    open         the network: reading it, compiling it, hashing its weights
    read         the scan
    coarse pass  a copy of the scan with larger voxels, the starter network, the region
    network      the recipe's network, all tiles and mirrorings
    labels       the rest between scan and labels: slices to the network's grid, probabilities back to the scan's grid,
                 the largest one, post-processing
    write        the label map
    end          records, colors for viewers
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from predict_process import on_one_core
from whole_scan import finished_run, jobs_of, parser_of, rendered

STAGES = ("start", "open", "read", "coarse pass", "network", "labels", "write", "end")


class Stopwatch:
    """CPU seconds of stages; a stage that another one interrupts goes on afterwards."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.stage, self._since = "start", 0.0

    def enter(self, stage: str) -> str:
        """The stage that was left."""
        now = time.process_time()
        self.seconds[self.stage] += now - self._since
        before, self.stage, self._since = self.stage, stage, now
        return before

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **words: Any) -> Any:
            before = self.enter(stage)
            try:
                return function(*arguments, **words)
            finally:
                self.enter(before)

        return run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        *paths, options = a.child
        print(json.dumps(stages_of(*paths, options=json.loads(options))))
        return
    on_one_core()
    print(
        "| network | what it sees | "
        + " | ".join(STAGES)
        + " | together |\n"
        + "|---" * (len(STAGES) + 3)
        + "|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scan = a.scan or rendered(folder / "data", a.slices)
        for name in a.networks:
            run = finished_run(name, folder)
            for way, (copy, choices) in jobs_of(run, folder, a.ways).items():
                out = Path(tempfile.mkdtemp(dir=folder)) / "out"
                command = [sys.executable, __file__, "--child", copy, scan, out, json.dumps(choices)]
                child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                seconds = json.loads(child.stdout.splitlines()[-1])
                values = [*(seconds[stage] for stage in STAGES), sum(seconds.values())]
                print(f"| {run.name} | {way} | " + " | ".join(f"{s:.2f}" for s in values) + " |", flush=True)


def stages_of(run: str, scan: str, out: str, options: list[str]) -> dict[str, float]:
    """Predict in this process, with a stopwatch around the functions that make up a stage."""
    from kitsseg.cli import main as kitsseg
    from kitsseg.inference import cohort, one_scan

    watch = Stopwatch()
    opened = one_scan.opened

    def open_timed(ensemble: Any) -> Any:
        members, postprocess, engine = opened(ensemble)
        timed = [
            replace(
                member,
                predict=watch.timed("network", member.predict),
                scores=member.scores and watch.timed("network", member.scores),
            )
            for member in members
        ]
        return timed, postprocess, engine

    def put(name: str, instead: Any) -> None:
        for module in (one_scan, cohort):  # the second has the names that it imports from the first
            if hasattr(module, name):
                setattr(module, name, instead)

    put("opened", functools.lru_cache(maxsize=1)(watch.timed("open", open_timed)))
    for name, stage in {
        "read_image": "read",
        "find_region": "coarse pass",
        "prepare_scan": "labels",
        "ensemble_labels": "labels",
        "labels_at_border": "labels",
        "write_labels": "write",
    }.items():
        put(name, watch.timed(stage, getattr(one_scan, name)))
    predict_scan = one_scan.predict_scan

    def then_the_end(*arguments: Any, **words: Any) -> Any:
        try:
            return predict_scan(*arguments, **words)
        finally:
            watch.enter("end")

    put("predict_scan", then_the_end)
    if status := kitsseg(["predict", run, scan, "--out", out, *options, "--quiet"]):
        sys.exit(status)
    watch.enter("end")
    return watch.seconds


if __name__ == "__main__":
    main()
