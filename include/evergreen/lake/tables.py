"""Published datasets as tables of an open format, for programs that know nothing of manifests.

A table is registered, not copied: its files are those of the dataset, and stay where they are. The manifests decide
what is published, and a table follows them. `sync_tables` makes it hold what they say, so it can run late, twice or
at once, and completes what a killed one has left. Nothing of Evergreen reads a table.

What a table holds is a function of the manifests: the newest partition decides the types of its columns. A partition
whose column has another type is left out until it is built again, because formats and engines differ in what they
make of such a file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

from evergreen.errors import Fault, SettingsError, TableError
from evergreen.lake.datasets import Dataset, Manifest, PublicationStamp
from evergreen.settings import settings, variable_name
from evergreen.storage import UPath

_MAX_COMMITS = 50  # each that fails is one that another writer has made
_PUBLISH_TIMEOUT_S = 20.0
_NS_PER_MS = 1_000_000
_NO_TYPE = "of a type that tables do not have"

log = logging.getLogger(__name__)


class TableFile(NamedTuple):
    """A file of a table. `path` is relative to the table's folder: `<partition>/<file>`."""

    path: str
    size: int
    rows: int
    published_ms: int
    """When its manifest was written, in milliseconds since the epoch."""

    @property
    def partition(self) -> str:
        return self.path.partition("/")[0]


@dataclass(frozen=True)
class TableContent:
    """What a table holds: the types of its columns, in the words of the format, and its files by path."""

    partition_column: str
    columns: Mapping[str, str | None]
    """Without the partitions' column, which is in no file. Of type None: in files, but not in the table."""
    files: Mapping[str, TableFile]

    @property
    def column_types(self) -> dict[str, str]:
        return {name: kind for name, kind in self.columns.items() if kind}


@dataclass(frozen=True)
class TableState(TableContent):
    """What the newest version of a table holds."""

    is_intact: bool
    """Whether it has the properties that Evergreen gives it, so that its files are all that there is to compare."""
    handle: Any = field(compare=False, repr=False)
    """The format's own object of this version."""

    def has_columns_of(self, content: TableContent) -> bool:
        """Return whether the table needs no other columns. One that no partition has any more stays, as null."""
        is_same = self.is_intact and self.partition_column == content.partition_column
        return is_same and content.column_types.items() <= self.columns.items()


class TableFormat(Protocol):
    """An open format that can register files which exist."""

    def column_type(self, arrow_type: str) -> str | None:
        """Return the format's type of a column that has this Arrow type in Parquet, or None."""

    def read_state(self, folder: UPath | Path) -> TableState | None:
        """Return the newest version of the table in `folder`; None if there is none.

        Raises:
            TableError: its log is damaged.
        """

    def commit(self, folder: UPath | Path, state: TableState | None, content: TableContent) -> bool:
        """Make `content` the table's next version, as the one after `state`.

        Return False if there is more to do: another writer has committed since `state`, or the format needs several
        versions for the change.

        Raises:
            TableError: the format refuses it.
        """


class SyncedTable(NamedTuple):
    """What a table holds after `sync_tables`."""

    table: str
    partitions: int
    added: int
    removed: int
    left_out: Mapping[str, str]
    """Why a partition is not in it, by its name."""


def configured_table_format() -> TableFormat | None:
    """Return the format that `EVERGREEN_TABLES` names, or None.

    Raises:
        SettingsError: its library is not installed.
    """
    if settings().tables is None:
        return None
    try:
        import_module("deltalake")
    except ModuleNotFoundError:
        fault = Fault(variable_name("tables"), "deltalake is not installed", "pip install 'evergreen[delta]'")
        raise SettingsError("the environment", [fault]) from None
    from evergreen.lake.delta import DeltaFormat

    return DeltaFormat()


