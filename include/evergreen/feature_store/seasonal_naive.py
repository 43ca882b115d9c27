"""The seasonal naive forecast of the rows of a holdout, and the scale of each series' errors.

Both come from the labels of the published spine: the row of a series, an origin and a horizon says what the series'
value was, and when that was known. So the naive forecast of a row is the latest value, a whole number of seasons before
the one that it predicts, that was known at its `event_timestamp`.
"""
# ruff: noqa: S608 - names are quoted or made here, and literals are quoted

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, RawDataError, SpecError, StaleFeaturesError
from evergreen.feature_store.republished_features import RepublishedError
from evergreen.feature_store.seasonal_columns import NAIVE_COLUMN, SCALE_COLUMN
from evergreen.features.inputs import features_dataset, published_manifests
from evergreen.features.staleness import find_mixed_features
from evergreen.ingest.databases import open_database, quote_name, quote_text
from evergreen.ingest.row_groups import ROW_GROUP_ROWS, regroup_rows
from evergreen.lake import datasets
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import ForecastSeries

_SCHEMA = pa.schema([(NAIVE_COLUMN, pa.float64()), (SCALE_COLUMN, pa.float64())])


def seasonal_inputs(model: ModelSpec, holdout_start: str, holdout_end: str) -> dict[str, Any]:
    """Return what the naive forecasts depend on besides the holdout; nothing of models of another kind.

    Values before the time to train on do not count, so that a later look has the scales that the first one had.

    Raises:
        StaleFeaturesError: periods were made by other code, parameters or registers than the newest one.
    """
    if model.forecast is None:
        return {}
    calendar = feature_spec(model).calendar
    start = holdout_start
    for duration in (model.label_delay, model.train):
        start = calendar.period_before(start, duration)
    published = published_manifests(model, list(calendar.periods_between(start, holdout_end)))
    if (mixed := find_mixed_features(model, published)).periods:
        faults = mixed.faults(f"{mixed.rebuild_fix}, then clear this run from its plan task on")
        problem = f"features before {holdout_end}, which give the naive forecasts, differ from the newest period's"
        raise StaleFeaturesError(f"{model.name}: {problem}", faults)
    return {
        "forecast": model.forecast.model_dump(mode="json"),
        "history": {manifest.partition: manifest.content_hash for manifest in published.values()},
    }


def write_seasonal_naive(model: ModelSpec, holdout: Path, inputs: Mapping[str, Any], target: Path) -> Path:
    """Write the naive forecast and the scale of each row of the file `holdout`, in its order; return the file.

    `inputs` are those of the examples, `seasonal_inputs` among them. The scale is the mean of |value - value a season
    before| over all values of a series that were known before the holdout began (Hyndman and Koehler 2006,
    International Journal of Forecasting 22:679-688). Both are null where they do not exist.

    Raises:
        RepublishedError: features were republished, or expired, since `inputs` were read.
        RawDataError: rows have no series, or a horizon that is no whole number from 0 on.
        SpecError: the spine lacks a column, or a horizon is no integer, or the label no number.
    """
    forecast, spec = model.forecast, feature_spec(model)
    assert forecast is not None
    published = features_dataset(model)
    manifests = published.read_manifests(list(inputs["history"]))
    if {item.partition: item.content_hash for item in manifests} != inputs["history"]:
        raise RepublishedError
    periods = [datasets.partition_period(item.partition) for item in manifests]
    files = [published.file_path(item, spec.spine) for item in manifests]
    start = spec.calendar.start(inputs["holdout"])
    _check_types(model, forecast, pq.read_schema(holdout))
    with open_database() as con:
        _create_tables(con, forecast, model.label, holdout, dict(zip(periods, files, strict=True)), spec.calendar)
        _check_rows(model, con, forecast)
        with pq.ParquetWriter(target, _SCHEMA) as writer:
            for table in _read_rows(con, forecast, f"TIMESTAMPTZ {quote_text(start.isoformat())}"):
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return target


