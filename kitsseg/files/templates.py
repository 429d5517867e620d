"""Text files from Jinja2 templates, which lie as package data in the folder ``templates`` of a package.

Every value is escaped unless it is markup already: in HTML and SVG by Jinja2's own rules, in Markdown by
``escape_markdown``. A name that a template uses and the caller does not give is an error instead of empty text.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["escape_markdown", "read_asset", "render_html", "render_markdown"]

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def render_html(package: str, name: str, /, **values: object) -> Markup:
    """Fill a template of HTML or SVG.

    Args:
        package: such as "kitsseg.report".
        name: of the template in the folder ``templates`` of the package.
        values: what the template names; text is escaped, ``Markup`` is not.
    """
    from markupsafe import Markup

    return Markup(_environment(package, markdown=False).get_template(name).render(values))


def render_markdown(package: str, name: str, /, **values: object) -> str:
    """Fill a template of Markdown. Args: as ``render_html``. The filter ``code`` makes a code span of a value."""
    return _environment(package, markdown=True).get_template(name).render(values)


def read_asset(package: str, name: str) -> Markup:
    """A style sheet or script of the folder ``templates``, to be put into a page as it is."""
    from markupsafe import Markup

    return Markup((resources.files(package) / "templates" / name).read_text(encoding="utf-8"))


def escape_markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(str(value).split())
    text = re.sub(r"[\\`*|\[\]]", lambda found: f"\\{found.group()}", text)
    return re.sub("[&<>]", lambda found: _ENTITIES[found.group()], text)


class _Code(str):
    """A code span: Markdown, not to be escaped again."""


def _code(value: object) -> _Code:
    """A code span whose fence is longer than any run of backticks in the text."""
    text = " ".join(str(value).split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    space = " " if text.startswith("`") or text.endswith("`") or not text else ""
    fence = "`" * (longest + 1)
    return _Code(f"{fence}{space}{text}{space}{fence}")


@cache
def _environment(package: str, markdown: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=not markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize if markdown else None,
    )
    environment.filters["number"] = _number
    environment.filters["code"] = _code
    return environment


def _finalize(value: object) -> object:
    return value if isinstance(value, _Code) else escape_markdown(value)


def _number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point; "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"
