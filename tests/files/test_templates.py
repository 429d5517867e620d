"""Templates: every value is escaped, a missing one is an error."""

import pytest
from jinja2 import UndefinedError

from kitsseg.files.templates import escape_markdown, render_html, render_markdown


def test_html_is_escaped_and_a_missing_value_is_an_error():
    page = render_html("kitsseg.report", "no_picture.html", reason="<b>&\"'")
    assert page.strip() == '<p class="missing">No picture: &lt;b&gt;&amp;&#34;&#39;</p>'
    with pytest.raises(UndefinedError, match="reason"):
        render_html("kitsseg.report", "no_picture.html")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unet2d:micro", "unet2d:micro"),
        ("a\n# b", "a # b"),
        ("<script>", "&lt;script&gt;"),
        ("a|b", r"a\|b"),
        ("[x](y) `z` *w*", r"\[x\](y) \`z\` \*w\*"),
    ],
)
def test_text_in_markdown_stays_text(text, expected):
    assert escape_markdown(text) == expected


def test_markdown_has_code_spans_that_nothing_closes(tmp_path):
    class Record(dict):
        __getattr__ = dict.__getitem__

    record = Record(
        recipe="a <b>\n# c",
        phantom=False,
        paper="x | y",
        split=Record(name="s`p``lit", hash="h"),
        given={"`k": "<v>"},
        parent=None,
        seed=1,
        settings=Record(preprocess={"x": "'"}, inference={}, postprocess=None),
    )
    values = {"counts": "1 train", "limits": "", "seen": 0, "seconds": "3", "versions": "keras 3"}
    phase = {"name": "p|q", "epochs": 1, "first": 0.5, "last": 0.25}
    card = render_markdown("kitsseg.records", "model_card.md", record=record, phases=[phase], **values)
    assert card.startswith("# a &lt;b&gt; # c\n\nA network")
    assert "Split ```s`p``lit``` by patient" in card
    assert "| p\\|q | 1 | 0.5000 | 0.2500 |\n\nGiven by the user" in card
    assert "`` `k `` = &lt;v&gt;." in card
    assert """Preprocessing: `{"x": "'"}`""" not in card and "Preprocessing: `{'x': \"'\"}`" in card
    assert card.endswith("annotators.\n") and "\n\n\n" not in card
