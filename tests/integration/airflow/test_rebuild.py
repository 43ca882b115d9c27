"""A changed register makes all days stale: one model refuses to train on them, another has them built again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evergreen.features import inputs
from evergreen.ingest import raw_files
from evergreen.ingest.raw_files import RawFile
from evergreen.lake import datasets
from evergreen.spec import loader
from integration.airflow.conftest import FEATURES, RETRAIN, Chain, days

pytestmark = pytest.mark.integration

COIN = "coin.retrain"  # whose spec says stale_features="rebuild", and whose features are those of flight_delay
CONF = {"as_of": "2013-01-18"}
JANUARY = days(1, 17)


@pytest.fixture
def register(chain: Chain) -> Iterator[Path]:
    """The register of aircraft. Afterwards it is as it was, and so are all days."""
    file = raw_files.raw_file("planes")
    before = file.read_bytes()
    yield file
    file.write_bytes(before)
    run_id = f"restored_{time.monotonic_ns()}"
    chain.airflow.trigger_dag_run(FEATURES, run_id, {"start": "2013-01-01", "end": "2013-01-17", "announce": False})
    assert chain.wait(FEATURES, run_id=run_id) == ["success"]
    assert chain.published(*JANUARY) == {str(day): chain.undisturbed[f"day={day}"] for day in JANUARY}


def published(chain: Chain, *requested: str) -> list[datasets.Manifest]:
    return list(inputs.published_manifests(loader.load_spec("flight_delay"), requested).values())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
def test_stale_features_are_refused_or_rebuilt(chain: Chain, register: Path) -> None:
    table = pq.read_table(register)
    pq.write_table(table.slice(1), register)

    chain.airflow.trigger_dag_run(RETRAIN, "stale", CONF)
    assert chain.wait(RETRAIN, run_id="stale") == ["failed"]
    instances = {i["task_id"]: i for i in chain.airflow.task_instances(RETRAIN, "stale")}
    assert (instances["plan"]["state"], instances["plan"]["try_number"]) == ("failed", 1), "a refusal is not retried"
    log = chain.log(RETRAIN, "stale", "plan")
    for part in ("17 of 17 days of features are stale", "the raw file of planes has changed", "2013-01-17"):
        assert part in log

    known, coin_runs = chain.run_ids(FEATURES), chain.run_ids(COIN)
    chain.airflow.trigger_dag_run(COIN, "rebuilding", CONF)
    wait_for(lambda: chain.states(COIN, "rebuilding").get("rebuild") == "deferred")
    assert chain.wait(COIN, run_id="rebuilding") == ["success"]
    # It looks back 13 days, to 5 January; the age of an aircraft holds for 25 hours, and may be stamped a day after its
    # own. So that of 2 January may count.
    hashes = {manifest.inputs["raw"]["planes"] for manifest in published(chain, *days(2, 17))}
    assert hashes == set(raw_files.hash_raw_files([RawFile("planes", None)]).values())
    assert published(chain, *days(1, 1)) == [chain.undisturbed["day=2013-01-01"]]
    (run_id,) = chain.run_ids(FEATURES) - known
    assert run_id.startswith("rebuild__coin.retrain__2013-01-02__")
    assert chain.states(FEATURES, run_id)["announce"] == "skipped"
    assert chain.run_ids(COIN) - coin_runs == {"rebuilding"}, "the rebuilt days start no run"
    assert "0 of 16 days of features of flight_delay are stale" in chain.log(COIN, "rebuilding", "rebuild")


@pytest.mark.slow
def test_a_rebuild_that_was_stopped_fails_and_is_continued(chain: Chain, register: Path) -> None:
    pq.write_table(pq.read_table(register).slice(2), register)
    known = chain.run_ids(FEATURES)
    chain.airflow.trigger_dag_run(COIN, "stopped", CONF)
    wait_for(lambda: chain.run_ids(FEATURES) - known)
    (run_id,) = chain.run_ids(FEATURES) - known
    chain.airflow._request("PATCH", f"/api/v2/dags/{FEATURES}/dagRuns/{run_id}", json={"state": "failed"})
    assert chain.wait(COIN, run_id="stopped") == ["failed"]
    assert f"its run {run_id} has ended, and 16 of its days" in chain.log(COIN, "stopped", "rebuild")
    chain.airflow.clear_tasks(COIN, "stopped", only_failed=True)
    assert chain.wait(COIN, run_id="stopped") == ["success"]
