"""The features of many days in one go, by Spark, into folders that no reader looks into.

A day is computed once: whoever wants a day that another run has built already, finds it, also when the
run that built it died before it could publish it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from evergreen.features import inputs, spark
from evergreen.features.inputs import FingerprintsByDay
from evergreen.features.tables import FeatureTables
from evergreen.lake import datasets
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec


def build_features(model: ModelSpec, fingerprints: FingerprintsByDay) -> dict[str, str]:
    """Compute the features of the days that are not there yet; gives the folder of each unpublished day."""
    target = inputs.features_dataset(model)
    folders: dict[str, str] = {}
    todo = []
    for day, mark in fingerprints.items():
        if inputs.find_published_day(model, day, mark):
            print(f"{day}: published already with fingerprint {mark[:12]}, nothing to do")
        elif found := target.find_cached(datasets.day_partition(day), mark):
            print(f"{day}: built already with fingerprint {mark[:12]}, not yet published")
            folders[day] = str(found)
        else:
            todo.append(day)
    for some in inputs.split_into_batches(todo):
        staged = {day: target.stage(datasets.day_partition(day), fingerprints[day]) for day in some}
        _build_batch(model, staged)
        for day, folder in staged.items():
            folders[day] = str(target.cache_staged(datasets.day_partition(day), fingerprints[day], folder))
        if len(some) < len(todo):
            print(f"{len(folders.keys() & set(todo))} of {len(todo)} days are built", flush=True)
    return folders


def _build_batch(model: ModelSpec, staging_folders: Mapping[str, Path]) -> None:
    features = feature_spec(model)
    days = [date.fromisoformat(day) for day in staging_folders]
    scratch = next(iter(staging_folders.values())).with_suffix(".spark")
    files = inputs.raw_files_for_days(features, days)
    with spark.spark_session() as session:
        raw = {
            source.name: _read_raw_files(session, [drop.path for drop in files if drop.source == source.name])
            for source in features.sources
        }
        module = import_module(f"evergreen_models.{model.feature_model}.features")
        for number, tables in enumerate(module.build(session, raw, days, features.timezone)):
            print(f"{inputs.format_days(days)}: computing {', '.join(tables.columns)}", flush=True)
            _write_tables(tables, scratch / str(number), staging_folders)
    shutil.rmtree(scratch)


def _read_raw_files(session: SparkSession, files: Sequence[Path]) -> DataFrame:
    # All files have passed the same check of columns and types; giving Spark the schema of one spares it
    # a job that reads the footers of all.
    schema = from_arrow_schema(pq.read_schema(files[0]).remove_metadata(), prefer_timestamp_ntz=False)
    return session.read.schema(schema).parquet(*map(str, files))


def _write_tables(tables: FeatureTables, scratch: Path, staging_folders: Mapping[str, Path]) -> None:
    """Have Spark compute the tables, in as many files as it likes, and stage one file per table and day.

    Staged rows are in one order, by the columns that no two rows share together: keys and timestamps. So the
    bytes do not depend on how Spark divided the work.
    """
    together = len(tables.columns) > 1
    by = ["table", "day"] if together else ["day"]
    tables.frame.write.partitionBy(*by).parquet(str(scratch))
    for name, columns in tables.columns.items():
        for day, folder in staging_folders.items():
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
