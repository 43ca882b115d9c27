"""The table of the tutorial: hourly weather of three airports, with the column to predict."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from evergreen.errors import Fault
from evergreen.scaffold.files import ScaffoldError, write_new_files

TUTORIAL_FILE = "weather.parquet"


def write_tutorial_data(folder: Path) -> str:
    """Write the table as a Parquet file into `folder`, and return the file's name. The same file may be there.

    Raises:
        ScaffoldError: there is another file of this name, or `folder` cannot be written to.
    """
    content = (files("evergreen.scaffold") / "data" / TUTORIAL_FILE).read_bytes()
    file = folder / TUTORIAL_FILE
    exists = write_new_files(folder, {TUTORIAL_FILE: content}).existing
    # A link is somebody's, wherever it leads.
    if exists and (file.is_symlink() or not file.is_file() or file.read_bytes() != content):
        fault = Fault(TUTORIAL_FILE, "exists, and is another file", "remove it, or go to another folder")
        raise ScaffoldError(str(folder), [fault])
    return TUTORIAL_FILE
