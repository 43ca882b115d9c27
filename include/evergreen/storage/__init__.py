"""Storage: files in a folder or an object store. A reader sees a file whole or not at all."""

from evergreen.storage.files import download, is_local, list_names, put, remove, storage_path, upload
from evergreen.storage.local import atomic_write, file_lock, file_sha256, fsync_path

__all__ = [
    "atomic_write",
    "download",
    "file_lock",
    "file_sha256",
    "fsync_path",
    "is_local",
    "list_names",
    "put",
    "remove",
    "storage_path",
    "upload",
]
