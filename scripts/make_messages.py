"""Write docs/troubleshooting.md from the messages in the package: python scripts/make_messages.py

Every error that a user may meet is an ``InputError``, whose text says what was expected, what was found and what to do.
The page is made from these texts, ordered by stage, and holds no former one. Constants of the package are filled in. If
the advice is one of several texts, the page holds all of them; if the code that raises the error is given the advice,
the message is left out, because the page would advise nothing.
``--check`` writes nothing and fails if the page is stale.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

The page holds the errors of kitsseg; *words in italics* stand for a name or a number of yours. Search the page for the words of your message.
The page does not hold warnings, the messages about a command line that kitsseg does not understand, and errors whose advice differs with the command: these say themselves what to do.
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


def template(node: ast.expr, known: Mapping[str, object] | None = None) -> str:
    """The text of a message; what is filled in when it is raised stands between asterisks, unless it is known.

    Args:
        known: the values of names and of calls, as they are written in the code.
    """
    known = known or {}
    if ast.unparse(node) in known:
        return str(known[ast.unparse(node)])
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        if ast.unparse(node.value) in known:
            form = template(node.format_spec) if node.format_spec else ""
            return format(known[ast.unparse(node.value)], form)
        return f"*{_word(node.value)}*"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, known) + template(node.right, known)
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


def _constants(tree: ast.Module, package: Mapping[str, ast.Module]) -> dict[str, object]:
    """Name -> text or number of the constants that a module defines or imports from the package."""
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str | int | float):
                found |= {name.id: node.value.value for name in node.targets if isinstance(name, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and node.module in package:
            there = {alias.name: alias.asname or alias.name for alias in node.names if alias.name.isupper()}
            if there:
                values = _constants(package[node.module], package)
                found |= {here: values[name] for name, here in there.items() if name in values}
    return found


def _says_nothing(advice: str) -> bool:
    """Whether a text consists of what is filled in when it is raised."""
    return not re.sub(r"\*[^*]*\*", "", advice).strip(" .")


def _sentences(node: ast.AST, around: Sequence[ast.AST], constants: Mapping[str, object]) -> list[str]:
    """Every whole sentence that an expression may be, as far as the module tells; a part of a sentence is none.

    Args:
        around: the module, and the functions in it that the node is in, from the outside to the inside.
    """
    values: list[ast.expr] = []
    if isinstance(node, ast.IfExp):
        values = [node.body, node.orelse]
    elif isinstance(node, ast.Name):
        for part in ast.walk(around[-1]):
            if isinstance(part, ast.Assign):
                for target in part.targets:
                    values += _assigned(node.id, target, part.value, around)
    elif isinstance(node, ast.Call):
        values = _returned(node, around)
    else:
        text = template(node, constants)
        return [text] if text[:1].isupper() else []
    found = [text for value in values for text in _sentences(value, _inside(value, around), constants)]
    return list(dict.fromkeys(found))


def _assigned(name: str, target: ast.expr, value: ast.expr, around: Sequence[ast.AST]) -> list[ast.expr]:
    """What a name gets by ``target = value``, where both may be tuples and the value a call of the module."""
    if not isinstance(target, ast.Tuple):
        return [value] if getattr(target, "id", "") == name else []
    names = [getattr(one, "id", "") for one in target.elts]
    if name not in names:
        return []
    tuples = _returned(value, around) if isinstance(value, ast.Call) else [value]
    return [one.elts[names.index(name)] for one in tuples if isinstance(one, ast.Tuple)]


def _returned(call: ast.Call, around: Sequence[ast.AST]) -> list[ast.expr]:
    """What a function of the module may return."""
    return [
        part.value
        for function in ast.walk(around[0])
        if isinstance(function, ast.FunctionDef) and function.name == getattr(call.func, "id", "")
        for part in ast.walk(function)
        if isinstance(part, ast.Return) and part.value
    ]


def _inside(node: ast.AST, around: Sequence[ast.AST]) -> Sequence[ast.AST]:
    """The module, and the function in it that holds a node."""
    holders = [
        part
        for part in ast.walk(around[0])
        if isinstance(part, ast.FunctionDef) and any(node is one for one in ast.walk(part))
    ]
    return [around[0], *holders]


def _split(node: ast.expr, known: Mapping[str, object]) -> tuple[str, str]:
    """What a message says, and what it advises."""
    text = " ".join(template(node, known).split()).replace("**", "* *")  # two that touch stand apart
    said, *advice = re.split(r"(?<=[.)\w*]\.) (?=[A-Z*])|(?<=\w\.) (?=[A-Z*])", text)
    return said, " ".join(advice)


def _message(
    node: ast.expr, around: Sequence[ast.AST], constants: Mapping[str, object]
) -> tuple[str, str] | None:
    """What the message of an InputError says and advises; None where the page could say nothing of use."""
    said, advice = _split(node, constants)
    if not re.search(r"[a-z]{3}.*[a-z]{3} ", re.sub(r"\*[^*]*\*", "", f"{said} {advice}")):
        return None  # the whole text is made elsewhere
    if advice and _says_nothing(advice):
        known = dict(constants)
        for part in ast.walk(node):
            value = part.value if isinstance(part, ast.FormattedValue) else part
            if not isinstance(value, ast.Name | ast.Call | ast.IfExp) or f"*{_word(value)}*" not in advice:
                continue
            if texts := _sentences(value, around, constants):
                whole = [text.rstrip(".") + "." for text in texts[:-1]]
                known[ast.unparse(value)] = " Or: ".join([*whole, texts[-1]])
        said, advice = _split(node, known)
        if _says_nothing(advice):
            return None
    return said, advice


def _kinds(trees: Iterable[ast.Module]) -> frozenset[str]:
    """The names of InputError and of the classes made from it."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    kinds, before = {"InputError"}, 0
    while before < len(kinds):
        before = len(kinds)
        kinds |= {node.name for node in classes if kinds & {getattr(base, "id", "") for base in node.bases}}
    return frozenset(kinds)


def _errors(
    node: ast.AST, around: Sequence[ast.AST], kinds: frozenset[str]
) -> Iterator[tuple[ast.expr, Sequence[ast.AST]]]:
    """The text of every error of these kinds below a node, and the functions that the error is in."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds and node.args:
        yield node.args[0], around
    if isinstance(node, ast.Module | ast.FunctionDef):
        around = [*around, node]
    for child in ast.iter_child_nodes(node):
        yield from _errors(child, around, kinds)


def messages() -> dict[str, list[tuple[str, str]]]:
    """(what is said, what to do) of the InputErrors in the package, by stage."""
    found: dict[str, set[tuple[str, str]]] = {}
    paths = sorted((ROOT / "kitsseg").rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in paths}
    kinds = _kinds(trees.values())
    package = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): tree
        for path, tree in trees.items()
    }
    for path, tree in trees.items():
        place = path.relative_to(ROOT / "kitsseg").with_suffix("").as_posix()
        stage = next(
            (
                STAGES[key]
                for key in sorted(STAGES, key=len, reverse=True)
                if f"{place}/".startswith(f"{key}/")
            ),
            None,
        )
        constants = _constants(tree, package)
        for node, around in _errors(tree, [], kinds):
            message = _message(node, around, constants)
            if message is None:
                continue
            if stage is None:
                sys.exit(f"{path}: say in STAGES where its messages belong.")
            found.setdefault(stage, set()).add(message)
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
