"""What the gate `online_equals_offline` finds in a real online store, of keys that come, leave and are wrong."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from evergreen.evaluation.online_comparison import compare_online_store
from evergreen.feature_store import online_store, repository
from evergreen.feature_store.online_features import read_online_features
from evergreen.feature_store.training_sets import join_views
from evergreen.gates.evidence import Evidence, MissingEvidence, NoChampion, OnlineSample
from evergreen.gates.verdict import GateResult, evaluate_gate
from evergreen.spec.gates import OnlineEqualsOfflineGate
from evergreen.spec.model import ModelSpec
from support.online_stores import OnlineFixture
from support.ponds import DEFINITIONS, ZONE, publish, window, write_definitions

pytestmark = pytest.mark.integration

REBUILD = "run `evergreen online rebuild ponds`"


def midnight(day: int) -> datetime:
    return datetime(2013, 1, day, tzinfo=ZoneInfo(ZONE))


def compare(model: ModelSpec, run_end: int = 10, size: int = 100) -> OnlineSample:
    found = compare_online_store(model, size, window(run_end).as_of)
    assert isinstance(found, OnlineSample), found
    return found


def judge(sample: OnlineSample | MissingEvidence, **gate: str) -> GateResult:
    evidence = Evidence([], [], NoChampion(), online_sample=sample)
    return evaluate_gate(OnlineEqualsOfflineGate.model_validate(gate), evidence)


def read(pond: str, as_of: datetime) -> float | None:
    return read_online_features(loader_spec(), [{"pond": pond}], as_of)["levels__level"][0]


def loader_spec() -> ModelSpec:
    from evergreen.spec import loader

    return loader.load_spec("ponds")


def test_keys_that_are_in_both_stores_are_equal(ponds: ModelSpec) -> None:
    publish(*range(5, 10), ponds="abü")
    online_store.materialize_features(ponds, window(10))
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count, found.expired_count) == (3, 0, 0)
    assert judge(found).outcome == "passed"


def test_a_store_is_compared_with_what_it_was_given_whenever_that_was(ponds: ModelSpec, tmp_path: Path) -> None:
    """A training row of that time would have older features: the last period is served six hours after its end."""
    declared = DEFINITIONS.replace("(features, table)", '(features, table, "6h" if features == "ponds" else None)')
    write_definitions(declared, tmp_path / "feature_repo")
    publish(*range(5, 10))
    online_store.materialize_features(ponds, window(10))
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count, found.expired_count) == (2, 0, 0)
    keys = pa.table({"pond": ["a", "a", "b"]}).append_column(
        "event_timestamp",
        pa.array([midnight(10) + timedelta(hours=h) for h in (5.99, 6, 6)], pa.timestamp("us", "UTC")),
    )
    store = repository.open_feature_store("ponds")
    learned = join_views(store, [store.get_feature_view("levels")], ["levels:level"], keys)
    assert learned["levels__level"].to_pylist() == [8.23, 9.23, 9.23]


def test_a_run_in_the_past_is_judged_by_the_keys_of_now(ponds: ModelSpec) -> None:
    publish(*range(1, 5), ponds="az")
    publish(*range(5, 11), ponds="ab")  # z has left, b has come
    online_store.materialize_features(ponds, window(11))
    found = compare(ponds, run_end=5)
    assert (found.value_count, found.mismatch_count, found.expired_count) == (2, 0, 0)
    reason = judge(found).reason
    assert "keys of 2013-01-10 as of 2013-01-11 04:00:00+00:00" in reason
    assert "until 2013-01-11 05:00:00+00:00, after this run's as_of 2013-01-05" in reason
    behind = compare(ponds, run_end=12)
    assert behind.mismatch_count == 0
    assert "before this run's as_of 2013-01-12" in behind.moment


def test_a_real_difference_is_found_however_far_the_store_is_ahead(ponds: ModelSpec, online: OnlineFixture) -> None:
    publish(*range(5, 10))
    online_store.materialize_features(ponds, window(10))
    old = online.copy()
    publish(10)
    online_store.materialize_features(ponds, window(11))
    online.restore(old)
    repository.open_feature_store.cache_clear()
    found = compare(ponds, run_end=6)
    assert (found.value_count, found.mismatch_count) == (2, 2)
    assert found.first_mismatch == (
        "levels__level of pond=a is 9.23 online, 10.23 offline as of 2013-01-11 04:00:00+00:00: the store has a row of "
        f"2013-01-10 04:00:00+00:00, and the key's last one is of 2013-01-11 04:00:00+00:00: {REBUILD}"
    )
    online_store.rebuild_online_store(ponds)
    assert compare(ponds, run_end=6).mismatch_count == 0


def test_a_key_that_is_missing_online_is_written_by_a_rebuild(ponds: ModelSpec, online: OnlineFixture) -> None:
    publish(8, 9)
    online_store.materialize_features(ponds, window(10))
    online.empty()
    repository.open_feature_store.cache_clear()
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count) == (2, 2)
    assert "is nothing online, 9.23 offline" in found.first_mismatch
    assert found.first_mismatch.endswith(f"never materialized, or the store has lost it: {REBUILD}")
    online_store.rebuild_online_store(ponds)
    assert judge(compare(ponds)).outcome == "passed"


def publish_without_features_of_z(*days: int) -> None:
    """Publish days on which somebody asks for z, which has no rows any more."""
    publish(*days, ponds="az", values={("z", hour): None for hour in range(24)})


def test_a_key_that_has_left_the_view_follows_the_declared_rule(ponds: ModelSpec) -> None:
    publish(5, ponds="az")
    online_store.materialize_features(ponds, window(6))
    publish_without_features_of_z(*range(6, 9))
    online_store.materialize_features(ponds, window(9))
    assert compare(ponds).expired_count == 0  # its last row, of 23:00 on the 5th, is 72 hours old: as old as the ttl
    publish_without_features_of_z(9)
    online_store.materialize_features(ponds, window(10))
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count, found.expired_count, found.changed_count) == (2, 0, 1, 0)
    assert found.first_expired == (
        "levels__level of pond=z is 5.23 online, nothing offline as of 2013-01-10 04:00:00+00:00: the key has left the "
        "view, its last row of 2013-01-06 04:00:00+00:00 is older than the ttl of 3 days, 0:00:00"
    )
    assert judge(found).outcome == "failed"
    assert judge(found, expired="missing").outcome == judge(found, expired="last_value").outcome == "passed"
    # What a server that leaves it out gets: nothing, as in training.
    assert read("z", midnight(10)) is None
    assert read("z", midnight(8)) == 5.23
    assert read("a", midnight(10)) == 9.23
    assert read("unknown", midnight(10)) is None


def test_the_last_value_of_a_key_must_be_the_published_one(ponds: ModelSpec) -> None:
    publish(5, ponds="az")
    online_store.materialize_features(ponds, window(6))
    publish_without_features_of_z(*range(6, 10))
    online_store.materialize_features(ponds, window(10))
    publish(5, ponds="az", values={("z", 23): 0.5})  # corrected, but too old to be served or compared by period
    found = compare(ponds)
    assert (found.mismatch_count, found.expired_count, found.changed_count) == (0, 1, 1)
    assert judge(found, expired="missing").outcome == "passed"
    failed = judge(found, expired="last_value")
    assert failed.outcome == "failed"
    assert "is 5.23 online, but the key's last row, of 2013-01-06 04:00:00+00:00, has 0.5: empty" in failed.reason


def test_a_store_without_the_last_row_of_a_key_that_has_left_is_stale(ponds: ModelSpec) -> None:
    publish(5, ponds="az")
    online_store.materialize_features(ponds, window(6))
    publish_without_features_of_z(*range(6, 11))
    online_store.materialize_features(ponds, window(11))
    assert judge(compare(ponds), expired="last_value").outcome == "passed"
    publish(6, ponds="az")  # the 6th, too, is older than what the store is written with
    found = compare(ponds)
    assert (found.mismatch_count, found.expired_count, found.changed_count) == (0, 1, 1)
    assert judge(found, expired="missing").outcome == "passed"
    failed = judge(found, expired="last_value")
    assert failed.outcome == "failed"
    assert (
        "levels__level of pond=z is 5.23 online, but the key's last row, of 2013-01-07 04:00:00+00:00, has 6.23, and "
        f"the store has one of 2013-01-06 04:00:00+00:00: empty the online store, then {REBUILD}"
    ) in failed.reason


def test_an_old_row_with_the_current_value_is_a_difference(ponds: ModelSpec, online: OnlineFixture) -> None:
    last_of_day = {("a", 23): 1.5, ("b", 23): 1.5}
    publish(5, values=last_of_day)
    online_store.materialize_features(ponds, window(6))
    old = online.copy()
    publish(*range(6, 10), values=last_of_day)
    online_store.materialize_features(ponds, window(10))
    assert judge(compare(ponds), expired="missing").outcome == "passed"
    online.restore(old)
    repository.open_feature_store.cache_clear()
    assert read("a", midnight(10)) is None, "it is 4 days old, and no value in training"
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count, found.expired_count) == (2, 2, 0)
    assert found.first_mismatch == (
        "levels__level of pond=a is 1.5 online, 1.5 offline as of 2013-01-10 04:00:00+00:00: the store has a row of "
        f"2013-01-06 04:00:00+00:00, and the key's last one is of 2013-01-10 04:00:00+00:00: {REBUILD}"
    )
    assert judge(found, expired="missing").outcome == judge(found, expired="last_value").outcome == "failed"
    online_store.rebuild_online_store(ponds)
    assert judge(compare(ponds), expired="missing").outcome == "passed"


def test_a_value_that_no_published_row_has_any_more_is_a_difference(ponds: ModelSpec, online: OnlineFixture) -> None:
    publish(8, 9, ponds="az")
    online_store.materialize_features(ponds, window(10))
    publish_without_features_of_z(8, 9)
    online_store.materialize_features(ponds, window(10))
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count, found.expired_count) == (2, 1, 0)
    assert "pond=z is 9.23 online, nothing offline" in found.first_mismatch
    assert f"Feast deletes none: empty the online store, then {REBUILD}" in found.first_mismatch
    assert judge(found, expired="missing").outcome == "failed"
    online.empty()
    repository.open_feature_store.cache_clear()
    online_store.rebuild_online_store(ponds)
    assert compare(ponds).mismatch_count == 0


def test_empty_days_are_passed_over(ponds: ModelSpec) -> None:
    publish(8)
    publish(9, ponds="")
    online_store.materialize_features(ponds, window(10))
    found = compare(ponds)
    assert (found.value_count, found.mismatch_count) == (2, 0)
    assert found.moment.startswith("keys of 2013-01-08 as of 2013-01-09 04:00:00+00:00; ")
    publish(8, ponds="")
    online_store.materialize_features(ponds, window(10))
    missing = compare_online_store(ponds, 10, window(10).as_of)
    assert isinstance(missing, MissingEvidence)
    assert missing.problem == "no example was published in the periods that the online store holds"
    assert judge(missing).outcome == "not_computed"


def test_views_without_keys_cannot_be_compared(ponds: ModelSpec, tmp_path: Path) -> None:
    write_definitions(DEFINITIONS.replace("entities=[pond]", "entities=[]"), tmp_path / "feature_repo")
    publish(8, 9)
    online_store.materialize_features(ponds, window(10))
    missing = compare_online_store(ponds, 10, window(10).as_of)
    assert isinstance(missing, MissingEvidence)
    assert "no view of the feature service has a key" in missing.problem
