"""What is released: the wheel's contents and metadata, builds that repeat, and bills of materials."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evergreen
from support.distributions import ROOT, build_distributions

pytestmark = pytest.mark.integration

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = [ROOT / path for path in ("requirements.txt", "deploy/requirements.txt", "trainer/requirements.txt")]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def copy_sources(destination: Path) -> Path:
    """Copy what the source distribution is made from, with other times and modes."""
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    for name in (*target["only-include"], "README.md", "LICENSE", ".gitignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, destination / name, copy_function=shutil.copyfile)
        elif source.exists():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, destination / name)
    for path in destination.rglob("*"):
        executable = path.is_file() and os.access(ROOT / path.relative_to(destination), os.X_OK)
        path.chmod(0o700 if path.is_dir() or executable else 0o600)
        os.utime(path, (1, 1))
    return destination


def pinned(lock: Path) -> dict[str, str]:
    return dict(line.split("==") for line in lock.read_text().splitlines())


@pytest.fixture(scope="module")
def archive(wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def metadata(archive: zipfile.ZipFile) -> Message:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode())


def test_version_is_that_of_the_code(metadata: Message) -> None:
    assert metadata["Version"] == evergreen.__version__


def test_wheel_has_the_library_but_no_example_model(archive: zipfile.ZipFile) -> None:
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    include = ROOT / "include"
    expected = {
        str(path.relative_to(include))
        for package in ("evergreen", "evergreen_local")
        for path in (include / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected | {"evergreen_models/__init__.py"}
    assert {"evergreen/py.typed", "evergreen/reports/templates/base.html.j2"} <= names


def test_wheel_registers_command_and_plugins(archive: zipfile.ZipFile) -> None:
    name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    text = archive.read(name).decode()
    assert "[console_scripts]\nevergreen = evergreen.cli:run_command_line" in text
    assert "[apache_airflow_provider]\nprovider_info = evergreen.plugin.provider:get_provider_info" in text
    assert "evergreen_lineage = evergreen.plugin.lineage:LineagePlugin" in text
    assert "evergreen_preload = evergreen.plugin.preload:PreloadPlugin" in text
    assert "evergreen_verdicts = evergreen.plugin.verdicts:VerdictsPlugin" in text


def test_wheel_requires_ranges_and_nothing_of_a_group(metadata: Message) -> None:
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    for requirement in required:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, f"{requirement} has no lower bound"
        assert not operators & {"==", "===", "~="}, f"{requirement} is no range"
    groups = PROJECT["dependency-groups"].values()
    only_here = {
        canonicalize_name(Requirement(line).name) for group in groups for line in group if isinstance(line, str)
    }
    assert {canonicalize_name(requirement.name) for requirement in required} & only_here <= {"feast"}


def test_the_lock_satisfies_every_range(metadata: Message) -> None:
    lock = pinned(LOCKS[0])
    for text in metadata.get_all("Requires-Dist"):
        requirement = Requirement(text)
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, but {version} is locked"


def test_locks_of_the_images_are_parts_of_the_lock() -> None:
    everything = pinned(LOCKS[0]).items()
    assert pinned(LOCKS[1]).items() <= everything
    tools = {"pytest", "hypothesis", "ruff", "sphinx", "twine", "pip-audit"}
    assert not tools & pinned(LOCKS[1]).keys()


def test_builds_elsewhere_and_later_have_the_same_bytes(distributions: Path, tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "a folder" / "elsewhere")
    time.sleep(2.1)  # a zip archive counts in steps of two seconds
    again = build_distributions(source, tmp_path / "dist", umask=0o077)
    assert again == {path.name: path.read_bytes() for path in distributions.iterdir()}


def test_source_distribution_builds_the_same_wheel(distributions: Path, tmp_path: Path) -> None:
    sources = next(distributions.glob("*.tar.gz"))
    shutil.unpack_archive(sources, tmp_path, filter="data")
    again = build_distributions(tmp_path / sources.name.removesuffix(".tar.gz"), tmp_path / "dist")
    assert again == {path.name: path.read_bytes() for path in distributions.iterdir()}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.parent.name)
def test_bill_of_materials_lists_the_whole_lock(lock: Path) -> None:
    """As `make sbom` makes it; without a time and a serial number, so it repeats."""
    command = [
        Path(sys.executable).with_name("cyclonedx-py"), "requirements", "--no-validate", "--output-reproducible",
        "--output-format", "JSON", "--pyproject", ROOT / "pyproject.toml", lock,
    ]  # fmt: skip
    bill = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert {part["name"]: part["version"] for part in bill["components"]} == pinned(lock)
    assert "serialNumber" not in bill
    assert "timestamp" not in bill["metadata"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_actions_and_grant_little(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert "permissions" in job, f"{name} says no permissions"
        for step in [job, *job.get("steps", [])]:
            action, _, revision = step.get("uses", "").partition("@")
            if action and not action.startswith("./"):
                assert len(revision) == 40, f"{action} is not pinned by a commit"
