"""Cases in any other arrangement, by patterns such as ``*/ct.nii.gz`` with ``*/seg.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kitsseg.data.layouts.kits import Case
from kitsseg.data.layouts.names import folder_name
from kitsseg.errors import InputError

if TYPE_CHECKING:
    from kitsseg.data.layouts.kits import Layout

__all__ = ["pattern_cases"]


def pattern_cases(folder: Path, layout: Layout, need_labels: bool, need_image: bool) -> list[Case]:
    """Find cases by the patterns of a layout. A pattern may also name the folders of DICOM series.

    Args:
        folder: to which the patterns are relative.
        layout: Layout with the patterns.
        need_labels, need_image: whether a pattern for these files must be given.

    Raises: InputError for a pattern that is missing or cannot be used, or two cases of one name.
    """
    for needed, pattern, option in (
        (need_image, layout.images, "--images"),
        (need_labels or not need_image, layout.labels, "--labels"),
    ):
        if needed and pattern is None:
            raise InputError(
                f"{folder}: expected a pattern for every kind of file that is needed; give {option} too."
            )
    patterns = {"images": layout.images, "labels": layout.labels}
    parsed = {kind: _Pattern(pattern) for kind, pattern in patterns.items() if pattern is not None}
    counts = {pattern.wildcards for pattern in parsed.values()}
    if len(counts) > 1:
        raise InputError(
            f"--images {layout.images} --labels {layout.labels}: expected the same number of wildcards, since what "
            "they stand for says which files belong together."
        )
    cases: dict[str, Case] = {}
    for found in sorted({match for pattern in parsed.values() for match in pattern.matches(folder)}):
        name = "_".join(part for part in found if part) or folder_name(folder)
        image, labels = (
            folder / parsed[kind].filled(found) if kind in parsed else None for kind in ("images", "labels")
        )
        if name in cases:
            raise InputError(
                f"{image or labels}: a second case called {name} beside {cases[name].image or cases[name].labels}. "
                "Use a pattern with fewer wildcards."
            )
        cases[name] = Case(name, image, labels, layout.label_values)
    return list(cases.values())


class _Pattern:
    """A relative path with the wildcards ``*`` and ``?``; the text that they stand for names a case."""

    def __init__(self, text: str) -> None:
        path = PurePosixPath(text)
        if not text or path.is_absolute() or ".." in path.parts or re.search(r"[\[\]{}]|\*\*", text):
            raise InputError(
                f"{text!r}: expected a pattern below the folder, with * and ? for what differs between cases, "
                "such as '*/ct.nii.gz'."
            )
        self.text = str(path)
        self.parts = re.split(r"([*?]+)", self.text)  # fixed, wildcard, fixed, wildcard, ..., fixed
        self.wildcards = len(self.parts) // 2

    def matches(self, folder: Path) -> Iterator[tuple[str, ...]]:
        """The text that the wildcards stand for -> path, for each existing path that fits the pattern."""
        regex = "".join(
            f"({part.replace('*', '[^/]*').replace('?', '[^/]')})" if i % 2 else re.escape(part)
            for i, part in enumerate(self.parts)
        )
        for path in folder.glob(self.text):
            relative = path.relative_to(folder)
            match = re.fullmatch(regex, relative.as_posix())  # None: found by a file system that ignores case
            if match and not any(part.startswith(".") for part in relative.parts):
                yield match.groups()

    def filled(self, found: Sequence[str]) -> str:
        """The path with the texts ``found`` in place of the wildcards."""
        parts = list(self.parts)
        parts[1::2] = found
        return "".join(parts)
