"""What is checked before anything is published: raw files, and the features built from them.

Reports are published before anything is refused. A file that was checked before, by these expectations, is
not checked again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from evergreen import storage
from evergreen.errors import Fault, FeatureError, RawDataError, first_line
from evergreen.features import inputs
from evergreen.features.inputs import RawFile
from evergreen.ingest.expectations import ExpectationStages, schema_expectations, validate_tables
from evergreen.lake import datasets, fingerprints
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec

FaultsByDay = dict[date, list[Fault]]
"""What is wrong with each day; days without a fault are left out."""


def check_raw_files(model: ModelSpec, days: Sequence[date]) -> FaultsByDay:
    """Check every raw file that `days` are made from. A fault of a file is one of each day that needs it."""
    features = feature_spec(model)
    faults = _validate_raw_files(model, inputs.raw_files_for_days(features, days))
    found = {day: [fault for drop in inputs.raw_files_for_day(features, day) for fault in faults[drop]] for day in days}
    return {day: wrong for day, wrong in found.items() if wrong}


def check_built_features(model: ModelSpec, folders: Mapping[str, str]) -> FaultsByDay:
    """Check the built features of each day; `folders` is what `build` gave."""
    expectations = import_module(f"evergreen_models.{model.feature_model}.expectations")
    found: FaultsByDay = {}
    for name in feature_spec(model).tables:
        files = {day: Path(folder) / f"{name}.parquet" for day, folder in folders.items()}
        faults: dict[str, Sequence[Fault]] = {}
        for some in inputs.split_into_batches([day for day in files if files[day].exists()]):
            tables = {f"{day} {name}": pd.read_parquet(files[day]) for day in some}
            stages = {table: [expectations.feature_expectations(name)] for table in tables}
            reports = validate_tables(tables, stages.__getitem__)
            faults |= {day: reports[f"{day} {name}"].faults for day in some}
        for day in files.keys() - faults.keys():
            if not _is_published_elsewhere(model, day, files[day].parent):
                way_out = f"let features.build return {name!r}"
                faults[day] = [Fault(f"{day} {name}", "was not built", way_out)]
        for day in sorted(day for day in faults if faults[day]):
            found.setdefault(date.fromisoformat(day), []).extend(faults[day])
    return found


def raise_raw_faults(model: ModelSpec, faults: FaultsByDay) -> None:
    """Raises:
    RawDataError: there are faults; each is told once, with file, column, rule and count.
    """
    if faults:
        raise RawDataError(
            f"raw data for {inputs.format_days(faults)} of {model.feature_model}", _distinct_faults(faults)
        )


def raise_feature_faults(model: ModelSpec, faults: FaultsByDay) -> None:
    """Raises:
    FeatureError: there are faults; each is told with table, column, rule and count.
    """
    if faults:
        raise FeatureError(f"features of {model.feature_model}", _distinct_faults(faults))


def _distinct_faults(faults: FaultsByDay) -> list[Fault]:
    return list(dict.fromkeys(fault for wrong in faults.values() for fault in wrong))


def _validate_raw_files(model: ModelSpec, raw_files: Sequence[RawFile]) -> dict[RawFile, Sequence[Fault]]:
    """The faults of each drop; what was checked before is read from its report."""
    expectations = import_module(f"evergreen_models.{model.feature_model}.expectations")
    code = fingerprints.code_versions(
        (expectations.__name__, "evergreen.ingest.expectations"), ("great-expectations", "pandas", "pyarrow")
    )
    reports = datasets.open_dataset(f"checks/{model.feature_model}")
    parts = {drop: {"file": storage.file_sha256(drop.path), "code": code} for drop in raw_files if drop.path.exists()}
    found: dict[RawFile, Sequence[Fault]] = {
        drop: [inputs.missing_raw_file_fault(drop)] for drop in raw_files if drop not in parts
    }
    todo = []
    for drop in parts:
        if done := reports.find(drop.name, fingerprints.compute_fingerprint(parts[drop])):
            found[drop] = _parse_faults(json.loads(reports.file_path(done, "report").read_text()))
        else:
            todo.append(drop)
    for source in dict.fromkeys(drop.source for drop in todo):
        for some in inputs.split_into_batches([drop for drop in todo if drop.source == source]):
            for drop, report in _validate_source(some, expectations).items():
                mark = fingerprints.compute_fingerprint(parts[drop])
                folder = reports.stage(drop.name, mark)
                (folder / "report.json").write_text(json.dumps(report, indent=1))
                reports.publish(drop.name, mark, {"report": folder / "report.json"}, parts[drop])
                found[drop] = _parse_faults(report)
            print(f"checked {len(some)} raw files of {source}", flush=True)
    return found


def _validate_source(raw_files: Sequence[RawFile], expectations: Any) -> dict[RawFile, dict[str, Any]]:
    """The report of each of some drops of one source."""
    found: dict[RawFile, dict[str, Any]] = {}
    tables = {}
    for drop in raw_files:
        try:
            tables[str(drop.path)] = pd.read_parquet(drop.path)
        except (pa.ArrowException, OSError, ValueError) as error:
            fault = Fault(str(drop.path), f"is not a readable Parquet file: {first_line(error)}", "deliver it again")
            found[drop] = {"faults": [vars(fault)], "results": {}}
    by_path = {str(drop.path): drop for drop in raw_files}

    def stages(path: str) -> ExpectationStages:
        drop = by_path[path]
        columns = schema_expectations(expectations.RAW_COLUMNS[drop.source])
        return [*columns, expectations.raw_expectations(drop.source, drop.day)]

    for path, report in validate_tables(tables, stages).items():
        faults = [vars(fault) for fault in report.faults]
        found[by_path[path]] = {"faults": faults, "results": report.results}
    return found


def _parse_faults(report: Mapping[str, Any]) -> list[Fault]:
    return [Fault(**fault) for fault in report["faults"]]


def _is_published_elsewhere(model: ModelSpec, day: str, folder: Path) -> bool:
    """A twin of this run has published the day and cleared it away: then there is nothing left to check."""
    return not folder.exists() and inputs.features_dataset(model).manifest(datasets.day_partition(day)) is not None
