"""What several test modules share: tiny cases, small recipes, scripts of other processes, the fault server."""

from pathlib import Path

__all__ = ["REAL", "ROOT", "TESTS"]

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
REAL = ROOT.parent / "shared" / "data"  # real label maps and CT; not part of the package
