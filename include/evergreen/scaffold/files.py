"""New files of a project: each is written whole or not at all, and never over another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evergreen.errors import Fault, FaultsError
from evergreen.storage import create_if_absent, storage_path


class ScaffoldError(FaultsError):
    """Files of a project or a model cannot be written."""


class WrittenFiles(NamedTuple):
    """Paths, relative to the project, of files that were created, and of those that were there."""

    created: tuple[str, ...]
    existing: tuple[str, ...]


def write_new_files(project: Path, files: Mapping[str, str | bytes]) -> WrittenFiles:
    """Create the files, by path relative to `project`, that do not exist, in this order.

    Whoever is killed leaves whole files only, and the same call completes them.

    Raises:
        ScaffoldError: a folder cannot be created, or be written to.
    """
    created: list[str] = []
    existing: list[str] = []
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        try:
            # A link is somebody's, wherever it leads.
            is_new = not (project / path).is_symlink() and create_if_absent(storage_path(str(project / path)), data)
        except OSError as error:
            problem = f"cannot be written: {error.strerror or error}"
            raise ScaffoldError(str(project), [Fault(path, problem, "choose a folder that you may write to")]) from None
        (created if is_new else existing).append(path)
    return WrittenFiles(tuple(created), tuple(existing))


def find_other_files(project: Path, files: Mapping[str, str]) -> list[Fault]:
    """Return a fault for each path at which there is something else than the file to be written."""
    faults = []
    for path, text in files.items():
        place = project / path
        if (place.exists() or place.is_symlink()) and not (place.is_file() and place.read_bytes() == text.encode()):
            faults.append(Fault(path, "exists, and is another file", "remove it, or choose another name"))
    return faults
