"""The log of a server: what was asked, with which features, and what it predicted. Written by others, read here.

    serving_logs/flight_delay/                   in the lake, or where `EVERGREEN_SERVING_LOGS` is
        day=2013-03-01/                          the period of `request_time`, named as partitions of features are
            server-1-0007.parquet …              Parquet files of any name and number, each written whole

`log_columns` is the schema. A file that has another one is named, column by column, and the others are read. A file may
be delivered twice: a prediction id counts once.
"""
# ruff: noqa: S608 - names and literals are quoted, and all others are made here

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.errors import Fault, ScoringError, first_line
from evergreen.feature_store.model_inputs import ModelInputs, coarse_type
from evergreen.ingest.databases import quote_name, quote_text
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.storage import (
    RefusedFileError,
    UPath,
    check_no_link,
    download,
    is_local,
    is_plain_file,
    list_files,
    list_names,
    storage_path,
)

ID, TIME, VERSION, CONTENT, LATENCY = "prediction_id", "request_time", "model_version", "model_content", "latency_ms"

MAX_ID_LENGTH = 200
"""Of a prediction id, in characters. A row with a longer one, or without any, is not read."""
MAX_LOGGED_TEXT = 1_000
"""Of a key, an input or a version that is text, in characters. A sampled row with a longer one is left out."""
MAX_LOG_FILES = 10_000
"""Of a period: with more, it is not read."""

MAX_LOG_BYTES = 4 * 2**30
"""Of the files of a period together, as they are stored: with more, it is not read."""

Kind = Literal["text", "number", "integer", "boolean", "time", "instant", "outcome", "name"]

_MAX_NAMED = 5  # faults of a file, and versions of other models
_MAX_TEXT = 120  # characters of a name that comes from others
_POSITION_COLUMNS = ("file_index", "file_row_number", "filename")  # which DuckDB adds
_FOUND = "{} is found"
_MACHINE_ERRORS = (
    duckdb.OutOfMemoryException,
    duckdb.FatalException,
    duckdb.InterruptException,
    duckdb.ConnectionException,
    duckdb.TransactionException,
    duckdb.PermissionException,
)
_EXPECTED: Mapping[Kind, tuple[str, str]] = {
    "text": ("text", "write it as string"),
    "number": ("a number", "write it as int64 or float64"),
    "integer": ("a whole number", "write it as int64, as the key of the feature view is"),
    "boolean": ("a boolean", "write it as bool"),
    "time": ("a date or a timestamp", "write it as timestamp[us, tz=UTC]"),
    "instant": ("a timestamp with a time zone", "write it as timestamp[us, tz=UTC]"),
    "outcome": ("a number or a boolean", "write 0 or 1 as int64, or a bool"),
    "name": ("text or a whole number", "write it as string or int64"),
}
_KEY_TYPES: Mapping[str, tuple[Kind, str]] = {
    "STRING": ("text", "VARCHAR"),
    "INT32": ("integer", "INTEGER"),
    "INT64": ("integer", "BIGINT"),
    "FLOAT": ("number", "FLOAT"),
    "DOUBLE": ("number", "DOUBLE"),
    "BOOL": ("boolean", "BOOLEAN"),
    "UNIX_TIMESTAMP": ("instant", "TIMESTAMPTZ"),
}
_LEARNED_KINDS: Mapping[str, Kind] = {"number": "number", "boolean": "boolean", "text": "text", "time": "time"}
_SQL_TYPES: Mapping[Kind, str] = {
    "text": "VARCHAR",
    "number": "DOUBLE",
    "integer": "BIGINT",
    "boolean": "BOOLEAN",
    "time": "TIMESTAMPTZ",
    "instant": "TIMESTAMPTZ",
    "outcome": "DOUBLE",
    "name": "VARCHAR",
}


class LogColumn(NamedTuple):
    """A column of the log: its name, what its values are, and the type that DuckDB reads it as."""

    name: str
    kind: Kind
    sql_type: str
    is_required: bool = True


