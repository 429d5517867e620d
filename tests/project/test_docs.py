"""The documentation says what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language=""):
    """The fenced blocks of a page that are in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def commands(page):
    """Each command of kitsseg in the fenced blocks of a page, comments, variables and redirections aside."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition(" #")[0].partition(" > ")[0].rstrip()
            if line.startswith("srun bash -c '"):
                line = line.removeprefix("srun bash -c '").removesuffix("'")
            for part in re.split("&&|^srun ", line):
                if part.strip().startswith("kitsseg "):
                    first = part.strip().replace("$SLURM_PROCID", "0")
                    yield re.sub(r"\$SLURM_\w+", "1", first)


@pytest.mark.parametrize("script", ["make_docs.py", "make_messages.py", "make_versions.py"])
def test_generated_pages_are_what_their_script_makes(script):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr  # TensorFlow may speak of GPUs there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_shown_is_one(page, capsys):
    """Its name, its options and the form of their values."""
    from kitsseg.cli import build_parser

    parser = build_parser()
    for command in commands(page):
        try:
            parser.parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")


def test_no_message_of_the_page_on_troubleshooting_has_an_empty_cell():
    rows = [
        line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line[:1] == "|"
    ]
    assert len(rows) > 300
    assert [row for row in rows if "" in [cell.strip() for cell in row.strip("|").split("|")]] == []


def test_the_page_on_troubleshooting_advises_in_words():
    """No advice is only a placeholder; texts that the code chooses among are all there."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    advice = {said.strip(): remedy.strip(" |") for said, remedy, *_ in rows}
    words = {said: re.sub(r"\*[^*]*\*", "", text) for said, text in advice.items()}
    assert [said for said, text in words.items() if not re.search("[a-z]{2}", text)] == []
    constant = "*beside*: expected the summary of *name* beside it, found nothing."
    assert advice[constant] == "Run kitsseg evaluate again."
    of_function = "*folder*: expected a new or empty folder for the run, found *found*."
    assert advice[of_function].startswith("Choose another. Or: Go on: the same command with --resume.")
    given = "not a network that this version can read"  # to the code that raises the error
    assert given not in page


def test_the_readme_is_short():
    """What a stranger needs; everything else has a page in docs/."""
    assert len((ROOT / "README.md").read_text().split()) <= 650


def test_the_commands_are_found():
    found = list(commands(ROOT / "README.md"))
    assert len(found) == 2
    assert "kitsseg predict starter SCAN --out LABELS" in found
    assert {command.split()[1] for page in PAGES for command in commands(page)} > {
        "train",
        "export",
        "cross-validate",
    }
    said = [shlex.split(command) for command in commands(ROOT / "docs" / "clusters.md")]
    assert any(words[-2:] == ["--process", "0/1"] for words in said)


@pytest.mark.slow
def test_the_python_of_its_page_runs(tmp_path, monkeypatch):
    """Block after block, in the folder that ``make demo`` leaves behind; only fewer patients and smaller ones."""
    from kitsseg import recipes
    from kitsseg.data.cache.build import preprocess_cases
    from kitsseg.data.cache.cases import open_cache
    from kitsseg.data.phantoms.synthesize import synthesize_cases
    from kitsseg.data.splits import make_split, save_split

    monkeypatch.chdir(tmp_path)
    spec = recipes.get("unet2d:tiny").preprocess
    # seven in the training part: the recipe draws a batch from as many cases
    synthesize_cases("demo/data", 9, (12, 64, 64))
    preprocess_cases("demo/data", "demo/cache", spec)
    save_split(make_split(open_cache("demo/cache", spec), (0.78, 0.11, 0.11)), Path("demo/split.json"))
    found, names = blocks(ROOT / "docs" / "python.md", "python"), {}
    assert len(found) == 3
    for block in found:
        exec(compile(block, "python.md", "exec"), names)
    assert Path("my-run/model.keras").is_file() and Path("my-scores.csv").is_file()
    assert names["model"].count_params() > 0


def test_the_page_on_colab_has_the_hours_of_the_notebooks():
    page = (ROOT / "docs" / "colab.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^(|]+?)(?: \([^|]*\))? \| ([^|]+) \|$", page, re.M)
    assert len(rows) == 6
    for stem, paper, practical in rows:
        notebook = (ROOT / "colab" / f"{stem}.ipynb").read_text()
        assert f"takes {paper} on a T4" in notebook
        assert practical in notebook
