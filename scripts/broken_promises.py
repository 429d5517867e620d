"""Break one promise of the package at a time, and see which quick test notices.

    python scripts/broken_promises.py                     # all of them, some minutes
    python scripts/broken_promises.py "seed of the draws"

Each promise is broken in a copy of the checkout, and the tests named with the promise run there until one of them
fails. The exit code is 1 if no test notices a broken promise. The exit code is also 1 if the text to be replaced is no
longer found exactly once, so that an outdated promise cannot stay in the list unseen.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PROMISES", "Promise", "broken"]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Promise:
    """What users rely on, and a change that breaks it.

    Attributes:
        name: of the promise.
        file: where the change is made.
        old, new: text that stands there exactly once, and what takes its place.
        tests: modules and folders of tests that must notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "sign of the Dice term in a loss",
        "kitsseg/losses.py",
        "return entropy + self.over_classes(1.0 - dice)",
        "return entropy - self.over_classes(1.0 - dice)",
        ("tests/test_losses.py",),
    ),
    Promise(
        "training draws no slice of another part's patient",
        "kitsseg/data/sampling/slices.py",
        "self.cases = cases_of_part(cases, split, part)\n        self.sampler, self.augmentation",
        "self.cases = list(cases.values())\n        self.sampler, self.augmentation",
        ("tests/data/sampling/test_slices.py",),
    ),
    Promise(
        "a patient is in one part of a split only",
        "kitsseg/data/splits.py",
        "if case in seen:",
        "if seen.get(case) == part:",
        ("tests/data/test_splits.py",),
    ),
    Promise(
        "preprocess imports no TensorFlow",
        "kitsseg/data/cache/one_case.py",
        "\nimport numpy.typing as npt\n",
        "\nimport numpy.typing as npt\nimport tensorflow\n",
        ("tests/project/test_imports.py",),
    ),
    Promise(
        "what arrives has the hash that its host announces",
        "kitsseg/data/download/catalog.py",
        "if announced is not None and sha256 != announced:",
        "if False:",
        ("tests/data/download",),
    ),
    Promise(
        "a label map lies where its scan lies",
        "kitsseg/data/formats/nifti.py",
        "    header = grid.header.copy()\n    header.set_data_dtype(np.uint8)\n",
        '    header = grid.header.copy()\n    header["srow_z"][3] += 1\n    header.set_data_dtype(np.uint8)\n',
        ("tests/data/formats/test_nifti.py", "tests/data/formats/test_grid.py"),
    ),
    Promise(
        "image and labels are mirrored together",
        "kitsseg/data/sampling/augment.py",
        "return window[step], truth[step]",
        "return window[step], truth",
        ("tests/data/sampling/test_augment.py",),
    ),
    Promise(
        "pruned weights are zero",
        "kitsseg/pruning/callback.py",
        "variable.assign(ops.where(kept, variable.value, 0))",
        "variable.assign(variable.value)",
        ("tests/pruning/test_pruning.py",),
    ),
    Promise(
        "a file appears whole or not at all",
        "kitsseg/files/atomic.py",
        "yield temporary\n                temporary.replace(path)",
        "yield path",
        ("tests/files",),
    ),
    Promise(
        "the Dice of two empty masks is 1",
        "kitsseg/scoring/dice.py",
        'return 1.0 if empty == "one" else float("nan")\n\n\ndef _ratio',
        'return 0.0 if empty == "one" else float("nan")\n\n\ndef _ratio',
        ("tests/scoring/test_scores.py",),
    ),
    Promise(
        "HU are clipped to the recipe's window",
        "kitsseg/data/geometry/planes.py",
        "low, high = spec.hu_window\n",
        "low, high = spec.hu_window[0] + 10, spec.hu_window[1] + 10\n",
        ("tests/data/geometry/test_planes.py", "tests/data/cache/test_preprocess.py"),
    ),
    Promise(
        "seed of the draws",
        "kitsseg/data/sampling/draws.py",
        "Philox(key=[seed, ",
        "Philox(key=[0, ",
        ("tests/data/sampling/test_draws.py", "tests/data/sampling/test_slices.py"),
    ),
)


def broken(text: str, promise: Promise) -> str:
    """The text of a file with the change made. Raises: ValueError if what is to be changed is not there once."""
    if (found := text.count(promise.old)) != 1:
        raise ValueError(f"{promise.file}: expected {promise.old!r} once, found it {found} times.")
    return text.replace(promise.old, promise.new)


def noticed_by(promise: Promise, copy: Path) -> str | None:
    """The first test that fails with the promise broken in a copy of the checkout; None if all pass."""
    path = copy / promise.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(broken(whole, promise), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *promise.tests],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )  # fmt: skip
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{promise.name}: pytest ended with {done.returncode}: {done.stdout[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return failed[1] if failed else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of promises (default: all)")
    names = parser.parse_args().names
    if unknown := set(names) - {promise.name for promise in PROMISES}:
        parser.error(f"no promise is called {', '.join(sorted(unknown))}")
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="kitsseg-promises-") as folder:
        copy = Path(folder) / "kitsseg"
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", ".nox", "dist", "build", "demo")
        )
        for promise in PROMISES:
            if not names or promise.name in names:
                test = noticed_by(promise, copy)
                unnoticed += test is None
                print(f"{promise.name}: {test or 'NOT NOTICED'}", flush=True)
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
