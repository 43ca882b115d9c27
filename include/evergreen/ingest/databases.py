"""The database that reads raw files: DuckDB in this process, and how names and values are written for it."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

QUERY_ERRORS = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.OutOfMemoryException)
"""What DuckDB raises when the query, or the machine, is at fault. Any other error is that of a file."""

_MEMORY_MB_PER_THREAD = 256  # beyond it, DuckDB writes to disk what it groups, such as keys that repeat


@contextmanager
def open_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database for any number of files. Its memory is limited, whatever the number of their rows."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits: dict[str, Any] = {"threads": threads, "memory_limit": f"{_MEMORY_MB_PER_THREAD * threads}MB"}
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-checks-") as scratch,
        duckdb.connect(config={**limits, "temp_directory": scratch}) as database,
    ):
        database.execute("SET TimeZone = 'UTC'")
        yield database


def quote_name(name: str) -> str:
    """Return a name of a column as SQL."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def parquet_rows(file: Path) -> str:
    """Return the rows of a Parquet file as SQL."""
    # The names of folders are not data: day=… must not replace a column `day`.
    return f"read_parquet({quote_text(glob.escape(str(file)))}, hive_partitioning = false)"
