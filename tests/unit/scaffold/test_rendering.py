"""Models that `evergreen new` writes: formatted, without faults, and the same each time, whatever the columns are."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.cli.check import find_model_faults
from evergreen.periods import Duration
from evergreen.scaffold.guesses import feature_names
from evergreen.scaffold.rendering import python_literal, spark_interval
from evergreen.settings import REPOSITORY
from evergreen.spec.loader import load_spec
from evergreen.spec.model import FeatureSpec
from support.scaffolds import START, Project, make_project, order_lines

pytestmark = pytest.mark.unit

# The rules of this repository, where model folders may import engines.
RUFF = (
    *("--config", str(REPOSITORY / "pyproject.toml"), "--config", 'lint.isort.known-first-party=["evergreen"]'),
    *("--ignore", "TID253,N812,D100"),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]) -> Project:
    return make_project(tmp_path / "my models", monkeypatch, use_models)


def samples() -> dict[str, tuple[pa.Table, tuple[str, ...]]]:
    """Samples unlike one another, each with the arguments that it needs."""
    count = 400
    numbers = list(range(count))
    day = [date(2026, 1, 2) + timedelta(7 * (n // 20)) for n in numbers]
    hour = [datetime(2026, 3, 28, tzinfo=UTC) + timedelta(minutes=20 * n) for n in numbers]
    clock = [moment.replace(tzinfo=None) for moment in hour]
    names = ["window", "WINDOW_", "class", "label_known_at", "event_timestamp", "CATEGORIES", "rows", "keys"]
    words: dict[str, Any] = {name: [f"{name}-{n % 3}" for n in numbers] for name in names}
    return {
        "order lines": (order_lines(), ("--label", "loss")),
        "weekly amounts": (
            pa.table(
                {
                    "week": day,
                    "shop": [n % 20 for n in numbers],
                    "net": [Decimal(n * 37 % 101) / 4 for n in numbers],
                    "rain": [n * 11 % 13 / 2 for n in numbers],
                }
            ),
            ("--label", "net", "--key", "shop"),
        ),
        "hours without keys": (
            pa.table({"at": hour, "load": [n * 37 % 101 / 4 for n in numbers], "on": [n % 3 == 0 for n in numbers]}),
            ("--label", "on", "--period", "1h", "--label-delay", "3h", "--positive", "false"),
        ),
        "clock times": (
            pa.table({"at": clock, "kind_id": [n % 5 for n in numbers], "ok": [n * 7 % 2 for n in numbers]}),
            ("--label", "ok", "--timezone", "Europe/Berlin", "--label-delay", "0d"),
        ),
        "names of the files' own": (
            pa.table({**words, "day": hour, "label": [n * 7 % 4 % 2 for n in numbers]}),
            ("--label", "label", "--time", "day"),
        ),
        "forecast of series with two keys": (
            pa.table(
                {
                    "Days ahead": [f"s{n % 4}" for n in numbers],
                    "series": [n % 2 for n in numbers],
                    "day": [date(2026, 1, 2) + timedelta(n // 4) for n in numbers],
                    'it\'s "sold"': [None if n % 50 == 3 else n * 37 % 101 / 4 for n in numbers],
                    "price": [n * 11 % 13 / 2 for n in numbers],
                }
            ),
            ("--label", 'it\'s "sold"', "--kind", "forecast", "--key", "Days ahead", "--key", "series"),
        ),
        "forecast of hours, of one series": (
            pa.table({"at": hour * 2, "load": [n * 37 % 101 / 4 for n in range(2 * count)]}),
            ("--label", "load", "--kind", "forecast", "--period", "1h", "--label-delay", "2h", "--horizon", "48"),
        ),
        "forecast of weeks without a season": (
            pa.table({"week": day, "shop": [n % 20 for n in numbers], "net": [n * 37 % 101 for n in numbers]}),
            ("--label", "net", "--kind", "forecast", "--key", "shop", "--horizon", "1"),
        ),
        "forecast of quarters of an hour": (
            pa.table({"at": clock, "who": [f"p{n % 9}" for n in numbers], "y": [Decimal(n) / 8 for n in numbers]}),
            (
                *("--label", "y", "--kind", "forecast", "--timezone", "Asia/Kolkata", "--period", "15min"),
                *("--season", "4", "--label-delay", "1d", "--key", "who"),
            ),
        ),
        "customers of weeks": (
            pa.table(
                {
                    "asked at": [datetime(2026, 1, 5, 6, tzinfo=UTC) + timedelta(weeks=n // 20) for n in numbers],
                    "Customer ID": [n % 20 for n in numbers],
                    "region": [f"r{n % 3}" for n in numbers],
                    "spent": [n * 37 % 101 / 4 for n in numbers],
                    "buys again": [n * 37 % 101 % 2 for n in numbers],
                }
            ),
            ("--label", "buys again", "--label-delay", "4w"),
        ),
        "one class of many numbers": (
            pa.table({"at": hour, "who": [f"p{n % 9}" for n in numbers], "score": [n * 37 % 101 for n in numbers]}),
            ("--label", "score", "--positive", "7", "--timezone", "Europe/Berlin", "--period", "1h"),
        ),
    }


def events() -> dict[str, dict[str, pa.Table]]:
    """Files of events beside some of the samples, by the name of the sample."""
    hours = [datetime(2026, 3, 2, tzinfo=UTC) + timedelta(hours=n) for n in range(600)]
    clock = [datetime(2026, 3, 28) + timedelta(minutes=20 * n) for n in range(400)]
    return {
        "order lines": {
            "Sensor log": pa.table(
                {
                    "Measured at": hours,
                    "store": ["Köln Süd", "東京", None] * 200,
                    "rows": [n / 7 for n in range(600)],
                    'it\'s "°C"': pa.array([Decimal(n) for n in range(600)], pa.decimal128(9, 2)),
                    "Error code": list(range(600)),
                    "event_at": ["text"] * 600,
                    "_at": pa.array(range(600), pa.int16()),
                }
            ),
            "store": pa.table({"Store": ["東京"] * 20, "closed on": [date(2026, 3, n + 2) for n in range(20)]}),
        },
        "weekly amounts": {
            "visits": pa.table(
                {"day": [date(2026, 1, 2) + timedelta(n) for n in range(140)], "Shop": [n % 20 for n in range(140)]}
            )
        },
        "clock times": {
            "history": pa.table({"kind id": pa.array([n % 5 for n in range(400)], pa.int16()), "when": clock})
        },
        "customers of weeks": {
            "examples": pa.table(
                {"customer_id": [n % 20 for n in range(600)], "at": hours, "Paid": [n / 3 for n in range(600)]}
            )
        },
        "one class of many numbers": {
            "rows": pa.table({"who": [f"p{n % 9}" for n in range(400)], "at": clock}),
        },
    }


SAMPLES, EVENTS = samples(), events()


def write_events(name: str, folder: Path) -> list[str]:
    """Write the files of events beside a sample; return the arguments that name them."""
    arguments = []
    for file, table in EVENTS[name].items():
        pq.write_table(table, folder / f"{file}.parquet")
        arguments += ["--events", str(folder / f"{file}.parquet")]
    return arguments


@pytest.mark.parametrize(
    ("name", "has_events"), [*((name, False) for name in SAMPLES), *((name, True) for name in EVENTS)]
)
def test_a_new_model_is_formatted_and_has_no_faults(
    name: str, has_events: bool, project: Project, tmp_path: Path
) -> None:
    table, arguments = SAMPLES[name]
    file = tmp_path / f"{name}.parquet"
    pq.write_table(table, file)
    if has_events:
        arguments += tuple(write_events(name, tmp_path))
    project.new("margin", file, *arguments)
    ruff = [sys.executable, "-m", "ruff"]
    places = [project.folder / place for place in ("models", "feature_repo", "dags", "tests")]
    for command in (["format", "--check", "--diff", *RUFF[:2]], ["check", "--no-cache", *RUFF]):
        done = subprocess.run([*ruff, *command, *places], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert find_model_faults("margin") == []
    spec = load_spec("margin")
    assert isinstance(spec.features, FeatureSpec)
    assert set(spec.features.sources[0].columns) <= set(table.column_names)
    assert not (project.folder / ".evergreen").exists(), "nothing is delivered unless it is asked for"


def test_the_spec_is_what_the_sample_shows(project: Project, tmp_path: Path) -> None:
    pq.write_table(order_lines(), tmp_path / "Order-Lines.parquet")
    output = project.new("margin", tmp_path / "Order-Lines.parquet", "--label", "loss", "--label-delay", "2d").output
    spec = load_spec("margin")
    assert isinstance(spec.features, FeatureSpec)
    [source] = spec.features.sources
    types = {name: (column.type, column.nullable) for name, column in source.columns.items()}
    assert types == {
        "Line ID": ("string", False),
        "sold at": ("timestamp[us, tz=UTC]", False),
        "Store": ("string", False),
        "article_no": ("int64", False),
        "select": ("string", True),
        "Price €": ("float64", False),
        'it\'s `odd`, \\ "quoted"': ("int16", False),
        "rabatt": ("float64", False),
        "gift": ("bool", False),
        "profit": ("float64", False),
        "loss": ("string", True),  # rows of a new day have none yet
    }
    assert (source.name, str(source.trailing)) == ("order_lines", "31d")
    assert spec.features.views == ("store_history", "article_no_history")
    assert spec.request_columns == ("select", "price", "it_s_odd_quoted", "rabatt", "gift", "weekday", "hour")
    assert (spec.label, str(spec.label_delay), spec.owner) == ("loss", "2d", "shop")
    assert str(spec.features.first_day) == str(START.date())
    assert spec.features.last_day is None
    for words in ("they tell the label: 'profit'", "has its own: 'Line ID'", "be declared for them: 'notes'"):
        assert words in output


def test_labels_that_overlap_are_one_piece_of_evidence(project: Project, tmp_path: Path) -> None:
    """Each customer is asked about each week, and a label tells of four: the same purchases are in four labels."""
    table, arguments = SAMPLES["customers of weeks"]
    pq.write_table(table, tmp_path / "asked.parquet")
    output = project.new("again", tmp_path / "asked.parquet", *arguments).output
    spec = load_spec("again")
    assert (spec.clusters, spec.request_columns) == (("day", "customer_id"), ("spent",))
    assert "rows of 'Customer ID' come each week, and their labels overlap" in output.replace("\n", " ")
    project.new("known", tmp_path / "asked.parquet", "--label", "buys again", "--label-delay", "1w")
    assert load_spec("known").clusters == ("day",), "a label tells of its own week only"
    orders = table.append_column("order", pa.array([f"o{n}" for n in range(400)]))
    many_a_week = pa.concat_tables([orders, orders])
    pq.write_table(many_a_week, tmp_path / "orders.parquet")
    project.new("orders", tmp_path / "orders.parquet", *arguments)
    assert load_spec("orders").clusters == ("day",), "each order has a label of its own"


def test_columns_of_a_forecast_hide_none_of_a_sample(project: Project, tmp_path: Path) -> None:
    """Spark would not know which of two is meant."""
    names = ("place", "start", "first", "event_us", "horizon")
    days = [START.date() + timedelta(number) for number in range(40) for _ in range(3)]
    columns = {name: [f"{name}{number % 3}" for number in range(120)] for name in names}
    sample = pa.table({"at": days, **columns, "sold": [n * 37 % 101 for n in range(120)]})
    pq.write_table(sample, tmp_path / "values.parquet")
    project.new("demand", tmp_path / "values.parquet", "--label", "sold", "--kind", "forecast", "--key", "place")
    text = (project.folder / "models/demand/features.py").read_text()
    assert "decimal" not in text, "which would round small values to 0, and has no large ones"
    schemas = re.findall(r'"((?:\w+ (?:int|bigint|string|timestamp)(?:, )?)+)"', text)
    made = {column.split()[0] for schema in schemas for column in schema.rstrip(", ").split(", ")}
    assert {"day", "event_timestamp", "days_ahead", "label_known_at"} < made
    assert all(feature_names([name])[name] != name for name in made - {"days_ahead"})


def test_the_same_sample_gives_the_same_files(project: Project, tmp_path: Path) -> None:
    pq.write_table(order_lines(), tmp_path / "lines.parquet")
    files = []
    for _ in range(2):
        project.new("margin", tmp_path / "lines.parquet", "--label", "loss")
        paths = sorted(path for path in project.folder.rglob("*.py") if path.is_file())
        files.append({path: path.read_bytes() for path in paths})
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "text",
    ["plain", "it's", 'say "x"', "it's \"x\" and 'y'", "back\\slash", "new\nline", "東京", "\x00", "{x}", "\u202e"],
)
def test_literals_are_read_back_and_kept_by_the_formatter(text: str) -> None:
    source = f"x = {python_literal(text)}\n"
    values: dict[str, Any] = {}
    exec(source, values)
    assert values["x"] == text
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "x.py", "-"]
    assert subprocess.run(command, input=source, capture_output=True, text=True).stdout == source


def test_durations_are_written_as_spark_reads_them() -> None:
    texts = ("1d", "12w", "90min", "0h")
    intervals = ["interval 1 day", "interval 12 weeks", "interval 90 minutes", "interval 0 hours"]
    assert [spark_interval(Duration.parse(text)) for text in texts] == intervals


def test_new_loads_no_engine_before_it_is_called() -> None:
    engines = {"duckdb", "feast", "jinja2", "pyarrow", "pyspark"}
    code = f"import sys, evergreen.cli; print(*{engines} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
