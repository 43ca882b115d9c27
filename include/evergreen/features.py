"""The steps that turn raw days into published features: check raw → build → check features → publish.

Each is a function over days that runs from a task, a test or a notebook, and may be run again or twice
at once: what is published already is found by its fingerprint and not made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from evergreen import lake, quality, spark
from evergreen.errors import Fault, FeatureError, InputsChangedError, RawDataError
from evergreen.model import Features, Model, feature_spec

Fingerprints = dict[str, str]
"""Fingerprint of the features of each day, by ISO date: what they are made from, and how."""


@dataclass(frozen=True)
class Drop:
    """One raw file that a day of features is made from."""

    source: str
    day: date | None

    @property
    def path(self) -> Path:
        return lake.raw_file(self.source, self.day)

    @property
    def name(self) -> str:
        return f"{self.source}-{self.day}" if self.day else self.source


@dataclass(frozen=True)
class Tables:
    """What a model's `build` returns: one or more tables that Spark computes in one pass.

    `columns` names each table and its columns. `frame` has those columns and `day`; if there is more than
    one table, its column `table` tells which of them a row belongs to.
    """

    columns: Mapping[str, Sequence[str]]
    frame: DataFrame


def dataset(model: Model) -> lake.Dataset:
    """The published features that `model` uses, its own or another's."""
    return lake.dataset(f"features/{model.features_of}")


def drops(features: Features, day: date) -> list[Drop]:
    """Every raw file that the features of `day` are made from, oldest first."""
    found = []
    for source in features.sources:
        if not source.daily:
            found.append(Drop(source.name, None))
            continue
        first = max(features.first_day, day - timedelta(source.trailing_days))
        found += [Drop(source.name, first + timedelta(n)) for n in range((day - first).days + 1)]
    return found


def check_raw(model: Model, days: Sequence[date]) -> Fingerprints:
    """Check every raw file that `days` are made from; give the fingerprints of their features.

    A file that has been checked before, by these expectations, is not checked again. The report of each
    check is published before anything is refused.

    Raises:
        RawDataError: files are missing, unreadable or break a rule; names file, column, rule and count.
    """
    features = feature_spec(model)
    needed = {drop: None for day in days for drop in drops(features, day)}
    faults = [fault for drop in needed for fault in _check_drop(model, drop)]
    if faults:
        raise RawDataError(f"raw data for {_span(days)} of {model.features_of}", faults)
    return _fingerprints(model, days)


def build(model: Model, wanted: Fingerprints) -> dict[str, str]:
    """Compute the features of the days that are not published yet; gives the staged folder of each."""
    todo = {day: mark for day, mark in wanted.items() if not _published(model, day, mark)}
    for day in wanted.keys() - todo.keys():
        print(f"{day}: published already with fingerprint {wanted[day][:12]}, nothing to do")
    if not todo:
        return {}
    features = feature_spec(model)
    days = [date.fromisoformat(day) for day in todo]
    target = dataset(model)
    staged = {
        day: target.stage(lake.day_partition(date.fromisoformat(day)), mark) for day, mark in todo.items()
    }
    scratch = next(iter(staged.values())) / "_spark"
    with spark.session() as session:
        raw = {
            source.name: _read(
                session, [d.path for d in _drops_of(features, days) if d.source == source.name]
            )
            for source in features.sources
        }
        module = import_module(f"models.{model.features_of}.features")
        for number, tables in enumerate(module.build(session, raw, days, features.timezone)):
            print(f"{_span(days)}: computing {', '.join(tables.columns)}", flush=True)
            _compute(tables, scratch / str(number), staged)
    shutil.rmtree(scratch)
    return {day: str(folder) for day, folder in staged.items()}


def check(model: Model, staged: Mapping[str, str]) -> None:
    """Check the staged features of each day.

    Raises:
        FeatureError: a table is missing or breaks a rule; names table, column, rule and count.
    """
    expectations = import_module(f"models.{model.features_of}.expectations")
    faults: list[Fault] = []
    for day, folder in staged.items():
        for name in feature_spec(model).tables:
            file = Path(folder) / f"{name}.parquet"
            if not file.exists():
                if not _staging_is_gone(model, day, file.parent):
                    faults.append(
                        Fault(f"{day} {name}", "was not built", f"let features.build return {name!r}")
                    )
                continue
            table = pd.read_parquet(file)
            faults += quality.check(table, f"{day} {name}", expectations.features(name)).faults
    if faults:
        raise FeatureError(f"features of {model.features_of}", faults)


