"""Try the declaration of a source, without a run."""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import RawDataError
from evergreen.ingest.declared_files import read_as_declared
from evergreen.ingest.extracts import refresh_extracts
from evergreen.ingest.raw_files import RawFile, hash_raw_files, missing_fault
from evergreen.lake.datasets import Dataset
from evergreen.spec.model import FeatureSpec, RawSource


def read_source(source: RawSource, day: date | None = None, timezone: str = "UTC") -> pa.Table:
    """Return the rows that features get of a source for a day, or of one without days. They have to fit into memory.

    What it reads from a query or a table stays in the lake, as after a run.

    Raises:
        RawDataError: all faults of what is delivered.
    """
    file = RawFile.from_source(source, day)
    spec = FeatureSpec(timezone=timezone, first_day=day or date.min, sources=(source,), views=("view",), spine="spine")
    faults = refresh_extracts(spec, [file]).get(file, [])
    sha256 = hash_raw_files([file]).get(file)
    if faults or sha256 is None:
        raise RawDataError(f"raw data of {source.name}", faults or [missing_fault(file)])
    with tempfile.TemporaryDirectory() as folder:
        declared = read_as_declared(source, file, sha256, Dataset(Path(folder)))
        if declared.faults:
            raise RawDataError(f"raw data of {source.name}", declared.faults)
        return pq.read_table(declared.path, columns=list(source.columns))
