"""Read the parts of a delivery, batch by batch, whatever their format is. A part is never in memory as a whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from evergreen.errors import first_line
from evergreen.ingest.conversions import convert_values
from evergreen.ingest.raw_files import RawFile, RawPart, part_folder
from evergreen.ingest.text_values import convert_objects, parse_text
from evergreen.spec.model import RawSource
from evergreen.spec.origins import ONE_PARQUET_FILE, RawFiles
from evergreen.storage import is_local

BATCH_ROWS = 65_536

_BUFFER_BYTES = 2**20
_BLOCK_BYTES = 2**20
_MAX_LINE_BYTES = 2**26
_MAX_EXAMPLE_CHARS = 80
_MAX_PROBLEMS = 20
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FORMAT_NAMES = {"parquet": "Parquet", "orc": "ORC", "csv": "CSV", "jsonl": "JSON lines"}


class UnreadableError(ValueError):
    """A file cannot be read, or a part of it."""


@dataclass(frozen=True)
class Conversion:
    """Values of a column as the declared type; they mean nothing if some are lost."""

    values: pa.Array
    lost: int = 0
    example: str = ""
    row: int | None = None
    """Place of the example among the values."""
    stored: str = ""
    """What the file has instead."""


class PartReader(Protocol):
    """One part. `names` and `row_count` are None as long as only its rows tell."""

    names: Sequence[str] | None
    row_count: int | None
    malformed: dict[str, list[int]]
    """Problems of rows that no column is to be blamed for: how many have each, and the first of them."""

    def read_batches(self) -> Iterator[Mapping[str, Any]]:
        """Yield the values of the declared columns."""

    def convert(self, values: Any, declared: pa.DataType) -> Conversion:
        """Convert the values of one column of a batch."""


def file_format(file: RawFile) -> RawFiles:
    """Return how the parts of a delivery are written."""
    return file.origin if isinstance(file.origin, RawFiles) else ONE_PARQUET_FILE


def format_name(files: RawFiles) -> str:
    """Return the name of a format, for messages."""
    return _FORMAT_NAMES[files.format]


@contextmanager
def readable() -> Iterator[None]:
    """Turn whatever a library raises about a file into an UnreadableError.

    Raises:
        UnreadableError: instead.
        FileNotFoundError: the file is gone.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError, csv.Error) as error:
        raise UnreadableError(first_line(error)) from error


def open_parquet(file: Any) -> pq.ParquetFile:
    """Open a Parquet file, by its path or as a stream."""
    # A timestamp of 96 bits has no zone and no unit: all that write it mean instants, to the microsecond.
    # Unless buffers are bounded, Arrow keeps all that it has read.
    return pq.ParquetFile(file, coerce_int96_timestamp_unit="us", pre_buffer=False, buffer_size=_BUFFER_BYTES)


@contextmanager
def open_part(source: RawSource, file: RawFile, part: RawPart) -> Iterator[PartReader]:
    """Open one part of a delivery.

    Raises:
        UnreadableError: it is not what the source says, or damaged.
        FileNotFoundError: it is gone.
    """
    if not part.is_file:
        raise UnreadableError("it is a link, a pipe or a device, and no file: deliver the file itself")
    folder, files = part_folder(file), file_format(file)
    with readable(), folder.fs.open(part.path, "rb") as stream:
        data = part.path if is_local(folder) else stream
        if files.format == "parquet":
            reader: PartReader = ParquetReader(open_parquet(data), source)
        elif files.format == "orc":
            reader = OrcReader(pa.orc.ORCFile(data), source)
        elif files.format == "csv":
            reader = CsvReader(stream, source, files)
        else:
            reader = JsonReader(stream, source)
        yield reader


def format_value(value: Any) -> str:
    """Return an example for a message, on one line and not too long."""
    if isinstance(value, pa.Scalar):
        text: str | None = None
        with suppress(ValueError, OverflowError):  # not every instant is a datetime
            python = value.as_py()
            text = python if isinstance(python, str) else repr(python) if isinstance(python, bytes) else str(python)
        text = text if text is not None else str(value.cast(pa.int64(), safe=False))
    else:
        text = value if isinstance(value, str) else repr(value) if isinstance(value, bytes) else _json_text(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _MAX_EXAMPLE_CHARS else f"{text[:_MAX_EXAMPLE_CHARS]}…"


def _json_text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list | bool) else str(value)


