"""What is measured for a verdict: on which rows, of which models; and that no error of it reaches the verdict."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from evergreen import evaluation, ledger
from evergreen.explanations import verdict_importance
from evergreen.explanations.importance import Limits
from evergreen.explanations.importance_record import VerdictImportance
from evergreen.explanations.verdict_importance import (
    MeasuredModel,
    choose_queries,
    choose_rows,
    importance_file,
    measure_importance,
    read_importance,
    read_rows,
)
from evergreen.feature_store import training_sets
from evergreen.gates import MetricRows, ThresholdGate
from evergreen.lake import datasets
from evergreen.promotion import service
from evergreen.scoring.predictors.xgboost_predictor import XGBoostPredictor
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.spec.prediction_type import ForecastSeries
from evergreen.training import candidates
from evergreen.window import RunReason

pytestmark = pytest.mark.unit

ROWS = 3000
COLUMNS = ("rain", "noise")
MODEL = loader.load_spec("flight_delay").model_copy(
    update={"gates": (ThresholdGate(metric="auc", at_least=0.55),), "clusters": ("day",)}
)


def examples(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    rain, noise = random.random((2, rows))
    times = np.datetime64("2013-03-01T00:00:00") + (np.arange(rows) * 7 * 86_400 // rows).astype("timedelta64[s]")
    return pa.table(
        {
            "event_timestamp": pa.array(times.astype("datetime64[us]"), pa.timestamp("us", "UTC")),
            "day": pa.array(times.astype("datetime64[D]")),
            "label": (random.random(rows) < rain).astype(np.int32),
            "rain": rain,
            "noise": noise,
        }
    )


def save_trees(file: Path, table: pa.Table, columns: Sequence[str] = COLUMNS, **settings: Any) -> None:
    rows = xgboost.DMatrix(np.column_stack([table[name] for name in columns]), table["label"].to_numpy())
    rows.feature_names = list(columns)
    settings = {"max_depth": 3, "objective": "binary:logistic", "nthread": 1} | settings
    xgboost.train(settings, rows, 10).save_model(file)


@pytest.fixture
def context(home: Path) -> service.EvaluationContext:
    """A candidate that was evaluated on a training set of its own."""
    source, models = training_sets.training_set_dataset(MODEL), candidates.candidate_dataset(MODEL)
    folder, train = source.stage("as_of=2013-03-08", "f" * 64), examples(ROWS, 1)
    days = pa.array(np.datetime64("2013-03-01") + np.arange(7))
    tables = {
        "train": train,
        "holdout": examples(ROWS, 2),
        "label_counts": pa.table({"day": days, "rows": [500] * 7, "labelled": [400] * 7}),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=700)
    files = {name: folder / f"{name}.parquet" for name in tables}
    inputs = {"as_of": "2013-03-08", "holdout": "2013-03-01", "holdout_end": "2013-03-08"}
    training_set = source.publish("as_of=2013-03-08", "f" * 64, files, inputs)
    file = models.stage("as_of=2013-03-08", "f" * 64) / "model.ubj"
    save_trees(file, train)
    candidate = models.publish("as_of=2013-03-08", "f" * 64, {file.name: file}, {"features": list(COLUMNS)})
    evidence = evaluation.collect_evidence(MODEL, training_set, candidate, None)
    return service.EvaluationContext("a run", RunReason.SCHEDULE, training_set, candidate, evidence, None)


def report_of(number: int) -> Any:
    event = ledger.read_verdict_event(MODEL.name, number)
    assert event.verdict.promote
    return datasets.lake_path(event.evidence["report"])


def test_a_verdict_has_the_importance_of_its_candidate(context: service.EvaluationContext) -> None:
    report = report_of(service.judge_candidate(MODEL, context))
    recorded = read_importance(report)
    assert recorded
    assert (recorded.gate, recorded.rows, list(recorded.models)) == ("auc_threshold", ROWS, ["candidate"])
    rain, noise = recorded.models["candidate"].inputs
    assert rain.permutation is not None
    assert noise.permutation is not None
    assert rain.permutation > 0.2
    assert abs(noise.permutation) < 0.03
    page, stored = report.read_text(), importance_file(report).read_bytes()
    assert "drop of auc, permuted" in page
    assert "mean |SHAP value|" in page

    importance_file(report).unlink()
    report.unlink()
    number = service.judge_candidate(MODEL, context)
    assert importance_file(report_of(number)).read_bytes() == stored
    assert report.read_text() == page


@pytest.mark.parametrize("method", ["contributions", "gains", "predict"])
def test_a_model_that_raises_has_its_verdict(
    method: str, context: service.EvaluationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("too <much>")

    monkeypatch.setattr(XGBoostPredictor, method, fail)
    report = report_of(service.judge_candidate(MODEL, context))
    assert "MemoryError: too &lt;much&gt;" in report.read_text()
    recorded = read_importance(report)
    assert recorded
    problem = recorded.models["candidate"].problems[0]
    expected = {"contributions": "there are no contributions", "gains": "the gain of splits", "predict": "nothing was"}
    assert problem.startswith(expected[method])


def test_what_cannot_be_read_or_stored_has_its_verdict(
    context: service.EvaluationContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = candidates.candidate_dataset(MODEL).root
    shutil.rmtree(model)
    report = report_of(service.judge_candidate(MODEL, context))
    recorded = read_importance(report)
    assert recorded
    assert recorded.models["candidate"].inputs == ()
    assert "nothing could be measured" in report.read_text()

    importance_file(report).write_text("{")
    report.unlink()
    assert read_importance(report) is None
    assert "is no importance of inputs" in caplog.text
    service.judge_candidate(MODEL, context)
    assert "Importance of inputs" not in report.read_text()

    importance_file(report).unlink()
    report.unlink()
    holdout = training_sets.training_set_dataset(MODEL).file_path(context.training_set, "holdout")
    holdout.unlink()
    evidence = evaluation.evaluation_dataset(MODEL).file_path(context.evaluation, "scores")
    monkeypatch.setattr(verdict_importance, "_models_of", lambda *_: 1 / 0)
    assert evidence.exists()
    assert service.judge_candidate(MODEL, context) == 1
    assert "the verdict stands" in caplog.text


def write_scores(model: ModelSpec, table: pa.Table) -> datasets.Manifest:
    """Publish an evaluation of these rows."""
    dataset = evaluation.evaluation_dataset(model)
    file = dataset.stage("e", "f" * 64) / "scores.parquet"
    pq.write_table(table, file, row_group_size=900)
    return dataset.publish("e", "f" * 64, {"scores": file}, {})


@contextmanager
def folder_with(folder: Path, columns: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    yield folder, columns


def test_both_models_are_measured_on_the_same_rows_of_many(home: Path, tmp_path: Path) -> None:
    table = examples(60_000, 3)
    rows, folders = tmp_path / "rows.parquet", (tmp_path / "candidate", tmp_path / "champion")
    pq.write_table(table, rows)
    for folder in folders:
        folder.mkdir()
    save_trees(folders[0] / "model.ubj", table)
    save_trees(folders[1] / "model.ubj", table, ("noise",))
    manifest = write_scores(MODEL, table.select(["label"]))
    models = {
        "candidate": MeasuredModel(rows, lambda: folder_with(folders[0], COLUMNS)),
        "again": MeasuredModel(rows, lambda: folder_with(folders[0], COLUMNS)),
        "champion": MeasuredModel(rows, lambda: folder_with(folders[1], ("noise",))),
    }
    measured = measure_importance(MODEL, manifest, models, Limits(permutations=1))
    assert measured.rows == verdict_importance.MAX_ROWS
    assert measured.models["candidate"] == measured.models["again"]
    assert [item.name for item in measured.models["champion"].inputs] == ["noise"]

    models["champion"] = MeasuredModel(rows, lambda: folder_with(tmp_path / "nowhere", ("noise",)))
    with_broken = measure_importance(MODEL, manifest, models, Limits(permutations=1))
    assert with_broken.models["candidate"] == measured.models["candidate"]
    assert "no model that can predict" in with_broken.models["champion"].problems[0]


def save_candidate(folder: Path, table: pa.Table) -> dict[str, MeasuredModel]:
    """Save trees that predict the label as a number, and the rows that they are measured on."""
    rows = folder / "rows.parquet"
    pq.write_table(table, rows)
    save_trees(folder / "model.ubj", table, objective="reg:squarederror")
    return {"candidate": MeasuredModel(rows, lambda: folder_with(folder, COLUMNS))}


def assert_only_rain_matters(measured: VerdictImportance, noise_below: float) -> None:
    candidate = measured.models["candidate"]
    assert candidate.problems == ()
    rain, noise = candidate.inputs
    assert rain.permutation is not None
    assert noise.permutation is not None
    assert rain.permutation > 0.1
    assert abs(noise.permutation) < noise_below


def test_a_ranking_is_measured_by_its_metric_of_queries(home: Path, tmp_path: Path) -> None:
    gates = (ThresholdGate(metric="ndcg", k=5, at_least=0.5),)
    model = MODEL.model_copy(update={"kind": "ranking", "query": "basket", "gates": gates})
    table = examples(4000, 4)
    queries = [f"basket {row // 10}" for row in range(4000)]
    manifest = write_scores(model, pa.table({"label": table["label"], "queries": queries}))
    models = save_candidate(tmp_path, table)
    measured = measure_importance(model, manifest, models)
    assert measured.gate == "ndcg_threshold"
    assert_only_rain_matters(measured, noise_below=0.03)


def test_a_forecast_is_measured_in_the_unit_of_its_series(home: Path, tmp_path: Path) -> None:
    gates = (ThresholdGate(metric="mase", at_most=5, horizon=2),)
    series = ForecastSeries(series=("shop",), horizon="ahead", season=7)
    model = MODEL.model_copy(update={"kind": "forecast", "forecast": series, "gates": gates})
    table = examples(4000, 4)
    ahead = np.arange(4000) % 3
    numbers = {"weights": np.where(ahead == 2, 1.0, 0.5), "horizons": ahead, "scales": np.full(4000, 0.5)}
    manifest = write_scores(model, pa.table({"label": table["label"], **numbers}))
    models = save_candidate(tmp_path, table)
    measured = measure_importance(model, manifest, models)
    assert_only_rain_matters(measured, noise_below=0.05)


def mean_cost(rows: MetricRows) -> float:
    """Return what errors cost: the price of the row's product, and nothing in shops that are closed."""
    is_open = rows.groups["shop"] == "it's open"
    errors = np.abs(rows.label - rows.prediction) * rows.columns["price"]
    return float(np.average(errors, weights=is_open & (rows.columns["kind"] != None)))  # noqa: E711 - of each row


