"""Validate raw files and built features against the model's expectations before anything is published.

Reports are published before faults are raised. A raw file whose report for these expectations is published is
not validated again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, FaultsError, FeatureError, RawDataError, first_line
from evergreen.features import inputs
from evergreen.features.definitions import declared_types
from evergreen.features.inputs import FingerprintsByDay, RawFile
from evergreen.features.types import cast_columns
from evergreen.ingest import expectations, raw_files
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
    types = declared_types(model.feature_model)
    faults: FaultsByDay = {}
    for table in feature_spec(model).tables:
        files = {day: Path(folder) / f"{table}.parquet" for day, folder in folders.items()}
        table_faults: dict[str, Sequence[Fault]] = {}
        for batch in inputs.split_into_batches([day for day in files if files[day].exists()]):
            frames = {f"{day} {table}": pd.read_parquet(files[day]) for day in batch}
            stages = [rules.feature_expectations(table)]
            reports = expectations.validate_tables(frames, dict.fromkeys(frames, stages).__getitem__)
            for day in batch:
                location = f"{day} {table}"
                type_faults = _type_faults(files[day], location, types.get(table, {}))
                table_faults[day] = [*type_faults, *reports[location].faults]
        for day in files.keys() - table_faults.keys():
            # Unless another attempt has published the day and deleted its folder.
            if files[day].parent.exists() or not features.manifest(datasets.day_partition(day)):
                fix = f"let features.build return {table!r}"
                table_faults[day] = [Fault(f"{day} {table}", "was not built", fix)]
        for day in sorted(day for day in table_faults if table_faults[day]):
            faults.setdefault(date.fromisoformat(day), []).extend(table_faults[day])
    return faults


def _type_faults(file: Path, location: str, types: Mapping[str, str]) -> list[Fault]:
    """Return one fault per column that Feast declares and that is missing, or has values that would change."""
    fix = "let features.py return what the feature repository declares, or declare what it returns"
    schema = {field.name: str(field.type) for field in pq.read_schema(file)}
    faults = [
        Fault(f"{location} {column}", "is declared, and missing", fix) for column in types if column not in schema
    ]
    if columns := [column for column, type_ in types.items() if schema.get(column, type_) != type_]:
        _, problems = cast_columns(pq.read_table(file, columns=columns), types)
        faults += [Fault(f"{location} {column}", problem, fix) for column, problem in problems.items()]
    return faults


def _validate_files(model: ModelSpec, files: Sequence[RawFile]) -> dict[RawFile, Sequence[Fault]]:
    """Return the faults of each raw file, from its published report if there is one."""
    rules = _expectations_module(model)
    code = fingerprints.code_of(
        (rules.__name__, "evergreen.ingest.expectations"),
        ("great-expectations", "pandas", "pyarrow"),
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
        if manifest := dataset.find(file.name, fingerprints.compute_fingerprint(parts[file])):
            report = json.loads(dataset.file_path(manifest, "report").read_text())
            faults[file] = [Fault(**fault) for fault in report["faults"]]
        else:
            pending.append(file)
    for source in dict.fromkeys(file.source for file in pending):
        for batch in inputs.split_into_batches([file for file in pending if file.source == source]):
            for file, validation in _validate_batch(batch, rules).items():
                fingerprint = fingerprints.compute_fingerprint(parts[file])
                report_file = dataset.stage(file.name, fingerprint) / "report.json"
                report_file.write_text(json.dumps(asdict(validation), indent=1))
                dataset.publish(file.name, fingerprint, {"report": report_file}, parts[file])
                faults[file] = validation.faults
            log.info("checked %s raw files of %s", len(batch), source)
    return faults


def _validate_batch(files: Sequence[RawFile], rules: Any) -> dict[RawFile, ValidationReport]:
    """Return the report of each of some raw files of one source."""
    reports, tables = {}, {}
    for file in files:
        try:
            tables[str(file.path)] = pd.read_parquet(file.path)
        except (pa.ArrowException, OSError, ValueError) as error:
            fault = Fault(str(file.path), f"is not a readable Parquet file: {first_line(error)}", "deliver it again")
            reports[file] = ValidationReport((fault,), {})
    by_path = {str(file.path): file for file in files}

    def stages_for(path: str) -> expectations.ExpectationStages:
        file = by_path[path]
        schema = expectations.schema_expectations(rules.RAW_COLUMNS[file.source])
        return [*schema, rules.raw_expectations(file.source, file.day)]

    validated = expectations.validate_tables(tables, stages_for)
    return reports | {by_path[path]: report for path, report in validated.items()}


def _expectations_module(model: ModelSpec) -> Any:
    return import_module(f"evergreen_models.{model.feature_model}.expectations")
