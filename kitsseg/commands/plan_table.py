"""The table that ``kitsseg predict`` shows before it begins: the scans that it found, and what it will do with each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kitsseg.errors import InputError

if TYPE_CHECKING:
    from kitsseg.data.layouts.scans import Scan
    from kitsseg.inference.plan import Plan

__all__ = ["show_plan"]

SHOWN = 20  # scans, and lines about what is left out, unless all are asked for


def show_plan(plan: Plan, out: str, all_rows: bool = False) -> None:
    """Print a table of the scans, lines about files that are left out or cannot be searched, and the numbers of all.

    Args:
        plan: Plan.
        out: folder for the label maps.
        all_rows: print a row for each scan, however many there are.
    """
    from rich.table import Table
    from rich.text import Text

    from kitsseg.runtime.console import console, warning

    table = Table()
    for heading in ("scan", "found as", "voxels", "mm", "what will be done"):
        table.add_column(heading, overflow="fold")
    rows = list(plan.scans.items())
    shown = rows if all_rows else rows[:SHOWN]
    for name, scan in shown:
        table.add_row(*map(Text, _row(plan, name, scan)))
    # a log has no width of its own
    console.print(table, width=None if console.is_terminal else 140, soft_wrap=False)
    if len(rows) > len(shown):
        console.print(f"and {len(rows) - len(shown)} more; --dry-run lists all", markup=False)
    for what, why in plan.wrong:
        warning(f"cannot be looked at: {what}: {why}")
    lines = [f"left out: {what}: {why}" for what, why in plan.left_out]
    for line in lines if all_rows else lines[:SHOWN]:
        console.print(line, markup=False)
    if not all_rows and len(lines) > SHOWN:
        console.print(f"left out: {len(lines) - SHOWN} more; --dry-run lists all", markup=False)
    kinds = Counter(scan.kind for scan in plan.scans.values())
    if {"nnU-Net imagesTr", "nnU-Net imagesTs"} <= kinds.keys():
        console.print(
            "nnU-Net's imagesTr (its training cases) and imagesTs (its test cases) are both taken; give one of the two "
            "folders to take that one alone",
            markup=False,
        )
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    there = len(plan.scans) - len(plan.todo) - len(plan.refused)
    n = len(plan.scans)
    console.print(
        f"{n} scan{'s' * (n != 1)} found ({found or 'none'}): {len(plan.todo)} to predict into {out}, {there} there "
        f"already, {len(plan.refused)} refused; {len(plan.left_out)} left out, {len(plan.wrong)} that cannot be looked "
        "at",
        markup=False,
    )


def _row(plan: Plan, name: str, scan: Scan) -> tuple[str, str, str, str, str]:
    from kitsseg.data.layouts.scans import scan_grid

    where = f"{scan.kind}: {scan.place}"
    voxels = mm = ""
    will = "predict" if name in plan.todo else "nothing: its label map is there"
    if name in plan.refused:
        will = f"nothing: {plan.refused[name]}"
    elif name not in plan.slices:
        try:
            grid = scan_grid(scan)
        except (InputError, OSError) as error:
            will = f"fail: {error}"
        else:
            voxels = " x ".join(map(str, grid.shape))
            mm = " x ".join(f"{size:.3g}" for size in grid.spacing_mm)
    return name, where, voxels, mm, will
