"""What is read from `java -version`, and what is said when there is no Java to use."""

import pytest

from evergreen_local import java

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("told", "major"),
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
def test_version(told, major):
    assert java.parse_java_version(told) == major


def fake_java(folder, version):
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)


def test_a_java_that_is_new_enough_is_fine(tmp_path, monkeypatch):
    fake_java(tmp_path, "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    java.require_java()


def test_an_old_one_is_named(tmp_path, monkeypatch):
    fake_java(tmp_path, "11.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(java.JavaError, match=rf"{tmp_path}/bin/java is Java 11: .*openjdk"):
        java.require_java()


def test_java_home_is_believed_even_if_it_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(java.JavaError, match=f"JAVA_HOME={tmp_path} holds none"):
        java.require_java()


def test_none_at_all_is_said_in_one_line_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(java.JavaError, match=r"none was found: .*openjdk.*17") as error:
        java.require_java()
    assert "\n" not in str(error.value)