@dataclass(frozen=True)
class LogSchema:
    """What a file has to have: all of them `common`; those with rows of one model also `keys`, `inputs`, `predictions`.

    Attributes:
        keys: columns that feature views are joined by; one may be an input as well.
        inputs: of the model, in its order: request columns, and features named `view__feature`.
        predictions: `prediction`, or `prediction_0` and so on, in the order of classes or quantiles.
    """

    common: tuple[LogColumn, ...]
    keys: tuple[LogColumn, ...]
    inputs: tuple[LogColumn, ...]
    predictions: tuple[LogColumn, ...]
    problems: tuple[str, ...] = ()

    @property
    def of_model(self) -> tuple[LogColumn, ...]:
        """The columns that only rows of the model need, each once: keys as their views declare them."""
        columns: dict[str, LogColumn] = {}
        for column in (*self.keys, *self.inputs, *self.predictions):
            columns.setdefault(column.name, column)
        return tuple(columns.values())


class LogFile(NamedTuple):
    """A file of a log as it is listed: path below the folder of the model, bytes, and seconds since the epoch."""

    path: str
    size: int
    changed_at: float


def size_problem(
    files: Sequence[LogFile],
    subject: str = "its log has",
    fix: str = "log a share of the requests, and no columns that the model does not need",
) -> str | None:
    """Return why the files of a period are too many, or too large, to be read, and what to do; or None."""
    if len(files) > MAX_LOG_FILES:
        return f"{subject} {len(files):,} files, and at most {MAX_LOG_FILES:,} are read: merge them"
    size = sum(file.size for file in files)
    if size > MAX_LOG_BYTES:
        return f"{subject} {size:,} bytes, and at most {MAX_LOG_BYTES:,} are read: {fix}"
    return None


class LoggedPeriod(NamedTuple):
    """What the log of a period has of one model.

    Attributes:
        rows: predictions of the model, each id once.
        duplicates: further rows with an id that was there.
        conflicts: ids whose rows differ in time or prediction; the first one by file and row counts.
        unidentified: rows of any model without an id, with too long a one, or without a time.
        outside: rows of the model whose time is in another period.
        other_models: rows of other models, by version, those with most first.
        foreign: files that are left out, each with why.
        long_texts: rows of the sample that are left out, since a text of theirs is too long.
        accepted: names of the files that are not left out.
        sample: rows (n,) with the columns of the schema, in order of their ids; None without any.
    """

    rows: int
    duplicates: int
    conflicts: int
    unidentified: int
    outside: int
    other_models: Mapping[str, int]
    foreign: tuple[str, ...]
    long_texts: int
    accepted: tuple[str, ...]
    sample: pa.Table | None


def logs_folder(model: str) -> UPath:
    """Return the folder that the servers of a model write to."""
    return storage_path(settings().serving_logs) / model


def list_log_files(
    model: str, start: str, end: str, problems: list[str], *, subfolder: str = ""
) -> dict[str, list[LogFile]]:
    """Return the Parquet files of each period from `start` until `end`, exclusively, in order of their paths.

    Hidden files are none of them. Of earlier periods, whose logs may be years of files, only the names are listed. The
    folder of a period that is a link is not read: it is added to `problems`. With `subfolder`, folders of periods are
    in the folder of that name, and others there are added to `problems`.
    """
    files: dict[str, list[LogFile]] = {}
    root, unnamed = logs_folder(model), list[str]()
    folder = root / subfolder if subfolder else root
    prefix = f"{subfolder}/" if subfolder else ""
    for name in list_names(folder):
        period = datasets.partition_period(name)
        is_partition = re.fullmatch(r"(day|period)=[0-9TZ-]+", name) and datasets.period_partition(period) == name
        if not is_partition and not name.startswith((".", "_")):
            unnamed.append(name)
        if not is_partition or not start <= period < end:
            continue
        try:
            check_no_link(folder / name, root)
        except RefusedFileError:
            problems.append(f"{prefix}{name} is a link, and is not read: put the files into the folder themselves")
            continue
        for path, size, changed_at in list_files(folder / name):
            is_hidden = any(part.startswith((".", "_")) for part in path.split("/"))
            if path.endswith(".parquet") and not is_hidden:
                files.setdefault(period, []).append(LogFile(f"{prefix}{name}/{path}", size, changed_at))
    if unnamed and subfolder:  # the folder of the log has others, too
        rest = f" and {len(unnamed) - 1:,} more are" if len(unnamed) > 1 else " is"
        problems.append(
            f"{prefix}{shorten(unnamed[0])}{rest} not read: folders are named as those of the log, such as "
            "day=2013-03-01"
        )
    return {period: sorted(items) for period, items in sorted(files.items())}


