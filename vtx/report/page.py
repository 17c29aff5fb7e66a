"""A report as one file of HTML that asks no network for anything.

The library of charts, the style and the data are in the page. A content security policy lets no
script run but those that were put there, whatever a name in a trace contains; names are escaped all
the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from vtx.lab.extras import need
from vtx.lab.table import Table

__all__ = ["ExitList", "Figure", "Page", "chart_text", "render"]

_WHAT = "a report in HTML"


@dataclass(frozen=True)
class Figure:
    """A chart: traces and layout as Plotly's JSON has them, without colours of page and text."""

    title: str
    note: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    wide: bool = False


@dataclass(frozen=True)
class ExitList:
    """The exits that a reader can go through.

    Parameters
    ----------
    note : str
        Which exits these are.
    data : dict
        What the page's script reads: packed columns, layouts, changes.
    """

    note: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """What a report says, from top to bottom.

    Parameters
    ----------
    title, subtitle : str
        The heading.
    facts : sequence of (str, str)
        The most important figures, by name.
    warnings : sequence of str
        What the reader should know first.
    figures : sequence of Figure
        The charts.
    exits : ExitList, optional
        The exits.
    tables : sequence of Table
        The figures behind the charts.
    pictures : sequence of (str, str)
        Titles and SVG elements, which are put there as they are.
    texts : sequence of (str, str)
        Titles and texts, such as the guest's console.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    exits: ExitList | None = None
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, str]] = ()
    texts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def chart_text(text: str) -> str:
    """Return text for a chart, whose labels understand some HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def render(page: Page) -> str:
    """Return the page.

    Raises
    ------
    UsageError
        The libraries of the extra ``html`` are not installed.
    """
    import vtx

    jinja2 = need("jinja2", "html", _WHAT)
    markup = need("markupsafe", "html", _WHAT).Markup
    utils = need("jinja2.utils", "html", _WHAT)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    scripts = [_plotly(), _template("charts.js"), _template("exits.js")]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    data = {
        "figures": [{"data": f.data, "layout": f.layout} for f in page.figures],
        "exits": page.exits.data if page.exits else None,
    }
    html: str = environment.from_string(_template("page.html")).render(
        page=_marked(page, markup),
        policy=_policy(scripts),
        version=vtx.__version__,
        style=markup(_template("page.css")),
        data=utils.htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
        scripts=[markup(script) for script in scripts],
    )
    return html


def _marked(page: Page, markup: Any) -> Page:
    """Return the page with its pictures marked as HTML."""
    from dataclasses import replace

    return replace(page, pictures=[(title, markup(picture)) for title, picture in page.pictures])


def _template(name: str) -> str:
    return resources.files("vtx.report").joinpath("templates", name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Return the library of charts out of its package."""
    need("plotly", "html", _WHAT)
    script = resources.files("plotly").joinpath("package_data", "plotly.min.js")
    return script.read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Return a content security policy under which only these scripts run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
