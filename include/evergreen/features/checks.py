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

from evergreen import lake, quality
from evergreen.errors import Fault, FeatureError, RawDataError
from evergreen.features import inputs
from evergreen.features.inputs import Drop
from evergreen.model import Model, feature_spec

Faults = dict[date, list[Fault]]
"""What is wrong with each day; days without a fault are left out."""


def raw(model: Model, days: Sequence[date]) -> Faults:
    """Check every raw file that `days` are made from. A fault of a file is one of each day that needs it."""
    features = feature_spec(model)
    faults = {drop: _check_drop(model, drop) for drop in inputs.drops_of(features, days)}
    found = {day: [fault for drop in inputs.drops(features, day) for fault in faults[drop]] for day in days}
    return {day: wrong for day, wrong in found.items() if wrong}


def built(model: Model, folders: Mapping[str, str]) -> Faults:
    """Check the built features of each day; `folders` is what `build` gave."""
    expectations = import_module(f"models.{model.features_of}.expectations")
    found: Faults = {}
    for day, folder in folders.items():
        faults: list[Fault] = []
        for name in feature_spec(model).tables:
            file = Path(folder) / f"{name}.parquet"
            if not file.exists():
                if not _folder_is_gone(model, day, file.parent):
                    faults.append(
                        Fault(f"{day} {name}", "was not built", f"let features.build return {name!r}")
                    )
                continue
            table = pd.read_parquet(file)
            faults += quality.check(table, f"{day} {name}", expectations.features(name)).faults
        if faults:
            found[date.fromisoformat(day)] = faults
    return found


def refuse_raw(model: Model, faults: Faults) -> None:
    """
    Raises:
        RawDataError: there are faults; each is told once, with file, column, rule and count.
    """
    if faults:
        raise RawDataError(f"raw data for {inputs.span(faults)} of {model.features_of}", _once(faults))


def refuse_built(model: Model, faults: Faults) -> None:
    """
    Raises:
        FeatureError: there are faults; each is told with table, column, rule and count.
    """
    if faults:
        raise FeatureError(f"features of {model.features_of}", _once(faults))


def _once(faults: Faults) -> list[Fault]:
    return list(dict.fromkeys(fault for wrong in faults.values() for fault in wrong))


def _check_drop(model: Model, drop: Drop) -> Sequence[Fault]:
    if not drop.path.exists():
        return [Fault(str(drop.path), "missing", "deliver it, then clear the run")]
    expectations = import_module(f"models.{model.features_of}.expectations")
    reports = lake.dataset(f"checks/{model.features_of}")
    parts = {
        "file": lake.sha256(drop.path),
        "code": lake.code(
            (expectations.__name__, "evergreen.quality"), ("great-expectations", "pandas", "pyarrow")
        ),
    }
    mark = lake.fingerprint(parts)
    if done := reports.published(drop.name, mark):
        report = json.loads(reports.path(done, "report").read_text())
    else:
        report = _examine(drop, expectations)
        folder = reports.stage(drop.name, mark)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        reports.publish(drop.name, mark, {"report": folder / "report.json"}, parts)
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


def _folder_is_gone(model: Model, day: str, folder: Path) -> bool:
    """A twin of this run has published the day and cleared it away: then there is nothing left to check."""
    partition = lake.day_partition(date.fromisoformat(day))
    return not folder.exists() and inputs.dataset(model).manifest(partition) is not None
