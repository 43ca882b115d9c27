"""Queries on a real Postgres: types, faults, and memory that does not grow with rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy

from evergreen.ingest.extracts import refresh_extracts
from evergreen.ingest.raw_files import RawFile, find_parts
from evergreen.settings import settings
from evergreen.spec.model import FeatureSpec, RawSource
from support import servers

pytestmark = pytest.mark.integration

DAY = date(2013, 3, 1)
INSTANT = "timestamp[us, tz=UTC]"
NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
BOUNDS = "WHERE :start <= timestamptz '2013-03-01 12:00Z' AND timestamptz '2013-03-01 12:00Z' < :end"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if reason := servers.no_postgres():
        pytest.skip(reason)
    with servers.postgres() as address:
        yield address.replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture
def connection(url: str, home: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", url)
    settings.cache_clear()
    return url


def extract(values: str, declared: Any, **fields: Any) -> tuple[list[str], list[Any]]:
    """Select values, one a row, as the source's column `x`; return the faults, and what was read."""
    sql = f"SELECT v AS x FROM (VALUES {values}) t(v) {BOUNDS}"
    source = RawSource(name="rides", columns={"x": declared}, query=dict(connection="shop", sql=sql), **fields)
    spec = FeatureSpec(timezone="Europe/Berlin", first_day=DAY, sources=(source,), views=("v",), spine="s")
    file = RawFile.from_source(source, DAY)
    faults = [str(fault) for problems in refresh_extracts(spec, [file]).values() for fault in problems]
    parts = find_parts(file)
    return faults, pq.read_table(parts[0].path)["x"].to_pylist() if parts else []


READ = {
    "integers": ("(1::bigint), (NULL)", "int64", [1, None]),
    "small integers": ("(1::smallint)", "int16", [1]),
    "numeric": ("(1.50::numeric), (2)", "decimal128(10, 2)", [Decimal("1.50"), Decimal("2.00")]),
    "whole numeric": ("(3.0::numeric)", "int64", [3]),
    "doubles": ("(0.1::float8), ('NaN'), ('Infinity')", "float64", [0.1, float("nan"), float("inf")]),
    "reals": ("(0.5::real)", "float64", [0.5]),
    "text": ("('ä'::text), ('')", "string", ["ä", ""]),
    "uuid": ("('00000000-0000-0000-0000-000000000001'::uuid)", "string", ["00000000-0000-0000-0000-000000000001"]),
    "booleans": ("(true), (NULL)", "bool", [True, None]),
    "bytes": (r"('\xff00'::bytea)", "binary", [b"\xff\x00"]),
    "dates": ("('2013-03-01'::date)", "date32", [DAY]),
    "timestamptz": ("('2013-03-01 13:00+01'::timestamptz)", INSTANT, [NOON]),
    "timestamp": ("('2013-03-01 12:00'::timestamp)", "timestamp[us]", [NOON.replace(tzinfo=None)]),
    "arrays": ("(ARRAY[1, NULL])", "list<int64>", [[1, None]]),
}
REFUSED = {
    "numeric NaN": ("(1.5::numeric), ('NaN')", "decimal128(10, 2)", "1 values of 2 rows", "such as NaN in row 2"),
    "numeric infinity": ("('Infinity'::numeric)", "decimal128(10, 2)", "1 values of 1 rows", "such as Infinity"),
    "numeric of more scale": ("(1.505::numeric)", "decimal128(10, 2)", "1 values of 1 rows", "such as 1.505"),
    "numeric for a double": ("(0.1::numeric)", "float64", "1 values of 1 rows", "the file has Decimal"),
    "bigint for int32": ("(2147483648)", "int32", "1 values of 1 rows", "such as 2147483648 in row 1"),
    "double for float32": ("(0.1::float8)", "float32", "1 values of 1 rows", "such as 0.1"),
    "timestamptz on a clock": ("(now())", "timestamp[us]", "1 values of 1 rows", "the file has datetime"),
    "timestamp for instants": ("('2013-03-01'::timestamp)", INSTANT, "1 values of 1 rows", "such as 2013-03-01"),
    "a date of infinity": ("('infinity'::date)", "date32", "cannot be", ""),
    "json": ("""('{"a": 1}'::jsonb)""", "string", "1 values of 1 rows", 'such as {"a": 1}'),
    "an interval": ("(interval '1 day')", "int64", "1 values of 1 rows", "the file has timedelta"),
    "an unknown column": ("(nothing)", "int64", "cannot be queried", 'column "nothing" does not exist'),
    "an error in a row": ("(1), (1 / (random() * 0)::int)", "int64", "cannot be queried", "division by zero"),
}


@pytest.mark.parametrize("name", READ)
def test_values_of_postgres_are_read_as_declared(connection: str, name: str) -> None:
    values, declared, expected = READ[name]
    faults, rows = extract(values, declared)
    assert faults == []
    assert str(rows).replace("zoneinfo.ZoneInfo(key='UTC')", "datetime.timezone.utc") == str(expected)


@pytest.mark.parametrize("name", REFUSED)
def test_values_of_postgres_that_do_not_fit_are_refused(connection: str, name: str) -> None:
    values, declared, *problems = REFUSED[name]
    faults, rows = extract(values, declared)
    assert rows == []
    assert all(problem in "\n".join(faults) for problem in problems), faults


def test_a_server_that_does_not_respond_is_no_fault(connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task fails with an error that Airflow retries, and that has no password."""
    monkeypatch.setenv("EVERGREEN_CONNECTIONS__SHOP", "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop")
    settings.cache_clear()
    with pytest.raises(OSError, match="does not respond") as raised:
        extract("(1)", "int64")
    assert "s3cret" not in str(raised.value)


def test_rows_are_streamed(connection: str, tmp_path: Any) -> None:
    engine = sqlalchemy.create_engine(connection)
    with engine.begin() as database:
        database.execute(
            sqlalchemy.text(
                "CREATE TABLE many AS SELECT g AS x, repeat('x', 50) AS y FROM generate_series(1, 800000) g"
            )
        )
    code = """
import resource
from datetime import date
from evergreen.ingest.extracts import refresh_extracts
from evergreen.ingest.raw_files import RawFile
from evergreen.spec.model import FeatureSpec, RawSource
for name, limit in (("few", 100_000), ("many", 800_000)):
    sql = f"SELECT x, y FROM many WHERE x <= {limit} AND :start < :end"
    source = RawSource(name=name, columns=dict(x="int64", y="string"), query=dict(connection="shop", sql=sql))
    spec = FeatureSpec(timezone="UTC", first_day=date(2013, 3, 1), sources=(source,), views=("v",), spine="s")
    assert not refresh_extracts(spec, [RawFile.from_source(source, date(2013, 3, 1))])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
    few, many = map(int, output.split())
    assert many - few < 40, f"{few} and {many} MiB"
