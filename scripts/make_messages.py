"""Write docs/troubleshooting.md from the messages in the package: python scripts/make_messages.py

Every error that a user may meet is an ``InputError``, whose text says what was expected, what was found and what to do.
The page is made from these texts, ordered by stage. It therefore holds every current message and no former one.
``--check`` writes nothing and fails if the page is stale.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
STAGES = {
    "commands": "Commands and their options",
    "cli": "Commands and their options",
    "data/layouts": "Finding cases",
    "data/formats": "Reading scans and label maps",
    "data/kits19": "KiTS19, its manifest and its hashes",
    "data/download": "Downloading",
    "data/cache": "The cache of preprocessed cases",
    "data/geometry": "Spacing, crop and windows",
    "data/splits": "Splits",
    "data/sampling": "Batches",
    "data/phantoms": "Synthetic patients",
    "recipe": "Recipes",
    "recipes": "Recipes",
    "models": "Networks and their weights",
    "losses": "Networks and their weights",
    "optimizers": "Training",
    "runtime": "Devices, memory, other machines",
    "training": "Training",
    "workflows": "Pruning, shrinking, cross-validation",
    "pruning": "Pruning, shrinking, cross-validation",
    "inference": "Prediction",
    "records": "Files of runs and predictions",
    "files": "Files, locks and folders",
    "labels": "Label maps",
    "scoring": "Scores",
    "report": "The report",
    "export": "Export",
    "notebook": "Notebooks",
}
# functions that change how a value is written, not what it is
SHOWN_AS_GIVEN = {"one_line", "quote", "some_of", "str"}
FRONT = """# Troubleshooting

An error of kitsseg is one line, `kitsseg: ...`: the file or option, what was expected, what was found, and what to do. The exit code is then 1, or 2 for
a command line that kitsseg does not understand, such as an unknown option; 130 after Ctrl-C. Output files appear whole or not at all, so that the same command can be given again.

The page holds every message there is; *words in italics* stand for a name or a number of yours. Search the page for the words of your message.
Some messages say only what is expected, because this says what to do: they are in lists below the tables. If a message does not help you, that is a fault of the
message: please report it.

These are no errors of kitsseg, but often met:

| what you see | what it means | what to do |
|---|---|---|
| `kitsseg: command not found` | the environment with kitsseg is not active | `source .venv/bin/activate`, or `.venv/bin/kitsseg` |
| `Killed` and nothing else | the system ran out of memory | a smaller `--batch-size`, fewer `--workers`; [memory](speed.md#memory) |
| training runs on the CPU though there is a GPU | TensorFlow was installed without CUDA | `pip install "tensorflow[and-cuda]"`, then `kitsseg info --devices` |
| `not enough memory for batches of ...` | the batch is larger than the memory of the machine or GPU | a smaller `--batch-size`, `--accumulate 2` or 4, or `--precision mixed_float16` (T4) or `mixed_bfloat16` |
"""


def template(node: ast.expr) -> str:
    """The text of a message; what is filled in when it is raised stands between asterisks."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"*{_word(node.value)}*"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return f"*{_word(node)}*"


def _word_of_function(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _word(node: ast.expr) -> str:
    """A name for what is filled in."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Call) and _word_of_function(node.func) in SHOWN_AS_GIVEN and node.args:
        return _word(node.args[0])
    if isinstance(node, ast.Call):
        return "number" if getattr(node.func, "id", "") == "len" else _word(node.func)
    if isinstance(node, ast.Subscript):
        return _word(node.value)
    return "..."


def messages() -> dict[str, list[tuple[str, str]]]:
    """(what is said, what to do) of every InputError in the package, by stage."""
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted((ROOT / "kitsseg").rglob("*.py")):
        place = path.relative_to(ROOT / "kitsseg").with_suffix("").as_posix()
        stage = next(
            (
                STAGES[key]
                for key in sorted(STAGES, key=len, reverse=True)
                if f"{place}/".startswith(f"{key}/")
            ),
            None,
        )
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args:
                text = " ".join(template(node.args[0]).split()).replace(
                    "**", "* *"
                )  # two that touch stand apart
                if not re.search(r"[a-z]{3}.*[a-z]{3} ", re.sub(r"\*[^*]*\*", "", text)):
                    continue  # the whole text is made elsewhere
                if stage is None:
                    sys.exit(f"{path}: say in STAGES where its messages belong.")
                said, *advice = re.split(r"(?<=[.)\w*]\.) (?=[A-Z*])|(?<=\w\.) (?=[A-Z*])", text)
                found.setdefault(stage, set()).add((said, " ".join(advice)))
    return {stage: sorted(found[stage]) for stage in dict.fromkeys(STAGES.values()) if stage in found}


def page() -> str:
    """The whole page."""
    parts = [FRONT]
    for stage, rows in messages().items():
        parts.append(f"\n## {stage}\n")
        if advised := [(said, advice) for said, advice in rows if advice]:
            parts.append("\n| message | what to do |\n|---|---|\n")
            parts += [f"| {_cell(said)} | {_cell(advice)} |\n" for said, advice in advised]
        if alone := [said for said, advice in rows if not advice]:
            parts.append("\nMessages that say by themselves what to do:\n\n")
            parts += [f"- {_cell(said)}\n" for said in alone]
    return "".join(parts)


def _cell(text: str) -> str:
    return re.sub(r"([|<>\[\]])", r"\\\1", text).replace("`", "'")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit(f"{PAGE.name}: not what scripts/make_messages.py makes; run it.")
