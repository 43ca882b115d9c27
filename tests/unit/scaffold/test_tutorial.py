"""The data of the tutorial: where it comes from, and how it is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from evergreen.cli import app
from support.documents import DOCS

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(code: int = 0) -> str:
    result = CliRunner().invoke(app, ["tutorial-data"])
    assert result.exit_code == code, result.output
    return result.output


def test_the_data_is_what_the_script_makes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from tutorial_data import make_tutorial_data

    write()
    shipped = folder / "weather.parquet"
    assert pq.read_table(shipped).equals(make_tutorial_data())
    assert shipped.stat().st_size < 300_000


def test_the_label_is_rain_of_the_next_six_hours(folder: Path) -> None:
    """By a loop over the rows, of all that are followed by six observed hours."""
    write()
    rows = pq.read_table(folder / "weather.parquet").to_pylist()
    rain = {(row["airport"], row["observed_at"].timestamp() // 3600): row["precipitation"] > 0 for row in rows}
    labels = []
    for airport, hour in rain:
        following = [rain.get((airport, hour + ahead)) for ahead in range(1, 7)]
        labels.append(None if None in following else "yes" if any(following) else "no")
    end = max(hour for _, hour in rain)
    compared = [
        (label, row["rain_within_6h"])
        for label, row, (_, hour) in zip(labels, rows, rain, strict=True)
        if hour <= end - 6  # later ones look at hours that do not ship
    ]
    assert len(compared) > 6000
    assert {label for label, _ in compared} == {"yes", "no", None}
    assert all(label == shipped for label, shipped in compared)


def test_it_is_written_twice_and_over_no_other_file(folder: Path) -> None:
    assert write() == write() == "✓ weather.parquet\n"
    (folder / "weather.parquet").write_text("mine")
    error = "weather.parquet: exists, and is another file → remove it, or go to another folder"
    assert error in write(code=1)
    assert (folder / "weather.parquet").read_text() == "mine"


@pytest.mark.parametrize("target", ["nowhere", "other.parquet"])
def test_no_link_is_followed(folder: Path, target: str) -> None:
    (folder / "other.parquet").write_text("mine")
    (folder / "weather.parquet").symlink_to(target)
    write(code=1)
    assert not (folder / "nowhere").exists()
    assert (folder / "other.parquet").read_text() == "mine"
