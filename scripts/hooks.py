"""Checks before a commit that no tool of the test extra makes: python scripts/hooks.py large|notebooks FILE..."""

import json
import sys
from pathlib import Path

LARGEST = 500_000
# the starter network, which the wheel brings along
NEEDED = {"kitsseg/records/starter.tflite": 1_100_000}


def large(paths: list[Path]) -> list[str]:
    """Files that would make every clone larger for good."""
    return [
        f"{path}: {path.stat().st_size:,} bytes, at most {most:,}"
        for path in paths
        if path.stat().st_size > (most := NEEDED.get(path.as_posix(), LARGEST))
    ]


def notebooks(paths: list[Path]) -> list[str]:
    """Notebooks with outputs or execution counts."""
    wrong = []
    for path in paths:
        for cell in json.loads(path.read_text())["cells"]:
            if cell.get("outputs") or cell.get("execution_count"):
                wrong.append(f"{path}: has outputs. Run scripts/make_notebooks.py.")
                break
    return wrong


if __name__ == "__main__":
    check = {"large": large, "notebooks": notebooks}[sys.argv[1]]
    if wrong := check([Path(name) for name in sys.argv[2:]]):
        sys.exit("\n".join(wrong))
