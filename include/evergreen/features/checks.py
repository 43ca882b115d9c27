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
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, FeatureError, RawDataError
from evergreen.features import inputs
from evergreen.features.definitions import declared_types
from evergreen.features.inputs import FaultsByPeriod, FingerprintsByPeriod, raise_own_faults
from evergreen.features.planning import refresh_raw_data
from evergreen.features.row_order import read_batches
from evergreen.features.types import find_cast_problems
from evergreen.ingest import declared_files, expectations, histories, raw_files
from evergreen.ingest.databases import QUERY_ERRORS, open_database
from evergreen.ingest.expectations import ValidationReport
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets, fingerprints
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource

log = logging.getLogger(__name__)


def validate_raw_files(
    model: ModelSpec, periods: Sequence[str], own_periods: Collection[str] | None = None
) -> FingerprintsByPeriod:
    """Validate every raw file that `periods` depend on; return the fingerprint of each period that can be built.

    A fault fails the run only if it concerns one of `own_periods`, by default all. Other faulty periods are left out:
    the run that is about them reports them.

    Raises:
        RawDataError: the faults of `own_periods`, each once: file, column, rule and count; it has the other periods'
            fingerprints.
    """
    spec = feature_spec(model)
    extract_faults = refresh_raw_data(spec, periods)
    # Hashed before the files are validated, so that `publish_features` detects a file that is replaced later.
    period_fingerprints = inputs.compute_period_fingerprints(model, periods)
    file_faults = _validate_files(model, inputs.raw_files_for_periods(spec, periods)) | extract_faults
    # A fault of a raw file is a fault of each period that depends on it.
    faults = {
        period: period_faults
        for period in periods
        if (
            period_faults := [
                fault for file in inputs.raw_files_for_period(spec, period) for fault in file_faults[file]
            ]
        )
    }
    remaining = {period: value for period, value in period_fingerprints.items() if period not in faults}
    raise_own_faults(RawDataError, "raw data", model, faults, own_periods, remaining)
    return remaining


def validate_features(
    model: ModelSpec, folders: Mapping[str, str], own_periods: Collection[str] | None = None
) -> dict[str, str]:
    """Validate the built features of each period; return the folders of the periods without faults.

    `folders` is the result of `build_features`, `own_periods` as in `validate_raw_files`.

    Raises:
        FeatureError: the faults of `own_periods`: table, column, rule and count; it has the other periods' folders.
    """
    faults = _find_feature_faults(model, folders)
    remaining = {period: folder for period, folder in folders.items() if period not in faults}
    raise_own_faults(FeatureError, "features", model, faults, own_periods, remaining)
    return remaining


def _find_feature_faults(model: ModelSpec, folders: Mapping[str, str]) -> FaultsByPeriod:
    rules, features = _expectations_module(model), inputs.features_dataset(model)
    spec = feature_spec(model)
    types = declared_types(model.feature_model)
    staged = {period: datasets.open_staged(folder) for period, folder in folders.items()}
    faults: FaultsByPeriod = {}
    for table in spec.tables:
        files = {period: folder / f"{table}.parquet" for period, folder in staged.items()}
        stage = rules.feature_expectations(table)
        table_faults: dict[str, Sequence[Fault]] = {}
        with open_database() as database:
            for period, file in files.items():
                location = f"{period} {table}"
                if not file.exists():
                    continue
                if _is_without_events(model.feature_model, spec, period, file):
                    table_faults[period] = ()
                    continue
                type_faults = _type_faults(file, location, types.get(table, {}))
                rule_faults = expectations.validate_file(database, file, location, stage).faults
                table_faults[period] = [*type_faults, *rule_faults]
        for period in files.keys() - table_faults.keys():
            # Unless another attempt has published the period and deleted its folder.
            if files[period].parent.exists() or not features.manifest(datasets.period_partition(period)):
                fix = f"let features.build return {table!r}"
                table_faults[period] = (Fault(f"{period} {table}", "was not built", fix),)
        for period in sorted(period for period in table_faults if table_faults[period]):
            faults.setdefault(period, []).extend(table_faults[period])
    return faults