def follow_publication(dataset: Dataset, partitions: Collection[str], timeout_s: float = _PUBLISH_TIMEOUT_S) -> None:
    """Bring the tables of `dataset` to what is published, where the settings ask for tables.

    `partitions` were published just now. Whatever goes wrong is logged, and whatever takes longer than `timeout_s` is
    left to itself: the dataset is published without its tables, which the next call, or `evergreen
    tables sync`, completes.
    """
    try_sync(dataset.root.name, lambda table_format: sync_tables(dataset, table_format, partitions), timeout_s)


def try_sync(place: str, sync: Callable[[TableFormat], object], timeout_s: float = _PUBLISH_TIMEOUT_S) -> None:
    """Call `sync` with the format that the settings name, if they do; log what goes wrong, and what takes too long."""
    if settings().tables is None:
        return
    advice = "what they hold is published; the next publication, or `evergreen tables sync`, completes its tables"
    problems: list[BaseException] = []

    def run() -> None:
        try:
            if table_format := configured_table_format():
                sync(table_format)
        except BaseException as error:
            problems.append(error)

    # A thread that hangs in a file system cannot be stopped, but left behind. Killed with the process, it leaves a
    # table at the version before.
    thread = Thread(target=run, name="tables", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        log.warning("%s: its tables are not complete after %.0f s: %s", place, timeout_s, advice)
    for problem in problems:
        log.warning("%s: %s: %s", place, problem, advice, exc_info=problem)


def sync_tables(
    dataset: Dataset, table_format: TableFormat, partitions: Collection[str] | None = None
) -> list[SyncedTable]:
    """Make each table of `dataset` hold what its manifests say.

    With `partitions`, only manifests of these and of what has changed since the table was written are read: those
    with another time. Without, all are.

    Raises:
        TableError: a table cannot be written. The others are, those before and after it.
        DatasetError: a manifest is damaged.
    """
    reader = _ManifestReader(dataset)
    synced = []
    states, problems = read_table_states(dataset, table_format)
    stamps = reader.stamps()  # one listing for all, after all states
    for folder, state in states.items():
        try:
            if result := _sync_table(folder, table_format, reader, state, stamps, partitions):
                synced.append(result)
        except (TableError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise TableError("; ".join(problems))
    return synced


def read_table_states(
    dataset: Dataset, table_format: TableFormat
) -> tuple[dict[UPath | Path, TableState | None], list[str]]:
    """Return the state of each table that `dataset` has a folder of, and the problems of those that are damaged."""
    states: dict[UPath | Path, TableState | None] = {}
    problems: list[str] = []
    for folder in dataset.folders():  # also of a table that no manifest names any more
        try:
            states[folder] = table_format.read_state(folder)
        except (TableError, OSError) as error:
            problems.append(str(error))
    return states, problems


def _sync_table(
    folder: UPath | Path,
    table_format: TableFormat,
    reader: _ManifestReader,
    state: TableState | None,
    stamps: Mapping[str, PublicationStamp],
    refreshed: Collection[str] | None,
) -> SyncedTable | None:
    """Return None for a folder that is no table, because no manifest has Parquet files in it.

    `stamps` are newer than `state`. So what is committed as version n + 1 is never older than what another writer has
    committed as n: no table goes back, and none ever has two files of one partition.
    """
    for _ in range(_MAX_COMMITS):
        content, left_out = _TablePlanner(folder.name, table_format, reader, stamps).plan(state, refreshed)
        if state is None and not content.files:
            return None
        old_files = state.files if state else {}
        added = {path for path, file in content.files.items() if old_files.get(path) != file}
        removed = old_files.keys() - content.files.keys()
        is_equal = state is not None and not added and not removed and state.has_columns_of(content)
        if is_equal or table_format.commit(folder, state, content):
            return SyncedTable(folder.name, len(content.files), len(added), len(removed), left_out)
        state = table_format.read_state(folder)
        stamps = reader.stamps()
    raise TableError(f"{folder}: others have written to this table {_MAX_COMMITS} times meanwhile: run it again")


class _ManifestReader:
    """Reads each manifest once for all tables, and again when it is published anew."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._manifests: dict[tuple[str, PublicationStamp], Manifest | None] = {}

    def stamps(self) -> dict[str, PublicationStamp]:
        return self._dataset.publication_stamps()

    def read(self, partition: str, stamp: PublicationStamp) -> Manifest | None:
        if (partition, stamp) not in self._manifests:
            self._manifests[partition, stamp] = self._dataset.manifest(partition)
        return self._manifests[partition, stamp]


class _TablePlanner:
    """Decides what a table holds, from the manifests as they are now."""

    def __init__(
        self, table: str, table_format: TableFormat, reader: _ManifestReader, stamps: Mapping[str, PublicationStamp]
    ):
        self._table, self._format, self._reader, self._stamps = table, table_format, reader, stamps
        self._partitions = sorted(stamps, reverse=True)  # the newest first: it decides

    def plan(self, state: TableState | None, refreshed: Collection[str] | None) -> tuple[TableContent, dict[str, str]]:
        """Return the content, and why partitions are left out of it."""
        key = _partition_column(self._partitions[0]) if self._partitions else state.partition_column if state else ""
        no_content = TableContent(key, {}, {})
        if refreshed is not None:
            newest = next((entry[0] for partition in self._partitions[:1] if (entry := self._read(partition))), {})
            if state is None and not newest and not any(map(self._read, self._stamps.keys() & refreshed)):
                return no_content, {}  # a table of long ago: not worth reading all manifests after each publish
            if state and state.partition_column == key and not _clashes(newest, state.columns):
                start = TableContent(key, {**newest, **state.columns}, self._unchanged_files(state, refreshed))
                content, left_out, clashing = self._collect(start)
                # Else a partition that may be gone has decided, or one that was not read has a say in a new column.
                if clashing <= newest.keys() and content.column_types.keys() <= state.columns.keys():
                    return content, left_out
        return self._collect(no_content)[:2]

    def _collect(self, start: TableContent) -> tuple[TableContent, dict[str, str], set[str]]:
        """Add all partitions that `start` has no file of; return the columns that leave some out, too."""
        key, columns, files = start.partition_column, dict(start.columns), dict(start.files)
        unchanged = {file.partition for file in files.values()}
        left_out, clashing = {}, set()
        for partition in self._partitions:
            if partition in unchanged or (entry := self._read(partition)) is None:
                continue
            types, file = entry
            if _partition_column(partition) != key:
                left_out[partition] = f"its periods have other names than those of newer partitions, {key}=…"
            elif clashes := _clashes(types, columns):
                left_out[partition] = ", ".join(
                    f"{name} is {types[name] or _NO_TYPE}, and {columns[name] or _NO_TYPE} in newer partitions"
                    for name in clashes
                )
                clashing.update(clashes)
            else:
                columns = {**columns, **types}
                files[file.path] = file
        return TableContent(key, columns, files), left_out, clashing

    def _read(self, partition: str) -> tuple[dict[str, str | None], TableFile] | None:
        """Return the types and the file that a partition has of the table, or None."""
        stamp = self._stamps[partition]
        manifest = self._reader.read(partition, stamp)
        file = manifest.files.get(self._table) if manifest else None
        if file is None or file.schema is None:
            return None
        key = _partition_column(partition)
        types = {name: self._format.column_type(kind) for name, kind in file.schema.items() if name != key}
        path = file.path.removeprefix(f"{self._table}/")
        return types, TableFile(path, file.size, file.rows or 0, stamp.time_ns // _NS_PER_MS)

    def _unchanged_files(self, state: TableState, refreshed: Collection[str]) -> dict[str, TableFile]:
        """Return the files of partitions whose manifests are those that the table was written from."""
        files: dict[str, TableFile] = {}
        for path, file in state.files.items():
            partition = file.partition
            stamp = self._stamps.get(partition)
            if stamp and stamp.time_ns // _NS_PER_MS == file.published_ms and partition not in refreshed:
                files[path] = file
        return files


def _clashes(columns: Mapping[str, str | None], newer: Mapping[str, str | None]) -> list[str]:
    return [name for name, kind in columns.items() if newer.get(name, kind) != kind]


def _partition_column(partition: str) -> str:
    return partition.partition("=")[0]
