"""The table that ``kitsseg predict`` shows before it begins: the scans that it found, and what it will do with each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kitsseg.errors import InputError
from kitsseg.files.paths import as_given

if TYPE_CHECKING:
    from kitsseg.data.layouts.scans import Scan
    from kitsseg.inference.plan import Plan

__all__ = ["show_plan"]

FAIL = "fail"
REFUSED = "nothing: refused"
SHOWN = 20  # scans, and lines about what is left out, unless all are asked for


def show_plan(plan: Plan, out: str, all_rows: bool = False) -> int:
    """Print a table of the scans, lines about files that are left out or cannot be searched, and the numbers of all.

    Args:
        plan: Plan.
        out: folder for the label maps.
        all_rows: print a row for each scan, however many there are, and the reasons why scans will fail. A run tells
            them at its end.

    Returns: the number of scans with a row that are known to fail.
    """
    from rich.table import Table
    from rich.text import Text

    from kitsseg.runtime.console import console, print_table, warning

    paths = _ShortPaths(plan.inputs)
    table = Table()
    for heading in ("scan", "found as", "voxels", "mm", "what will be done"):
        table.add_column(heading, overflow="fold")
    names = list(plan.scans)
    shown = names if all_rows else names[:SHOWN]
    rows = [_row(plan, name, paths) for name in shown]
    clashing = plan.clashing if all_rows else plan.clashing[: SHOWN - len(rows)]
    rows += [
        _Row(name, _where(scan, paths), "", "", REFUSED, paths.within(why)) for name, scan, why in clashing
    ]
    for row in rows:
        table.add_row(*map(Text, (row.name, row.where, row.voxels, row.mm, row.will)))
    print_table(table)
    if more := len(names) + len(plan.clashing) - len(rows):
        console.print(f"and {more} more; --dry-run lists all", markup=False)
    for row in rows if all_rows else ():
        if row.why:  # a reason is a sentence, for which a cell is too narrow
            console.print(f"{row.name}: {row.why}", markup=False)
    for what, why in plan.wrong:
        warning(f"cannot be looked at: {paths.within(what)}: {why}")
    lines = [f"left out: {paths.within(what)}: {why}" for what, why in plan.left_out]
    for line in lines if all_rows else lines[:SHOWN]:
        console.print(line, markup=False)
    if not all_rows and len(lines) > SHOWN:
        console.print(f"left out: {len(lines) - SHOWN} more; --dry-run lists all", markup=False)
    kinds = Counter(scan.kind for scan in [*plan.scans.values(), *(scan for _, scan, _ in plan.clashing)])
    if {"nnU-Net imagesTr", "nnU-Net imagesTs"} <= kinds.keys():
        console.print(
            "nnU-Net's imagesTr (its training cases) and imagesTs (its test cases) are both taken; give one of the two "
            "folders to take that one alone",
            markup=False,
        )
    console.print(_numbers(plan, rows, kinds, out, all_rows), markup=False)
    return sum(row.will in (FAIL, REFUSED) for row in rows)


def _numbers(plan: Plan, rows: Sequence[_Row], kinds: Counter[str], out: str, told: bool) -> str:
    """One line: how many scans were found, and how many of them have which fate in the table."""
    n, failing = plan.found, sum(row.will == FAIL for row in rows)
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    refused = len(plan.refused) + len(plan.clashing)
    there = n - len(plan.todo) - refused
    unseen = len(plan.todo) - sum(row.name in plan.todo for row in rows)
    counts = [f"{len(plan.todo) - failing} to predict into {out}"]
    # a header is read for its row of the table only
    counts[0] += f" ({unseen} of them without a row in the table, not opened yet)" if unseen else ""
    fail = f"{failing} that will fail{' (--dry-run tells why)' if failing and not told else ''}"
    counts += [fail, f"{there} there already", f"{refused} refused"]
    left = f"{len(plan.left_out)} left out, {len(plan.wrong)} that cannot be looked at"
    return f"{n} scan{'s' * (n != 1)} found ({found or 'none'}): {', '.join(counts)}; {left}"


@dataclass(frozen=True)
class _Row:
    """A row of the table; ``why``: the reason why the scan will fail or is refused."""

    name: str
    where: str
    voxels: str
    mm: str
    will: str
    why: str = ""


def _row(plan: Plan, name: str, paths: _ShortPaths) -> _Row:
    from kitsseg.data.layouts.scans import scan_grid

    scan = plan.scans[name]
    where = _where(scan, paths)
    voxels = mm = ""
    will = "predict" if name in plan.todo else "nothing: its label map is there"
    if name in plan.refused:
        return _Row(name, where, "", "", REFUSED, paths.within(plan.refused[name]))
    if name not in plan.slices:
        try:
            grid = scan_grid(scan)
        except (InputError, OSError) as error:
            if name in plan.todo:
                return _Row(name, where, "", "", FAIL, _reason(error, scan))
        else:
            voxels = " x ".join(map(str, grid.shape))
            mm = " x ".join(f"{size:.3g}" for size in grid.spacing_mm)
    return _Row(name, where, voxels, mm, will)


def _where(scan: Scan, paths: _ShortPaths) -> str:
    return f"{scan.kind}: {paths.within(str(scan.place))}"


def _reason(error: InputError | OSError, scan: Scan) -> str:
    """What is wrong with a scan, without its path, which stands in its row of the table."""
    text = str(error)
    if scan.shown is not None:  # a temporary file, which nobody knows
        text = text.replace(str(scan.path), str(scan.place))
    for path in (str(scan.path), str(scan.place)):
        text = text.removeprefix(f"{path}: ").removeprefix(f"{path}{os.sep}")
    return text


class _ShortPaths:
    """Paths relative to the input that they lie in; of several inputs, with the name of theirs in front.

    Args:
        inputs: files, folders and archives, as the user gave them.
    """

    def __init__(self, inputs: Sequence[str | os.PathLike[str]]) -> None:
        folders = list(dict.fromkeys(path if path.is_dir() else path.parent for path in map(Path, inputs)))
        names = [as_given(folder).name for folder in folders]
        self.starts: list[tuple[str, str]] = []
        for folder, name in zip(folders, names, strict=True):
            if len(folders) > 1 and names.count(name) > 1:
                continue  # nothing shorter tells two folders of one name apart
            short = f"{name}{os.sep}" if len(folders) > 1 else ""
            for known in dict.fromkeys([str(folder), str(as_given(folder))]):
                self.starts.append((known if known.endswith(os.sep) else f"{known}{os.sep}", short))
        self.starts.sort(key=lambda start: len(start[0]), reverse=True)

    def within(self, text: str) -> str:
        """A text that begins with a path, in which the path is relative to its input."""
        for start, short in self.starts:
            if text.startswith(start):
                return short + text.removeprefix(start)
        return text
