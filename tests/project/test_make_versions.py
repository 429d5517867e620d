"""The versions in the tables of docs/dependencies.md come from the constraints of the last green tests."""

import pytest
from support import ROOT
from support.scripts import script

pytestmark = pytest.mark.skipif(
    not (ROOT / "scripts" / "make_versions.py").is_file(), reason="not a source tree"
)

SETUP = """[options]
install_requires =
    numpy>=1.26
    Jinja2>=3.1
[options.extras_require]
export = onnx>=1; tf2onnx
openvino = openvino
test =
    pytest
"""
PAGE = """# Dependencies

| package | tests green with | used for |
|---|---|---|
| numpy | | arrays |
| Jinja2 | 1.0 | pages |

| extra | packages | tests green with | what for |
|---|---|---|---|
| `export` | | | files |
| `openvino` | | | an engine |
"""


def test_versions_are_those_of_the_constraints_whatever_a_name_looks_like():
    page = script("make_versions").with_versions(
        PAGE, SETUP, "# a==1\njinja2==3.1.6\nnumpy==2.4.6\nonnx==1.23\nTF2onnx==1.17\n"
    )
    assert "| numpy | 2.4.6 | arrays |" in page
    assert "| Jinja2 | 3.1.6 | pages |" in page
    assert "| `export` | onnx, tf2onnx | 1.23, 1.17 | files |" in page
    assert "| `openvino` | openvino | none: its tests are skipped | an engine |" in page


@pytest.mark.parametrize(
    ("old", "new", "odd"),
    [
        ("| numpy | | arrays |\n", "", "numpy"),
        ("| numpy | | arrays |\n", "| numpy | | arrays |\n| scipy | | trees |\n", "scipy"),
        ("| `export` | | | files |\n", "", "`export`"),
        ("| `export` |", "| `exports` |", "`exports`"),
    ],
)
def test_a_row_that_setup_cfg_does_not_have_or_that_the_table_lacks_is_named(old, new, odd):
    with pytest.raises(ValueError, match=odd):
        script("make_versions").with_versions(PAGE.replace(old, new), SETUP, "numpy==2.4.6\n")
