"""Validate raw files and built features against the model's expectations before anything is published.

Reports are published before faults are raised. A raw file whose report for these expectations is published is
not validated again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from evergreen.errors import Fault, FaultsError, FeatureError, RawDataError, first_line
from evergreen.features import inputs
from evergreen.features.inputs import FingerprintsByDay, RawFile
from evergreen.ingest import expectations, raw_files
from evergreen.ingest.expectation_metrics import open_database
from evergreen.ingest.expectations import ValidationReport
from evergreen.lake import datasets, fingerprints
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import ModelSpec

FaultsByDay = dict[date, list[Fault]]
"""The faults of each day; days without a fault are left out."""

log = logging.getLogger(__name__)


def validate_raw_files(
    model: ModelSpec, days: Sequence[date], own_days: Collection[date] | None = None
) -> FingerprintsByDay:
    """Validate every raw file that `days` depend on; return the fingerprint of each day that can be built.

    A fault fails the run only if it concerns one of `own_days`, by default all. Other faulty days are left out:
    the run that is about them reports them.

    Raises:
        RawDataError: the faults of `own_days`, each once: file, column, rule and count.
    """
    spec = feature_spec(model)
    available_days = [day for day in days if not inputs.find_missing_raw_files(spec, [day])]
    # Hashed before the files are validated, so that `publish_features` detects a file that is replaced later.
    day_fingerprints = inputs.compute_day_fingerprints(model, available_days)
    file_faults = _validate_files(model, inputs.raw_files_for_days(spec, days))
    # A fault of a raw file is a fault of each day that depends on it.
    faults = {
        day: day_faults
        for day in days
        if (day_faults := [fault for file in inputs.raw_files_for_day(spec, day) for fault in file_faults[file]])
    }
    _raise_own_faults(RawDataError, "raw data", model, faults, own_days)
    return {day: value for day, value in day_fingerprints.items() if date.fromisoformat(day) not in faults}


def validate_features(
    model: ModelSpec, folders: Mapping[str, str], own_days: Collection[date] | None = None
) -> dict[str, str]:
    """Validate the built features of each day; return the folders of the days without faults.

    `folders` is the result of `build_features`, `own_days` as in `validate_raw_files`.

    Raises:
        FeatureError: the faults of `own_days`: table, column, rule and count.
    """
    faults = _find_feature_faults(model, folders)
    _raise_own_faults(FeatureError, "features", model, faults, own_days)
    return {day: folder for day, folder in folders.items() if date.fromisoformat(day) not in faults}


def _raise_own_faults(
    error: type[FaultsError], label: str, model: ModelSpec, faults: FaultsByDay, own_days: Collection[date] | None
) -> None:
    own_faults = {day: faults[day] for day in faults if own_days is None or day in own_days}
    for day in faults.keys() - own_faults.keys():
        log.warning("%s skipped: %s; the run for that day will report it", day, "; ".join(map(str, faults[day])))
    if own_faults:
        distinct = list(dict.fromkeys(fault for day_faults in own_faults.values() for fault in day_faults))
        raise error(f"{label} for {inputs.format_days(own_faults)} of {model.feature_model}", distinct)


def _find_feature_faults(model: ModelSpec, folders: Mapping[str, str]) -> FaultsByDay:
    rules, features = _expectations_module(model), inputs.features_dataset(model)
    faults: FaultsByDay = {}
    for table in feature_spec(model).tables:
        files = {day: Path(folder) / f"{table}.parquet" for day, folder in folders.items()}
        stage = rules.feature_expectations(table)
        with open_database() as database:
            table_faults = {
                day: expectations.validate_file(database, file, f"{day} {table}", stage).faults
                for day, file in files.items()
                if file.exists()
            }
        for day in files.keys() - table_faults.keys():
            # Unless another attempt has published the day and deleted its folder.
            if files[day].parent.exists() or not features.manifest(datasets.day_partition(day)):
                fix = f"let features.build return {table!r}"
                table_faults[day] = (Fault(f"{day} {table}", "was not built", fix),)
        for day in sorted(day for day in table_faults if table_faults[day]):
            faults.setdefault(date.fromisoformat(day), []).extend(table_faults[day])
    return faults


def _validate_files(model: ModelSpec, files: Sequence[RawFile]) -> dict[RawFile, Sequence[Fault]]:
    """Return the faults of each raw file, from its published report if there is one."""
    rules = _expectations_module(model)
    code = fingerprints.code_of(
        (rules.__name__, "evergreen.ingest.expectations"),
        ("great-expectations", "duckdb", "pandas", "pyarrow"),
        load_spec(model.feature_model).code_packages,
    )
    dataset = datasets.open_dataset(f"checks/{model.feature_model}")
    hashes = raw_files.hash_raw_files(file.path for file in files if file.path.exists())
    parts = {file: {"file": hashes[file.path], "code": code} for file in files if file.path in hashes}
    faults: dict[RawFile, Sequence[Fault]] = {
        file: [inputs.missing_raw_file_fault(file)] for file in files if file not in parts
    }
    pending = []
    for file in parts:
        fingerprint = fingerprints.compute_fingerprint(parts[file])
        if manifest := dataset.find(file.name, fingerprint):
            report = json.loads(dataset.file_path(manifest, "report").read_text())
            faults[file] = [Fault(**fault) for fault in report["faults"]]
        else:
            pending.append((file, fingerprint))
    with open_database() as database:
        for file, fingerprint in pending:
            validation = _validate_raw_file(database, file, rules)
            report_file = dataset.stage(file.name, fingerprint) / "report.json"
            report_file.write_text(json.dumps(asdict(validation), indent=1))
            dataset.publish(file.name, fingerprint, {"report": report_file}, parts[file])
            faults[file] = validation.faults
    for source, count in Counter(file.source for file, _ in pending).items():
        log.info("checked %s raw files of %s", count, source)
    return faults


def _validate_raw_file(database: duckdb.DuckDBPyConnection, file: RawFile, rules: Any) -> ValidationReport:
    schema = expectations.schema_expectations(rules.RAW_COLUMNS[file.source])
    stages = [*schema, rules.raw_expectations(file.source, file.day)]
    try:
        return expectations.validate_file(database, file.path, str(file.path), *stages)
    except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.OutOfMemoryException):
        raise  # not the fault of the file
    except (pa.ArrowException, OSError, duckdb.Error) as error:
        fault = Fault(str(file.path), f"is not a readable Parquet file: {first_line(error)}", "deliver it again")
        return ValidationReport((fault,), {})


def _expectations_module(model: ModelSpec) -> Any:
    return import_module(f"evergreen_models.{model.feature_model}.expectations")
