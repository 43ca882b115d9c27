"""What every page of Evergreen's shares: its look, and plots drawn into the page. No scripts, nothing fetched.

Equal inputs give equal bytes: plots carry no date and no random ids, and no settings of whoever draws them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

OUTCOME_SYMBOLS = {"passed": "✓", "failed": "✗", "not_computed": "?"}

PAGE_CSS = """\
:root { --ink: #1b2420; --soft: #5d6a64; --line: #dfe5e1; --paper: #fff; --wash: #f5f8f6; --green: #0b6e4f;
  --passed: #0b6e4f; --failed: #b3361e; --blocked: #8a5c00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1340px; margin: 0 auto; padding: 36px 28px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 4px; }
p { margin: 0 0 10px; }
.soft, .note { color: var(--soft); }
.note { font-size: 13px; }
.finding { font-size: 17px; margin: 18px 0 22px; padding: 14px 18px; background: var(--paper);
  border-left: 4px solid var(--green); border-radius: 0 6px 6px 0; max-width: none; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  padding: 20px 22px; margin: 0 0 20px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--soft); border-bottom: 1px solid var(--line);
  padding: 6px 10px; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: 7px 10px; vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.rule { display: block; font-weight: 400; color: var(--soft); font-size: 13px; white-space: normal; }
.number .rule { white-space: nowrap; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
.mark { display: inline-block; min-width: 6.4em; padding: 0 7px; border-radius: 4px; }
.mark[title] { cursor: help; }
.passed { color: var(--passed); background: #e8f3ee; }
.failed { color: var(--failed); background: #fbe9e5; font-weight: 600; }
.not_computed { color: var(--blocked); background: #fdf3dc; font-weight: 600; }
dl { margin: 0; } dt { font-weight: 600; margin-top: 10px; } dd { margin: 0; }
code { font-size: 12px; color: var(--soft); }
@media print {
  body { background: #fff; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  section, tr, svg { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""


def jinja_environment() -> Environment:
    """Templates of pages, with `style` and `marks`: text is escaped, and a name that is not there is an error."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    made.globals |= {"style": Markup(PAGE_CSS), "marks": OUTCOME_SYMBOLS}  # noqa: S704 - written above
    return made


@contextmanager
def plot_style() -> Iterator[None]:
    """Figures made in here look alike, whatever matplotlibrc their maker has."""
    import matplotlib

    fixed: Any = {
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
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(fixed)
        yield


def render_svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page; `title` is what is read aloud in its place. Only inside `drawing`."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Within a page, names of formats say nothing, and groups of several plots would share their ids.
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn)
    drawn = drawn.replace("xlink:href=", "href=")
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
