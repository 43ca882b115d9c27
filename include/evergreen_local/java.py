"""Spark needs a Java runtime, the one thing that a Python environment cannot bring."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from evergreen.errors import EvergreenError

MIN_JAVA_VERSION = 17


class JavaError(EvergreenError):
    """No Java runtime that Spark can use."""


def require_java() -> None:
    """Raises:
    JavaError: there is none, or it is too old; says how to get one.
    """
    command = _command()
    try:
        done = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60, check=False)
        told = done.stderr + done.stdout if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    major = parse_java_version(told)
    if major is None:
        where = f"JAVA_HOME={os.environ['JAVA_HOME']} holds none" if os.environ.get("JAVA_HOME") else "none was found"
        raise JavaError(f"Spark needs Java {MIN_JAVA_VERSION} or newer, and {where}: {_install_hint()}")
    if major < MIN_JAVA_VERSION:
        raise JavaError(
            f"Spark needs Java {MIN_JAVA_VERSION} or newer, and {command} is Java {major}: {_install_hint()}"
        )


def parse_java_version(output: str) -> int | None:
    """The major version in what `java -version` prints; None if it prints none."""
    if found := re.search(r'version "(\d+)(?:\.(\d+))?', output):
        major, minor = int(found[1]), int(found[2] or 0)
        return minor if major == 1 else major  # 1.8 is what Java 8 calls itself
    return None


def _command() -> str:
    # The order in which Spark's own scripts look.
    if home := os.environ.get("JAVA_HOME"):
        return str(Path(home) / "bin" / "java")
    return shutil.which("java") or "java"


def _install_hint() -> str:
    if sys.platform == "darwin":
        home = "$(brew --prefix openjdk@17)/libexec/openjdk.jdk/Contents/Home"
        return f'brew install openjdk@17, then export JAVA_HOME="{home}"'
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install openjdk-17-jre-headless, or set JAVA_HOME to one that is installed"
