"""Periods whose labels have matured: what fails of one is not for ever, and keeps no other from being measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.errors import ChangedPredictionError, ScoringError
from evergreen.gates.evidence import Evidence, NoChampion
from evergreen.lake.datasets import Dataset, Manifest, open_dataset
from evergreen.monitoring import matured, period_rows
from evergreen.monitoring.matured import (
    MAX_REVISIONS,
    MEASURING_SECONDS,
    MaturedPeriods,
    PeriodPerformance,
    measure_holdout,
    performance_dataset,
    read_periods,
)
from evergreen.monitoring.matured_days import collect_performance
from evergreen.monitoring.period_rows import InForce, PeriodRows, RegisteredModels
from evergreen.registry import versions
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import load_spec
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import ForecastSeries, PredictionType
from support.ledger_events import MODEL, day, promotion, verdict_event

pytestmark = pytest.mark.unit

AS_OF, ROWS = 60, 40
LOSS: Mapping[str, Any] = {"name": "loss", "metric": "log_loss", "must_be": "better"}
MINE: Mapping[str, Any] = {
    "name": "mine", "metric": "metrics_of_mine:error", "must_be": "better", "higher_is_better": False
}  # fmt: skip


@pytest.fixture(autouse=True)
def champion(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty lake, a ledger with one champion, and a metric in a module of the model's author."""
    event = verdict_event(AS_OF).model_copy(update={"evidence": {"evaluation": f"evaluations/{MODEL}/as_of=x"}})
    for item in (event, promotion("1", AS_OF, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, item=item: item)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "metrics_of_mine.py").write_text(
        "failing, failing_below = False, 0.0\n\n\ndef error(label, prediction):\n"
        "    if failing or prediction.max() < failing_below:\n        raise OSError('no such file')\n"
        "    return abs(label - prediction).mean()\n"
    )


@pytest.fixture
def module() -> Iterator[Any]:
    import metrics_of_mine

    yield metrics_of_mine
    metrics_of_mine.failing, metrics_of_mine.failing_below = False, 0.0


def spec(*gates: Mapping[str, Any], **changes: Any) -> ModelSpec:
    chosen = tuple(AgainstChampionGate(**gate) for gate in gates or (LOSS,))
    return load_spec(MODEL).model_copy(update={"gates": chosen, "views": (), **changes})


def publish_day(number: int, labels: Any = None, **columns: Any) -> None:
    dataset, seed = open_dataset(f"features/{MODEL}"), np.random.default_rng(number)
    labels = (seed.random(ROWS) < 0.5).astype(float) if labels is None else labels
    known = datetime.fromisoformat(day(number)).replace(tzinfo=UTC) + timedelta(hours=2)
    table = pa.table(
        {"row": range(ROWS), "late": labels, "label_known_at": pa.array([known] * ROWS, pa.timestamp("us", "UTC"))}
        | columns
    )
    name = f"{number:032x}{abs(hash(str((labels, columns)))):032x}"
    file = dataset.stage(f"day={day(number)}", name) / "departures.parquet"
    pq.write_table(table, file)
    dataset.publish(f"day={day(number)}", name, {"departures": file}, {})


@contextmanager
def open_known_rows(
    _model: ModelSpec, _gates: Any, period: str, _: InForce, __: Any, ___: datetime, ____: Dataset
) -> Iterator[PeriodRows]:
    """Yield the rows as they are, without a join and without a model."""
    dataset = open_dataset(f"features/{MODEL}")
    manifest = dataset.manifest(f"day={period}")
    assert manifest
    label = pq.read_table(dataset.file_path(manifest, "departures"))["late"].to_numpy()
    scores = SCORES.get(period, np.linspace(0.2, 0.8, ROWS))
    yield PeriodRows(Evidence(label=label, candidate=scores, champion=NoChampion()), ROWS, [])


SCORES: dict[str, np.ndarray] = {}


