"""Samples of every format: their columns, what these say about the label, and the rows of a period."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from evergreen.cli.scaffold import _guess_series
from evergreen.ingest.clock_times import clock_times_of
from evergreen.periods import Calendar
from evergreen.scaffold.files import ScaffoldError
from evergreen.scaffold.guesses import Choices, LabelRelation
from evergreen.scaffold.samples import SampleOrigin, locate_sample, open_sample
from evergreen.settings import settings
from support.scaffolds import START, order_lines

pytestmark = pytest.mark.unit

TABLE = pa.table(
    {
        "at": pa.array([START, START + timedelta(days=1), START + timedelta(days=3)], pa.timestamp("us", "UTC")),
        "n": pa.array([1, 2, None], pa.int64()),
        "city": ["Köln", 'say "x", y', "Köln"],
    }
)
TYPES = {"at": "timestamp[us, tz=UTC]", "n": "int64", "city": "string"}


def write_sample(format_: str, folder: Path) -> SampleOrigin:
    """Write the table in a format; return where it is."""
    file = folder / f"my sample.{format_}"
    match format_:
        case "parquet":
            pq.write_table(TABLE, file)
        case "csv" | "csv.gz":
            rows = [
                "at,n,city",
                *(
                    f"2026-03-{d:02}T06:00:00Z,{n},{c}"
                    for d, n, c in ((2, 1, "Köln"), (3, 2, '"say ""x"", y"'), (5, "", "Köln"))
                ),
            ]
            data = "\n".join(rows).encode()
            file.write_bytes(gzip.compress(data) if format_.endswith("gz") else data)
        case "jsonl":
            lines = [
                {"at": f"{row['at']:%Y-%m-%dT%H:%M:%S}+00:00", "n": row["n"], "city": row["city"]}
                for row in TABLE.to_pylist()
            ]
            file.write_text("\n".join(map(json.dumps, lines)))
        case "delta":
            write_deltalake(str(file), TABLE)
    return locate_sample(str(file))


@pytest.mark.parametrize("format_", ["parquet", "csv", "csv.gz", "jsonl", "delta"])
def test_formats_have_the_same_columns_and_rows(format_: str, tmp_path: Path) -> None:
    origin = write_sample(format_, tmp_path)
    assert origin.name == "my_sample"
    with open_sample(origin) as sample:
        profile = sample.profile()
        assert profile.row_count == 3
        types = {column.name: column.declared for column in profile.columns}
        if format_ == "jsonl":  # JSON has no instants, so what has an offset is read as a time in UTC
            types["at"] = TYPES["at"]
        assert types == TYPES
        number, city = profile.column("n"), profile.column("city")
        assert (number.null_count, number.distinct_count, number.minimum, number.maximum) == (1, 2, 1, 2)
        assert city.values == ("Köln", 'say "x", y')
        rows = sample.rows_of("2026-03-03", "at", ["city", "n"], Calendar("1d", "UTC"))
        assert rows.to_pylist() == [{"city": 'say "x", y', "n": 2}]


@pytest.mark.parametrize("address", ["duckdb", "sqlite"])
def test_a_query_is_read_from_its_database(
    address: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shop.db"
    statements = ["CREATE TABLE sales (n INTEGER, day TEXT)", "INSERT INTO sales VALUES (1, '2026-03-02'), (2, NULL)"]
    database = duckdb.connect(str(file)) if address == "duckdb" else sqlite3.connect(file)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", f"{address}:///{file}")
    settings.cache_clear()
    sql = "SELECT n, day FROM sales WHERE :start < :end ORDER BY n"
    with open_sample(locate_sample("shop", sql)) as sample:
        profile = sample.profile()
    assert {column.name: column.values for column in profile.columns} == {"n": (1, 2), "day": ("2026-03-02",)}


def test_nanoseconds_and_zones_are_read_as_declared(tmp_path: Path) -> None:
    pq.write_table(order_lines(days=3, rows_per_day=9), tmp_path / "lines.parquet")
    calendar = Calendar("1d", "Europe/Berlin")
    with open_sample(locate_sample(str(tmp_path / "lines.parquet"))) as sample:
        assert sample.profile().column("sold at").declared == "timestamp[us, tz=UTC]"
        periods = sample.periods("sold at", calendar)
        assert periods[0] == "2026-03-02"
        rows = [sample.rows_of(period, "sold at", ["sold at"], calendar).num_rows for period in periods]
    assert sum(rows) == 27


@pytest.mark.parametrize(
    ("zone", "expected"), [("Europe/Vienna", "Europe/Vienna"), ("+02:00", None), ("UTC", "UTC"), (None, None)]
)
def test_a_parquet_file_names_the_zone_of_its_clock(zone: str | None, expected: str | None, tmp_path: Path) -> None:
    times = pa.array([datetime(2026, 3, 2, 8)], pa.timestamp("ns", zone))
    pq.write_table(pa.table({"opened at": times, "day": [date(2026, 3, 2)]}), tmp_path / "tickets.parquet")
    with open_sample(locate_sample(str(tmp_path / "tickets.parquet"))) as sample:
        assert sample.timezone("opened at") == expected
        assert sample.timezone("day") is None


@pytest.mark.parametrize(
    ("period", "periods"),
    [
        ("1d", ["2026-03-28", "2026-03-29", "2026-03-30"]),
        ("1w", ["2026-03-23", "2026-03-30"]),
        ("12h", ["2026-03-28T12:00Z", "2026-03-29T00:00Z", "2026-03-29T12:00Z"]),
    ],
)
def test_clock_times_belong_to_one_period_when_clocks_change(period: str, periods: list[str], tmp_path: Path) -> None:
    """On 29 March 2026 clocks in Berlin skip from 2:00 to 3:00."""
    clock = [
        datetime(2026, 3, 28, 23, 30),
        datetime(2026, 3, 29, 2, 30),
        datetime(2026, 3, 29, 23),
        datetime(2026, 3, 30),
    ]
    pq.write_table(pa.table({"at": pa.array(clock, pa.timestamp("us"))}), tmp_path / "c.parquet")
    calendar = Calendar(period, "Europe/Berlin")
    with open_sample(locate_sample(str(tmp_path / "c.parquet"))) as sample:
        assert sample.periods("at", calendar) == periods
        assert sum(sample.rows_of(name, "at", ["at"], calendar).num_rows for name in periods) == 4


@pytest.mark.parametrize("first", [datetime(2026, 3, 7, 12), datetime(2026, 10, 31, 12)])
def test_clock_times_are_of_the_hour_that_spark_reads(first: datetime, tmp_path: Path) -> None:
    """The earlier one of two; of none, as if clocks had not been set forward. They meet the rules of that hour."""
    clock = [first + timedelta(minutes=15 * number) for number in range(24 * 4)]
    pq.write_table(pa.table({"at": pa.array(clock, pa.timestamp("us"))}), tmp_path / "c.parquet")
    calendar, expected = Calendar("1h", "America/New_York"), dict[str, list[datetime]]()
    for time in clock:  # Python's default, fold=0, is as Spark's
        instant = time.replace(tzinfo=ZoneInfo(calendar.timezone)).astimezone(UTC)
        expected.setdefault(calendar.period_at(instant), []).append(time)
    with open_sample(locate_sample(str(tmp_path / "c.parquet"))) as sample:
        periods = list(calendar.periods_between(min(expected), calendar.shift(max(expected), 1)))
        rows = {name: sample.rows_of(name, "at", ["at"], calendar)["at"].to_pylist() for name in periods}
    assert {name: sorted(times) for name, times in rows.items() if times} == expected
    for name, times in expected.items():
        start, end = clock_times_of(calendar, name)
        assert all(start <= time < end for time in times), name


def test_dates_of_one_weekday_are_noticed(tmp_path: Path) -> None:
    days = [date(2026, 1, 2) + timedelta(7 * n) for n in range(5)]
    pq.write_table(pa.table({"week": days}), tmp_path / "w.parquet")
    with open_sample(locate_sample(str(tmp_path / "w.parquet"))) as sample:
        assert sample.weekdays("week") == 1


def test_leaks_tell_the_label_and_other_columns_do_not(tmp_path: Path) -> None:
    table, count = order_lines(), 3600
    loss = table["loss"].to_pylist()
    table = table.append_column("copy", pa.array([f"is {value}" for value in loss]))
    table = table.append_column(
        "paid", pa.array([START + timedelta(hours=n) if value == "no" else None for n, value in enumerate(loss)])
    )
    table = table.append_column("fixed", pa.array([f"{value}{n % 3}" for n, value in enumerate(loss)]))
    pq.write_table(table, tmp_path / "lines.parquet")
    with open_sample(locate_sample(str(tmp_path / "lines.parquet"))) as sample:
        classes = sample.relations("loss", "yes")
        numbers = sample.relations("profit")
    assert {name for name, relation in classes.items() if relation.is_leak} == {"profit", "copy", "paid", "fixed"}
    assert 0.6 < abs(classes["rabatt"].auc - 0.5) + 0.5 < 0.99
    assert not any(relation.is_leak for relation in numbers.values())
    doubled = pa.table({"y": [float(n) for n in range(count)], "cents": [n * 100 for n in range(count)]})
    pq.write_table(doubled, tmp_path / "d.parquet")
    with open_sample(locate_sample(str(tmp_path / "d.parquet"))) as sample:
        assert sample.relations("y")["cents"].is_leak


def test_in_few_rows_nothing_is_suspected(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": [True, False] * 5, "x": [1, 0] * 5}), tmp_path / "f.parquet")
    with open_sample(locate_sample(str(tmp_path / "f.parquet"))) as sample:
        assert not sample.relations("y", True)["x"].is_leak


def relations_of(rows: dict[str, list[Any]], path: Path) -> dict[str, LabelRelation]:
    pq.write_table(pa.table(rows), path)
    with open_sample(locate_sample(str(path))) as sample:
        return sample.relations("y", True)


@pytest.mark.parametrize("positive", [True, False])
def test_of_a_class_with_few_rows_nothing_is_suspected(positive: bool, tmp_path: Path) -> None:
    count = 500
    number, code = list(range(count)), [f"c{n % 20}" for n in range(count)]
    few, enough = [[(n < rows) is positive for n in range(count)] for rows in (4, 5)]
    found = relations_of({"y": few, "number": number, "code": code}, tmp_path / "few.parquet")
    assert not any(relation.is_leak for relation in found.values())
    found = relations_of({"y": enough, "number": number, "code": code}, tmp_path / "enough.parquet")
    assert {name for name, relation in found.items() if relation.is_leak} == {"number"}


def test_texts_that_are_there_once_are_no_leak(tmp_path: Path) -> None:
    """Twelve positive rows, of which each is alone under a code of its own, among 15,000 with another code."""
    codes = [f"c{n}" if n < 12 else "other" for n in range(15_000)]
    found = relations_of({"y": [n < 12 for n in range(15_000)], "code": codes}, tmp_path / "codes.parquet")
    assert not found["code"].is_leak
    codes = ["a" if n < 12 else "other" for n in range(15_000)]
    found = relations_of({"y": [n < 12 for n in range(15_000)], "code": codes}, tmp_path / "one.parquet")
    assert found["code"].is_leak


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"Qty,qty\n1,2\n", "differ only in case"),
        ("a.csv", b"x,x\n1,2\n", "have the same name"),
        ("a.csv", b"1,2\n3,4\n", "has no row with names"),
        ("a.csv", b"", "has no row with names"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.jsonl", b"{", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_fault(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ScaffoldError, match=words) as raised, open_sample(locate_sample(str(tmp_path / name))):
        pass
    assert str(tmp_path / name) in str(raised.value)


def test_parquet_columns_that_differ_in_case_are_a_fault(tmp_path: Path) -> None:
    pq.write_table(pa.table({"Qty": [1], "qty": [2]}), tmp_path / "c.parquet")
    with (
        pytest.raises(ScaffoldError, match="rename all but one"),
        open_sample(locate_sample(str(tmp_path / "c.parquet"))),
    ):
        pass


def test_a_place_without_a_sample_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="there is no such file or table"):
        locate_sample(str(tmp_path / "nothing.parquet"))


def test_a_database_that_no_setting_names_is_a_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERGREEN_CONNECTIONS__SHOP", raising=False)  # an example of the docs sets it
    settings.cache_clear()
    with (
        pytest.raises(ScaffoldError, match="EVERGREEN_CONNECTIONS__SHOP is not set"),
        open_sample(locate_sample("shop", "SELECT 1")),
    ):
        pass


def test_an_empty_sample_has_columns_and_no_rows(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "e.parquet")
    with open_sample(locate_sample(str(tmp_path / "e.parquet"))) as sample:
        profile = sample.profile()
        assert (profile.row_count, profile.names) == (0, ["at", "n", "city"])
        assert sample.relations("n", 1)["city"].auc == 0.5
        assert sample.periods("at", Calendar("1d", "UTC")) == []


def series(tmp_path: Path, table: pa.Table, period: str = "1d", **choices: Any) -> tuple[str, ...]:
    pq.write_table(table, tmp_path / "values.parquet")
    with open_sample(locate_sample(str(tmp_path / "values.parquet"))) as sample:
        chosen = Choices(label="sold", time="at", kind="forecast", **choices)
        return _guess_series(chosen, sample, sample.profile(), Calendar(period, "UTC"))


def values(*sizes: int, days: int = 30, **columns: Callable[..., Any]) -> pa.Table:
    """Return a row for each day and each of the combinations of `sizes` numbers, and columns of these."""
    rows = list(product(range(days), *map(range, sizes)))
    at = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=row[0]) for row in rows]
    made = {name: [column(*row) for row in rows] for name, column in columns.items()}
    return pa.table({"at": at, **made, "sold": [n * 37 % 101 / 4 for n in range(len(rows))]})


def test_series_are_there_in_each_period_and_tell_its_rows_apart(tmp_path: Path) -> None:
    def weather(day: int, *_: int) -> str:
        return ("sun", "rain", "snow")[day * 7 % 3]

    def promo(day: int, *_: int) -> int:
        return int(day % 4 == 0)

    def local(day: int, store: int) -> str:  # in each period, and no series
        return ("sun", "rain")[(day * 5 + store * 3) % 2]

    numbered = values(5, weather=weather, promo=promo, store=lambda _, store: store + 1)
    assert series(tmp_path, numbered) == ("store",)
    assert series(tmp_path, values(5, local=local, store=lambda _, store: store + 1)) == ("store",)
    assert series(tmp_path, values(weather=weather, promo=promo)) == (), "one row for each day is one series"
    two = values(4, 3, weather=weather, shop=lambda _, a, b: a, item=lambda _, a, b: f"{b}")
    assert set(series(tmp_path, two)) == {"shop", "item"}
    hours = pa.table({"at": [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(240)]})
    hours = hours.append_column("sold", pa.array([n % 13 / 2 for n in range(240)]))
    assert series(tmp_path, hours) == ()
    assert series(tmp_path, hours.append_column("hour", pa.array([n % 24 for n in range(240)])), "1h") == ()


def test_series_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    hourly = pa.table(
        {
            "at": [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=37 * n) for n in range(900)],
            "store": [n % 5 for n in range(900)],
            "sold": [n % 13 / 2 for n in range(900)],
        }
    )
    with pytest.raises(ScaffoldError, match="a time of its own, but values of 'store' are in nearly every period"):
        series(tmp_path, hourly)
    assert series(tmp_path, hourly, ignored=("store",)) == ()
    rare = values(8, item=lambda day, n: f"i{day % 5}-{n}")
    with pytest.raises(ScaffoldError, match="which of 'item' name a series cannot be said: no 2 of them .*--key"):
        series(tmp_path, rare)
    three = values(3, 3, 3, a=lambda _, a, b, c: a, b=lambda _, a, b, c: b, c=lambda _, a, b, c: c)
    with pytest.raises(ScaffoldError, match="which of 'a', 'b', 'c' name a series cannot be said"):
        series(tmp_path, three)


def test_series_may_begin_late_and_have_gaps(tmp_path: Path) -> None:
    table = values(5, store=lambda _, store: f"s{store}")
    begun = [row["store"] != "s4" or row["at"].day > 8 for row in table.to_pylist()]
    assert series(tmp_path, table.filter(pa.array(begun))) == ("store",)
    closed = [(row["at"].day + int(row["store"][1])) % 7 > 0 for row in table.to_pylist()]
    assert series(tmp_path, table.filter(pa.array(closed))) == ("store",)
