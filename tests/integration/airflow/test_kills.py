"""Parts of the stack are killed; Airflow's start again, engines do by `evergreen up`: no day is lost or built twice."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from evergreen import storage
from evergreen.ingest import raw_files
from evergreen_local import processes, stack
from evergreen_local.progress import Progress
from evergreen_local.stack import StackRecord
from integration.airflow.conftest import FEATURES, RETRAIN, Chain, days
from support.kills import Killer, component_process, kill_component, kill_engine
from support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SEED = 23


@pytest.fixture(autouse=True)
def _calm(chain: Chain) -> Iterator[None]:
    """Each test starts and ends without active runs."""
    for dag_id in (FEATURES, RETRAIN, "coin.retrain"):
        chain.quiet(dag_id)
    yield
    for dag_id in (FEATURES, RETRAIN, "coin.retrain"):
        chain.quiet(dag_id)


def arrive_again(chain: Chain, day: str) -> None:
    """Deliver a day as if for the first time."""
    chain.forget(day)
    file = raw_files.raw_file("flights", day)
    content = file.read_bytes()
    with storage.atomic_write(file) as scratch:
        scratch.write_bytes(content)


def test_days_survive_kills_of_spark_a_task_and_the_triggerer(chain: Chain) -> None:
    chance = random.Random(SEED)
    requested, arriving = days(4, 11), "2013-01-15"
    chain.forget(*requested)
    chain.airflow.trigger_dag_run(FEATURES, "killed", {"start": "2013-01-04", "end": "2013-01-09"})
    eventually("it makes its days", lambda: chain.states(FEATURES, "killed").get("plan") == "success")
    chain.airflow.trigger_dag_run(FEATURES, "waiting", {"start": "2013-01-08", "end": "2013-01-11"})
    killer = Killer(chain.home, kills=2, seed=SEED, pause=(0.2, 1.5))
    killer.start()
    eventually("it waits for the other", lambda: chain.states(FEATURES, "waiting").get("plan") == "deferred")
    eventually("a task is killed", lambda: bool(killer.killed))

    killed_triggerer = component_process(chain.home, "trigger")
    first, second = chance.sample(
        [lambda: kill_engine(chain.home, "spark"), lambda: kill_component(chain.home, "trigger")], 2
    )
    first()
    time.sleep(chance.uniform(0, 2))
    arrive_again(chain, arriving)
    second()
    spark = StackRecord.read(chain.home).services["spark"].process
    eventually("Spark is gone", lambda: not processes.is_alive(spark))
    eventually(
        "another triggerer runs", lambda: component_process(chain.home, "trigger") not in (None, killed_triggerer)
    )
    with Progress() as progress:
        stack.bring_up_stack(progress)
    now = StackRecord.read(chain.home).services
    assert now["spark"].process != spark
    killer.done.set()
    killer.join()

    for run_id in ("killed", "waiting"):
        if chain.wait(FEATURES, run_id=run_id) == ["failed"]:  # killed more often than it may retry
            chain.clear(FEATURES, run_id)
            assert chain.wait(FEATURES, run_id=run_id) == ["success"]
    eventually("the day that arrived is published", lambda: None not in chain.published(arriving).values())
    chain.quiet(FEATURES)
    for day, manifest in chain.published(*days(1, 17)).items():
        assert manifest == chain.undisturbed[f"day={day}"], day
    staging = chain.home / "lake/features/flight_delay/_staging"
    assert not list(staging.glob("*/cached")), "cached and never published"
