"""What this process itself has: its variables, Java, the trainer's Python, files with keys."""

from __future__ import annotations

import os
import subprocess
from difflib import get_close_matches
from pathlib import Path

from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed
from evergreen.settings import ENV_PREFIX, Settings, variable_name
from evergreen_local.java import require_java as require_java
from evergreen_local.processes import STACK_VARIABLE

# Variables of ours that are no settings: what the scheduler imports once, whose process this is.
_NON_SETTINGS = {"EVERGREEN_PRELOAD", STACK_VARIABLE}


def check_environment_variables() -> CheckPassed:
    """No variable is a setting misspelled: nobody would read it, and nobody would say so."""
    known = {variable_name(name) for name in Settings.model_fields} | _NON_SETTINGS
    given = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    unknown = [name for name in given if name.partition("__")[0] not in known]
    if unknown:
        name = unknown[0]
        near = get_close_matches(name, known, n=1)
        raise CheckFailedError(
            f"{', '.join(unknown)}: nothing reads {'it' if len(unknown) == 1 else 'them'}",
            f"is {near[0]} meant?" if near else "remove it: evergreen/settings.py has all there are",
        )
    return CheckPassed(f"{len(given)} variables, all of them known")


def check_java() -> CheckPassed:
    require_java()
    return CheckPassed("fit for Spark")


def check_trainer(python: Path) -> CheckPassed:
    """The interpreter that trains on this machine can read a job."""
    try:
        done = subprocess.run(
            [python, "-c", "import sys, pyarrow, upath; print(sys.version.split()[0])"],
            capture_output=True,
            text=True,
            timeout=50,
        )
    except OSError as error:
        raise CheckFailedError(
            f"cannot be run: {error.strerror}", "`make trainer`, or correct EVERGREEN_TRAINER"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckFailedError(f"cannot train: {last}", "install trainer/requirements.txt there: `make trainer`")
    return CheckPassed(f"Python {done.stdout.strip()}")


def check_file_readable(file: Path) -> CheckPassed:
    try:
        file.read_bytes()
    except OSError as error:
        raise CheckFailedError(
            f"{error.strerror}, for user id {os.geteuid()}", "let this user read it, or correct the variable"
        ) from None
    return CheckPassed("can be read")
