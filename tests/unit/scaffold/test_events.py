"""Events beside a sample: which can be sources of a model, and what is delivered of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.periods import Calendar
from evergreen.scaffold.events import event_windows
from evergreen.spec.loader import load_spec
from evergreen.spec.model import FeatureSpec
from support.scaffolds import Project, make_project

pytestmark = pytest.mark.unit

FIRST = datetime(2026, 3, 10, 6)
QUESTIONS = pa.table(
    {
        "Machine ID": [f"M{n % 5}" for n in range(100)],
        "asked": [FIRST + timedelta(days=n // 5) for n in range(100)],
        "fails": [n * 7 % 4 == 0 for n in range(100)],
    }
)
BERLIN = ("--label", "fails", "--timezone", "Europe/Berlin", "--label-delay", "0d")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]) -> Project:
    pq.write_table(QUESTIONS, tmp_path / "questions.parquet")
    return make_project(tmp_path / "models of mine", monkeypatch, use_models)


def raw_files(project: Project, source: str) -> dict[str, pa.Table]:
    files = sorted((project.folder / ".evergreen/lake/raw" / source).rglob("*.parquet"))
    return {file.parent.name.removeprefix("day="): pq.read_table(file, partitioning=None) for file in files}


def new(project: Project, *arguments: str, code: int = 0) -> str:
    questions = project.folder.parent / "questions.parquet"
    return project.new("failure", questions, *BERLIN, *arguments, code=code).output.replace("\n", " ")


def write_log(file: Path) -> None:
    """Write events from before the first question until after the last one, as gzipped CSV, with days without."""
    rows = ["machine_id,at,value"]
    for day in range(-20, 25):
        if day not in (3, 4):
            # In the night of 29 March, Berlin has no 2:30.
            moment = datetime(2026, 3, 10, 2, 30) + timedelta(days=day)
            rows.append(f"M{day % 3},{moment.isoformat()},{day}.5")
    file.write_bytes(gzip.compress("\n".join(rows).encode()))


def test_events_are_delivered_for_all_that_examples_use(project: Project, tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv.gz")
    output = new(project, "--events", str(tmp_path / "log.csv.gz"), "--deliver")
    assert "delivered 27 days of questions" in output
    assert "delivered 27 days of log" in output
    log, questions = raw_files(project, "log"), raw_files(project, "questions")
    # A week before the first question, and to the last one.
    assert (min(log), max(log)) == ("2026-03-03", "2026-03-29")
    assert list(log) == list(questions)
    assert [day for day, table in log.items() if not table.num_rows] == ["2026-03-13", "2026-03-14"]
    assert [day for day, table in questions.items() if not table.num_rows] == sorted(log)[:7]
    assert log["2026-03-29"].to_pylist() == [{"machine_id": "M1", "at": datetime(2026, 3, 29, 2, 30), "value": 19.5}]
    assert "delivered 0 days of log; 27 were there" in new(
        project, "--events", str(tmp_path / "log.csv.gz"), "--deliver"
    )

    spec = load_spec("failure")
    assert isinstance(spec.features, FeatureSpec)
    questions_source, source = spec.features.sources
    assert (source.name, str(source.trailing), source.empty_periods, source.known_at) == (
        "log",
        "6d",
        "delivered",
        None,
    )
    assert questions_source.empty_periods == "delivered"
    assert (str(spec.features.first_day), str(spec.features.last_day)) == ("2026-03-03", "2026-03-29")
    assert spec.features.views == ("machine_id_history", "log_history")


def test_instants_are_known_when_they_happen(project: Project, tmp_path: Path) -> None:
    lines = [
        {"Machine ID": f"M{n % 5}", "at": f"{FIRST + timedelta(days=n // 2):%Y-%m-%dT%H:%M:%S}+00:00", "x": n}
        for n in range(40)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    output = new(project, "--events", str(tmp_path / "log.jsonl"))
    assert "deliver a Parquet file of questions and of log per day" in output
    spec = load_spec("failure")
    assert isinstance(spec.features, FeatureSpec)
    source = spec.features.sources[1]
    assert (source.known_at, source.empty_periods) == ("at", "refused")
    assert str(spec.features.first_day) == "2026-03-10"
    assert spec.features.sources[0].empty_periods == "refused"


def test_windows_are_of_whole_periods() -> None:
    windows = [event_windows(Calendar(period, "UTC")) for period in ("1d", "1w", "1h", "15min", "12h")]
    assert windows == [
        {"1d": 1, "7d": 7},
        {"1w": 1, "4w": 4},
        {"1h": 1, "1d": 24},
        {"15min": 1, "1d": 96},
        {"12h": 1, "7d": 14},
    ]


NUMBERS = list(range(60))
AT = pa.array([FIRST.replace(tzinfo=UTC) + timedelta(hours=3 * n) for n in NUMBERS], pa.timestamp("us", "UTC"))
KEY = [f"M{n % 5}" for n in NUMBERS]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"machine": KEY, "at": AT}, "no column of the model's keys, 'Machine ID'; it has 'machine', 'at'"),
        ({"machine_id": NUMBERS, "at": AT}, "'machine_id' is int64, and the key 'Machine ID' of the sample string"),
        ({"machine_id": KEY, "MACHINE-ID": KEY, "at": AT}, "'machine_id', 'MACHINE-ID' are all called like the key"),
        ({"machine_id": KEY, "n": NUMBERS}, "nobody knows when these events happened"),
    ],
)
def test_events_that_cannot_be_joined_are_a_fault(
    columns: dict[str, object], words: str, project: Project, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert words in new(project, "--events", str(tmp_path / "log.parquet"), code=1)
    assert not (project.folder / "models/failure").exists(), "nothing is written"


def test_a_key_of_the_sample_name_is_the_one_that_is_meant(project: Project, tmp_path: Path) -> None:
    columns = {"Machine_ID": NUMBERS, "Machine ID": KEY, "at": AT}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    new(project, "--events", str(tmp_path / "log.parquet"))
    text = (project.folder / "models/failure/features.py").read_text()
    assert 'F.col("`Machine ID`").cast("string").alias("machine_id")' in text
    assert "Machine_ID" not in text, "a code is no number"


def test_names_and_times_that_do_not_fit_are_faults(project: Project, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    log, twin, old = tmp_path / "log.parquet", tmp_path / "other" / "LOG.parquet", tmp_path / "old.parquet"
    clock, same = tmp_path / "clock.parquet", tmp_path / "other" / "questions.parquet"
    for file in (log, twin, same):
        pq.write_table(pa.table({"machine_id": KEY, "at": AT}), file)
    pq.write_table(pa.table({"machine_id": KEY, "at": [FIRST - timedelta(days=900 - n) for n in NUMBERS]}), old)
    pq.write_table(pa.table({"machine_id": KEY, "at": AT.cast(pa.timestamp("us"))}), clock)
    output = new(project, "--events", str(log), "--events", str(twin), code=1)
    assert "2 faults" in output
    assert "would be the source 'log', as another file is → rename one of the files" in output
    assert "would be the source 'questions'" in new(project, "--events", str(same), code=1)
    assert "no rows from 2026-03-10 to 2026-03-29" in new(project, "--events", str(old), code=1)
    assert "there is no such file" in new(project, "--events", str(tmp_path / "none.csv"), code=1)
    pq.write_table(QUESTIONS.append_column("y", pa.array(range(100))), tmp_path / "questions.parquet")
    arguments = ("--label", "y", "--kind", "forecast", "--key", "Machine ID", "--timezone", "UTC")
    project.new("series", tmp_path / "questions.parquet", *arguments)
    refused = project.new("failures", tmp_path / "questions.parquet", *arguments, "--events", str(log), code=1).output
    assert "let features.py read them as a second source" in refused
    zoned = QUESTIONS.set_column(1, "asked", QUESTIONS["asked"].cast(pa.timestamp("us", "UTC")))
    pq.write_table(zoned, tmp_path / "zoned.parquet")
    arguments = ("--label", "fails", "--events", str(clock))
    output = project.new("failures", tmp_path / "zoned.parquet", *arguments, code=1).output
    assert "'at' has no time zone, so nobody knows which instants these are" in output.replace("\n", " ")


def test_the_time_of_events_is_not_guessed_where_it_could_leak(project: Project, tmp_path: Path) -> None:
    """An event that counts before its values were known is a leak: a birthday, or midnight of the day it happened."""
    days = [date(2026, 3, 10) + timedelta(days=n // 5) for n in range(100)]
    table = pa.table({"Machine ID": QUESTIONS["Machine ID"], "ordered": days, "came": QUESTIONS["asked"]})
    pq.write_table(table, tmp_path / "parts.parquet")
    pq.write_table(table.drop_columns(["ordered", "came"]), tmp_path / "none.parquet")
    files = ("--events", f"{tmp_path}/parts.parquet", "--events", f"{tmp_path}/none.parquet")
    output = new(project, *files, code=1)
    assert "events: 2 faults" in output, "of all files at once"
    assert "'ordered', 'came' have times" in output
    assert f"--events {tmp_path}/parts.parquet::came" in output.replace(" " * 2, "")
    assert "no column has times" in output
    assert "'order' is no column with times" in new(project, "--events", f"{tmp_path}/parts.parquet::order", code=1)
    output = new(project, "--events", f"{tmp_path}/parts.parquet::ordered", "--period", "1h", code=1)
    assert "'ordered' has dates, and with periods of 1h an event would count from midnight on" in output
    new(project, "--events", f"{tmp_path}/parts.parquet::came")
    spec = load_spec("failure")
    assert isinstance(spec.features, FeatureSpec)
    assert "parts_history" in spec.features.views