def test_a_metric_of_the_model_folder_gets_its_columns_and_groups(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModuleType("costs")
    folder.mean_cost = mean_cost  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "costs", folder)
    options: dict[str, Any] = {"metric": "costs:mean_cost", "at_most": 5, "higher_is_better": False}
    gate = ThresholdGate(**options, columns=("price", "kind"))
    model = MODEL.model_copy(update={"kind": "regression", "gates": (gate,)})
    table = examples(4000, 4)
    shops = np.array(["it's open", "closed", None], dtype=object)[np.arange(4000) % 3]
    details = {
        "group:shop": pa.array(shops, pa.string()),
        "column:price": pa.array(np.arange(4000) % 7, pa.int64()),
        "column:kind": pa.array(["ü", None] * 2000, pa.string()),
        "column:of another gate": pa.array([None] * 4000, pa.float64()),
    }
    models = save_candidate(tmp_path, table)
    manifest = write_scores(model, pa.table({"label": table["label"], **details}))
    measured = measure_importance(model, manifest, models)
    assert_only_rain_matters(measured, noise_below=0.05)

    without = model.model_copy(update={"gates": (ThresholdGate(**options, columns=("price", "area")),)})
    [problem] = measure_importance(without, manifest, models).models["candidate"].problems
    assert "the column area is not known: it was not collected" in problem


