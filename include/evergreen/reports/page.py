"""What all report pages share: the Jinja environment and the style of plots. No scripts, nothing fetched.

Equal inputs give equal bytes: plots have no date, no random ids, and ignore the user's matplotlibrc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from evergreen.reports import formatting

_PLOT_SETTINGS: Any = {
    "svg.hashsalt": "evergreen",  # else ids are random
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names are data: a dollar sign is a dollar sign
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5a0",
    "axes.labelcolor": "#5d6a64",
    "xtick.color": "#5d6a64",
    "ytick.color": "#5d6a64",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e7ece9",
    "axes.axisbelow": True,
    "date.converter": "concise",
}


@cache
def jinja_environment() -> Environment:
    """Return the environment of `templates/`: text is escaped, and an undefined name is an error."""
    environment = Environment(
        loader=PackageLoader("evergreen.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": formatting.format_number,
        "signed": formatting.format_signed,
        "interval": formatting.format_interval,
        "percent": formatting.format_percent,
        "outcome": formatting.format_outcome,
        "count": "{:,}".format,
    }
    return environment


@contextmanager
def plot_style() -> Iterator[None]:
    """Draw figures in the style of the pages, whatever the user's matplotlibrc."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_PLOT_SETTINGS)
        yield


def render_svg(figure: Figure, title: str) -> Markup:
    """Return the figure as an element of a page; screen readers read `title`. Call inside `plot_style`."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside a page, namespaces are not needed, and the ids of groups would repeat from plot to plot.
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))  # noqa: S704 - drawn here
