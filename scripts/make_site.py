"""Build the documentation site: python scripts/make_site.py FOLDER

mkdocs turns the pages of docs/ and the notebooks of colab/ into a site with search; scripts/make_api.py adds the API
reference in FOLDER/api. The pages are copied first. In the copies, a link to a file outside of docs/ becomes a link to
the repository, and each notebook becomes a page. A warning of mkdocs, for example about a link that leads nowhere, is
an error. Needs ``pip install ".[docs]"``.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/kitsseg/kitsseg"
NOTEBOOKS = "notebooks"
NAV = {
    "Getting started": ["getting_started.md"],
    "How to": [
        "own_data.md",
        "slices.md",
        "colab.md",
        "clusters.md",
        "lighter.md",
        "starter.md",
        "troubleshooting.md",
    ],
    "Notebooks": [],
    "Reference": ["commands/README.md", "networks.md", "splits.md", "python.md", "dependencies.md"],
    "Papers": ["papers/README.md"],
    "Explanation": ["results.md", "real_slices.md", "phantoms.md", "speed.md", "architecture.md"],
}
CONFIG = {
    "site_name": "kitsseg",
    "site_description": "Kidney and kidney tumor segmentation in CT with Keras 3",
    "repo_url": REPOSITORY,
    "use_directory_urls": False,
    "strict": True,
    "theme": {
        "name": "material",
        "font": False,  # nothing is fetched from another host
        "features": ["navigation.indexes", "toc.follow", "content.code.copy"],
        "palette": [
            {"media": "(prefers-color-scheme: light)", "scheme": "default"},
            {"media": "(prefers-color-scheme: dark)", "scheme": "slate"},
        ],
    },
    "plugins": ["search"],
    "markdown_extensions": ["tables", "fenced_code", "toc"],
    "validation": {"links": {"anchors": "warn", "not_found": "warn"}, "omitted_files": "ignore"},
}


def stage(folder: Path) -> None:
    """Copy all pages into a folder, with links that hold there."""
    shutil.copytree(ROOT / "docs", folder, dirs_exist_ok=True)
    (folder / NOTEBOOKS).mkdir()
    for path in sorted((ROOT / "colab").glob("*.ipynb")):
        text = _page_of(json.loads(path.read_text(encoding="utf-8")))
        (folder / NOTEBOOKS / f"{path.stem}.md").write_text(text, encoding="utf-8")
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(_relinked(text, page.parent, folder), encoding="utf-8")


def _page_of(notebook: dict) -> str:
    """A notebook as Markdown; it has no outputs."""
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).rstrip()
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(cells) + "\n"


def _relinked(text: str, here: Path, folder: Path) -> str:
    """Links out of docs/ lead to the repository, those to notebooks to their pages; code is left alone."""

    def target(match: re.Match[str]) -> str:
        link, _, anchor = match[2].partition("#")
        there = (here / link).resolve()
        if re.match(r"[a-z]+:|#", match[2]) or there.is_relative_to(folder.resolve()):
            return match[0]
        original = (ROOT / "docs" / here.relative_to(folder) / link).resolve().relative_to(ROOT.resolve())
        if original.parts[0] == "colab" and original.suffix == ".ipynb":
            up = "../" * len(here.relative_to(folder).parts)
            return f"{match[1]}{up}{NOTEBOOKS}/{original.stem}.md{match[3]}"
        kind = "tree" if (ROOT / original).is_dir() else "blob"
        return f"{match[1]}{REPOSITORY}/{kind}/main/{original.as_posix()}{'#' + anchor if anchor else ''}{match[3]}"

    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
    return "".join(
        part if part.startswith("```") else re.sub(r"(\]\(<?)([^)\s>]+)(>?\))", target, part)
        for part in parts
    )


def navigation(folder: Path) -> list:
    """The pages in the order of NAV, with those of folders behind their first one."""
    nav: list = [{"kitsseg": "README.md"}]
    for title, pages in NAV.items():
        found = list(pages)
        if title == "Notebooks":
            found = [f"{NOTEBOOKS}/{path.name}" for path in sorted((folder / NOTEBOOKS).glob("*.md"))]
        for page in pages:
            if "/" in page:
                inside = sorted((folder / page).parent.glob("*.md"))
                found += [path.relative_to(folder).as_posix() for path in inside if path.name != "README.md"]
        nav.append({title: found} if len(found) > 1 else {title: found[0]})
    nav.append({"API": "api/index.html"})
    return nav


def build(pages: Path, folder: Path, nav: list) -> None:
    """Make the site of a folder of pages; a warning of mkdocs ends the script with the warning."""
    config = CONFIG | {"docs_dir": str(pages), "site_dir": str(folder), "nav": nav}
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        # not --quiet: it would drop the warnings before --strict counts them
        built = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-m", "mkdocs", "build", "--strict"],
            cwd=temporary,
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
    if built.returncode:
        sys.exit(built.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        pages = Path(temporary) / "docs"
        stage(pages)
        subprocess.run([sys.executable, ROOT / "scripts" / "make_api.py", pages / "api"], check=True)
        build(pages, folder, navigation(pages))
    print(f"{len(list(folder.rglob('*.html')))} pages: {folder / 'index.html'}")


if __name__ == "__main__":
    main()