def test_without_a_metric_there_are_gain_and_contributions(home: Path, tmp_path: Path) -> None:
    gates = (loader.load_spec("flight_delay").gates[-1],)
    model = MODEL.model_copy(update={"gates": gates, "input_groups": {"weather": ("rain",)}})
    table, rows = examples(1000, 5), tmp_path / "rows.parquet"
    pq.write_table(table, rows)
    save_trees(tmp_path / "model.ubj", table)
    manifest = write_scores(model, table.select(["label"]))
    measured = measure_importance(
        model, manifest, {"candidate": MeasuredModel(rows, lambda: folder_with(tmp_path, COLUMNS))}
    )
    assert measured.gate is None
    assert [item.name for item in measured.models["candidate"].inputs] == ["weather", "noise"]
    assert all(item.gain and item.contribution for item in measured.models["candidate"].inputs)


def write_queries(file: Path, sizes: Sequence[int]) -> list[str]:
    names = [f"q{number}" for number, size in enumerate(sizes) for _ in range(size)]
    pq.write_table(pa.table({"queries": pa.array(names, pa.string())}), file)
    return names


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_whole_queries_are_chosen(size: int, tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    names = np.array(write_queries(file, np.random.default_rng(1).integers(1, 6, 400).tolist()))
    chosen = choose_queries(file, size, 3)
    assert np.array_equal(chosen, np.unique(chosen))
    assert len(chosen) <= max(size, 5)
    assert len(chosen) > 0
    if size == 100:
        assert len(chosen) > 90
        assert not np.array_equal(chosen, choose_queries(file, size, 4))
    if size == 10_000:
        assert len(chosen) == len(names)
    rest = np.delete(names, chosen)
    assert not set(names[chosen]) & set(rest)


def test_queries_of_no_row_and_of_one_huge_query(tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    write_queries(file, [])
    assert choose_queries(file, 10, 1).tolist() == []
    write_queries(file, [200])
    assert choose_queries(file, 10, 1).tolist() == list(range(200))


def test_rows_are_read_by_their_places(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"n": np.arange(200_000), "text": ["x"] * 200_000}), file, row_group_size=60_000)
    chosen = choose_rows(file, 500, 9)
    assert len(np.unique(chosen)) == 500
    assert chosen[0] < 10_000 < 190_000 < chosen[-1]
    assert np.array_equal(chosen, choose_rows(file, 500, 9))
    assert read_rows(file, chosen, ["n"])["n"].to_pylist() == chosen.tolist()
    assert read_rows(file, np.empty(0, np.int64), ["n"]).num_rows == 0
    assert choose_rows(file, 200_000, 9).size == 200_000
