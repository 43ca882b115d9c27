"""Predictions of whole periods by the champion: real examples, features, registry and files, in one process."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from airflow.sdk.exceptions import DownstreamTasksSkipped

from evergreen import batch_predictions, evaluation, ledger
from evergreen.batch_predictions import ScoringModel
from evergreen.errors import InputsChangedError, RawDataError, SpecError
from evergreen.feature_store import online_store, training_sets
from evergreen.lake import datasets
from evergreen.lake.datasets import Manifest
from evergreen.orchestration.dags import score
from evergreen.orchestration.handover import ScorePlan
from evergreen.periods import Calendar
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.scoring import predictions
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from support import loans
from support.calendars import DAYS, later
from support.documents import DOCS
from support.small_models import write_small_model

pytestmark = pytest.mark.integration

FIRST_RETRAIN = later(loans.FIRST, 35)
NEW = later(FIRST_RETRAIN, 1)
ALL_INPUTS = ("amount", "customers__debt")
GATES = """dict(kind="threshold", metric="rmse", at_most=100.0)"""
MODEL_COLUMNS = ("model_version", "model_content", "labels_until", "features_content")


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    options = 'monitor=None, score=dict(columns=["amount"])'
    return loans.write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2, options=options)


def retrain(model: ModelSpec, window: Window, *inputs: str) -> str:
    """Train on these inputs, judge, register and promote; return the version."""
    examples = training_sets.build_training_set(model, window)
    candidate = process.train_in_process(model, examples, training_sets.training_set_dataset(model), inputs)
    champion = versions.find_champion(model)
    scores = evaluation.collect_evidence(model, examples, candidate, champion)
    context = service.EvaluationContext(
        f"retrain {window.end}", RunReason.SCHEDULE, examples, candidate, scores, champion and champion.version
    )
    number = service.judge_candidate(model, context)
    report = service.verdict_report_path(model, number)
    version = versions.register_candidate(model, examples, candidate, number, report)
    service.promote_version(model, service.PromotionRequest(number, version, RunReason.SCHEDULE), actor="a test")
    return version


def score_run(
    monkeypatch: pytest.MonkeyPatch, calendar: Calendar, conf: Mapping[str, Any] | None = None, **facts: Any
) -> ScorePlan:
    """Run the tasks of the score DAG as Airflow does, by default by hand with `conf`; return its plan."""
    now = calendar.start(NEW) + timedelta(days=30) if calendar.partition_key == "day" else None
    run = {
        "run_type": SimpleNamespace(value="manual"),
        "data_interval_start": None,
        "data_interval_end": None,
        "logical_date": None,
        "run_after": now,
        "run_id": "a run",
        "dag_id": "a.score",
        "start_date": None,
        "consumed_asset_events": [],
        "triggering_user_name": None,
    }
    pushed: list[Any] = []
    context = {
        "dag_run": SimpleNamespace(**run | facts),
        "params": {"rescore": False, **(conf or {})},
        "ti": SimpleNamespace(xcom_push=lambda _key, value: pushed.append(value)),
    }
    name = loader.model_names()[0]
    monkeypatch.setattr(score, "get_current_context", lambda: context)
    try:
        planned = score.plan.function(name)
    except DownstreamTasksSkipped:
        return ScorePlan.load(pushed[-1])
    score.score.function(name, planned)
    return ScorePlan.load(planned)


def days(start: str, end: str, **conf: Any) -> dict[str, Any]:
    return {"start": start, "end": end, **conf}


def published(period: str, name: str = "loans") -> tuple[Manifest, pa.Table]:
    dataset = batch_predictions.open_predictions(name)
    manifest = dataset.manifest(datasets.period_partition(period))
    assert manifest, period
    return manifest, pq.read_table(dataset.file_path(manifest, "predictions"), partitioning=None)


def features(period: str, table: str) -> pa.Table:
    dataset = datasets.open_dataset("features/loans")
    manifest = dataset.manifest(datasets.period_partition(period))
    assert manifest
    return pq.read_table(dataset.file_path(manifest, table), partitioning=None)


def republish(period: str, mark: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Publish the features of a day again, with other requests."""
    tables = {name: features(period, name) for name in ("requests", "customers")}
    tables["requests"] = change(tables["requests"])
    dataset, partition = datasets.open_dataset("features/loans"), datasets.period_partition(period)
    staged = dataset.stage(partition, mark)
    for name, table in tables.items():
        pq.write_table(table, staged / f"{name}.parquet")
    dataset.publish(partition, mark, {name: staged / f"{name}.parquet" for name in tables}, {})


