"""Java for Spark: its version, and the error if there is none."""

import pytest

from evergreen.cli.doctor import environment

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("output", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6-Debian)', 17),
        ('java version "1.8.0_392"\nJava(TM) SE Runtime Environment', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "22-ea" 2024-03-19', 22),
        ('openjdk version "25.0.1" 2025-10-21 LTS', 25),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "11.0.2" 2019-01-15', 11),
        ("The operation couldn’t be completed. Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_parse_java_version(output, major):
    assert environment.parse_java_version(output) == major


def fake_java(folder, version):
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)


def test_require_java_accepts_a_supported_version(tmp_path, monkeypatch):
    fake_java(tmp_path, "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    environment.require_java()


def test_require_java_names_an_old_version(tmp_path, monkeypatch):
    fake_java(tmp_path, "11.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(environment.JavaError, match=rf"{tmp_path}/bin/java is Java 11: .*openjdk"):
        environment.require_java()


def test_require_java_trusts_a_wrong_java_home(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(environment.JavaError, match=f"there is none in JAVA_HOME={tmp_path}"):
        environment.require_java()


def test_require_java_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(environment.JavaError, match=r"none is installed: .*openjdk.*17") as error:
        environment.require_java()
    assert "\n" not in str(error.value)
