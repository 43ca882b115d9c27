"""The Markdown files of the documentation: their code blocks, headings and links."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXTENSIONS = DOCS / "_ext"
PAGES = sorted([*ROOT.glob("*.md"), *(file for file in DOCS.rglob("*.md") if "_build" not in file.parts)])

_DIRECTIVE = re.compile(r"^```\{(evergreen-\w+)\}(?: (\S+))?\n```$", re.MULTILINE)
_INCLUDE = re.compile(r"^```\{include\} (\S+)\n(?:.*\n)*?```$", re.MULTILINE)
_FENCE = re.compile(r"^( *)(`{3,}|:{3,})[^\n]*\n.*?^\1\2$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)
_LINK = re.compile(r"(?<!\\)!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_FILE = re.compile(r"```\w+\n# ([\w./-]+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def reference_tables() -> ModuleType:
    """Return the module that generates the reference."""
    if str(EXTENSIONS) not in sys.path:
        sys.path.append(str(EXTENSIONS))
    import reference_tables as tables

    return tables


def read_page(page: Path) -> str:
    """Return a page as the site shows it, with what is generated and included."""
    text = _INCLUDE.sub(lambda match: (page.parent / match[1]).read_text(), page.read_text())
    return _DIRECTIVE.sub(lambda match: reference_tables().render_directive(*filter(None, match.groups())), text)


def read_prose(page: Path) -> str:
    """Return a page without code blocks and comments."""
    return _COMMENT.sub("", _FENCE.sub("", read_page(page)))


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of all headings, made as GitHub and MyST make them."""
    anchors: dict[str, int] = {}
    for _, title in _HEADING.findall(read_prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        anchors[slug] = anchors.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, count in anchors.items() for n in range(count + 1)}


def links(page: Path) -> Iterator[str]:
    """Yield the target of each link and picture."""
    # A page that is included elsewhere is checked where it stands.
    text = _COMMENT.sub("", _FENCE.sub("", _INCLUDE.sub("", page.read_text())))
    text = re.sub(r"`[^`\n]*`", "", text)
    yield from _LINK.findall(text)


def documented_files(page: Path) -> dict[str, str]:
    """Return the files that a page shows whole: blocks whose first line is a comment with a path."""
    return dict(_FILE.findall(page.read_text()))


def table_below(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head, as the text of their cells."""
    _, _, text = page.read_text().partition(f"{heading}\n")
    rows = re.search(r"^\|.*\n\|[-|: ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert rows, f"{page_name(page)} has no table below {heading!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
