"""Delta tables, by delta-rs: a log beside the files, in `_delta_log`, and no server.

Every commit but one is a compare-and-swap on the version that it was computed from: with `max_commit_retries=0`
delta-rs does not rebase it, and puts the next file of the log only if there is none.

deltalake is an extra: it is imported where it is used.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from evergreen import object_store
from evergreen.errors import TableError, first_line
from evergreen.lake.datasets import partition_period
from evergreen.lake.tables import TableContent, TableFile, TableState
from evergreen.storage import UPath

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable, Field
    from deltalake.transaction import AddAction, RemoveAction

LOG_FOLDER = "_delta_log"

# Files of old versions belong to the lake, which may still need them: nobody's VACUUM is to remove them after a week.
# And versions stay readable as long as their files do.
_RETENTION = "interval 36500 days"
_PROPERTIES = {"delta.deletedFileRetentionDuration": _RETENTION, "delta.logRetentionDuration": _RETENTION}
_READER_FEATURES = {"timestampNtz"}
_TYPES = {
    "bool": "boolean",
    "int8": "byte",
    "int16": "short",
    "int32": "integer",
    "int64": "long",
    "float": "float",
    "double": "double",
    "string": "string",
    "large_string": "string",
    "binary": "binary",
    "date32[day]": "date",
    "timestamp[us, tz=UTC]": "timestamp",
    "timestamp[us]": "timestamp_ntz",
}
_DECIMAL = re.compile(r"decimal128\((\d+), (\d+)\)")


class DeltaFormat:
    """Tables of Delta Lake, which name their files relative to their folder."""

    def column_type(self, arrow_type: str) -> str | None:
        if decimal := _DECIMAL.fullmatch(arrow_type):
            return f"decimal({decimal[1]},{decimal[2]})"
        return _TYPES.get(arrow_type)

    def read_state(self, folder: UPath | Path) -> TableState | None:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        if isinstance(folder, Path) and not (folder / LOG_FOLDER).exists():
            return None
        try:
            table = DeltaTable(str(folder), storage_options=_storage_options(folder))
            metadata, protocol = table.metadata(), table.protocol()
            columns = {column.name: column.type.type for column in table.schema().fields}
            actions = pa.table(table.get_add_actions(flatten=True))
        except TableNotFoundError:
            return None
        except DeltaError as error:
            fix = "move it away, and run `evergreen tables sync`, which makes a new one"
            raise TableError(f"{folder / LOG_FOLDER} is damaged: {first_line(error)}: {fix}") from None
        key = ",".join(metadata.partition_columns)
        columns.pop(key, None)
        names = ["path", "size_bytes", "num_records", "modification_time"]
        rows = zip(*(actions[name].to_pylist() for name in names), strict=True)
        return TableState(
            partition_column=key,
            columns=columns,
            files={path: TableFile(path, size, count, published_ms) for path, size, count, published_ms in rows},
            is_intact=metadata.configuration == _PROPERTIES and set(protocol.reader_features or ()) <= _READER_FEATURES,
            handle=table,
        )

    def commit(self, folder: UPath | Path, state: TableState | None, content: TableContent) -> bool:
        from deltalake.exceptions import DeltaError

        version = state.handle.version() if state else None
        try:
            return self._commit(folder, state, content)
        except DeltaError as error:  # also those of a conflict, of which there are several
            newest = self.read_state(folder)
            if newest and newest.handle.version() != version:
                return False
            fix = f"move {LOG_FOLDER} in it away, and run `evergreen tables sync`, which makes a new one"
            raise TableError(f"{folder} refuses a commit: {first_line(error)}: {fix}") from error

    def _commit(self, folder: UPath | Path, state: TableState | None, content: TableContent) -> bool:
        from deltalake.transaction import RemoveAction

        if state is None:
            _create(folder, content, list(content.files.values()))
            return True
        is_retyped = any(content.columns.get(name, kind) != kind for name, kind in state.columns.items())
        if is_retyped or not state.is_intact or state.partition_column != content.partition_column:
            # No commit of delta-rs changes types and names files that stay. So this one empties the table, and the
            # next one fills it.
            _create(folder, content, [], mode="overwrite")
            return False
        table: DeltaTable = state.handle
        new = {name: kind for name, kind in content.column_types.items() if name not in state.columns}
        if new:
            table.alter.add_columns(
                _fields(new), commit_properties=_compare_and_swap()
            )  # and is at the version after it
        now_ms = int(time.time() * 1000)
        actions: list[AddAction | RemoveAction] = [
            _add_action(file, is_new=path not in state.files)
            for path, file in content.files.items()
            if state.files.get(path) != file
        ]
        actions += [
            RemoveAction(
                path=path,
                data_change=True,
                deletion_timestamp=now_ms,
                size=file.size,
                partition_values=_partition_values(file),
            )
            for path, file in state.files.items()
            if path not in content.files
        ]
        if actions:
            table.create_write_transaction(
                actions,
                mode="append",
                schema=table.schema(),
                partition_by=[content.partition_column],
                commit_properties=_compare_and_swap(),
            )
        return True


def _compare_and_swap() -> CommitProperties:
    from deltalake import CommitProperties

    return CommitProperties(max_commit_retries=0)


def _create(folder: UPath | Path, content: TableContent, files: list[TableFile], mode: Any = "error") -> None:
    from deltalake import Schema
    from deltalake.transaction import create_table_with_add_actions

    key = content.partition_column
    key_type = "date" if key == "day" else "string"
    create_table_with_add_actions(
        str(folder),
        Schema(_fields({**content.column_types, key: key_type})),
        [_add_action(file) for file in files],
        mode=mode,
        partition_by=[key],
        configuration=_PROPERTIES,
        commit_properties=_compare_and_swap(),
        storage_options=_storage_options(folder),
    )


def _storage_options(folder: UPath | Path) -> dict[str, str] | None:
    """Return what delta-rs does not read from the variables of a cloud by itself."""
    return None if isinstance(folder, Path) else object_store.client_variables(folder.protocol)


def _fields(types: Mapping[str, str]) -> list[Field]:
    from deltalake import Field
    from deltalake.schema import PrimitiveType

    return [Field(name, PrimitiveType(kind)) for name, kind in types.items()]


def _add_action(file: TableFile, is_new: bool = True) -> AddAction:
    from deltalake.transaction import AddAction

    return AddAction(
        path=file.path,
        size=file.size,
        partition_values=_partition_values(file),
        modification_time=file.published_ms,
        data_change=is_new,
        stats=json.dumps({"numRecords": file.rows}),
    )


def _partition_values(file: TableFile) -> dict[str, str | None]:
    return {file.partition.partition("=")[0]: partition_period(file.partition)}
