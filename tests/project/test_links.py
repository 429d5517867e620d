"""Links in the documentation lead to files and headings that exist; nothing is looked up in the network."""

import json
import re

import pytest
from support import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "colab").glob("*.ipynb")])
FOLDERS = "kitsseg|scripts|tests|docs|colab|benchmarks|[.]ci"


def text_of(path):
    """Markdown of a page, or of the markdown cells of a notebook, without code blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def links(text):
    """Targets of links and pictures, in Markdown or HTML, written out or by reference."""
    prose = re.sub(r"(`+).+?\1", "code", text)
    yield from re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose)
    yield from re.findall(r"^ {0,3}\[[^\]]+\]:\s+<?([^\s>]+)", prose, flags=re.M)
    yield from re.findall(r"\b(?:href|src)=\"([^\"]+)\"", prose)


def anchors(text):
    """What GitHub makes of the headings: lower case, no punctuation, hyphens for spaces, a number if there already."""
    found = []
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, flags=re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return {*found, *re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text)}


def dead_links(page, text):
    """The links of a page that lead nowhere; of the addresses in the network only those of this repository's files."""
    for link in links(text):
        own = re.search(r"github(?:\.com)?/kitsseg/kitsseg/(?:blob|tree)/main/([^#?]+)", link)
        target, _, anchor = link.partition("#")
        if own or not re.match(r"[a-z]+:", link):
            there = ROOT / own[1] if own else page.parent / target
            if not there.exists() or (anchor and anchor not in anchors(text_of(there) if target else text)):
                yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    assert list(dead_links(page, text_of(page))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_named_in_the_text_exist(page):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text_of(page))
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_every_page_can_be_reached_from_the_readme_or_the_index():
    seen, ahead = set(), [ROOT / "README.md", ROOT / "docs" / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(text_of(page))]
            ahead += [path for path in targets if path.is_file()]
    assert sorted({*(ROOT / "docs").rglob("*.md")} - seen) == []


def test_dead_links_are_found():
    text = (
        "# What's new in `1.0`?\n## Twice\n## Twice\n"
        "[a](#whats-new-in-10) [b](#twice-1) [c](README.md) [d](docs/papers/README.md#papers)\n"
        '[e](#twice-2) [f](nowhere.md) [g](README.md#nowhere) ![h](<nowhere.png>) <img src="nowhere.svg">\n'
        "[i]: nowhere.txt\n[j](https://github.com/kitsseg/kitsseg/blob/main/nowhere.py) [k](https://example.org/nowhere)\n"
        "[n](https://github.com/kitsseg/kitsseg/blob/main/docs/README.md#documentation)\n"
        "[o](https://github.com/kitsseg/kitsseg/blob/main/docs/README.md#nowhere)\n"
        "`[l](code.md)` [m](docs/papers/README.md#paper)\n"
    )
    dead = {
        "#twice-2",
        "nowhere.md",
        "nowhere.png",
        "nowhere.svg",
        "nowhere.txt",
        "docs/papers/README.md#paper",
    }
    found = set(dead_links(ROOT / "page.md", text))
    assert found == dead | {
        "README.md#nowhere",
        "https://github.com/kitsseg/kitsseg/blob/main/nowhere.py",
        "https://github.com/kitsseg/kitsseg/blob/main/docs/README.md#nowhere",
    }