def _check_types(model: ModelSpec, forecast: ForecastSeries, schema: pa.Schema) -> None:
    faults = [
        Fault("forecast", f"{name} is no column of the spine", f"it has {', '.join(schema.names)}")
        for name in forecast.columns
        if name not in schema.names
    ]
    if not faults and not pa.types.is_integer(horizon := schema.field(forecast.horizon).type):
        faults.append(Fault("forecast.horizon", f"{forecast.horizon} is {horizon}", "let features.py return integers"))
    label = schema.field("label").type
    if not (pa.types.is_integer(label) or pa.types.is_floating(label)):
        faults.append(Fault("label", f"{model.label} is {label}", "let features.py return numbers"))
    if faults:
        raise SpecError(f"model {model.name}", faults)


def _create_tables(
    con: duckdb.DuckDBPyConnection,
    forecast: ForecastSeries,
    label: str,
    holdout: Path,
    files: Mapping[str, Path],
    calendar: Calendar,
) -> None:
    """Create `examples`, the rows of the holdout, and `history`, the values of series.

    Places are the numbers of periods, from that of the first file on.
    """
    first = next(iter(files))
    con.execute("CREATE TABLE periods (file BIGINT, period VARCHAR, place BIGINT)")
    rows = [(number, name, calendar.count(first, name)) for number, name in enumerate(files)]
    con.executemany("INSERT INTO periods VALUES (?, ?, ?)", rows)
    has_day_only = datasets.PERIOD_COLUMN not in pq.read_schema(holdout).names
    period = "CAST(r.day AS VARCHAR)" if has_day_only else f"r.{quote_name(datasets.PERIOD_COLUMN)}"
    # Names of columns come from users, so each table has a name.
    series = ", ".join(f"r.{quote_name(name)} AS series_{number}" for number, name in enumerate(forecast.series))
    horizon = f"CAST(r.{quote_name(forecast.horizon)} AS BIGINT)"
    target = f"p.place + {horizon}" if forecast.row_period == "origin" else "p.place"
    con.execute(
        f"CREATE TABLE examples AS SELECT r.file_row_number AS number, {series}, {horizon} AS horizon, "
        f"{target} AS target, CAST(r.event_timestamp AS TIMESTAMPTZ) AS instant "
        f"FROM read_parquet({_paths([holdout])}, hive_partitioning = false, file_row_number = true) r "
        f"LEFT JOIN periods p ON p.period = {period}"
    )
    keys = ", ".join(_keys(forecast))
    # Rows of several origins are about the same value: what was known first counts.
    con.execute(
        f"CREATE TABLE history AS SELECT {keys}, target, target % {forecast.season} AS part, "
        "arg_min(value, (known_at, value)) AS value, min(known_at) AS known_at FROM ("
        f"SELECT {series}, {target} AS target, CAST(r.{quote_name(label)} AS DOUBLE) AS value, "
        "CAST(r.label_known_at AS TIMESTAMPTZ) AS known_at "
        f"FROM read_parquet({_paths(list(files.values()))}, hive_partitioning = false, union_by_name = true) r "
        "JOIN periods p ON p.file = r.file_index) "
        f"WHERE isfinite(value) AND known_at IS NOT NULL AND target IS NOT NULL GROUP BY {keys}, target"
    )


def _check_rows(model: ModelSpec, con: duckdb.DuckDBPyConnection, forecast: ForecastSeries) -> None:
    has_no_key = " OR ".join(f"{key} IS NULL" for key in _keys(forecast))
    query = f"SELECT count(*) FILTER ({has_no_key}), count(*) FILTER (horizon IS NULL OR horizon < 0) FROM examples"
    unnamed, invalid = con.sql(query).fetchall()[0]
    faults = []
    if unnamed:
        problem = f"{unnamed} rows of the holdout have a null in {', '.join(forecast.series)}"
        faults.append(Fault("forecast.series", problem, "leave these rows out, or name their series"))
    if invalid:
        problem = f"{invalid} rows of the holdout have no {forecast.horizon} from 0 on"
        faults.append(Fault("forecast.horizon", problem, "return how many periods ahead the label is"))
    if faults:
        raise RawDataError(f"model {model.name}", faults)