def fetch_log_files(model: str, files: Sequence[LogFile], scratch: Path) -> tuple[dict[str, Path], list[str]]:
    """Return a local path of each file, by its path below the folder of the model, and what is refused.

    Raises:
        OSError: the store fails, or the disk is full: that says nothing of a file, and another run may read it.
    """
    folder, paths, refused = logs_folder(model), dict[str, Path](), list[str]()
    for number, file in enumerate(files):
        try:
            source = folder / file.path
            if is_local(source):
                try:
                    check_no_link(source, folder)
                except RefusedFileError:  # it names a whole path, and what is shown is short
                    raise RefusedFileError("it is a link, or is reached through one") from None
                if not is_plain_file(source):
                    raise RefusedFileError("it is no regular file, or has a second name")
                paths[file.path] = Path(source)
            else:
                paths[file.path] = scratch / f"{number}.parquet"
                download(source, paths[file.path], folder)
        except FileNotFoundError:
            paths.pop(file.path, None)  # removed since it was listed
        except RefusedFileError as error:
            paths.pop(file.path, None)
            refused.append(f"{shorten(file.path)}: cannot be read: {shorten(first_line(error))}")
    return paths, refused


def log_columns(inputs: ModelInputs, outputs: int = 0) -> LogSchema:
    """Return the schema of the rows that a model with these inputs, and this number of outputs, is logged with.

    `outputs` is 0 for a model that predicts a single number.

    Raises:
        ScoringError: an input is named like a column of every log.
    """
    common = (
        log_column(ID, "text"),
        log_column(TIME, "instant"),
        log_column(VERSION, "text"),
        log_column(CONTENT, "text"),
    )
    keys: dict[str, LogColumn] = {}
    for definition in inputs.views.values():
        for key, feast_type in sorted(definition.keys.items()):
            name = definition.key_columns.get(key, key)
            kind, sql_type = _KEY_TYPES.get(feast_type, ("text", "VARCHAR"))
            keys.setdefault(name, LogColumn(name, kind, sql_type))
    names = [f"prediction_{number}" for number in range(outputs)] or ["prediction"]
    learned, problems = list[LogColumn](), list[str]()
    for name, arrow_type in inputs.columns:
        if learned_kind := _LEARNED_KINDS.get(coarse_type(arrow_type)):
            learned.append(log_column(name, learned_kind))
        else:
            problems.append(f"{name} is {arrow_type}, which is not compared")
    reserved = {ID, TIME, VERSION, CONTENT, LATENCY, *names}
    if clashing := sorted(reserved & {column.name for column in (*keys.values(), *learned)}):
        raise ScoringError(f"{', '.join(clashing)}: the log has a column of that name, and so have the model's inputs")
    return LogSchema(
        common,
        tuple(keys.values()),
        tuple(learned),
        tuple(log_column(name, "number") for name in names),
        tuple(problems),
    )