def _type_faults(file: Path, location: str, types: Mapping[str, str]) -> list[Fault]:
    """Return one fault per column that Feast declares and that is missing, or has values that would change."""
    fix = "let features.py return what the feature repository declares, or declare what it returns"
    schema = {field.name: str(field.type) for field in pq.read_schema(file)}
    faults = [
        Fault(f"{location} {column}", "is declared, and missing", fix) for column in types if column not in schema
    ]
    if columns := [column for column, type_ in types.items() if schema.get(column, type_) != type_]:
        problems = find_cast_problems(read_batches([file], columns), types)
        faults += [Fault(f"{location} {column}", problem, fix) for column, problem in problems.items()]
    return faults


def _is_without_events(feature_model: str, spec: FeatureSpec, period: str, table: Path) -> bool:
    """Whether a table of a period has no rows because every source that may be empty is empty in that period."""
    if pq.read_metadata(table).num_rows:
        return False
    sources = {RawFile.from_source(source, period): source for source in spec.sources}
    files = [file for file, source in sources.items() if not source.is_register and source.empty_periods != "refused"]
    copies, hashes = declared_files.declared_copies(feature_model), raw_files.hash_raw_files(files)
    return bool(files) and not any(
        declared_files.read_as_declared(sources[file], file, sha256, copies).rows for file, sha256 in hashes.items()
    )


def _validate_files(model: ModelSpec, files: Sequence[RawFile]) -> dict[RawFile, Sequence[Fault]]:
    """Return the faults of each raw file, from its published report if there is one."""
    rules, spec = _expectations_module(model), feature_spec(model)
    code = fingerprints.code_of(
        (rules.__name__, *(f"evergreen.ingest.{name}" for name in ("expectations", "declared_files", "histories"))),
        ("great-expectations", "duckdb", "pandas", "pyarrow"),
        load_spec(model.feature_model).code_packages,
    )
    dataset = datasets.open_dataset(f"checks/{model.feature_model}")
    hashes = raw_files.hash_raw_files(files)
    sources = {source.name: source for source in spec.sources}
    declarations = {source.name: declared_files.declaration_of(source) for source in spec.sources}
    parts = {
        file: {
            "file": hashes[file],
            "declaration": declarations[file.source],
            "history": (history := sources[file.source].history) and history.model_dump(),
            "code": code,
        }
        for file in files
        if file in hashes
    }
    missing = inputs.find_missing_raw_files(spec, files)
    faults: dict[RawFile, Sequence[Fault]] = {file: [missing[file]] if file in missing else [] for file in files}
    pending = []
    for file in parts:
        fingerprint = fingerprints.compute_fingerprint(parts[file])
        if manifest := dataset.find(file.name, fingerprint):
            report = json.loads(dataset.file_path(manifest, "report").read_text())
            faults[file] = [Fault(**fault) for fault in report["faults"]]
        else:
            pending.append((file, fingerprint))
    copies = declared_files.declared_copies(model.feature_model)
    with open_database() as database:
        for file, fingerprint in pending:
            source = sources[file.source]
            declared = declared_files.read_as_declared(source, file, hashes[file], copies)
            if declared.has_changed:  # the next run says what is wrong with what is there then
                faults[file] = declared.faults
                continue
            validation = _validate_rows(database, source, file, declared, rules)
            report_file = dataset.stage(file.name, fingerprint) / "report.json"
            report_file.write_text(json.dumps(asdict(validation), indent=1))
            dataset.publish(file.name, fingerprint, {"report": report_file}, parts[file])
            faults[file] = validation.faults
    for name, count in Counter(file.source for file, _ in pending).items():
        log.info("checked %s raw files of %s", count, name)
    return faults


def _validate_rows(
    database: duckdb.DuckDBPyConnection,
    source: RawSource,
    file: RawFile,
    declared: declared_files.DeclaredFile,
    rules: Any,
) -> ValidationReport:
    if declared.faults or not declared.rows:  # nothing else has to hold of a period without events
        return ValidationReport(declared.faults, {})
    stage = rules.raw_expectations(source.name, file.period)
    try:
        faults = histories.find_history_faults(database, source, declared.path, file.location) if source.history else ()
        report = expectations.validate_file(
            database, declared.path, file.location, stage, columns=tuple(source.columns)
        )
        return ValidationReport((*faults, *report.faults), report.results)
    except QUERY_ERRORS:
        raise
    except (pa.ArrowException, OSError, duckdb.Error) as error:
        return ValidationReport((declared_files.unreadable_fault(file.location, error),), {})


def _expectations_module(model: ModelSpec) -> Any:
    return import_module(f"evergreen_models.{model.feature_model}.expectations")