def _read_rows(con: duckdb.DuckDBPyConnection, forecast: ForecastSeries, holdout_start: str) -> Iterator[pa.Table]:
    """Yield both columns of the rows of the holdout, in order."""
    keys = _keys(forecast)
    same_series = " AND ".join(f"h.{key} = e.{key}" for key in keys)
    _create_naive(con, forecast)
    # In the order of time: sums of floats depend on it, and the bytes of the file on them.
    con.execute(
        f"CREATE TABLE scales AS SELECT {', '.join(f'e.{key}' for key in keys)}, "
        "avg(abs(e.value - h.value) ORDER BY e.target) AS scale FROM history e JOIN history h "
        f"ON {same_series} AND h.target = e.target - {forecast.season} "
        f"WHERE e.known_at < {holdout_start} AND h.known_at < {holdout_start} "
        f"GROUP BY {', '.join(f'e.{key}' for key in keys)}"
    )
    rows = con.sql(
        f"SELECT n.naive AS {NAIVE_COLUMN}, h.scale AS {SCALE_COLUMN} FROM examples e "
        f"LEFT JOIN naive n ON n.number = e.number LEFT JOIN scales h ON {same_series} ORDER BY e.number"
    )
    batches = (pa.Table.from_batches([batch]).cast(_SCHEMA) for batch in rows.to_arrow_reader(ROW_GROUP_ROWS))
    # Without a row of the holdout there is no batch.
    yield from regroup_rows(chain([_SCHEMA.empty_table()], batches), ROW_GROUP_ROWS)


def _create_naive(con: duckdb.DuckDBPyConnection, forecast: ForecastSeries) -> None:
    """Create `naive`: the value of the last target, of those before an example's in its part of the season, known then.

    Labels may become known in any order, so neither the last target before the example's nor the last value that became
    known is the answer. Each example starts at the former, and skips 2^n values at a time of which none was known, from
    the largest power on. So its work grows with the logarithm of the number of values, also where few were known.
    """
    group = ", ".join((*_keys(forecast), "part"))
    [(largest,)] = con.sql(f"SELECT max(size) FROM (SELECT count(*) AS size FROM history GROUP BY {group})").fetchall()
    powers = range((largest or 0).bit_length())
    earliest = (
        f", min(known_at) OVER (PARTITION BY {group} ORDER BY target ROWS {2**power - 1} PRECEDING) AS earliest_{power}"
        for power in powers
    )
    con.execute(
        f"CREATE TABLE ranked AS SELECT *, min(place) OVER (PARTITION BY {group}) AS first_place{''.join(earliest)} "
        f"FROM (SELECT *, row_number() OVER (ORDER BY {group}, target) AS place FROM history)"
    )
    same_series = " AND ".join(f"h.{key} = e.{key}" for key in _keys(forecast))
    con.execute(
        "CREATE TABLE latest AS SELECT e.number, e.instant, h.place, h.first_place FROM examples e ASOF JOIN ranked h "
        f"ON {same_series} AND h.part = e.target % {forecast.season} AND h.target < e.target"
    )
    for power in reversed(powers):
        # A skip beyond the first value of a group ends in another one, or nowhere, and never comes back.
        con.execute(
            "CREATE OR REPLACE TABLE latest AS SELECT e.number, e.instant, "
            f"e.place - CASE WHEN h.earliest_{power} > e.instant THEN {2**power} ELSE 0 END AS place, e.first_place "
            "FROM latest e LEFT JOIN ranked h ON h.place = e.place"
        )
    con.execute(
        "CREATE TABLE naive AS SELECT e.number, h.value AS naive FROM latest e JOIN ranked h ON h.place = e.place "
        "WHERE e.place >= e.first_place"
    )


def _keys(forecast: ForecastSeries) -> list[str]:
    return [f"series_{number}" for number in range(len(forecast.series))]


def _paths(files: Sequence[Path]) -> str:
    return f"[{', '.join(quote_text(glob.escape(str(file))) for file in files)}]"