def publish(model: Model, wanted: Fingerprints, staged: Mapping[str, str]) -> dict[str, str]:
    """Make the staged days visible, each atomically; gives the content hash of every wanted day.

    Raises:
        InputsChangedError: a raw file changed since it was checked, so nobody knows what was read.
    """
    features = feature_spec(model)
    target = dataset(model)
    contents = {}
    for day, mark in wanted.items():
        partition = lake.day_partition(date.fromisoformat(day))
        manifest = target.published(partition, mark)
        if manifest is None:
            if _fingerprints(model, [date.fromisoformat(day)])[day] != mark:
                raise InputsChangedError(
                    f"raw data of {day} or of a day before it, or the code of its features, changed while they "
                    "were made: nothing was published; clear the run to start anew"
                )
            files = {name: Path(staged[day]) / f"{name}.parquet" for name in features.tables}
            manifest = target.publish(partition, mark, files, _inputs(model, date.fromisoformat(day)))
        contents[day] = manifest.content
        print(
            f"{day}: {sum(file.rows or 0 for file in manifest.files.values())} rows, content {manifest.content[:12]}"
        )
    return contents


def _check_drop(model: Model, drop: Drop) -> Sequence[Fault]:
    if not drop.path.exists():
        return [Fault(str(drop.path), "missing", "deliver it, then clear the run")]
    expectations = import_module(f"models.{model.features_of}.expectations")
    checks = lake.dataset(f"checks/{model.features_of}")
    inputs = {
        "file": lake.sha256(drop.path),
        "code": lake.code(
            (expectations.__name__, "evergreen.quality"), ("great-expectations", "pandas", "pyarrow")
        ),
    }
    mark = lake.fingerprint(inputs)
    if done := checks.published(drop.name, mark):
        report = json.loads(checks.path(done, "report").read_text())
    else:
        report = _examine(drop, expectations)
        folder = checks.stage(drop.name, mark)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        checks.publish(drop.name, mark, {"report": folder / "report.json"}, inputs)
    return [Fault(**fault) for fault in report["faults"]]


def _examine(drop: Drop, expectations: Any) -> dict[str, Any]:
    try:
        table = pd.read_parquet(drop.path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        fault = Fault(str(drop.path), f"is not a readable Parquet file: {reason}", "deliver it again")
        return {"faults": [vars(fault)], "evidence": {}}
    columns = quality.columns(expectations.RAW_COLUMNS[drop.source])
    report = quality.check(table, str(drop.path), *columns, expectations.raw(drop.source, drop.day))
    return {"faults": [vars(fault) for fault in report.faults], "evidence": report.evidence}


def _fingerprints(model: Model, days: Sequence[date]) -> Fingerprints:
    return {day.isoformat(): lake.fingerprint(_inputs(model, day)) for day in days}


def _inputs(model: Model, day: date) -> dict[str, Any]:
    """What the features of `day` depend on, and nothing else."""
    features = feature_spec(model)
    return {
        "day": day.isoformat(),
        "raw": {drop.name: lake.sha256(drop.path) for drop in drops(features, day)},
        "parameters": {"timezone": features.timezone, "tables": features.tables},
        "code": lake.code((f"models.{model.features_of}.features", "evergreen.features"), ("pyspark",)),
    }


def _published(model: Model, day: str, mark: str) -> bool:
    return dataset(model).published(lake.day_partition(date.fromisoformat(day)), mark) is not None


def _staging_is_gone(model: Model, day: str, folder: Path) -> bool:
    """A twin of this run has published the day and cleared it away: then there is nothing left to check."""
    return (
        not folder.exists()
        and dataset(model).manifest(lake.day_partition(date.fromisoformat(day))) is not None
    )


def _drops_of(features: Features, days: Sequence[date]) -> list[Drop]:
    return list({drop: None for day in days for drop in drops(features, day)})


def _read(session: SparkSession, files: Sequence[Path]) -> DataFrame:
    # All files have passed the same check of columns and types; giving Spark the schema of one spares it
    # a job that reads the footers of all.
    schema = from_arrow_schema(pq.read_schema(files[0]).remove_metadata(), prefer_timestamp_ntz=False)
    return session.read.schema(schema).parquet(*map(str, files))


def _compute(tables: Tables, scratch: Path, staged: Mapping[str, Path]) -> None:
    """Have Spark compute the tables, in as many files as it likes, and stage one file per table and day.

    Staged rows are in one order, by the columns that no two rows share together: keys and timestamps. So the
    bytes do not depend on how Spark divided the work.
    """
    together = len(tables.columns) > 1
    by = ["table", "day"] if together else ["day"]
    tables.frame.write.partitionBy(*by).parquet(str(scratch))
    for name, columns in tables.columns.items():
        for day, folder in staged.items():
            part = (scratch / f"table={name}" if together else scratch) / f"day={day}"
            if part.exists():
                table = pq.read_table(part, columns=list(columns), partitioning=None)
            else:  # a day without rows is a table without rows
                table = tables.frame.select(*columns).limit(0).toArrow()
            kinds = zip(table.schema.names, table.schema.types, strict=True)
            order = [name for name, kind in kinds if pa.types.is_string(kind) or pa.types.is_timestamp(kind)]
            pq.write_table(
                table.sort_by([(column, "ascending") for column in order]).replace_schema_metadata(),
                folder / f"{name}.parquet",
            )


def _span(days: Sequence[date]) -> str:
    return f"{min(days)} – {max(days)}" if len(days) > 1 else str(days[0])
