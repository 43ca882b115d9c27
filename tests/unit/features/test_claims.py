"""Claims: one of several runs builds a day, no runs wait for each other, and dead runs hold no claims."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from evergreen.features.inputs import features_dataset
from evergreen.features.planning import claim_periods
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path))
    settings.cache_clear()
    yield loader.load_spec("flight_delay")
    settings.cache_clear()


def day(n: int) -> str:
    return f"2013-01-{n:02}"


def marks(*days: int) -> dict[str, str]:
    return {day(n): f"mark-of-{n}" for n in days}


def published(model: ModelSpec, name: str) -> None:
    features_dataset(model).publish(f"day={name}", f"mark-of-{int(name[-2:])}", {}, {})


def everybody(_: str) -> bool:
    return True


def test_the_first_run_claims_its_days_and_optional_ones(model: ModelSpec) -> None:
    assert claim_periods(model, "first", marks(1), [day(2), day(3)], everybody) == ([day(1), day(2), day(3)], [])
    assert claim_periods(model, "second", marks(2), [day(4)], everybody) == ([], ["first"])
    assert claim_periods(model, "third", marks(4), [day(3), day(5)], everybody) == ([day(4), day(5)], [])


def test_a_run_that_has_to_wait_claims_nothing(model: ModelSpec) -> None:
    claim_periods(model, "first", marks(1), [], everybody)
    assert claim_periods(model, "wide", marks(1, 2, 3), [day(9)], everybody) == ([], ["first"])
    assert claim_periods(model, "other", marks(2), [], everybody) == ([day(2)], [])


def test_a_finished_run_holds_no_claims(model: ModelSpec) -> None:
    claim_periods(model, "dead", marks(1, 2), [], everybody)
    assert claim_periods(model, "next", marks(1), [], lambda run: run != "dead") == ([day(1)], [])


def test_a_retried_run_claims_its_days_again(model: ModelSpec) -> None:
    claim_periods(model, "first", marks(1, 2), [], everybody)
    assert claim_periods(model, "first", marks(1, 2), [], everybody) == ([day(1), day(2)], [])


def test_days_published_meanwhile_are_not_claimed(model: ModelSpec) -> None:
    claim_periods(model, "first", marks(1, 2), [], everybody)
    for n in (1, 2):
        published(model, day(n))
    assert claim_periods(model, "second", marks(1, 2), [day(3)], everybody) == ([], [])
    assert claim_periods(model, "second", marks(2, 3), [], everybody) == ([day(3)], [])


@pytest.mark.parametrize("seed", range(40))
def test_concurrent_runs_build_every_day_once(model: ModelSpec, seed: int) -> None:
    """Runs need random days, may build random others, and some die: each day is built exactly once."""
    luck = random.Random(seed)
    needs = {f"run {n}": marks(*luck.sample(range(1, 13), luck.randint(1, 4))) for n in range(luck.randint(2, 9))}
    building: dict[str, list[str]] = {}
    unfinished, built, dead = set(needs), [], set()
    for _ in range(1000):
        if not unfinished:
            break
        run = luck.choice(sorted(unfinished))
        if run in building:
            if luck.random() < 0.2:
                dead.add(run)
                unfinished.discard(run)
            else:
                for name in building.pop(run):
                    built.append(name)
                    published(model, name)
                unfinished.discard(run)
            continue
        extra = luck.sample([day(n) for n in range(1, 13)], 3)
        extra = [d for d in extra if not features_dataset(model).manifest(f"day={d}")]
        claimed, waiting = claim_periods(model, run, needs[run], extra, lambda other: other in unfinished)
        assert not (claimed and waiting)
        if claimed:
            building[run] = claimed
        elif not waiting:
            unfinished.discard(run)
    assert not unfinished, "nobody waits for ever"
    assert len(built) == len(set(built)), "a day was built twice"
    required = {name for run, days in needs.items() if run not in dead for name in days}
    assert required <= set(built)
    assert datasets.open_dataset("features/flight_delay").partitions() == sorted(f"day={name}" for name in built)
