"""The table of `kitsseg verify`."""

from collections.abc import Sequence

from kitsseg.data.kits19.findings import Finding

__all__ = ["fold_alike", "show_findings"]

LEVELS = {"error": "red", "warning": "yellow", "note": "dim"}


def fold_alike(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, errors first. Of equal warnings and notes only the first is kept, with the number of all."""
    folded = [finding for finding in findings if finding.level == "error"]
    for level in list(LEVELS)[1:]:
        groups: dict[tuple[str, str, tuple[str, str] | None], list[Finding]] = {}
        for finding in findings:
            if finding.level == level:
                alone = None if finding.folds else (finding.case, finding.found)
                groups.setdefault((finding.check, finding.advice, alone), []).append(finding)
        for (check, *_), alike in groups.items():
            folded.append(alike[0])
            if len(alike) > 1:
                case = f"and {len(alike) - 1} more"
                folded.append(Finding(level, case, check, f"to {alike[-1].case}", "as above", "as above"))
    return folded


def show_findings(findings: Sequence[Finding]) -> None:
    """Print them as a table; nothing if there are none."""
    from rich.table import Table
    from rich.text import Text

    from kitsseg.runtime.console import print_table

    if not findings:
        return
    table = Table()
    for heading in ("", "case", "check", "found", "expected", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in fold_alike(findings):
        cells = (finding.case, finding.check, finding.found, finding.expected, finding.advice)
        table.add_row(Text(finding.level, style=LEVELS[finding.level]), *map(Text, cells))
    print_table(table)
