"""Releases: python scripts/release.py version 0.2.0 | build

``version`` writes a new version into kitsseg/version.py, CITATION.cff and CHANGELOG.md. ``build`` makes sdist and
wheel in dist/, checks both, lists what the wheel holds, installs the wheel in an empty environment and runs the demo
from there.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def set_version(version: str, today: datetime.date) -> None:
    """Write the version into every file that holds it, and date the unreleased part of CHANGELOG.md.

    Raises: SystemExit if ``version`` is not three numbers, or if a file has no such line or several of them. No file is
        written then.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version}: expected a version such as 0.2.0.")
    changes = {
        "kitsseg/version.py": (r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"'),
        "CITATION.cff": (r"(?m)^version: .*$", f"version: {version}"),
        "CHANGELOG.md": (r"(?m)^## .* \(unreleased\)$", f"## {version} ({today.isoformat()})"),
    }
    written = {}
    for name, (pattern, line) in changes.items():
        text, count = re.subn(pattern, line, (ROOT / name).read_text())
        if count != 1:
            sys.exit(f"{name}: expected one line like {pattern}, found {count}.")
        written[name] = text
    for name, text in written.items():
        (ROOT / name).write_text(text)


def build() -> None:
    """Make and check the two archives, then use the wheel as a user would."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT))
    (wheel,) = dist.glob("*.whl")
    archives = [str(path) for path in sorted(dist.iterdir())]
    _run(sys.executable, "-m", "twine", "check", "--strict", *archives)
    _run(sys.executable, "-m", "check_wheel_contents", str(wheel))
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            print(f"{item.file_size:>9,}  {item.filename}")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        binaries = Path(folder) / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        _run(str(binaries / "python"), "-m", "pip", "install", "--quiet", str(wheel))
        _run(str(binaries / "kitsseg"), "demo", "--out", "demo", cwd=folder)


def _run(*command: str, cwd: str | None = None) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True, cwd=cwd)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version").add_argument("version")
    commands.add_parser("build")
    arguments = parser.parse_args()
    if arguments.command == "version":
        set_version(arguments.version, datetime.date.today())
    else:
        build()
