"""Links inside the documentation, and paths of pages that the code names, lead somewhere. None needs the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import DOCS, PAGES, ROOT, heading_anchors, links, page_name

pytestmark = pytest.mark.unit

NAMED_PAGE = re.compile(r"\bdocs/[\w/.-]*\w\.(?:md|png|svg)\b")
SOURCES = ("include", "dags", "plugins", "feature_repo", "tests", "benchmarks", "deploy", "trainer")


def source_files() -> Iterator[Path]:
    for folder in SOURCES:
        yield from (
            f for f in (ROOT / folder).rglob("*") if f.is_file() and f.suffix in (".py", "", ".yaml", ".j2", ".env")
        )
    yield from (ROOT / name for name in ("Makefile", "pyproject.toml", "docker-compose.yaml"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_internal_links_exist(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in heading_anchors(target)):
            broken.append(link)
    assert not broken


def test_pages_named_in_code_exist() -> None:
    missing = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in source_files()
        if "__pycache__" not in file.parts
        for name in NAMED_PAGE.findall(file.read_text())
        if not (ROOT / name).exists()
    }
    assert not missing


def test_every_page_is_in_the_table_of_contents() -> None:
    trees = "".join((DOCS / name).read_text() for name in ("index.md", "decisions/index.md"))
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.is_relative_to(DOCS)]
    listed = set(trees.split("\n"))
    decisions = {page for page in pages if page.startswith("decisions/0")}
    assert not set(pages) - listed - decisions - {"index"}
