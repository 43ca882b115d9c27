"""What this process itself has: its variables, Java, the trainer's Python, files with keys."""

from __future__ import annotations

import os
import subprocess
from difflib import get_close_matches
from pathlib import Path

from evergreen.cli.doctor.seen import Seen, Wrong
from evergreen.settings import PREFIX, Settings, variable
from evergreen_local.java import require as require_java
from evergreen_local.processes import MARK

# Variables of ours that are no settings: what the scheduler imports once, whose process this is.
_OTHERS = {"EVERGREEN_PRELOAD", MARK}


def variables() -> Seen:
    """No variable is a setting misspelled: nobody would read it, and nobody would say so."""
    known = {variable(name) for name in Settings.model_fields} | _OTHERS
    given = sorted(name for name in os.environ if name.startswith(PREFIX))
    unknown = [name for name in given if name.partition("__")[0] not in known]
    if unknown:
        name = unknown[0]
        near = get_close_matches(name, known, n=1)
        raise Wrong(
            f"{', '.join(unknown)}: nothing reads {'it' if len(unknown) == 1 else 'them'}",
            f"is {near[0]} meant?" if near else "remove it: evergreen/settings.py has all there are",
        )
    return Seen(f"{len(given)} variables, all of them known")


def java() -> Seen:
    require_java()
    return Seen("fit for Spark")


def trainer(python: Path) -> Seen:
    """The interpreter that trains on this machine can read a job."""
    try:
        done = subprocess.run(
            [python, "-c", "import sys, pyarrow, upath; print(sys.version.split()[0])"],
            capture_output=True,
            text=True,
            timeout=50,
        )
    except OSError as error:
        raise Wrong(
            f"cannot be run: {error.strerror}", "`make trainer`, or correct EVERGREEN_TRAINER"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Wrong(f"cannot train: {last}", "install trainer/requirements.txt there: `make trainer`")
    return Seen(f"Python {done.stdout.strip()}")


def readable(file: Path) -> Seen:
    try:
        file.read_bytes()
    except OSError as error:
        raise Wrong(
            f"{error.strerror}, for user id {os.geteuid()}", "let this user read it, or correct the variable"
        ) from None
    return Seen("can be read")