def schema_faults(schema: pa.Schema, columns: Sequence[LogColumn]) -> list[Fault]:
    """Return what is foreign about the schema of a file: a fault for each column, with what is found and expected."""
    faults, names = [], schema.names
    lower = [name.lower() for name in names]
    for name in dict.fromkeys(names):
        if lower.count(name.lower()) > 1 and name.lower() in {column.name.lower() for column in columns}:
            faults.append(Fault(shorten(name), "occurs twice, if case does not count", "keep one of them"))
        if name.lower() in _POSITION_COLUMNS:
            faults.append(Fault(name, "has a name that DuckDB keeps for the place of a row", "rename it"))
    for column in columns:
        expected, fix = _EXPECTED[column.kind]
        if column.name not in names:
            faults.append(Fault(column.name, f"no such column is found, {expected} is expected", fix))
        elif lower.count(column.name.lower()) == 1:
            file_type = schema.field(column.name).type
            if not _is_kind(file_type, column):
                is_local = pa.types.is_timestamp(file_type) and file_type.tz is None
                text = f"{file_type} without a time zone" if is_local else shorten(str(file_type))
                faults.append(Fault(column.name, f"{_FOUND.format(text)}, {expected} is expected", fix))
    return faults


def read_period(
    database: duckdb.DuckDBPyConnection,
    files: Mapping[str, Path],
    schema: LogSchema,
    content: str,
    start: datetime,
    end: datetime,
    max_rows: int,
) -> LoggedPeriod:
    """Return what the files of a period have of the model with this content, with a sample of at most `max_rows`.

    The sample are the ids with the smallest hash, so the same ones however the rows come in files. A file of another
    schema, or that cannot be read, is left out, and named.

    Args:
        database: without tables of its own; it gets some.
        files: by the name to be shown.
        schema: of the model.
        content: hash of the model's files.
        start: of the period.
        end: exclusively.
        max_rows: of the sample.

    Raises:
        OSError: a file cannot be read for a reason that is not its own, such as a disk that fails.
        duckdb.Error: likewise, such as too little memory.
    """
    database.execute(
        "CREATE OR REPLACE TEMP TABLE logged (file INTEGER, number BIGINT, id VARCHAR, digest UBIGINT); "
        "CREATE OR REPLACE TEMP TABLE counted (file INTEGER, version VARCHAR, kind VARCHAR, n BIGINT)"
    )
    names, foreign = list(files), dict[int, str]()
    for number, name in enumerate(names):
        try:
            if faults := _read_rows(database, number, files[name], schema, content, start, end):
                foreign[number] = describe_faults(faults)
        except Exception as error:  # of any class: the file comes from others
            if not is_damaged_file(error, files[name]):
                raise
            foreign[number] = f"cannot be read: {shorten(first_line(error))}"
        if number in foreign:
            _forget(database, number)
    while True:
        try:
            totals, long_texts, sample = _choose(database, files, schema, max_rows)
            break
        except _UnreadableError as error:
            foreign[error.number] = f"cannot be read: {shorten(first_line(error))}"
            _forget(database, error.number)
    counts = dict(database.execute("SELECT kind, sum(n)::BIGINT FROM counted GROUP BY kind").fetchall())
    counts_of_others = database.execute(
        "SELECT version, sum(n)::BIGINT AS rows FROM counted WHERE kind = 'other' GROUP BY version "
        "ORDER BY rows DESC, version"
    ).fetchall()
    named = {shorten(version): rows for version, rows in counts_of_others[:_MAX_NAMED]}
    if rest := sum(rows for _, rows in counts_of_others[_MAX_NAMED:]):
        named["others"] = rest
    return LoggedPeriod(
        *totals,
        unidentified=counts.get("unidentified", 0),
        outside=counts.get("outside", 0),
        other_models=named,
        foreign=tuple(f"{shorten(names[number])}: {problem}" for number, problem in sorted(foreign.items())),
        long_texts=long_texts,
        accepted=tuple(name for number, name in enumerate(names) if number not in foreign),
        sample=sample,
    )


def shorten(text: str) -> str:
    """Return a text that comes from others as it may be shown: on one line, not long, and without invisible letters."""
    printable = "".join(letter if letter.isprintable() else "�" for letter in text[: _MAX_TEXT + 1])
    return printable if len(printable) <= _MAX_TEXT else f"{printable[:_MAX_TEXT]}…"


class _UnreadableError(Exception):
    def __init__(self, number: int, problem: str):
        super().__init__(problem)
        self.number = number


