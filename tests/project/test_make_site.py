"""A dead link ends the build of the documentation site; needs the extra docs."""

import pytest
from support import ROOT
from support.scripts import script

pytestmark = pytest.mark.skipif(not (ROOT / "scripts" / "make_site.py").is_file(), reason="not a source tree")


@pytest.mark.parametrize(
    ("link", "told"),
    [("there.md#heading", None), ("there.md#elsewhere", "#elsewhere"), ("nowhere.md", "nowhere.md")],
)
def test_a_link_to_a_page_or_heading_that_is_not_there_is_an_error(link, told, tmp_path):
    pytest.importorskip("material")
    make_site = script("make_site")
    pages, site = tmp_path / "pages", tmp_path / "site"
    pages.mkdir()
    (pages / "README.md").write_text(f"# Front\n\n[link]({link})\n")
    (pages / "there.md").write_text("# There\n\n## Heading\n")
    if told is None:
        make_site.build(pages, site, ["README.md", "there.md"])
        assert (site / "there.html").is_file()
    else:
        with pytest.raises(SystemExit, match=told):
            make_site.build(pages, site, ["README.md", "there.md"])
