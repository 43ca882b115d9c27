"""Storage: files in a folder or an object store. A reader sees a file whole or not at all.

Only this room imports fsspec and universal_pathlib; the others take paths from `storage_path`.
"""

from fsspec import AbstractFileSystem
from upath import UPath

from evergreen.storage.files import (
    create_if_absent,
    download,
    is_local,
    list_names,
    put,
    read_files,
    remove,
    storage_path,
    supports_create_if_absent,
    upload,
)
from evergreen.storage.local import atomic_write, file_lock, file_sha256, fsync_path

__all__ = [
    "AbstractFileSystem",
    "UPath",
    "atomic_write",
    "create_if_absent",
    "download",
    "file_lock",
    "file_sha256",
    "fsync_path",
    "is_local",
    "list_names",
    "put",
    "read_files",
    "remove",
    "storage_path",
    "supports_create_if_absent",
    "upload",
]
