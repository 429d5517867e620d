"""Write the versions into the tables of docs/dependencies.md: python scripts/make_versions.py

The column "tests green with" holds the versions of .ci/constraints.txt, with which the quick tests last succeeded; the packages
of an extra come from setup.cfg. ``--check`` writes nothing and fails if the page is stale, or if a package of setup.cfg
has no row.
"""

import argparse
import configparser
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
# extras for work on the package itself, and choices of packages of the other extras
INSIDE = {"bench", "docs", "test", "colab", "notebook"}
UNTESTED = "none: its tests are skipped"


def needed(text: str) -> list[str]:
    """Names of packages in a list of requirements of setup.cfg, without versions."""
    return [Requirement(line).name for line in re.split(r"[\n;]", text) if line.strip()]


def with_versions(page: str, setup: str, constraints: str) -> str:
    """The page with the versions in its tables.

    Args:
        page: text of docs/dependencies.md.
        setup: text of setup.cfg.
        constraints: lines such as numpy==2.4.6.

    Raises: ValueError if the rows of a table are not those of setup.cfg.
    """
    pins = dict(line.split("==") for line in constraints.splitlines() if "==" in line and line[0] != "#")
    versions = {str(canonicalize_name(name)): version for name, version in pins.items()}
    config = configparser.ConfigParser()
    config.read_string(setup)
    packages = {canonicalize_name(name) for name in needed(config["options"]["install_requires"])}
    extras = dict(config["options.extras_require"])
    wanted = packages | {f"`{extra}`" for extra in extras.keys() - INSIDE}
    lines = page.splitlines()
    rows = {}
    for index, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0] if cells[0].startswith("`") else canonicalize_name(cells[0])
        if not line.startswith("| ") or name in ("package", "extra"):
            continue
        rows[name] = index
        if name in packages:
            cells[1] = versions.get(name, UNTESTED)
        elif name in wanted:
            parts = needed(extras[name.strip("`")])
            cells[1] = ", ".join(parts)
            cells[2] = ", ".join(versions.get(canonicalize_name(part), UNTESTED) for part in parts)
        lines[index] = f"| {' | '.join(cells)} |"
    if rows.keys() != wanted:
        odd = ", ".join(sorted(rows.keys() ^ wanted))
        raise ValueError(
            f"{PAGE.name}: expected a row for each package of setup.cfg and for each extra; see {odd}."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = PAGE.read_text()
    try:
        new = with_versions(old, (ROOT / "setup.cfg").read_text(), CONSTRAINTS.read_text())
    except ValueError as error:
        sys.exit(str(error))
    if not check:
        PAGE.write_text(new)
    elif new != old:
        sys.exit(f"{PAGE.name}: not what scripts/make_versions.py makes; run it.")
