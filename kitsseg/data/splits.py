"""Splits by case. Every dataset is built from such a split, so that no patient is on two sides by accident."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kitsseg.errors import InputError, did_you_mean
from kitsseg.files.json_records import record_of, write_record

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["PARTS", "CaseSplit", "load_split", "make_split", "save_split", "split_names"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class CaseSplit:
    """Cases for training, validation and test. When a split is made, it is checked that no case is in two parts.

    Attributes:
        name: of the split, for reports.
        train, validation, test: names of cases.
        source: where the division into these parts comes from.

    Raises: InputError if a case is in two parts or twice in one.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in PARTS:
            for case in getattr(self, part):
                if case in seen:
                    raise InputError(
                        f"split {self.name}: {case} is in {seen[case]} and in {part}. One patient must be in one part "
                        "only, once; otherwise the scores are those of patients the network has seen."
                    )
                seen[case] = part

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that identify the three parts, whatever the split's name and the cases' order."""
        text = json.dumps({part: sorted(getattr(self, part)) for part in PARTS}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def among(self, cases: Collection[str]) -> tuple[CaseSplit, list[str]]:
        """The same split with only the cases that are available.

        Args:
            cases: names of the available cases.

        Returns: (CaseSplit, names of its cases that are missing).
        Raises: InputError if nothing is left to train on or to validate with.
        """
        here = {part: tuple(case for case in getattr(self, part) if case in cases) for part in PARTS}
        missing = sorted(case for part in PARTS for case in getattr(self, part) if case not in cases)
        for part in PARTS[:2]:
            if not (stated := len(getattr(self, part))):
                raise InputError(
                    f"split {self.name}: expected at least one {part} case, found none. Name some in the split."
                )
            if not here[part]:
                raise InputError(
                    f"split {self.name}: none of its {stated} {part} cases is among the "
                    f"{len(cases)} cases at hand. Preprocess them, or leave --split out for a new 80/10/10 split."
                )
        return CaseSplit(self.name, **here, source=self.source), missing


@dataclass(frozen=True, kw_only=True)
class _SplitFile:
    """Content of a split file; a name and a source may be missing."""

    name: str | None = None
    source: str | None = None
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    version: int = 1


def make_split(
    cases: Iterable[str], fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0, name: str | None = None
) -> CaseSplit:
    """Draw a split by case.

    Args:
        cases: names; their order does not matter.
        fractions: of train, validation and test. Each part with a fraction above 0 gets at least one case.
        seed: the same names and seed give the same split on every machine.
        name: of the split.

    Raises: InputError if there are fewer cases than parts.
    """
    cases = sorted(cases)
    wanted = [f > 0 for f in fractions]
    if len(cases) < sum(wanted):
        raise InputError(
            f"a split into {sum(wanted)} parts needs as many cases, found {len(cases)}: {cases}."
        )
    counts = [max(round(len(cases) * f), int(w)) for f, w in zip(fractions, wanted, strict=True)]
    counts[0] = len(cases) - counts[1] - counts[2]
    if counts[0] < 1:
        raise InputError(f"a split needs a case to train on; {len(cases)} cases leave none. Add cases.")
    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(cases))
    shuffled = [cases[i] for i in order]
    bounds = np.cumsum([0, *counts])
    parts = {
        part: tuple(sorted(shuffled[a:b])) for part, a, b in zip(PARTS, bounds, bounds[1:], strict=False)
    }
    label = "-".join(f"{100 * f:g}" for f in fractions)
    return CaseSplit(name or f"{label} of {len(cases)}", **parts, source=f"drawn with seed {seed}")


def split_names() -> list[str]:
    """Names of the splits of KiTS19 that come with the package."""
    return sorted(
        item.name.removesuffix(".json") for item in _shipped().iterdir() if item.name.endswith(".json")
    )


def load_split(name_or_path: str | os.PathLike[str]) -> CaseSplit:
    """Read a split that comes with the package, by name, or a JSON file with train, validation and test.

    Raises: InputError for an unknown name, a file that is no split, or one whose parts overlap.
    """
    if (shipped := _shipped() / f"{name_or_path}.json").is_file():
        return _split_of(shipped.read_bytes(), name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"{path}: expected a split file or one of {', '.join(split_names())}; found neither."
            f"{did_you_mean(path.name, split_names())}"
        )
    return _split_of(path.read_bytes(), path)


def save_split(split: CaseSplit, path: str | os.PathLike[str]) -> None:
    """Write a split as JSON, whole or not at all."""
    parts = {part: getattr(split, part) for part in PARTS}
    write_record(path, _SplitFile(name=split.name, source=split.source, **parts))


def _split_of(data: bytes, origin: str | os.PathLike[str]) -> CaseSplit:
    expected = "JSON with the lists train, validation and test"
    found = record_of(data, _SplitFile, origin, expected, "Give another file, or the name of a split.")
    parts = {part: getattr(found, part) for part in PARTS}
    try:
        return CaseSplit(found.name or Path(origin).stem, **parts, source=found.source or "")
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _shipped() -> Traversable:
    return resources.files("kitsseg.data") / "splits"
