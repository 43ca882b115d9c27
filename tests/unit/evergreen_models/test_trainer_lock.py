"""The trainer's lock agrees with the repository's, and contains no engine of Airflow tasks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evergreen.settings import REPOSITORY
from evergreen.spec import loader

pytestmark = pytest.mark.unit

AIRFLOW_LOCK, TRAINER_LOCK = REPOSITORY / "requirements.txt", REPOSITORY / "trainer" / "requirements.txt"


def pins(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)
    assert len(versions) == len(lines)
    return versions


def test_both_locks_pin_the_same_versions() -> None:
    airflow, trainer = pins(AIRFLOW_LOCK), pins(TRAINER_LOCK)
    different = {name for name in airflow.keys() & trainer if airflow[name] != trainer[name]}
    assert not different, "make lock resolves both"


def test_trainer_lock_has_its_requirements_and_no_engine() -> None:
    trainer = pins(TRAINER_LOCK)
    requested = re.findall(r"^([a-z0-9-]+)", TRAINER_LOCK.with_suffix(".in").read_text(), re.MULTILINE)
    assert set(requested) <= trainer.keys()
    assert not trainer.keys() & {"apache-airflow", "pyspark", "feast", "mlflow", "great-expectations", "pytest"}


def test_trainer_lock_has_no_cuda_packages() -> None:
    cuda_packages = re.findall(r"^([a-z0-9-]+)", (TRAINER_LOCK.parent / "without-cuda.txt").read_text(), re.MULTILINE)
    trainer = pins(TRAINER_LOCK)
    assert not trainer.keys() & set(cuda_packages)
    assert not [name for name in trainer if name.startswith(("nvidia", "cuda")) or name == "triton"]
    assert "+" not in trainer["torch"]


@pytest.mark.parametrize("name", ["flight_delay", "flight_delay_net"])
def test_trainer_lock_has_the_libraries_of_each_model(name: str) -> None:
    assert set(loader.load_spec(name).training_libraries) <= pins(TRAINER_LOCK).keys()