def without_labels(requests: pa.Table) -> pa.Table:
    for name in ("loss", "label_known_at"):
        column = requests.schema.get_field_index(name)
        requests = requests.set_column(column, name, pa.nulls(len(requests), requests.schema.field(name).type))
    return requests


def test_one_champion(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, because it takes longer to make a champion than to score with it."""
    assert score_run(monkeypatch, DAYS, days(NEW, NEW)).periods == (), "there is no champion"
    version = retrain(model, loans.window(model, FIRST_RETRAIN), *ALL_INPUTS)
    check_rows_without_a_label(monkeypatch, version)
    check_the_guide(model, version)
    check_ways_to_start(monkeypatch)
    check_columns_that_are_not_there(model, monkeypatch)
    check_inputs_as_learned(monkeypatch)


def check_rows_without_a_label(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    republish(NEW, "new", without_labels)
    empty = later(NEW, 1)
    republish(empty, "empty", lambda requests: requests.slice(0, 0))
    plan = score_run(monkeypatch, DAYS, days(NEW, empty))
    assert (plan.periods, plan.model_version) == ((NEW, empty), version)

    manifest, table = published(NEW)
    content = ledger.read_state("loans").champion_content
    requests, customers = features(NEW, "requests"), features(NEW, "customers")
    assert table.column_names == ["customer", "amount", "event_timestamp", "prediction", *MODEL_COLUMNS]
    assert table["customer"].to_pylist() == requests["customer"].to_pylist()
    assert table.schema.field("event_timestamp").type == requests.schema.field("event_timestamp").type
    debt = dict(zip(customers["customer"].to_pylist(), customers["debt"].to_pylist(), strict=True))
    inputs = np.column_stack([requests["amount"].to_numpy(), [debt[key] for key in requests["customer"].to_pylist()]])
    with versions.open_champion("loans") as (folder, _):
        booster = xgboost.Booster(model_file=predictions.model_file(folder))
        expected = booster.predict(xgboost.DMatrix(inputs.astype(np.float32), feature_names=list(ALL_INPUTS)))
    assert table["prediction"].to_numpy() == pytest.approx(expected.astype(float), abs=0)
    start, content_of_features = later(FIRST_RETRAIN, -9), datasets.open_dataset("features/loans")
    made_from = content_of_features.manifest(datasets.period_partition(NEW))
    assert made_from
    assert [set(table[name].to_pylist()) for name in MODEL_COLUMNS] == [
        {version},
        {content},
        {start},
        {made_from.content_hash},
    ]
    assert manifest.inputs["model"] == {"version": version, "content": content, "labels_until": start}

    _, no_rows = published(empty)
    assert (no_rows.num_rows, no_rows.schema) == (0, table.schema)


def test_one_champion_after_the_other(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    first = retrain(model, loans.window(model, FIRST_RETRAIN), "amount")
    older = batch_predictions.find_scoring_model(ledger.read_state("loans"))
    assert older
    score_run(monkeypatch, DAYS, days(NEW, NEW))
    before, table = published(NEW)
    assert score_run(monkeypatch, DAYS, days(NEW, NEW)).periods == (), "run twice, it does nothing"

    second = retrain(model, loans.window(model, later(FIRST_RETRAIN, 7)), *ALL_INPUTS)
    republish(NEW, "corrected", lambda requests: requests.slice(0, 10))
    following = later(NEW, 1)
    assert score_run(monkeypatch, DAYS, days(NEW, following)).periods == (following,)
    assert published(NEW)[0] == before, "neither a new champion nor corrected features change what was predicted"
    assert set(published(following)[1]["model_version"].to_pylist()) == {second}

    plan = score_run(monkeypatch, DAYS, days(NEW, NEW, rescore=True))
    after, again = published(NEW)
    assert plan.periods == (NEW,)
    assert (again.num_rows, set(again["model_version"].to_pylist())) == (10, {second})
    assert table["model_version"].to_pylist() == [first] * loans.ROWS
    score_run(monkeypatch, DAYS, days(NEW, NEW, rescore=True))
    assert published(NEW)[0] == after

    check_a_kill_and_two_at_once(model, monkeypatch, older)
    for rescore in (False, True):
        for is_written in (False, True):
            check_three_at_once(model, monkeypatch, older, rescore=rescore, is_written=is_written)
    check_rollback(model, monkeypatch, first)


def check_the_guide(model: ModelSpec, version: str) -> None:
    """The functions of docs/guides/use-a-champion.md return what the batch has."""
    page = (DOCS / "guides/use-a-champion.md").read_text()
    guide: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, guide)
    _, table = published(NEW)
    examples = features(NEW, "requests").join(features(NEW, "customers").drop_columns(["event_timestamp"]), "customer")
    rows = examples.rename_columns({"debt": "customers__debt"}).sort_by("customer")
    expected = dict(zip(table["customer"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    assert guide["predict"]("loans", rows).tolist() == list(expected.values())
    predicted = guide["predict_with_mlflow"]("loans", rows.to_pandas(), settings().mlflow.get_secret_value())
    assert predicted.tolist() == pytest.approx(list(expected.values()))

    online_store.materialize_features(model, loans.window(model, later(NEW, 1)))
    row = rows.slice(7, 1).to_pylist()[0]
    request = {"customer": row["customer"], "amount": row["amount"]}
    inputs = guide["read_request"]("loans", request)
    assert inputs["customers__debt"].to_pylist() == [row["customers__debt"]]
    loaded_version, scorer = guide["load_champion"]("loans")
    assert (str(loaded_version), scorer.score(inputs).tolist()) == (version, [expected[row["customer"]]])


def check_ways_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    last = later(loans.LAST, -1)  # features end here
    tokyo = loader.load_spec("loans").features.calendar
    interval = {
        "run_type": SimpleNamespace(value="scheduled"),
        "data_interval_start": tokyo.start(later(last, -2)),
        "data_interval_end": tokyo.start(later(last, 1)),
        "run_after": tokyo.start(later(last, 1)),
    }
    partition = datasets.open_dataset("features/loans").manifest_path(datasets.period_partition(later(last, -1)))
    partition.unlink()  # of one day, features are not published
    plan = score_run(monkeypatch, tokyo, **interval)
    assert plan.periods == (later(last, -2), last), "the clock leaves out what is not published"
    with pytest.raises(RawDataError, match=rf"day={later(last, -1)}: has no published features → run loans.features"):
        score_run(monkeypatch, tokyo, **interval | {"run_type": SimpleNamespace(value="backfill")})

    extra = {"periods": [later(last, -5), later(last, -4)], "data_end": later(last, -3)}
    event = SimpleNamespace(source_run_id="scheduled__1", extra=extra)
    arrival = {
        "run_type": SimpleNamespace(value="asset_triggered"),
        "consumed_asset_events": [event],
        "run_after": tokyo.start(later(last, 1)),
    }
    assert score_run(monkeypatch, tokyo, **arrival).periods == (later(last, -5), later(last, -4))


def check_a_kill_and_two_at_once(model: ModelSpec, monkeypatch: pytest.MonkeyPatch, older: ScoringModel) -> None:
    """A run goes on where it was killed; of two that were planned with different champions the first one wins."""
    newer = batch_predictions.find_scoring_model(ledger.read_state("loans"))
    assert newer
    assert newer != older
    periods = [later(NEW, n) for n in range(2, 5)]
    write_batches = batch_predictions._write_batches
    written: list[Path] = []

    def die_at_the_second(file: Path, batches: Any) -> None:
        written.append(file)
        if len(written) == 2:
            raise KeyboardInterrupt
        write_batches(file, batches)

    with monkeypatch.context() as patch:
        patch.setattr(batch_predictions, "_write_batches", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            batch_predictions.publish_predictions(model, periods, older, rescore=False)
    before = published(periods[0])[0]
    assert batch_predictions.open_predictions("loans").manifest(datasets.period_partition(periods[1])) is None

    def let_another_run_be_first(file: Path, batches: Any) -> None:
        write_batches(file, batches)
        if len(written) < 3:
            written.append(file)
            batch_predictions.publish_predictions(model, periods, newer, rescore=False)

    with monkeypatch.context() as patch:
        patch.setattr(batch_predictions, "_write_batches", let_another_run_be_first)
        batch_predictions.publish_predictions(model, periods, older, rescore=False)
    used = [published(period)[0].inputs["model"]["version"] for period in periods]
    assert used == [older.version, newer.version, newer.version]
    assert published(periods[0])[0] == before


def check_three_at_once(
    model: ModelSpec, monkeypatch: pytest.MonkeyPatch, older: ScoringModel, *, rescore: bool, is_written: bool
) -> None:
    """Two runs of one model stage the same predictions, and one of another is between them: it wins, or the last does.

    The second of the two removes what both have staged, before or after the first has written its own.
    """
    newer = batch_predictions.find_scoring_model(ledger.read_state("loans"))
    assert newer
    period = later(NEW, 10 + 2 * rescore + is_written)
    write_batches = batch_predictions._write_batches
    runs: list[ScoringModel] = []

    def publish_another(scoring_model: ScoringModel) -> None:
        runs.append(scoring_model)
        batch_predictions.publish_predictions(model, [period], scoring_model, rescore=rescore)

    def let_the_others_be_first(file: Path, batches: Any) -> None:
        number = len(runs)
        if number or is_written:
            write_batches(file, batches)
        if number == 0:
            publish_another(older)
            if rescore:
                publish_another(newer)
        elif number == 1 and not rescore:
            publish_another(newer)
        if not (number or is_written):
            write_batches(file, batches)

    with monkeypatch.context() as patch:
        patch.setattr(batch_predictions, "_write_batches", let_the_others_be_first)
        [manifest] = batch_predictions.publish_predictions(model, [period], older, rescore=rescore).values()
    assert runs == [older, newer]
    winner = older if rescore else newer
    assert manifest == published(period)[0]
    assert manifest.inputs["model"]["version"] == winner.version


def check_rollback(model: ModelSpec, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """A model that was rolled back after the run was planned scores nothing any more."""
    day = later(NEW, 9)
    publish_predictions = batch_predictions.publish_predictions

    def roll_back_first(*arguments: Any, **options: Any) -> dict[str, Manifest]:
        service.roll_back_champion(model, None, "it was wrong", actor="ada")
        return publish_predictions(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(batch_predictions, "publish_predictions", roll_back_first)
        with pytest.raises(InputsChangedError, match="version 2 was rolled back since this run was planned: clear"):
            score_run(patch, DAYS, days(day, day))
    assert batch_predictions.open_predictions("loans").manifest(datasets.period_partition(day)) is None
    assert score_run(monkeypatch, DAYS, days(day, day)).model_version == first


def check_inputs_as_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec's features have changed since."""
    _, before = published(NEW)
    repository = Path(loader.model_folder("loans")).parents[1] / "feature_repo/loans.py"
    text = repository.read_text()
    repository.write_text(text.replace("timedelta(days=1)", "timedelta(days=2)"))  # another definition of its view
    score_run(monkeypatch, DAYS, days(NEW, NEW, rescore=True))
    _, after = published(NEW)
    assert after["prediction"].to_pylist() == before["prediction"].to_pylist()


def check_columns_that_are_not_there(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.score
    for column, problem in (
        ("amuont", "amuont is no column of the examples → they have .*amount"),
        ("loss", "loss is no column of the examples"),
        ("day", "day is the name of a column that predictions have anyway"),
    ):
        broken = model.model_copy(update={"score": model.score.model_copy(update={"columns": (column,)})})
        with monkeypatch.context() as patch:
            patch.setattr(loader, "load_spec", lambda _, spec=broken: spec)
            with pytest.raises(SpecError, match=f"score.columns: {problem}"):
                score_run(patch, DAYS, days(later(NEW, 5), later(NEW, 5)))


HOURS = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="rides", owner="tests", feature_service="rides", label="count",
    features=dict(period="1h", timezone="America/New_York", first_day="2024-03-08", spine="hours", views=["weather"],
                  sources=[dict(name="bookings", columns=dict(x="int64"))]),
    schedule="0 0 * * *", train="1d", holdout="12h", score=dict(),
    gates=[dict(kind="threshold", metric="rmse", at_most=100.0)],
)
"""
HOURS_FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

zone = Entity(name="zone", join_keys=["zone"], value_type=ValueType.STRING)
weather = FeatureView(name="weather", entities=[zone], ttl=timedelta(hours=3),
                      schema=[Field(name="rain", dtype=Float64)], source=feature_source("rides", "weather"))
rides = FeatureService(name="rides", features=[weather])
"""
ZONES = ("Ä b", "c'd", *(f"zone {number}" for number in range(8)))


def publish_hour(calendar: Calendar, hour: str, *, is_labelled: bool = True) -> None:
    """Publish an hour with a row per zone; of every third hour there is no weather."""
    start, rng = calendar.start(hour), np.random.default_rng(int(calendar.start(hour).timestamp()))
    instant = pa.timestamp("us", "UTC")
    counts = pa.array(rng.poisson(9, len(ZONES)).astype(float))
    hours = {
        "event_timestamp": pa.array([start] * len(ZONES), instant),
        "zone": list(ZONES),
        "count": counts if is_labelled else pa.nulls(len(ZONES), pa.float64()),
        "label_known_at": pa.array([start + timedelta(minutes=59) if is_labelled else None] * len(ZONES), instant),
    }
    rows = 0 if start.hour % 3 == 0 else len(ZONES)
    weather = {
        "event_timestamp": pa.array([start] * rows, instant),
        "zone": pa.array(ZONES[:rows], pa.string()),
        "rain": pa.array(rng.random(rows)),
    }
    dataset, partition = datasets.open_dataset("features/rides"), datasets.period_partition(hour)
    staged = dataset.stage(partition, hour.replace(":", ""))
    files = {"hours": staged / "hours.parquet", "weather": staged / "weather.parquet"}
    for name, table in (("hours", hours), ("weather", weather)):
        pq.write_table(pa.table(table), files[name])
    dataset.publish(partition, hour.replace(":", ""), files, {})


def test_hours_are_scored_also_those_of_a_day_with_23(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = write_small_model(
        "rides", tmp_path, monkeypatch, use_models, HOURS_FEATURES, model=HOURS, train=loans._TRAIN
    )
    calendar = loader.feature_spec(model).calendar
    new_day = list(calendar.periods_between("2024-03-10T05:00Z", "2024-03-11T04:00Z"))
    assert len(new_day) == 23
    hours = list(calendar.periods_between(calendar.first_of(model.features.first_day), new_day[0]))
    for hour in hours:
        publish_hour(calendar, hour)
    for hour in new_day:
        publish_hour(calendar, hour, is_labelled=False)
    window = Window.from_range(hours[0], new_day[0], RunReason.SCHEDULE, calendar)
    retrain(model, window, *training_sets.model_input_columns(model))
    scheduled = {
        "run_type": SimpleNamespace(value="scheduled"),
        "data_interval_start": calendar.start(new_day[0]),
        "data_interval_end": calendar.end(new_day[-1]),
        "run_after": calendar.end(new_day[-1]),
    }
    assert score_run(monkeypatch, calendar, **scheduled).periods == tuple(new_day)
    for hour in new_day:
        _, table = published(hour, "rides")
        assert table["zone"].to_pylist() == list(ZONES)
        assert np.isfinite(table["prediction"].to_numpy()).all()
    distinct = {tuple(published(hour, "rides")[1]["prediction"].to_pylist()) for hour in new_day}
    assert len(distinct) > 5, "features of each hour count"