def convert_arrow(values: pa.Array, declared: pa.DataType) -> Conversion:
    converted, lost = convert_values(values, declared)
    if not len(lost):
        return Conversion(converted)
    row = None
    with suppress(pa.ArrowException):  # of some types, no equal value can be looked for
        row = pa.compute.index(values, lost[0]).as_py()
    is_place = row is not None and row >= 0
    return Conversion(converted, len(lost), format_value(lost[0]), row if is_place else None, str(lost.type))


class ParquetReader:
    """A part in Parquet."""

    malformed: dict[str, list[int]] = {}  # noqa: RUF012 - neither has any

    def __init__(self, parquet: pq.ParquetFile, source: RawSource):
        self.parquet, self._source = parquet, source
        self.names: Sequence[str] | None = parquet.schema_arrow.names
        self.row_count: int | None = parquet.metadata.num_rows

    @property
    def int96_columns(self) -> set[str]:
        columns = (self.parquet.schema.column(number) for number in range(len(self.parquet.schema)))
        return {column.path.split(".")[0] for column in columns if column.physical_type == "INT96"}

    def read_batches(self) -> Iterator[Mapping[str, pa.Array]]:
        instants = self.int96_columns
        for batch in self.parquet.iter_batches(BATCH_ROWS, columns=list(self._source.columns)):
            columns = {name: batch.column(name) for name in self._source.columns}
            for name in instants & columns.keys():
                if self._source.columns[name].type != "timestamp[us]":
                    columns[name] = columns[name].cast(pa.timestamp("us", "UTC"))
            yield columns

    def convert(self, values: pa.Array, declared: pa.DataType) -> Conversion:
        return convert_arrow(values, declared)


class OrcReader:
    """A part in ORC. It is read stripe by stripe, as it was written."""

    malformed: dict[str, list[int]] = {}  # noqa: RUF012 - neither has any

    def __init__(self, orc: pa.orc.ORCFile, source: RawSource):
        self._orc, self._source = orc, source
        self.names: Sequence[str] | None = orc.schema.names
        self.row_count: int | None = orc.nrows

    def read_batches(self) -> Iterator[Mapping[str, pa.Array]]:
        for number in range(self._orc.nstripes):
            stripe = self._orc.read_stripe(number, columns=list(self._source.columns))
            for start in range(0, stripe.num_rows, BATCH_ROWS):
                batch = stripe.slice(start, BATCH_ROWS)
                yield {name: batch.column(name) for name in self._source.columns}

    def convert(self, values: pa.Array, declared: pa.DataType) -> Conversion:
        return convert_arrow(values, declared)


class CsvReader:
    """A part in CSV, in UTF-8. No type is guessed: its values are text until they are read as declared."""

    row_count: int | None = None

    def __init__(self, stream: BinaryIO, source: RawSource, files: RawFiles):
        self._stream, self._source, self._files = stream, source, files
        self.malformed: dict[str, list[int]] = {}
        self._start = bytes(_decompress(stream).read(_BLOCK_BYTES))
        self.names: Sequence[str] | None = None
        self.names = self._read_names()

    def read_batches(self) -> Iterator[Mapping[str, pa.Array]]:
        if not self._start:
            return
        names = self.names or ()
        text = _TextStream(_decompress(self._stream))
        with self._open(text, {name: pa.binary() for name in names}, list(self._source.columns), len(names)) as reader:
            for batch in reader:
                yield {name: batch.column(name) for name in self._source.columns}
        if self._files.quotes and text.quotes % 2:
            raise ValueError(
                'it has an odd number of ": one is not closed, and rows after it are lost (quotes=False in '
                "`files` if they are letters)"
            )

    def convert(self, values: pa.Array, declared: pa.DataType) -> Conversion:
        converted, rejections = parse_text(values, declared)
        return report_rejections(converted, rejections, "text")

    def _read_names(self) -> Sequence[str]:
        if not self._files.header:
            return list(self._source.columns)
        if not self._start:
            raise ValueError("it has no header: it is empty")
        # Of the first bytes only: a reader of the whole stream reads ahead, in a thread of its own.
        with self._open(_TextStream(io.BytesIO(self._start)), {}, [], 0) as reader:
            names: list[str] = reader.schema.names
        return names

    def _open(
        self, text: _TextStream, types: Mapping[str, pa.DataType], columns: list[str], width: int
    ) -> pa.csv.CSVStreamingReader:
        files = self._files
        return pa.csv.open_csv(
            pa.PythonFile(text, "r"),
            read_options=pa.csv.ReadOptions(
                # Rows are numbered only where one thread reads them.
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=None if files.header else list(self._source.columns),
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=files.delimiter,
                quote_char='"' if files.quotes else False,
                newlines_in_values=files.quotes,
                ignore_empty_lines=width != 1,  # of one column, it is a row without a value
                invalid_row_handler=self._skip_row,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=columns,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=list(files.nulls),
            ),
        )

    def _skip_row(self, row: pa.csv.InvalidRow) -> str:
        if self.names is not None:
            problem = f"{row.actual_columns} values instead of {row.expected_columns}"
            _count_malformed(self.malformed, problem, row.number - self._files.header)
        return "skip"


