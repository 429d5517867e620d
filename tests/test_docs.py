"""The documentation says what the code does."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_generated_pages_are_what_their_script_makes():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_docs.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_that_readme_shows_exists():
    from kitsseg.cli import build_parser

    shown = set(re.findall(r"^\s*kitsseg ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.M))
    help_text = build_parser().format_help()
    assert len(shown) > 5
    assert [name for name in sorted(shown) if not re.search(rf"^ +{name}\b", help_text, flags=re.M)] == []
