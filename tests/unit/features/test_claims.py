"""Claims: of several runs that want a day one makes it, none waits in a circle, the dead hold nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from evergreen.features.claims import claim_days
from evergreen.features.inputs import features_dataset
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
    return {day(n): f"mark of {n}" for n in days}


def published(model: ModelSpec, name: str) -> None:
    features_dataset(model).publish(f"day={name}", f"mark of {int(name[-2:])}", {}, {})


def everybody(_: str) -> bool:
    return True


def test_the_first_gets_its_days_and_those_of_others_that_it_makes_along(model: ModelSpec) -> None:
    assert claim_days(model, "first", marks(1), [day(2), day(3)], everybody) == ([day(1), day(2), day(3)], [])
    assert claim_days(model, "second", marks(2), [day(4)], everybody) == ([], ["first"])
    assert claim_days(model, "third", marks(4), [day(3), day(5)], everybody) == ([day(4), day(5)], [])


def test_one_that_must_wait_for_a_day_claims_none(model: ModelSpec) -> None:
    claim_days(model, "first", marks(1), [], everybody)
    assert claim_days(model, "wide", marks(1, 2, 3), [day(9)], everybody) == ([], ["first"])
    assert claim_days(model, "other", marks(2), [], everybody) == ([day(2)], [])


def test_a_run_that_is_over_holds_nothing(model: ModelSpec) -> None:
    claim_days(model, "dead", marks(1, 2), [], everybody)
    assert claim_days(model, "next", marks(1), [], lambda run: run != "dead") == ([day(1)], [])


def test_a_run_that_asks_again_gets_its_days_again(model: ModelSpec) -> None:
    claim_days(model, "first", marks(1, 2), [], everybody)
    assert claim_days(model, "first", marks(1, 2), [], everybody) == ([day(1), day(2)], [])


def test_what_was_published_meanwhile_is_not_given(model: ModelSpec) -> None:
    claim_days(model, "first", marks(1, 2), [], everybody)
    for n in (1, 2):
        published(model, day(n))
    assert claim_days(model, "second", marks(1, 2), [day(3)], everybody) == ([], [])
    assert claim_days(model, "second", marks(2, 3), [], everybody) == ([day(3)], [])


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_together_every_day_is_made_once(model: ModelSpec, seed: int) -> None:
    """Runs that want random days, with random others along, some of which die: each day is made, and made once."""
    luck = random.Random(seed)
    wants = {f"run {n}": marks(*luck.sample(range(1, 13), luck.randint(1, 4))) for n in range(luck.randint(2, 9))}
    making: dict[str, list[str]] = {}
    undone, made, dead = set(wants), [], set()
    for _ in range(1000):
        if not undone:
            break
        run = luck.choice(sorted(undone))
        if run in making:
            if luck.random() < 0.2:
                dead.add(run)
                undone.discard(run)
            else:
                for name in making.pop(run):
                    made.append(name)
                    published(model, name)
                undone.discard(run)
            continue
        extra = luck.sample([day(n) for n in range(1, 13)], 3)
        extra = [d for d in extra if not features_dataset(model).manifest(f"day={d}")]
        mine, waiting = claim_days(model, run, wants[run], extra, lambda other: other in undone)
        assert not (mine and waiting)
        if mine:
            making[run] = mine
        elif not waiting:
            undone.discard(run)
    assert not undone, "nobody waits for ever"
    assert len(made) == len(set(made)), "a day was made twice"
    wanted = {name for run, days in wants.items() if run not in dead for name in days}
    assert wanted <= set(made)
    assert datasets.open_dataset("features/flight_delay").partitions() == sorted(f"day={name}" for name in made)
