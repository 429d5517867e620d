"""Write the pages in docs/commands and docs/papers: python scripts/make_docs.py

The arguments come from the command line's own parser, settings and evidence from the recipes, so the pages cannot say
anything else; the words around them are in docs_texts.py. ``--check`` writes nothing and fails if a page is stale.
"""

import argparse
import sys
from dataclasses import is_dataclass
from pathlib import Path

from docs_texts import COMMANDS
from notebook_texts import TEXTS

from kitsseg import recipes
from kitsseg.cli import build_parser
from kitsseg.recipe import settings, value_of

# settings that a page lists even if the recipe leaves them empty
NAMED = ("postprocess", "split", "metrics", "inference.mirror_axes")
FOLDER = Path(__file__).parents[1] / "docs"
ERRORS = "An error is one line. The exit code is then 1, or 2 where the command line itself is wrong, such as an unknown option."
# where a value comes from, by the first word of its evidence
EVIDENCE = (
    "Evidence begins with the source of a value: `paper` (the number in brackets is a row of the table sentence by sentence "
    "on the paper's page), `code` (published by the authors), `inferred` (follows from what the paper says), `architecture` "
    "(follows from the network) or `ours` (our choice, where the paper leaves it open or we do otherwise). A setting that begins with "
    "`fixed` is fixed in our code: no option changes it."
)


def commands():
    """Sub-commands by name: (help, parser)."""
    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in action._choices_actions}
    return {name: (helps[name], parser) for name, parser in action.choices.items()}


def command_page(name, help, parser):
    """One command: what it does, its arguments, examples."""
    words, example = COMMANDS[name]
    lines = [
        f"# kitsseg {name}",
        "",
        f"{help[:1].upper()}{help[1:]}.",
        "",
        words,
        "",
        "```",
        example,
        "```",
        "",
    ]
    lines += ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        lines.append(f"| {_cell(_spelled(action))} | {_cell(_meaning(action))} |")
    return "\n".join([*lines, "", f"All commands: [the list](README.md). {ERRORS}", ""])


def _spelled(action):
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    if not action.option_strings:
        many = " ..." if action.nargs in ("+", "*") else ""
        return f"`{value}`{many}" + (" (optional)" if action.nargs in ("?", "*") else "")
    takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    if action.nargs in ("+", "*"):
        value = f"{value} ..."
    names = " / ".join(
        f"`{option}{' ' + str(value) if takes_value else ''}`" for option in action.option_strings
    )
    return names + (" (required)" if action.required else "")


def _meaning(action):
    text = action.help or "of everything random" if action.dest == "seed" else action.help or ""
    text = text.replace("%%", "%")  # as argparse prints it
    if (
        action.default not in (None, False, [], argparse.SUPPRESS)
        and "default" not in text
        and action.option_strings
    ):
        text += f" (default: {action.default})"
    return text


def _cell(text):
    return " ".join(str(text).split()).replace("|", "\\|")


def commands_index(found):
    lines = ["# Commands", "", "| command | what it does |", "|---|---|"]
    lines += [f"| [`kitsseg {name}`]({name}.md) | {_cell(help)} |" for name, (help, _) in found.items()]
    return "\n".join([*lines, ""])


def paper_page(name):
    """One paper: claim, figures, what does not add up, every setting of the three variants with its evidence."""
    paper, text = recipes.get(name), TEXTS[name]
    lines = [
        f"# {text['title']}",
        "",
        f"{paper.paper}.",
        "",
        text["about"],
        "",
        f"**Claim.** {paper.claim}",
        "",
    ]
    lines += [
        f"Notebook: [colab/{name}.ipynb](../../colab/{name}.ipynb). Demo: `kitsseg demo --recipe {name}`.",
        "",
    ]
    if paper.link:
        lines += [f"**Where.** {paper.link}", ""]
    if paper.statements:
        lines += [
            "## Sentence by sentence",
            "",
            "What the paper says, in our words. The evidence of the settings below names these numbers, such as [3].",
        ]
        lines += ["", "| | the paper says | here | why |", "|---|---|---|---|"]
        lines += [
            f"| {number} | {_cell(each.says)} | {_cell(each.here)} | {_cell(each.why)} |"
            for number, each in enumerate(paper.statements, 1)
        ]
        lines.append("")
    lines += ["## Reported", "", "| quantity, as the paper names it | value |", "|---|---|"]
    lines += [f"| {_cell(key)} | {value:,} |" for key, value in paper.reported.items()]
    if paper.reported_unrefined:
        lines += [
            "",
            "Of the labels before post-processing:",
            "",
            "| quantity, as the paper names it | value |",
            "|---|---|",
        ]
        lines += [f"| {_cell(key)} | {value:,} |" for key, value in paper.reported_unrefined.items()]
    lines += ["", "## What does not add up", "", *(f"* {line}" for line in text["fair"]), ""]
    lines += ["[What the words of the evidence mean](README.md#evidence).", ""]
    for variant in ("", ":practical", ":tiny"):
        recipe = recipes.get(name + variant)
        lines += [f"## Settings of `{recipe.name}`", "", "| setting | value | evidence |", "|---|---|---|"]
        lines += [
            f"| {_cell(key)} | {_cell('none' if value in (None, ()) else value)} | {_cell(recipe.evidence[key])} |"
            for key, value in settings(recipe)
            if (value is not None and value != ()) or key in NAMED
        ]
        lines.append("")
    for variant in recipes.variants(name):
        lines += variant_section(paper, variant)
    return "\n".join(lines)


def variant_section(paper, variant):
    """One row of the paper's tables: what is other than in the paper's recipe, and its figures."""
    lines = [f"## `{paper.name}:{variant.name}`", "", f"{variant.row[:1].upper()}{variant.row[1:]}.", ""]
    lines += [f"| setting | {paper.name} | here | evidence |", "|---|---|---|---|"]
    for key, value in variant.changes.items():
        before, here = (
            "none" if v is None else type(v).__name__ if is_dataclass(v) else v
            for v in (value_of(paper, key), value)
        )
        lines.append(f"| {_cell(key)} | {_cell(before)} | {_cell(here)} | {_cell(variant.evidence[key])} |")
    figures = [f"{_cell(key)} {value:,}" for key, value in variant.reported.items()]
    lines += ["", f"Reported: {'; '.join(figures) or 'nothing'}."]
    if variant.parameters:
        counted = f" ({variant.counted})" if variant.counted else ""
        lines.append(f"Trainable parameters: {variant.parameters:,}{counted}.")
    return [*lines, ""]


def papers_index():
    lines = ["# Papers", "", "| recipe | paper | where |", "|---|---|---|"]
    for recipe in map(recipes.get, recipes.names()):
        lines.append(
            f"| [`{recipe.name}`]({recipe.name}.md) | {_cell(recipe.paper)} | {_cell(recipe.link)} |"
        )
    return "\n".join([*lines, "", "## Evidence", "", EVIDENCE, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    found = commands()
    pages = {f"commands/{name}.md": command_page(name, *entry) for name, entry in found.items()}
    pages |= {f"papers/{name}.md": paper_page(name) for name in recipes.names()}
    pages |= {"commands/README.md": commands_index(found), "papers/README.md": papers_index()}
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.md")}
    stale = sorted(there - set(pages))
    for name, text in pages.items():
        path = FOLDER / name
        if check and (not path.is_file() or path.read_text() != text):
            stale.append(name)
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what scripts/make_docs.py makes; run it, or remove the page.")


if __name__ == "__main__":
    main()
