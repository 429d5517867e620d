"""Commands that use networks: kitsseg predict."""

import argparse
from pathlib import Path

__all__ = ["add", "predict"]


def add(command):
    sub = command("predict", _predict, "segment scans with a trained run")
    sub.add_argument("run", type=Path, help="folder of a finished run")
    sub.add_argument("inputs", nargs="+", metavar="INPUT", help="scans, case folders or folders of cases")
    sub.add_argument("--out", required=True, type=Path, help="folder for the label maps")
    sub.add_argument(
        "--part", choices=["train", "validation", "test"], help="only this part of the run's split"
    )
    sub.add_argument(
        "--whole-slices", action="store_true", help="no overlapping tiles: about three times faster"
    )
    sub.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, help="override the recipe's mirroring"
    )


def _predict(arguments):
    from kitsseg.commands.quiet_keras import start_keras

    start_keras()
    a = arguments
    predict(a.run, a.inputs, a.out, a.part, a.whole_slices, a.mirror)


def predict(run, inputs, out, part, whole_slices, mirror):
    from kitsseg.commands.console import done, progress_bar
    from kitsseg.predict import predict_cases

    with progress_bar() as progress:
        written = predict_cases(run, inputs, out, part, whole_slices, mirror, progress=progress)
    done(f"wrote {len(written)} label maps to {out}", f"kitsseg evaluate {out} TRUTH --out scores.csv")
