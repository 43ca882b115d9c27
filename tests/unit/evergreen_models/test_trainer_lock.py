"""The trainer's environment is the repository's as far as they share packages, and holds no engine of Airflow tasks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evergreen.settings import REPOSITORY
from evergreen.spec import loader

pytestmark = pytest.mark.unit

OURS, TRAINERS = REPOSITORY / "requirements.txt", REPOSITORY / "trainer" / "requirements.txt"


def pins(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return found


def test_both_name_the_same_versions() -> None:
    ours, trainers = pins(OURS), pins(TRAINERS)
    other = {name: (ours[name], trainers[name]) for name in ours.keys() & trainers if ours[name] != trainers[name]}
    assert not other, "make lock resolves both"


def test_the_lock_holds_what_was_asked_for_and_no_engine() -> None:
    trainers = pins(TRAINERS)
    asked = re.findall(r"^([a-z0-9-]+)", TRAINERS.with_suffix(".in").read_text(), re.MULTILINE)
    assert set(asked) <= trainers.keys()
    assert not trainers.keys() & {
        "apache-airflow",
        "pyspark",
        "feast",
        "mlflow",
        "great-expectations",
        "pytest",
    }


def test_it_is_for_machines_without_a_gpu() -> None:
    left_out = re.findall(r"^([a-z0-9-]+)", (TRAINERS.parent / "without-cuda.txt").read_text(), re.MULTILINE)
    trainers = pins(TRAINERS)
    assert not trainers.keys() & set(left_out)
    assert not [name for name in trainers if name.startswith(("nvidia", "cuda")) or name == "triton"]
    assert "+" not in trainers["torch"]


@pytest.mark.parametrize("name", ["flight_delay", "flight_delay_net"])
def test_it_has_the_libraries_of_each_model(name: str) -> None:
    assert set(loader.load_spec(name).training_libraries) <= pins(TRAINERS).keys()