@pytest.fixture
def no_join(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the join and the registry; return the periods that were measured, in order."""
    SCORES.clear()
    opened = list[str]()

    def count(*arguments: Any) -> Any:
        opened.append(arguments[2])
        return open_known_rows(*arguments)

    monkeypatch.setattr(matured, "open_period", count)
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: None)
    return opened


def run(
    model: ModelSpec, end: int, clock: Callable[[], float] = lambda: 0.0
) -> tuple[dict[str, PeriodPerformance], list[str]]:
    periods = MaturedPeriods(model, ledger.read_state(MODEL), day(end))
    return periods.measure_new(clock=clock), periods.problems


def test_a_model_that_cannot_be_opened_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(AS_OF, AS_OF + 5):
        publish_day(number)
    calls = list[str]()

    def call(name: str, error: Exception) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            calls.append(name)
            raise error

        return fail

    monkeypatch.setattr(versions, "check_server_accepts_connections", lambda: None)
    monkeypatch.setattr(versions, "open_model", call("open", ConnectionError("no artifact")))
    monkeypatch.setattr(period_rows, "open_labelled_examples", call("join", AssertionError("it joins")))
    measured, problems = run(spec(), AS_OF + 9)
    assert (measured, calls) == ({}, ["open"])
    [problem] = problems
    assert problem == f"performance: 5 days, {day(60)} – {day(64)}: version 1 cannot be measured: no artifact"


def test_a_model_that_predicts_something_else_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inputs:
        def prediction_problem(self, _: Any) -> str:
            return "it predicts 3 classes"

    opened = list[str]()

    @contextmanager
    def open_model(_: str, content: str) -> Iterator[Any]:
        opened.append(content)
        yield Path("model"), None

    monkeypatch.setattr(versions, "check_server_accepts_connections", lambda: None)
    monkeypatch.setattr(versions, "open_model", open_model)
    monkeypatch.setattr(versions, "read_model_inputs", lambda _: Inputs())
    with RegisteredModels(spec()) as models:
        for _ in range(2):
            with pytest.raises(ChangedPredictionError, match="3 classes"):
                models.open("a content")
    assert opened == ["a content"]


def test_measuring_stops_after_its_time_newest_period_first(no_join: list[str]) -> None:
    for number in range(AS_OF, AS_OF + 6):
        publish_day(number)
    seconds = iter(range(0, 10_000, int(MEASURING_SECONDS / 3)))
    measured, problems = run(spec(), AS_OF + 9, lambda: float(next(seconds)))
    assert no_join == [day(65), day(64)]
    assert list(measured) == [day(64), day(65)]
    assert problems == ["performance: 4 more periods are measured by the next runs"]
    measured, problems = run(spec(), AS_OF + 9)
    assert no_join == [day(number) for number in (65, 64, 63, 62, 61, 60)]
    assert (len(measured), problems) == (6, [])


def test_a_metric_that_fails_once_is_computed_again_after_what_is_new(no_join: list[str], module: Any) -> None:
    publish_day(60)
    module.failing = True
    model = spec(LOSS, MINE)
    measured, [problem] = run(model, 64)
    assert "mine: metrics_of_mine:error raised OSError: no such file" in problem
    assert measured[day(60)].sums.keys() == {"loss"}, "other metrics are known nevertheless"
    module.failing = False
    publish_day(60, other=range(ROWS))
    publish_day(61)
    measured, problems = run(model, 64)
    assert no_join == [day(60), day(61), day(60)]
    assert (measured[day(60)].sums.keys(), problems) == ({"loss", "mine"}, [])
    assert not measured[day(60)].revisions, "the loss is what it was, and of the other metric nothing was known"
    run(model, 64)
    assert len(no_join) == 3


@pytest.mark.parametrize("labels", [[np.nan], [2.0]])
def test_invalid_labels_and_predictions_are_named_and_readable(no_join: list[str], labels: list[float]) -> None:
    publish_day(60, labels + [0.0, 1.0] * (ROWS // 2 - 1) + [0.0])
    SCORES[day(61)] = np.full(ROWS, np.nan)
    publish_day(61)
    measured, problems = run(spec(), 64)
    assert [(item.sums, item.calibration) for item in measured.values()] == [({}, ()), ({}, ())]
    assert "predictions are NaN" in " ".join(problems)
    assert "labels are" in " ".join(problems)
    assert run(spec(), 64) == (measured, problems)
    assert no_join == [day(61), day(60)], "what is invalid is not tried again"


@pytest.mark.filterwarnings("ignore:overflow")
def test_sums_that_are_not_finite_are_named(no_join: list[str]) -> None:
    publish_day(60, np.full(ROWS, 1e200))
    model = spec({**LOSS, "metric": "rmse"})
    measured, problems = run(model, 64)
    assert problems == [f"performance: {day(60)}: loss: its sums are not finite"]
    assert measured[day(60)].sums == {}
    assert read_periods(model)[day(60)][1] == measured[day(60)]


def test_a_period_that_cannot_be_read_is_measured_again(no_join: list[str]) -> None:
    publish_day(60)
    measured, _ = run(spec(), 64)
    dataset = performance_dataset(MODEL)
    manifest = dataset.manifest(f"day={day(60)}")
    assert manifest
    file = dataset.file_path(manifest, "performance")
    file.chmod(0o644)
    file.write_text("{}")
    again, problems = run(spec(), 64)
    lost = "what was measured before cannot be read: its revisions are lost"
    assert "is damaged" in problems[0]
    assert (again[day(60)].sums, again[day(60)].problems) == (measured[day(60)].sums, (lost,))
    assert run(spec(), 64) == (again, [f"performance: {day(60)}: {lost}"])
    assert no_join == [day(60)] * 2


def test_revisions_say_why_and_the_newest_ones_are_kept(no_join: list[str]) -> None:
    publish_day(60, np.arange(ROWS) % 2 * 1.0)
    run(spec(), 64)
    publish_day(60, (np.arange(ROWS) + 1) % 2 * 1.0)
    measured, _ = run(spec({**LOSS, "metric": "brier"}, {**LOSS, "name": "order", "metric": "auc"}), 64)
    [revision] = measured[day(60)].revisions or [None]
    assert revision is None, "of other metrics there is nothing to compare with"
    publish_day(60, np.arange(ROWS) % 2 * 1.0)
    measured, _ = run(spec({**LOSS, "name": "order", "metric": "auc"}, LOSS), 64)
    [revision] = measured[day(60)].revisions
    assert revision.reason == "labels contradict earlier ones, metric changed"
    for number in range(MAX_REVISIONS + 1):
        labels = np.arange(ROWS) % 2 * 1.0
        labels[number % ROWS] = 1 - labels[number % ROWS]
        publish_day(60, labels)
        measured, _ = run(spec(), 64)
    revisions = measured[day(60)].revisions
    assert len(revisions) == MAX_REVISIONS
    assert {item.reason for item in revisions} == {"labels contradict earlier ones"}


def test_what_a_run_has_read_is_not_read_again_nor_all_history(
    no_join: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (60, 61):
        publish_day(number)
    model, state = spec(), ledger.read_state(MODEL)
    periods = MaturedPeriods(model, state, day(64))
    performance = periods.measure_new()
    dataset = performance_dataset(MODEL)
    for old in ("2011-03-01", "2012-06-01"):
        file = dataset.stage(f"day={old}", old) / "performance.json"
        text = performance[day(60)].model_copy(update={"period": old, "champion_content": "f" * 64}).model_dump_json()
        file.write_text(text)
        dataset.publish(f"day={old}", old, {"performance": file}, {"metrics": matured.describe_metrics(model)})
    read, read_performance = list[str](), matured._read_performance

    def count(dataset: Dataset, manifest: Manifest, metrics: Any) -> PeriodPerformance:
        read.append(manifest.partition)
        return read_performance(dataset, manifest, metrics)

    monkeypatch.setattr(matured, "_read_performance", count)
    tenure = state.champion_tenure
    assert tenure
    known = matured.MeasuredPeriods(performance, periods.published)
    collected = collect_performance(model, state, tenure, known)
    assert read == ["day=2012-06-01"]
    assert [str(item) for item in collected.earlier["loss"]] == ["2012-06-01"]
    assert len(collected.metrics[0].since) == 2
    assert set(collected.fingerprint["periods"]) == {"2012-06-01", day(60), day(61)}


HOLDOUT = 46


def publish_evaluation(monkeypatch: pytest.MonkeyPatch, evidence: Evidence) -> None:
    dataset = open_dataset(f"evaluations/{MODEL}")
    file = dataset.stage("as_of=x", "x") / "metadata.json"
    file.write_text("{}")
    dataset.publish("as_of=x", "x", {"metadata": file}, {})
    monkeypatch.setattr(matured, "load_evidence", lambda *_: evidence)


def holdout_evidence(largest_horizon: int = 3, days: int = 14) -> Evidence:
    """Return forecasts of each horizon that were made in the holdout, of the periods that they are about."""
    pairs = [(number, horizon) for number in range(days) for horizon in range(1, min(number + 1, largest_horizon) + 1)]
    return Evidence(
        label=np.arange(len(pairs)) % 2 * 1.0,
        candidate=np.linspace(0.2, 0.8, len(pairs)),
        champion=NoChampion(),
        prediction_type=PredictionType(kind="forecast"),
        clusters={"day": [day(HOLDOUT + number) for number, _ in pairs]},
        horizons=np.array([horizon for _, horizon in pairs]),
        holdout=(day(HOLDOUT), day(HOLDOUT + days)),
    )


def holdout(model: ModelSpec, **options: Any) -> matured.HoldoutPerformance:
    state = ledger.read_state(MODEL)
    assert state.champion_tenure
    return measure_holdout(model, state, state.champion_tenure, **options)


@pytest.mark.parametrize(
    ("row_period", "horizon", "first"),
    [("target", None, HOLDOUT + 2), ("target", 2, HOLDOUT + 1), ("origin", None, HOLDOUT)],
)
def test_days_with_short_horizons_only_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, row_period: str, horizon: int | None, first: int
) -> None:
    publish_evaluation(monkeypatch, holdout_evidence())
    series = ForecastSeries.model_validate(
        {"series": ["shop"], "horizon": "ahead", "season": 7, "row_period": row_period}
    )
    model = spec({**LOSS, "metric": "mae", "horizon": horizon}, forecast=series)
    days = holdout(model).sums["loss"]
    assert (min(days), max(days)) == (day(first), day(HOLDOUT + 13))


def test_a_holdout_that_is_shorter_than_the_largest_horizon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = holdout_evidence(days=2)
    publish_evaluation(monkeypatch, Evidence(**{**vars(evidence), "horizons": np.array([1, 1, 9])}))
    series = ForecastSeries(series=("shop",), horizon="ahead", season=7, row_period="target")
    found = holdout(spec({**LOSS, "metric": "mae"}, forecast=series))
    assert found.sums == {"loss": {}}
    assert found.problems == ["performance is not compared by loss: no day of the holdout has all horizons"]


def test_a_metric_that_fails_on_the_holdout_is_computed_again(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    evidence = holdout_evidence()
    publish_evaluation(monkeypatch, evidence)
    model = spec(MINE)
    nothing = holdout(model, only_published=True)
    assert (nothing.sums, list(nothing.unknown)) == ({}, ["mine"])
    assert "is not measured yet" in nothing.problems[0]
    module.failing = True
    found = holdout(model)
    assert (found.sums["mine"], list(found.unknown), len(found.problems)) == ({}, ["mine"], 14)
    module.failing = False
    module.failing_below = 0.205  # predictions of the first day
    found = holdout(model)
    assert len(found.problems) == 1, found.problems
    [problem] = found.problems
    assert problem.startswith(f"the holdout by mine: {day(HOLDOUT)}: metrics_of_mine:error raised OSError")
    assert list(found.sums["mine"]) == [day(HOLDOUT + number) for number in range(1, 14)]
    assert not found.unknown, "one day keeps no other from being compared"
    module.failing_below = 0.0
    found = holdout(model)
    assert (len(found.sums["mine"]), found.problems) == (14, [])
    assert holdout(model, only_published=True) == found


def test_an_error_of_the_evaluation_compares_nothing(no_join: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The days since are shown; no alarm is raised by days that have taken the holdout's place."""
    publish_evaluation(monkeypatch, holdout_evidence())

    def fail(*_: Any) -> Any:
        raise ScoringError("the evaluation cannot be read")

    monkeypatch.setattr(matured, "load_evidence", fail)
    publish_day(60)
    state = ledger.read_state(MODEL)
    assert state.champion_tenure
    periods = MaturedPeriods(spec(), state, day(64))
    known = matured.MeasuredPeriods(periods.measure_new(), periods.published)
    collected = collect_performance(spec(), state, state.champion_tenure, known)
    assert collected.problems == ("performance is not compared: the evaluation cannot be read",)
    assert (collected.not_compared, len(collected.metrics[0].since)) == ({"loss"}, 1)
