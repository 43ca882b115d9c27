"""Two models of other kinds under the scheduler, from raw data to a champion that serves keys that come and go."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.feature_store import repository, training_sets
from evergreen.features import inputs
from evergreen.lake import datasets
from evergreen.orchestration.handover import JudgedCandidate
from evergreen.registry import versions
from evergreen.spec import loader
from integration.airflow.conftest import Chain
from support import changing_keys

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MODELS = ("shelves", "wards")


def start(chain: Chain, dag_id: str, conf: dict[str, str]) -> None:
    chain.airflow.set_dag_paused(dag_id, False)
    chain.airflow.trigger_dag_run(dag_id, "to-a-champion", conf)


def test_models_of_other_kinds_get_a_champion(chain: Chain) -> None:
    ends = {name: changing_keys.periods(name)[-1] for name in MODELS}
    for name in MODELS:
        changing_keys.deliver(name)
        start(chain, f"{name}.features", {"start": changing_keys.periods(name)[0], "end": ends[name]})
    for name in MODELS:
        assert chain.wait(f"{name}.features", run_id="to-a-champion") == ["success"]
        as_of = changing_keys.CALENDARS[name].shift(ends[name], 1)
        start(chain, f"{name}.retrain", {"as_of": as_of})
    for name in MODELS:
        assert chain.wait(f"{name}.retrain", run_id="to-a-champion") == ["success"]
        check_model(chain, name)


def check_model(chain: Chain, name: str) -> None:
    dag_id, model = f"{name}.retrain", loader.load_spec(name)
    states = chain.states(dag_id, "to-a-champion")
    assert states.pop("backtest") == "skipped"
    judged = JudgedCandidate.load(chain.airflow.xcom(dag_id, "to-a-champion", "judge"))
    verdict = judged.verdict_event(name).verdict
    assert {result.gate: result.outcome for result in verdict.results} == dict.fromkeys(
        [gate.name for gate in model.gates], "passed"
    ), verdict.reason
    assert set(states.values()) == {"success"}, states
    assert ledger.read_state(name).champion == "1"
    assert versions.get_champion_version(model)

    published, names = inputs.features_dataset(model), changing_keys.periods(name)
    spine = model.features.spine
    rows = {}
    for number, period in enumerate(names):
        manifest = published.manifest(datasets.period_partition(period))
        assert manifest
        rows[period] = manifest.files[spine].rows
        table = pq.read_table(published.file_path(manifest, spine), partitioning=None)
        assert set(table["the key"].to_pylist()) == (set(changing_keys.keys_of(number)) if rows[period] else set())
    assert [period for period in names if not rows[period]] == [names[changing_keys.EMPTY]]
    examples = training_sets.training_set_dataset(model).newest()
    assert examples
    assert examples.files["holdout"].rows == (model.holdout.count - 1) * changing_keys.ROWS, "one period is empty"

    # Online, a key that stays has its newest value, and so has one that left within the ttl; older ones are not there.
    store = repository.open_feature_store(name)
    service = store.get_feature_service(name)
    last = len(names) - 1
    asked = [changing_keys.keys_of(number)[-1] for number in (last, last - 3, 0)]
    keys = [{"the key": key} for key in asked]
    values = store.get_online_features(service, keys, full_feature_names=True).to_dict()[f"{name}_sizes__size"]
    assert [value is not None for value in values] == [True, True, False]
