"""Evidence of a holdout that is small enough for memory, and of one that is not: the same files, the same verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from evergreen import evaluation
from evergreen.evaluation import collect
from evergreen.evaluation.rows import historical_evidence
from evergreen.feature_store import training_sets
from evergreen.gates import (
    BaselineGate,
    BySliceGate,
    CustomGate,
    Evidence,
    FairnessGate,
    MissingEvidence,
    NoChampion,
    PredictionDriftGate,
    ThresholdGate,
    judge_evidence,
)
from evergreen.gates.evidence import StreamedColumn
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates

pytestmark = pytest.mark.unit

ROWS, RECENT_ROWS, DAYS = 70_000, 71_000, 7
FEATURES = ("distance", "rain")
MODEL = loader.load_spec("flight_delay").model_copy(
    update={
        "gates": (
            ThresholdGate(metric="auc", at_least=0.5),
            ThresholdGate(metric="log_loss", at_most=0.65),
            BySliceGate(metric="auc", group_by="carrier"),
            FairnessGate(group_by="hour(event_timestamp) // 6", cut=0.5, at_most=0.5),
            BaselineGate(metric="brier"),
            BaselineGate(metric="log_loss", baseline="distance"),
            PredictionDriftGate(at_most=0.2),
        )
    }
)


def examples(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    seconds = np.arange(rows) * DAYS * 86_400 // rows
    times = np.datetime64("2013-03-01T00:00:00") + seconds.astype("timedelta64[s]")
    rain, distance = rng.random(rows), rng.random(rows).astype(np.float32)
    return pa.table(
        {
            "event_timestamp": pa.array(times.astype("datetime64[us]"), pa.timestamp("us", "UTC")),
            "day": pa.array(times.astype("datetime64[D]")),
            "carrier": np.array(["AA", "B6", "UA"])[rng.integers(0, 3, rows)],
            "label": (rng.random(rows) < rain).astype(np.int32),
            "rain": pa.array(rain, mask=rng.random(rows) < 0.01),
            "distance": distance,
        }
    )


@pytest.fixture
def published(home: Path) -> tuple[datasets.Manifest, datasets.Manifest]:
    """A training set and a candidate."""
    source = training_sets.training_set_dataset(MODEL)
    folder, train = source.stage("as_of=2013-03-08", "f" * 64), examples(5_000, 1)
    days = np.datetime64("2013-03-01") + np.arange(DAYS)
    tables = {
        "train": train,
        "holdout": examples(ROWS, 2),
        "recent": examples(RECENT_ROWS, 3).drop_columns(["label"]),
        "label_counts": pa.table({"day": pa.array(days), "rows": [11_000] * DAYS, "labelled": [10_000] * DAYS}),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / name, row_group_size=30_000)
    parts = {name: (folder / name).rename(folder / f"{name}.parquet") for name in tables}
    inputs = {"as_of": "2013-03-08", "holdout": "2013-03-01", "holdout_end": "2013-03-08"}
    training_set = source.publish("as_of=2013-03-08", "f" * 64, parts, inputs)
    rows = xgboost.DMatrix(np.column_stack([train[name] for name in FEATURES]), train["label"].to_numpy())
    rows.feature_names = list(FEATURES)
    file = candidates.candidate_dataset(MODEL).stage("candidate", "f" * 64) / "model.ubj"
    xgboost.train({"max_depth": 3, "objective": "binary:logistic"}, rows, 8).save_model(file)
    models = candidates.candidate_dataset(MODEL)
    return training_set, models.publish("candidate", "f" * 64, {file.name: file}, {"features": list(FEATURES)})


@pytest.fixture
def collected(
    published: tuple[datasets.Manifest, datasets.Manifest], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., datasets.Manifest]:
    """Return a function that evaluates the candidate with so many rows in memory."""

    def collect_with(exact_rows: int, model: ModelSpec = MODEL) -> datasets.Manifest:
        monkeypatch.setenv("EVERGREEN_EXACT_ROWS", str(exact_rows))
        settings.cache_clear()
        return evaluation.collect_evidence(model, *published, None)

    return collect_with


def load(manifest: datasets.Manifest) -> Evidence:
    return evaluation.load_evidence(MODEL, manifest)


def test_a_large_holdout_is_judged_in_batches(collected: Callable[..., datasets.Manifest]) -> None:
    exact, streamed = collected(RECENT_ROWS), collected(ROWS - 1)
    assert exact.partition != streamed.partition
    assert exact.files["scores"].sha256 == streamed.files["scores"].sha256
    loaded, read_later = load(exact), load(streamed)
    assert isinstance(loaded.label, np.ndarray)
    columns = [read_later.label, read_later.candidate, read_later.recent_predictions]
    for parts in (read_later.clusters, read_later.groups, read_later.baselines):
        assert parts
        columns += parts.values()
    assert all(isinstance(column, StreamedColumn) for column in columns)
    results = [judge_evidence(MODEL.gates, shown) for shown in (loaded, read_later)]
    assert results[0].promote
    assert results[1].promote
    for one, other in zip(results[0].results, results[1].results, strict=True):
        assert other.candidate == pytest.approx(one.candidate, abs=2e-5)
        assert (other.outcome, other.rows) == (one.outcome, one.rows)
        assert [part.name for part in other.slices] == [part.name for part in one.slices]


def test_custom_gates_get_columns_of_the_holdout(
    collected: Callable[..., datasets.Manifest], published: tuple[datasets.Manifest, datasets.Manifest]
) -> None:
    asking = (
        CustomGate(function="some.module:check", columns=["carrier", "rain"]),
        CustomGate(function="some.module:other", columns=["day", "snow", "label"]),
    )
    model = MODEL.model_copy(update={"gates": (*MODEL.gates[:1], *asking)})
    loaded = evaluation.load_evidence(model, collected(RECENT_ROWS, model))
    source = training_sets.training_set_dataset(MODEL)
    holdout, train = (source.file_path(published[0], name) for name in ("holdout", "train"))
    table = pq.read_table(holdout)
    scores = np.zeros(ROWS)
    past = historical_evidence(model, table, train, scores, NoChampion(), ("2013-03-01", "2013-03-08"), {})
    for evidence in (loaded, past):
        columns = dict(evidence.columns)
        missing = columns.pop("snow")
        assert isinstance(missing, MissingEvidence)
        assert missing.problem.startswith("'snow' is no column of the holdout; its columns are event_timestamp, day,")
        assert columns.pop("carrier") == table["carrier"].to_pylist()
        assert set(columns) == {"rain", "day", "label"}
        for name, values in columns.items():
            assert np.array_equal(values, table[name].to_numpy(), equal_nan=name == "rain")


def test_scores_are_those_of_each_row(
    collected: Callable[..., datasets.Manifest], published: tuple[datasets.Manifest, datasets.Manifest]
) -> None:
    scores = pq.read_table(collect.evaluation_dataset(MODEL).file_path(collected(1), "scores"))
    holdout = examples(ROWS, 2)
    assert scores["label"].equals(holdout["label"])
    assert scores["event_timestamp"].equals(holdout["event_timestamp"])
    assert scores["cluster:day"].equals(holdout["day"].cast(pa.string()))
    assert scores["group:carrier"].equals(holdout["carrier"])
    assert np.array_equal(scores["candidate"], evaluation.score_candidate(MODEL, published[1], holdout))


def test_only_a_limit_that_matters_makes_a_new_evaluation(collected: Callable[..., datasets.Manifest]) -> None:
    first = collected(1_000_000)
    assert collected(RECENT_ROWS) == first
    streamed = collected(RECENT_ROWS - 1)
    assert streamed != first
    assert collected(5) == streamed


def test_what_was_in_memory_once_stays_so(collected: Callable[..., datasets.Manifest]) -> None:
    """A verdict that is rendered again, or judged again, is of the same numbers, whatever the settings are now."""
    exact = collected(RECENT_ROWS)
    collected(10)
    assert isinstance(load(exact).candidate, np.ndarray)


def test_recent_rows_count_where_a_gate_reads_them(collected: Callable[..., datasets.Manifest]) -> None:
    without_drift = MODEL.model_copy(update={"gates": MODEL.gates[:2]})
    assert isinstance(load(collected(ROWS)).label, StreamedColumn)
    assert isinstance(load(collected(ROWS, without_drift)).label, np.ndarray)
    assert isinstance(load(collected(ROWS - 1, without_drift)).label, StreamedColumn)