def is_damaged_file(error: Exception, file: Path) -> bool:
    """Return whether an error of reading a file is the file's own fault, and not that of the disk or of memory."""
    if isinstance(error, OSError):
        return error.errno is None  # pyarrow raises it for what it cannot decode; the system gives a number
    if isinstance(error, duckdb.IOException):  # of a file that ends too early, and of a disk that is full
        return _is_undecodable(file)
    return not isinstance(error, (MemoryError, *_MACHINE_ERRORS))


def _is_undecodable(file: Path) -> bool:
    """Return whether another reader finds that the content of a file is damaged."""
    try:
        for _ in pq.ParquetFile(file).iter_batches():
            pass
    except (pa.ArrowException, OSError) as error:
        is_of_machine = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        return not is_of_machine
    return False


def log_column(name: str, kind: Kind) -> LogColumn:
    """Return a column of this kind."""
    return LogColumn(name, kind, _SQL_TYPES[kind])


def _is_kind(file_type: pa.DataType, column: LogColumn) -> bool:
    """Return whether a column of this type may be read as declared. One without any value has no type."""
    types = pa.types
    if types.is_dictionary(file_type):
        file_type = file_type.value_type
    if types.is_null(file_type):
        return column.name not in (ID, TIME, VERSION, CONTENT)
    is_number = types.is_integer(file_type) or types.is_floating(file_type) or types.is_decimal(file_type)
    is_text = types.is_string(file_type) or types.is_large_string(file_type) or types.is_string_view(file_type)
    matches: Mapping[Kind, bool] = {
        "text": is_text,
        "number": is_number,
        "integer": types.is_integer(file_type),
        "boolean": types.is_boolean(file_type),
        "time": types.is_timestamp(file_type) or types.is_date(file_type),
        "instant": types.is_timestamp(file_type) and file_type.tz is not None,
        "outcome": is_number or types.is_boolean(file_type),
        "name": is_text or types.is_integer(file_type),
    }
    return matches[column.kind]


def describe_faults(faults: Sequence[Fault]) -> str:
    """Return the first faults of a file in a line."""
    rest = f"; and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
    return "; ".join(map(str, faults[:_MAX_NAMED])) + rest


def logged_rows(file: Path) -> str:
    """Return the rows of a file as SQL, with their numbers as `file_row_number`."""
    return f"read_parquet({quote_text(glob.escape(str(file)))}, hive_partitioning = false, file_row_number = true)"


def _read_rows(
    database: duckdb.DuckDBPyConnection,
    number: int,
    file: Path,
    schema: LogSchema,
    content: str,
    start: datetime,
    end: datetime,
) -> list[Fault]:
    """Add the ids of a file to `logged`, and what else it has to `counted`; return what is foreign about it."""
    existing = pq.read_schema(file)
    if faults := schema_faults(existing, schema.common):
        return faults
    digest = "NULL::UBIGINT"
    of_model = f"CAST({CONTENT} AS VARCHAR) = {quote_text(content)}"
    faults = schema_faults(existing, schema.of_model)
    if faults:
        # Servers of other models may write to the same folder, with inputs of theirs.
        if database.execute(f"SELECT 1 FROM {logged_rows(file)} WHERE {of_model} LIMIT 1").fetchone():
            return faults
    else:
        predictions = ", ".join(f"TRY_CAST({quote_name(column.name)} AS DOUBLE)" for column in schema.predictions)
        digest = f"hash({TIME}, {predictions})"
    is_identified = f"length({ID}) BETWEEN 1 AND {MAX_ID_LENGTH} AND {TIME} IS NOT NULL"
    bounds = " AND ".join(
        f"{TIME} {sign} TIMESTAMPTZ {quote_text(moment.isoformat())}" for sign, moment in ((">=", start), ("<", end))
    )
    kind = (
        f"CASE WHEN NOT coalesce({is_identified}, false) THEN 'unidentified' "
        f"WHEN NOT coalesce({of_model}, false) THEN 'other' WHEN NOT ({bounds}) THEN 'outside' ELSE 'logged' END"
    )
    source = (
        f"SELECT file_row_number AS number, CAST({ID} AS VARCHAR) AS {ID}, TRY_CAST({TIME} AS TIMESTAMPTZ) AS {TIME}, "
        f"{CONTENT}, CAST({VERSION} AS VARCHAR) AS version, {digest} AS digest FROM {logged_rows(file)}"
    )
    database.execute(
        f"INSERT INTO counted SELECT {number}, CASE WHEN kind = 'other' THEN coalesce(left(version, {_MAX_TEXT}), '') "
        f"ELSE '' END AS shown, kind, count(*) FROM (SELECT *, {kind} AS kind FROM ({source})) GROUP BY shown, kind"
    )
    database.execute(
        f"INSERT INTO logged SELECT {number}, number, {ID}, digest FROM ({source}) WHERE {kind} = 'logged'"
    )
    return []


