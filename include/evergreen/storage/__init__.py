"""Storage: files in a folder or an object store. A reader sees a file whole or not at all."""

from evergreen.storage.files import download, is_local, names, path, put, remove, upload
from evergreen.storage.local import locked, replacing, sha256, sync

__all__ = [
    "download",
    "is_local",
    "locked",
    "names",
    "path",
    "put",
    "remove",
    "replacing",
    "sha256",
    "sync",
    "upload",
]
