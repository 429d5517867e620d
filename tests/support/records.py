"""Records as a run writes them, with what a test says of them."""

from typing import Any

from kitsseg.records.run import PartsOfSplit, RunRecord, SplitOfRun

__all__ = ["run_record"]


def run_record(**changes: Any) -> RunRecord:
    """The record of a run that has just begun."""
    cases = PartsOfSplit(train=[], validation=[], test=[])
    values = {
        "recipe": "unet2d",
        "settings": {},
        "seed": 0,
        "versions": {},
        "split": SplitOfRun(name="none", hash="0", cases=cases),
        "status": "training",
    }
    return RunRecord(**values | changes)
