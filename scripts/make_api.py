"""Write the API reference: python scripts/make_api.py FOLDER

pdoc makes the pages; they can be opened from the disk, without a server. The pages document the modules with
``__all__``, and of each module the names in its ``__all__``. The command line is left out, because it has pages of its
own in docs/commands. Four things are errors: a Python warning, a public function or class without docstring, a link
that leads nowhere, and a name of kitsseg that does not exist. Needs ``pip install ".[docs]"``.
"""

import argparse
import importlib
import pkgutil
import re
import sys
import warnings
from dataclasses import is_dataclass
from pathlib import Path

LISTS = {"Args", "Attributes"}
PARAGRAPHS = {"Returns", "Raises", "Yields", "Shapes", "Evidence", "Source", "Sources"}
PARAGRAPHS |= {"Stated", "Code", "Ours", "Check", "Checked"}  # where a paper's network comes from
NAMES = r"(?:[Tt]he others|\*{0,2}[a-z]\w*(?:, [a-z]\w*)*): "
COMMAND_LINE = {"cli", "commands", "__main__"}

FRONT = """
Research software, not a medical device. Volumes and label maps are arrays (slices, rows, columns), spacings are in mm
in that order, images int16 HU, labels uint8: 0 background, 1 kidney, 2 tumor. Networks take (batch, rows, columns,
channels) or (batch, slices, rows, columns, channels), and return float32 logits whose last axis is, by default,
background, kidney, tumor.

| to | see |
|---|---|
| find and read cases | `kitsseg.data.find_cases`, `kitsseg.data.read_image`, `kitsseg.data.read_labels` |
| make synthetic ones | `kitsseg.data.synthesize_cases` |
| resample and cache them | `kitsseg.preprocess_cases`, `kitsseg.open_cache` |
| draw batches of slices or patches | `kitsseg.data.SliceBatches`, `kitsseg.data.PatchBatches`, `kitsseg.make_split` |
| build a network | `kitsseg.models` |
| measure its error | `kitsseg.losses`, `kitsseg.metrics` |
| read or write a recipe | `kitsseg.recipes.get`, `kitsseg.recipe` |
| train it | `kitsseg.train_recipe` |
| make a network smaller | `kitsseg.prune_run`, `kitsseg.shrink_run`, `kitsseg.export_run` |
| segment scans | `kitsseg.predict_cases` |
| score label maps | `kitsseg.evaluate_folders`, `kitsseg.evaluate_slices`, `kitsseg.scoring`, `kitsseg.compare_scores` |
| show all that on a page | `kitsseg.write_report` |

The names of `kitsseg`, `kitsseg.data`, `kitsseg.models`, `kitsseg.losses`, `kitsseg.metrics`, `kitsseg.pruning`,
`kitsseg.scoring`, `kitsseg.recipes` and `kitsseg.recipe` are stable; modules below them may move.
"""


def public_modules():
    """Names of the packages and of all modules with ``__all__``, imported, without those of the command line."""
    import kitsseg
    from kitsseg.runtime.start_keras import start_keras

    start_keras()
    names = ["kitsseg"]
    for name in kitsseg.__all__:
        setattr(kitsseg, name, getattr(kitsseg, name))  # pdoc would not see names imported on first use
    for found in pkgutil.walk_packages(kitsseg.__path__, "kitsseg."):
        if found.name.split(".")[1] in COMMAND_LINE:
            continue
        module = importlib.import_module(found.name)
        if hasattr(module, "__all__") or found.ispkg:
            names.append(found.name)
        for name in getattr(module, "__all__", ()):
            setattr(module, name, getattr(module, name))
    return names


def markdown(docstring):
    """A docstring in the house style as Markdown.

    A section begins at the margin with its name and a colon; what follows on the line or is indented below belongs to
    it. Short arguments may share a line: ``folder: of the run. names: of the cases.``
    """
    out, lines = [], docstring.splitlines()
    code, blank = False, True
    while lines:
        line = lines.pop(0)
        name, colon, rest = line.partition(":")
        indented = bool(lines) and lines[0].startswith("    ")
        if (name in LISTS | PARAGRAPHS and colon) or (re.fullmatch("[A-Z][a-z ]+:", line) and indented):
            body = [rest.strip()] if rest else []
            while lines and (
                lines[0].startswith("  ") or (not lines[0] and lines[1:2] and lines[1].startswith("    "))
            ):
                body.append("    " * bool(rest) + lines.pop(0)[4:])
            is_list = name in LISTS or (not rest and body and re.match(r"\w+: ", body[0]))
            out += ["", f"###### {name}", "", *(_items(body) if is_list else map(_paragraph_line, body)), ""]
            code, blank = False, True
            continue
        if line:
            code = line.startswith("    ") and (code or blank)
        blank = not line
        out.append(line if code else _safe(re.sub("::$", ":", line)))
    return "\n".join(out)


