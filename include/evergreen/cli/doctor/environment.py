"""Checks of this process and machine: environment variables, Java, the trainer's Python, key files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path

from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed
from evergreen.errors import EvergreenError
from evergreen.settings import ENV_PREFIX, STACK_VARIABLE, Settings, variable_name
from evergreen.spec.loader import feature_spec, load_spec, model_names

MIN_JAVA_VERSION = 17
_NON_SETTINGS = {"EVERGREEN_PRELOAD", STACK_VARIABLE}


class JavaError(EvergreenError):
    """No Java runtime that Spark supports."""


def check_environment_variables() -> CheckPassed:
    """Check that every `EVERGREEN_*` variable is a setting: a misspelled one is silently ignored."""
    valid_names = {variable_name(name) for name in Settings.model_fields} | _NON_SETTINGS
    names = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    if unknown := [name for name in names if name.partition("__")[0] not in valid_names]:
        similar = get_close_matches(unknown[0], valid_names, n=1)
        raise CheckFailedError(
            f"{', '.join(unknown)}: unknown variable{'s' if len(unknown) > 1 else ''}",
            f"did you mean {similar[0]}?" if similar else "remove it: docs/reference/settings.md lists all",
        )
    return CheckPassed(f"{len(names)} variables, all known")


def check_models() -> CheckPassed:
    """Check that every model folder loads: a broken one has no DAGs."""
    names = model_names()
    faults = []
    for name in names:
        try:
            feature_spec(load_spec(name))
        except EvergreenError as error:
            faults.append(str(error))
    if faults:
        problem = f"{len(faults)} of {len(names)} model folders have no DAGs: " + "\n".join(faults)
        raise CheckFailedError(problem, "correct them; the other models are not affected")
    return CheckPassed(f"{len(names)} model folders, all valid")


def check_java() -> CheckPassed:
    require_java()
    return CheckPassed("supported by Spark")


def require_java() -> None:
    """Check that there is a Java runtime for Spark.

    Raises:
        JavaError: There is none, or it is too old.
    """
    # The order of Spark's own scripts.
    home = os.environ.get("JAVA_HOME")
    command = str(Path(home) / "bin" / "java") if home else shutil.which("java") or "java"
    try:
        process = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60, check=False)
        version = parse_java_version(process.stderr + process.stdout) if process.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        version = None
    if version is None:
        problem = f"there is none in JAVA_HOME={home}" if home else "none is installed"
    elif version < MIN_JAVA_VERSION:
        problem = f"{command} is Java {version}"
    else:
        return
    raise JavaError(f"Spark needs Java {MIN_JAVA_VERSION} or newer, but {problem}: {_java_install_hint()}")


def parse_java_version(output: str) -> int | None:
    """Return the major version in the output of `java -version`; None if there is none."""
    if match := re.search(r'version "(\d+)(?:\.(\d+))?', output):
        major, minor = int(match[1]), int(match[2] or 0)
        return minor if major == 1 else major  # Java 8 calls itself 1.8
    return None


def _java_install_hint() -> str:
    if sys.platform == "darwin":
        home = "$(brew --prefix openjdk@17)/libexec/openjdk.jdk/Contents/Home"
        return f'brew install openjdk@17, then export JAVA_HOME="{home}"'
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install openjdk-17-jre-headless, or set JAVA_HOME to an installed one"


def check_trainer(python: Path) -> CheckPassed:
    """Check that the Python that trains on this machine has the packages to read a job."""
    code = "import sys, pyarrow, upath; print(sys.version.split()[0])"
    try:
        process = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=50)
    except OSError as error:
        raise CheckFailedError(
            f"cannot be started: {error.strerror}", "run `make trainer`, or correct EVERGREEN_TRAINER"
        ) from None
    if process.returncode:
        last_line = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
        raise CheckFailedError(f"cannot train: {last_line}", "install trainer/requirements.txt there: `make trainer`")
    return CheckPassed(f"Python {process.stdout.strip()}")


def check_file_readable(file: Path) -> CheckPassed:
    try:
        file.read_bytes()
    except OSError as error:
        raise CheckFailedError(
            f"{error.strerror}, for user ID {os.geteuid()}", "make it readable for this user, or correct the variable"
        ) from None
    return CheckPassed("readable")
