"""What a notebook shows of a preview and a check: HTML in which nothing of the data is markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import notebook
from evergreen.cli.check.locations import ModelFault
from evergreen.cli.check.period import TableSample
from evergreen.reports.table_profile import profile_table
from support.scaffolds import make_project, order_lines
from support.small_models import UseModels

pytestmark = pytest.mark.unit

HOSTILE = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def assert_is_harmless(page: Page) -> None:
    assert not {"script", "img", "iframe"} & {*page.tags}
    assert not {name for name in page.attributes if name.startswith("on")}


def test_a_preview_shows_rows_and_plots_as_text(tmp_path: Path) -> None:
    table = pa.table({HOSTILE: [HOSTILE, None], "x": [1.5, 2.5]})
    pq.write_table(table, tmp_path / "t.parquet")
    sample = TableSample(profile_table("t", tmp_path / "t.parquet"), table.to_pylist())
    page = Page(notebook.FeaturePreview("shop", "2026-03-02", [sample])._repr_html_())
    assert_is_harmless(page)
    assert page.tags.count("svg") == 1
    assert {HOSTILE, f"{HOSTILE}: string", "–", "2.5", "t of shop, 2026-03-02: 2 rows"} <= {*page.texts}


def test_a_check_shows_faults_and_steps_as_text(home: Path) -> None:
    faults = [ModelFault(Path(f"{HOSTILE}.py"), 3, HOSTILE, HOSTILE, HOSTILE)]
    steps = [{"step": "raw data", "state": "failed", "seconds": 1.25, "detail": HOSTILE}]
    page = Page(notebook.ModelCheck("shop", "2026-03-02", faults, steps)._repr_html_())
    assert_is_harmless(page)
    assert {f"{HOSTILE}.py, line 3: {HOSTILE}", HOSTILE, "✗ shop on 2026-03-02: 1 fault", "raw data"} <= {*page.texts}


def test_files_are_read_as_they_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels) -> None:
    project = make_project(tmp_path / "project", monkeypatch, use_models)
    pq.write_table(order_lines(days=5), tmp_path / "lines.parquet")
    project.new("margin", tmp_path / "lines.parquet", "--label", "loss")
    assert notebook.check("margin").passed
    file = project.folder / "models/margin/model.py"
    text = file.read_text()
    file.write_text(text.replace('label="loss"', 'label="lost"'))
    result = notebook.check("margin")
    assert "did you mean 'loss'?" in result._repr_html_().replace("&#39;", "'")
    assert str(result).startswith("margin: 1 faults")
    file.write_text(text)
    assert notebook.check("margin").passed