class JsonReader:
    """A part in JSON lines: one object a line, in UTF-8. A key that a row lacks is a null."""

    row_count: int | None = None
    names: Sequence[str] | None = None

    def __init__(self, stream: BinaryIO, source: RawSource):
        self._stream, self._source = stream, source
        self.malformed: dict[str, list[int]] = {}
        self.keys: set[str] = set()
        # A float would round what is declared as decimal.
        exact = any("decimal" in column.type for column in source.columns.values())
        self._decoder = json.JSONDecoder(object_pairs_hook=_object_of_pairs, parse_float=Decimal if exact else None)

    def read_batches(self) -> Iterator[Mapping[str, list[Any]]]:
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(_read_lines(_decompress(self._stream)), 1):
            if not line.strip():
                continue
            try:
                row = self._decoder.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(row, dict):
                    raise ValueError("it is no object")
            except (ValueError, RecursionError) as error:
                _count_malformed(self.malformed, f"is no JSON object: {first_line(error)}", number)
                continue
            self.keys |= row.keys()
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield self._columns(rows)
                rows = []
        if rows:
            yield self._columns(rows)

    def convert(self, values: Sequence[Any], declared: pa.DataType) -> Conversion:
        converted, rejections = convert_objects(values, declared, are_text=True)
        return report_rejections(converted, rejections, kind_of(rejections[0][1]) if rejections else "")

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        return {name: [row.get(name) for row in rows] for name in self._source.columns}


def report_rejections(values: pa.Array, rejections: Sequence[tuple[int, Any]], stored: str) -> Conversion:
    if not rejections:
        return Conversion(values)
    row, example = rejections[0]
    return Conversion(values, len(rejections), format_value(example), row, stored)


def _count_malformed(malformed: dict[str, list[int]], problem: str, row: int) -> None:
    if problem in malformed or len(malformed) < _MAX_PROBLEMS:
        malformed.setdefault(problem, [0, row])[0] += 1


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a boolean", int: "a number"}
    return kinds.get(type(value), "a number")


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has a key twice")
    return values


def _decompress(stream: BinaryIO) -> Any:
    """Return the content of a stream from its start, decompressed if it begins like gzip or zstd."""
    stream.seek(0)
    start = stream.read(4)
    stream.seek(0)
    for magic, codec in _COMPRESSIONS.items():
        if start.startswith(magic):
            return pa.CompressedInputStream(pa.PythonFile(_KeptOpen(stream), "r"), codec)
    return stream


def _read_lines(content: Any) -> Iterator[bytes]:
    """Yield lines without their ends.

    Raises:
        ValueError: a line is so long that the file is probably none of lines.
    """
    rest = b""
    while block := content.read(_BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            raise ValueError(f"a line has more than {_MAX_LINE_BYTES:,} bytes: write one object a line")
    if rest:
        yield rest


@dataclass
class _KeptOpen:
    """A stream that its reader does not close: it is read from its start again."""

    stream: BinaryIO
    closed: bool = False

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(size)

    def close(self) -> None:
        pass


@dataclass
class _TextStream:
    """The content of a CSV file, with an end of line at its end; counts the quotes in it."""

    content: Any
    quotes: int = 0
    closed: bool = False
    _last: bytes = b"\n"
    _has_ended: bool = False

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0 and not self._has_ended:
            piece = bytes(self.content.read(size))
            if not piece:
                # With the last bytes: Arrow finds no row in a block that has only this.
                self._has_ended, piece = True, b"" if self._last == b"\n" else b"\n"
            pieces.append(piece)
            size -= len(piece)
            self._last = piece[-1:] or self._last
        data = b"".join(pieces)
        self.quotes += data.count(b'"')
        return data

    def close(self) -> None:
        pass