def _forget(database: duckdb.DuckDBPyConnection, number: int) -> None:
    database.execute(f"DELETE FROM logged WHERE file = {number}; DELETE FROM counted WHERE file = {number}")


def _choose(
    database: duckdb.DuckDBPyConnection, files: Mapping[str, Path], schema: LogSchema, max_rows: int
) -> tuple[tuple[int, int, int], int, pa.Table | None]:
    """Return the numbers of ids, of duplicates and of conflicts, that of rows with too long a text, and the sample."""
    database.execute(
        "CREATE OR REPLACE TEMP TABLE ids AS SELECT id, min({'file': file, 'number': number}) AS place, "
        "count(*) AS copies, min(digest) <> max(digest) AS differ FROM logged GROUP BY id"
    )
    query = (
        "SELECT count(*), (coalesce(sum(copies), 0) - count(*))::BIGINT, count(*) FILTER (differ AND copies > 1) "
        "FROM ids"
    )
    rows, duplicates, conflicts = database.execute(query).fetchall()[0]
    if not rows:
        return (0, 0, 0), 0, None
    # MD5, which stays the same from version to version, unlike `hash`.
    database.execute(
        "CREATE OR REPLACE TEMP TABLE chosen AS SELECT place.file AS file, place.number AS number FROM ids "
        f"ORDER BY md5(id), id LIMIT {max_rows}"
    )
    numbers = [number for (number,) in database.execute("SELECT DISTINCT file FROM chosen ORDER BY file").fetchall()]
    paths, tables = list(files.values()), list[pa.Table]()
    columns = ", ".join(
        f"TRY_CAST(r.{quote_name(column.name)} AS {column.sql_type}) AS {quote_name(column.name)}"
        for column in (*schema.common, *schema.of_model)
    )
    texts = [quote_name(column.name) for column in (*schema.common, *schema.of_model) if column.kind == "text"]
    is_short = " AND ".join(f"coalesce(length(CAST(r.{name} AS VARCHAR)) <= {MAX_LOGGED_TEXT}, true)" for name in texts)
    for number in numbers:
        query = (
            f"SELECT {columns} FROM {logged_rows(paths[number])} r JOIN chosen c ON r.file_row_number = c.number "
            f"WHERE c.file = {number} AND {is_short}"
        )
        try:
            tables.append(database.sql(query).to_arrow_table())
        except duckdb.Error as error:
            if not is_damaged_file(error, paths[number]):
                raise
            raise _UnreadableError(number, first_line(error)) from None
    sample = pa.concat_tables(tables).combine_chunks().sort_by(ID)
    long_texts = min(rows, max_rows) - sample.num_rows
    return (rows, duplicates, conflicts), long_texts, sample if sample.num_rows else None


def iter_problems(logged: LoggedPeriod) -> Iterator[str]:
    """Yield what is wrong with the log of a period, besides its foreign files."""
    if logged.conflicts:
        yield f"{logged.conflicts:,} prediction ids have several rows that differ: the first one counts"
    if logged.unidentified:
        yield f"{logged.unidentified:,} rows have no prediction id, too long a one, or no time: they are left out"
    if logged.outside:
        yield f"{logged.outside:,} rows are of another period by their request_time: they are left out"
    if logged.long_texts:
        yield f"{logged.long_texts:,} rows have a text of more than {MAX_LOGGED_TEXT:,} characters: they are left out"