def _items(lines):
    items = []
    for line in lines:
        if line.startswith(" ") or not line:
            items[-1] += " " + line.strip()
        else:
            items.append(line)
    for text in (text for item in items for text in re.split(rf"(?<=\.) (?={NAMES})", item)):
        name, colon, rest = _safe(text).partition(":")
        yield f"- **{name}:**{rest}" if colon else f"- {name}"


def _paragraph_line(line):
    text = line.strip()
    return f"- {_safe(text[2:])}" if text.startswith("* ") else _safe(text)


def _safe(text):
    """Escape text for Markdown: ``<digest>`` is no tag, ``*space`` no emphasis; ``*word*``, ``**word**`` stay marks."""
    parts = re.split("(`+.+?`+)", text)
    for i in range(0, len(parts), 2):
        escaped = re.sub(
            r"(\*\w+\*|(?<!\w)\*\*\w[^*]*\w\*\*(?!\w))|\*", lambda match: match[1] or r"\*", parts[i]
        )
        parts[i] = escaped.replace("<", "&lt;")
    return "".join(parts)


def front_page(documented):
    """The text of the package's page: where to find what, then each module with its docstring's first paragraph."""
    from kitsseg import __doc__ as about

    lines = [about, FRONT]
    packages = sorted({name.rpartition(".")[0] for name in documented} - {""})
    for package in packages:
        lines += [f"## {package}", ""]
        for name, module in documented.items():
            if name.rpartition(".")[0] == package and not module.is_package:
                first = " ".join(module.docstring.split("\n\n")[0].split())
                lines.append(f"- `{name}`: {_safe(first)}")
        lines.append("")
    return "\n".join(lines)


def prepare(doc):
    """Turn the docstrings of a module or class into Markdown, in place, and hide members that are no public interface.

    Methods without a docstring are hidden if they override a method of another package, such as ``call`` and ``build``
    of Keras. Variables without a docstring are hidden if their class is no dataclass. Private base classes are hidden,
    and their own bases are shown instead.

    Yields: the full name of each public function and class without docstring.
    """
    for member in doc.members.values():
        if not member.taken_from[0].startswith("kitsseg"):
            continue
        if member.kind == "variable" and len(member.default_value_str) > 300:
            member.default_value_str = ""
        if member.kind == "class":
            yield from prepare(member)
        if doc.kind == "class" and member.name != "__init__" and _is_hidden(member, doc.obj):
            member.docstring = "@private"
        elif doc.kind == "module" and member.kind != "variable" and not member.docstring:
            yield member.fullname
        else:
            member.docstring = markdown(member.docstring)
    if doc.kind == "module":
        doc.docstring = markdown(doc.docstring)
    else:
        doc.bases = [
            (base.__module__, base.__qualname__, base.__qualname__) for base in _public_bases(doc.obj)
        ]
        doc.inherited_members = {
            base: members for base, members in doc.inherited_members.items() if not base[1].startswith("_")
        }


def _is_hidden(member, owner):
    if member.kind == "variable":
        return not member.docstring and not is_dataclass(owner)
    foreign = [base for base in owner.__mro__ if not base.__module__.startswith("kitsseg")]
    return not member.obj.__doc__ and any(hasattr(base, member.name) for base in foreign)


def _public_bases(cls):
    for base in cls.__bases__:
        if base.__name__.startswith("_"):
            yield from _public_bases(base)
        elif base is not object:
            yield base


def broken(folder):
    """Links of the pages in a folder that lead nowhere, and names in them that do not exist."""
    pages = {
        path.resolve(): re.sub("<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.S)
        for path in folder.rglob("*.html")
    }
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    for path, text in pages.items():
        for link in re.findall(r'\bhref="([^"]+)"', text):
            target, _, anchor = link.partition("#")
            there = (path.parent / target).resolve() if target else path
            if not target.startswith(("https:", "data:")) and (
                there not in ids or (anchor and anchor not in ids[there])
            ):
                yield f"{path.relative_to(folder.resolve())}: link to {link}"
        for name in re.findall(r"<code>(kitsseg\.[\w.]+)", text):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                yield f"{path.relative_to(folder.resolve())}: no {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    names = public_modules()
    from pdoc import doc, render

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        documented = {name: doc.Module(importlib.import_module(name)) for name in names}
        front = front_page(documented)
        dubious = [f"{name}: no docstring" for module in documented.values() for name in prepare(module)]
        documented["kitsseg"].docstring = front
        render.configure(show_source=False, footer_text=f"kitsseg {sys.modules['kitsseg'].__version__}")
        pages = {
            f"{name.replace('.', '/')}.html": render.html_module(documented[name], documented)
            for name in names
        }
        pages |= {"index.html": render.html_index(documented), "search.js": render.search_index(documented)}
    for name, text in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    dubious += broken(folder)
    if dubious:
        sys.exit("\n".join(dubious))
    print(f"{len(names)} modules: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
