"""Where the raw data of a source comes from: files that are delivered, a query, or a table of a lakehouse.

A template of a path has the start of a period in it, in strftime's letters::

    rides/dt=%Y-%m-%d/                   a folder: all files below it
    rides/year=%Y/month=%m/day=%d/       the same
    rides/%Y/%m/rides-%d.csv             one file
    rides/%Y-%m-%d-*.csv.gz              files of one folder, by their names
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from evergreen.periods import Calendar
from evergreen.spec import Frozen, Name, NonEmptyStr

PLACEHOLDERS = {"Y": r"\d{4}", "m": r"\d{2}", "d": r"\d{2}", "H": r"\d{2}", "M": r"\d{2}"}
"""Letters of a template, and what they stand for: year, month, day, hour and minute."""
PLACEHOLDER = re.compile(r"%(.?)")
TEXT_FORMATS = ("csv", "jsonl")

_DATE_LETTERS = {"Y", "m", "d"}
_SQL_PARAMETER = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")  # as SQLAlchemy finds them
_CSV_FIELDS = ("delimiter", "header", "nulls", "quotes")


def _check_template(path: str) -> str:
    if unknown := sorted({letter for letter in PLACEHOLDER.findall(path) if letter not in PLACEHOLDERS}):
        letters = ", ".join(f"%{letter}" for letter in PLACEHOLDERS)
        raise ValueError(f"{path!r} has %{unknown[0]}: write one of {letters}")
    parts = path.removesuffix("/").split("/")
    if path and ("://" in path or any(part in ("", ".", "..") for part in parts)):
        raise ValueError(f"{path!r} leaves the folder of raw data: write a path below EVERGREEN_RAW, without . and ..")
    if hidden := [part for part in parts if part.startswith((".", "_"))]:
        raise ValueError(f"{path!r} has {hidden[0]}: names that begin with . or _ are those of unfinished files")
    if "*" in "/".join(parts[:-1]) or (path.endswith("/") and "*" in path):
        raise ValueError(
            f"{path!r} has * in a folder: only the name of a file may have it; all files below a folder count"
        )
    if not path.isprintable():
        raise ValueError(f"{path!r} has characters that cannot be printed")
    return path


PathTemplate = Annotated[str, AfterValidator(_check_template)]
MarkerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.+=-]*$")]


class RawFiles(Frozen):
    """Files that others deliver: for each period one, or any number of parts.

    Names that begin with `.` or `_` are no parts.
    """

    path: PathTemplate = Field(
        "",
        description="where they are below `EVERGREEN_RAW`, with `%Y`, `%m`, `%d` of the start of the period, and `%H`, "
        "`%M`, in UTC, for periods shorter than a day: a folder (`rides/dt=%Y-%m-%d/`), a file, or files by name "
        "(`rides/%Y-%m-%d-*.csv`); empty: `<name>/day=%Y-%m-%d/<name>.parquet`",
    )
    format: Literal["parquet", "orc", "csv", "jsonl"] = Field(
        "parquet", description="of all of them; CSV and JSON lines may be compressed with gzip or zstd"
    )
    marker: MarkerName | None = Field(
        None, description="a folder is complete when it has a file of this name, such as `_SUCCESS`"
    )
    part_count: int | None = Field(None, ge=1, description="complete when there are this many parts")
    quiet_seconds: float | None = Field(
        None,
        ge=0,
        description="complete when no part has changed, come or gone for so long; by default 10 for parts without "
        "marker or count, 2 for a file",
    )
    delimiter: Annotated[str, StringConstraints(min_length=1, max_length=1)] = Field(
        ",", description="CSV: what separates values"
    )
    header: bool = Field(True, description="CSV: whether the first row has names; else columns are in declared order")
    nulls: tuple[str, ...] = Field(("",), description="CSV: unquoted texts that mean that there is no value")
    quotes: bool = Field(True, description='CSV: whether values may stand in double quotes; else `"` is a letter')

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.format != "csv" and (fields := [name for name in _CSV_FIELDS if name in self.model_fields_set]):
            raise ValueError(f"{', '.join(fields)}: only CSV has them; leave them out, or set format='csv'")
        if self.marker and not self.is_folder:
            raise ValueError("marker needs a folder: end path with /, or leave marker out")
        if self.part_count and not self.has_parts:
            raise ValueError("part_count needs parts: end path with /, or write * into the name of the files")
        if self.marker and (self.part_count or self.quiet_seconds is not None):
            raise ValueError("marker says when a folder is complete: leave part_count and quiet_seconds out")
        return self

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")

    @property
    def has_parts(self) -> bool:
        """Whether a period may have several files."""
        return self.is_folder or "*" in self.path

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(PLACEHOLDER.findall(self.path))


ONE_PARQUET_FILE = RawFiles()
READING_FIELDS = {"format", *_CSV_FIELDS}
"""Fields of `RawFiles` that decide what values the same bytes have."""


class RawQuery(Frozen):
    """A query on a SQL database. Its result for a period is kept in the lake, and read once."""

    connection: Name = Field(description="name of the database: its URL is in `EVERGREEN_CONNECTIONS__<NAME>`")
    sql: NonEmptyStr = Field(description="the query, with `:start` and `:end` for the instants that bound the period")
    watermark: NonEmptyStr | None = Field(
        None,
        description="a query for one instant, before which no row will be added; a period is complete when it is over "
        "by then",
    )
    delay_minutes: int = Field(0, ge=0, description="a period is complete so long after its end")


class RawTable(Frozen):
    """A table of a lakehouse. The rows of a period are read again when a new version of the table has changed them."""

    format: Literal["delta", "iceberg"] = Field(description="of the table")
    location: NonEmptyStr = Field(
        description="Delta: folder or URI, below `EVERGREEN_RAW` if relative; Iceberg: name, such as `shop.rides`"
    )
    catalog: Name | None = Field(
        None, description="Iceberg: name of the catalog: its URI is in `EVERGREEN_CONNECTIONS__<NAME>`"
    )
    time_column: NonEmptyStr | None = Field(
        None, description="a date or an instant, by which rows belong to a period; needed for periods"
    )
    delay_minutes: int = Field(0, ge=0, description="a period is complete so long after its end")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.format == "iceberg") != (self.catalog is not None):
            raise ValueError("a table of Iceberg is found by its catalog, one of Delta by its location only")
        return self


Origin = RawFiles | RawQuery | RawTable


def check_template_period(name: str, files: RawFiles, calendar: Calendar) -> None:
    """Check that a template of paths tells periods of the calendar apart.

    Raises:
        ValueError: it does not, or tells apart what is no period.
    """
    needed = {"day": "", "week": "", "hour": "H", "hours": "H"}.get(calendar.unit, "HM")
    if not files.path:
        return
    if missing := [letter for letter in needed if letter not in files.placeholders]:
        raise ValueError(f"files.path of {name} has no %{missing[0]}, and a period is {calendar.period}: write it")
    if not needed and (finer := sorted(files.placeholders - _DATE_LETTERS)):
        raise ValueError(f"files.path of {name} has %{finer[0]}, and a period is {calendar.period}: leave it out")


def check_origin(origin: Origin, is_register: bool) -> None:
    """Check that a source with a period has one in its origin, and one without has none.

    Raises:
        ValueError: it is not so.
    """
    if isinstance(origin, RawFiles) and origin.path:
        if not is_register and not origin.placeholders >= _DATE_LETTERS:
            raise ValueError(f"files.path {origin.path!r} does not say which day: write %Y, %m and %d into it")
        if is_register and origin.placeholders:
            raise ValueError(f"files.path {origin.path!r} has a day in it, and the source has one file for all days")
    if isinstance(origin, RawQuery):
        names = set(_SQL_PARAMETER.findall(origin.sql))
        needed = set() if is_register else {"start", "end"}
        if names != needed:
            bounds = "no parameter, because it is for all periods" if is_register else ":start and :end"
            raise ValueError(f"query.sql has parameters {', '.join(sorted(names)) or 'none'}: it needs {bounds}")
    if isinstance(origin, RawTable) and is_register == (origin.time_column is not None):
        raise ValueError("table.time_column says which rows are of a period: set it, or is_register=True for all rows")
