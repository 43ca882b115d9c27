"""The chain through a real scheduler, undisturbed, killed and fed with bad data: same bytes, right decisions."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from evergreen import ledger, storage
from evergreen.feature_store import training_sets
from evergreen.ingest import raw_files
from evergreen.orchestration.handover import JudgedCandidate
from evergreen.periods import Calendar
from evergreen.registry import versions
from evergreen.spec import loader
from evergreen.training import candidates
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from integration.airflow.conftest import FEATURES, RETRAIN, ZONE, Chain, days
from support.kills import Killer

pytestmark = pytest.mark.integration

AS_OF = "2013-01-18"
CONF = {"as_of": "2013-01-18"}


def as_undisturbed(chain: Chain, *requested: str) -> None:
    for day, manifest in chain.published(*requested).items():
        expected = chain.undisturbed[f"day={day}"]
        assert manifest == expected, day
        for file in manifest.files.values():
            assert storage.file_sha256(chain.home / "lake/features/flight_delay" / file.path) == file.sha256


def test_a_backfill_publishes_what_one_process_publishes(chain: Chain) -> None:
    requested = days(1, 3)
    chain.forget(*requested)
    chain.backfill(requested[0], requested[-1])
    assert chain.wait(FEATURES, 3) == ["success"] * 3
    as_undisturbed(chain, *requested)


def test_killed_tasks_end_in_the_same_bytes(chain: Chain) -> None:
    requested = days(4, 7)
    chain.forget(*requested)
    killer = Killer(chain.home, kills=6, seed=4)
    killer.start()
    chain.backfill(requested[0], requested[-1])
    chain.wait(FEATURES, 7)
    killer.done.set()
    killer.join()
    assert killer.killed, "nothing was killed"
    # A run in which one task was killed more often than it may retry is cleared, as a person would.
    for run in chain.airflow.dag_runs(FEATURES, state=["failed"]):
        chain.airflow.clear_tasks(FEATURES, run["dag_run_id"], only_failed=True)
    assert set(chain.wait(FEATURES, 7)) == {"success"}
    as_undisturbed(chain, *requested)


def test_a_bad_day_fails_at_check_raw_until_it_is_replaced(chain: Chain) -> None:
    day = "2013-01-17"
    before = chain.published(*days(1, 17))
    file = raw_files.raw_file("flights", day)
    good = file.read_bytes()
    table = pd.read_parquet(file)
    table.assign(arr_time=table.arr_time.mask(table.index < table.index[4], 2567)).to_parquet(
        file, index=False, coerce_timestamps="us"
    )
    chain.airflow.trigger_dag_run(FEATURES, "bad", {"start": str(day)})
    assert chain.wait(FEATURES, run_id="bad") == ["failed"]
    instances = {i["task_id"]: i for i in chain.airflow.task_instances(FEATURES, "bad")}
    assert instances["check_raw"]["state"] == "failed"
    assert instances["check_raw"]["try_number"] == 1, "a refusal is not retried"
    assert {instances[task]["state"] for task in ("build", "check_features", "publish")} == {"upstream_failed"}
    log = json.dumps(chain.airflow.log(instances["check_raw"]))
    for part in ("day=2013-01-17/flights.parquet", "arr_time", "max_value=2400.0", "4 of"):
        assert part in log
    assert chain.published(*days(1, 17)) == before

    file.write_bytes(good)
    chain.airflow.clear_tasks(FEATURES, "bad", only_failed=True)
    assert chain.wait(FEATURES, run_id="bad") == ["success"]
    as_undisturbed(chain, day)


def test_a_killed_retrain_promotes_the_same_model(chain: Chain) -> None:
    model = loader.load_spec("flight_delay")
    killer = Killer(chain.home, kills=4, seed=11, pause=(3.0, 8.0))
    killer.start()
    chain.airflow.trigger_dag_run(RETRAIN, "first", CONF)
    while chain.wait(RETRAIN, run_id="first") == ["failed"]:
        killer.done.set()
        chain.airflow.clear_tasks(RETRAIN, "first", only_failed=True)
    killer.done.set()
    killer.join()
    assert killer.killed, "nothing was killed"

    states = chain.states(RETRAIN, "first")
    assert states.pop("backtest") == "skipped", "a run that decides is no backtest"
    assert set(states.values()) == {"success"}, states
    champion = versions.get_champion_version(model)
    assert champion is not None
    judged = JudgedCandidate.load(chain.airflow.xcom(RETRAIN, "first", "judge"))
    verdict = judged.verdict_event("flight_delay").verdict
    assert verdict.promote
    assert {record.outcome for record in verdict.results} == {"passed"}
    assert [record.gate for record in verdict.results] == [gate.name for gate in model.gates]
    kinds = [entry.event.kind for entry in ledger.read_state("flight_delay").entries]
    assert kinds.count("promoted") == 1, "nothing is promoted twice"

    made = candidates.candidate_dataset(model).manifest("as_of=2013-01-18")
    examples = training_sets.training_set_dataset(model).manifest("as_of=2013-01-18")
    assert made is not None
    assert examples is not None
    assert champion.tags["evergreen.fingerprint"] == made.fingerprint
    assert champion.tags["evergreen.data"] == examples.content_hash
    # Made once more, from nothing, in this process: the same bytes.
    for dataset in (training_sets.training_set_dataset(model), candidates.candidate_dataset(model)):
        (dataset.root / "_manifests/as_of=2013-01-18.json").unlink()
    storage.remove(candidates.job_folder(model, made.fingerprint))
    window = Window.from_range("2013-01-01", AS_OF, RunReason.MANUAL, Calendar("1d", ZONE))
    again = training_sets.build_training_set(model, window)
    assert again == examples
    source = training_sets.training_set_dataset(model)
    assert process.train_in_process(model, again, source, training_sets.model_input_columns(model)) == made


def test_a_window_that_is_not_newer_never_promotes(chain: Chain) -> None:
    model = loader.load_spec("flight_delay")
    before = versions.get_champion_version(model)
    chain.airflow.trigger_dag_run(RETRAIN, "again", CONF)
    assert chain.wait(RETRAIN, run_id="again") == ["success"]
    assert chain.states(RETRAIN, "again")["promote"] == "skipped"
    assert before is not None
    after = versions.get_champion_version(model)
    assert after is not None
    assert after.version == before.version


def test_two_models_live_side_by_side_on_the_same_features(chain: Chain) -> None:
    chain.airflow.trigger_dag_run("coin.retrain", "coin", CONF)
    assert chain.wait("coin.retrain", run_id="coin") == ["success"]
    states = chain.states("coin.retrain", "coin")
    assert {states.pop("promote"), states.pop("backtest")} == {"skipped"}
    assert set(states.values()) == {"success"}
    coin, flight_delay = loader.load_spec("coin"), loader.load_spec("flight_delay")
    assert versions.get_champion_version(coin) is None
    assert versions.get_champion_version(flight_delay) is not None
    assert chain.airflow.dag("coin.features") is None
    # An earlier run may have been killed while it registered the same candidate: then this version is not the first.
    candidate = versions.registry_client().get_model_version_by_alias("coin", versions.CANDIDATE_ALIAS)
    assert chain.airflow.xcom("coin.retrain", "coin", "register") == candidate.version


def test_a_run_names_days_without_features_before_any_work(chain: Chain) -> None:
    chain.airflow.trigger_dag_run(RETRAIN, "too-new", {"as_of": "2013-02-01"})
    assert chain.wait(RETRAIN, run_id="too-new") == ["failed"]
    instances = {i["task_id"]: i for i in chain.airflow.task_instances(RETRAIN, "too-new")}
    failed = next(i for i in instances.values() if i["state"] == "failed")
    log = json.dumps(chain.airflow.log(failed))
    assert "day=2013-01-18" in log
    assert "has no published features" in log
