"""`evergreen explain` on a champion: real features, registry and files, in one process and without Airflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost
from typer.testing import CliRunner

from evergreen import cli, evaluation
from evergreen.feature_store import online_store, training_sets
from evergreen.lake import datasets
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason
from support import loans
from support.calendars import DAYS, later

pytestmark = pytest.mark.integration

AS_OF = later(loans.FIRST, 35)
GATES = """dict(kind="threshold", metric="rmse", at_most=100.0)"""

LINEAR = """
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def fit(job, output, checkpoints):
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1]) for name in job.features]
    weights = np.arange(2, 2 + len(job.features), dtype=np.float32).reshape(-1, 1)
    nodes = [helper.make_node("Concat", list(job.features), ["all"], axis=1),
             helper.make_node("MatMul", ["all", "weights"], ["sum"])]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows", 1])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(output / "model.onnx"))
    return {}
"""


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    model = loans.write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2, options="monitor=None")
    monkeypatch.setenv("EVERGREEN_MLFLOW", settings().mlflow.get_secret_value())
    settings.cache_clear()
    return model


def retrain(model: ModelSpec, *inputs: str) -> str:
    examples = training_sets.build_training_set(model, loans.window(model, AS_OF))
    candidate = process.train_in_process(model, examples, training_sets.training_set_dataset(model), inputs)
    scores = evaluation.collect_evidence(model, examples, candidate, None)
    context = service.EvaluationContext("a run", RunReason.SCHEDULE, examples, candidate, scores, None)
    number = service.judge_candidate(model, context)
    version = versions.register_candidate(
        model, examples, candidate, number, service.verdict_report_path(model, number)
    )
    service.promote_version(model, service.PromotionRequest(number, version, RunReason.SCHEDULE), actor="a test")
    return version


def explain(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["explain", "loans", *arguments])
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


def test_one_champion(model: ModelSpec) -> None:
    code, text = explain("customer=1", "amount=2")
    assert code == 1
    assert "loans has no champion: name a version with --version; the ledger knows none" in text

    version = retrain(model, "amount", "customers__debt")
    day = later(AS_OF, 3)
    number = 1000 * date.fromisoformat(day).toordinal() + 7
    begins = DAYS.start(day)
    request = (f"customer={number}", "amount=2.5", "--at", (begins + timedelta(hours=5)).isoformat())
    code, text = explain(*request, "--json")
    assert code == 0, text
    record = json.loads(text)
    features = datasets.open_dataset("features/loans")
    manifest = features.manifest(datasets.period_partition(day))
    assert manifest
    table = pq.read_table(features.file_path(manifest, "customers"), partitioning=None)
    debt = dict(zip(table["customer"].to_pylist(), table["debt"].to_pylist(), strict=True))[number]
    amount, customers = record["inputs"]
    assert (amount["value"], amount["source"], customers["value"]) == (2.5, "request", debt)
    assert customers["origin"] == {"period": day, "event_timestamp": begins.isoformat(), "problem": ""}
    with versions.open_champion("loans") as (folder, _):
        row = np.array([[2.5, debt]], dtype=np.float32)
        booster = xgboost.Booster(model_file=folder / "model.ubj")
        predicted = booster.predict(xgboost.DMatrix(row, feature_names=["amount", "customers__debt"]))[0]
    assert record["predictions"] == {"prediction": pytest.approx(float(predicted), abs=0)}
    contributions = [item["contributions"]["prediction"] for item in record["inputs"]]
    assert sum(contributions) + record["base"]["prediction"] == pytest.approx(float(predicted), abs=1e-4)
    assert (record["version"], record["role"], record["method"]) == (version, "champion", "shap")

    code, text = explain(*request)
    assert code == 0
    assert f"loans version {version}, the champion; features as of" in text
    assert f"customers: {begins.isoformat()}, in {day}" in text

    assert explain(*request, "--version", version, "--json")[1] == explain(*request, "--alias", "candidate", "--json")[
        1
    ].replace('"role": "candidate"', '"role": ""')
    check_errors(number, begins)
    check_late_rows(number, begins, debt)
    check_online(model, number, debt)


def test_a_champion_in_onnx_is_explained_by_differences(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> None:
    model = loans.write_loans(tmp_path, monkeypatch, use_models, GATES, 2, "monitor=None", train=LINEAR)
    monkeypatch.setenv("EVERGREEN_MLFLOW", settings().mlflow.get_secret_value())
    settings.cache_clear()
    version = retrain(model, "amount", "customers__debt")
    day = later(AS_OF, 3)
    number = 1000 * date.fromisoformat(day).toordinal() + 7
    request = (f"customer={number}", "amount=2.5", "--at", (DAYS.start(day) + timedelta(hours=5)).isoformat())
    code, text = explain(*request, "--json")
    assert code == 0, text
    record = json.loads(text)
    assert (record["version"], record["role"], record["method"]) == (version, "champion", "difference")
    learned = training_sets.training_set_dataset(model)
    manifest = learned.manifest(f"as_of={AS_OF}")
    assert manifest
    rows = pq.read_table(learned.file_path(manifest, "train"))
    for item, weight in zip(record["inputs"], (2, 3), strict=True):
        usual = float(np.median(rows[item["name"]].to_numpy()))
        assert item["reference"] == pytest.approx(usual, rel=0.05)
        difference = weight * (item["value"] - item["reference"])
        assert item["contributions"]["prediction"] == pytest.approx(difference, rel=1e-4)
    amount, customers = record["inputs"]
    assert record["predictions"]["prediction"] == pytest.approx(2 * amount["value"] + 3 * customers["value"], rel=1e-5)
    code, text = explain(*request)
    assert code == 0
    assert "by how much the prediction is higher than with the usual value of this input alone" in text
    assert "they do not add up" in text


def check_errors(number: int, begins: datetime) -> None:
    hours = timedelta(hours=1)
    for arguments, problems in (
        (
            ("custommer=1",),
            ("custommer: is neither a key nor", "customer: is missing, a key", "amount: is missing, a col"),
        ),
        (("customer=x", "amount=y"), ("'x' is no int64", "'y' is no double")),
        (("customer=", "amount="), ("customer: is empty, a key",)),
        (("customer",), ("customer: is no key=value",)),
        (("customer=1", "customer=2"), ("customer: occurs twice",)),
        (("customer=1", "amount=1"), ("customers: has no row for customer=1 at any time",)),
        ((f"customer={number}", "amount=1", "--at", (begins - hours).isoformat()), ("yet: the first one is of ",)),
        (
            (f"customer={number}", "amount=1", "--at", (begins + 30 * hours).isoformat()),
            (f"the last one is of {begins.isoformat()}, in {later(AS_OF, 3)}, and holds for 1 day",),
        ),
        ((f"customer={number}", "amount=1", "--at", "noon"), ("--at: 'noon' is no time",)),
        ((f"customer={number}", "amount=1", "--version", "77"), ("loans has no version '77': the ledger knows 1",)),
        ((f"customer={number}", "amount=1", "--alias", "previous"), ("loans has no previous",)),
        ((f"customer={number}", "amount=1", "--online"), ("nothing was written to it yet",)),
        ((f"customer={number}", "amount=1", "--online", "--at", "2024-02-01"), ("the online store has no past",)),
        ((f"customer={number}", "amount=1", "--at", begins.isoformat(), "--output", "x"), ("'x' is none of the",)),
    ):
        code, text = explain(*arguments)
        assert code == 1, arguments
        assert all(problem in text for problem in problems), text


def check_late_rows(number: int, begins: datetime, debt: float) -> None:
    """A later period may say something about an earlier time, which nobody knew then."""
    dataset, partition = datasets.open_dataset("features/loans"), datasets.period_partition(later(AS_OF, 4))
    manifest = dataset.manifest(partition)
    assert manifest
    staged = dataset.stage(partition, "late")
    for name in ("requests", "customers"):
        table = pq.read_table(dataset.file_path(manifest, name), partitioning=None)
        if name == "customers":
            row = {"event_timestamp": [begins + timedelta(hours=1)], "customer": [number], "debt": [99.0]}
            table = pa.concat_tables([table, pa.table(row, schema=table.schema)])
        pq.write_table(table, staged / f"{name}.parquet")
    files = {name: staged / f"{name}.parquet" for name in ("requests", "customers")}
    dataset.publish(partition, "late", files, {})
    for hours, value, period, since in ((5, debt, 3, 0), (24.5, 99.0, 4, 1)):
        instant = begins + timedelta(hours=hours)
        code, text = explain(f"customer={number}", "amount=1", "--at", instant.isoformat(), "--json")
        assert code == 0, text
        customers = json.loads(text)["inputs"][1]
        assert customers["value"] == value
        assert customers["origin"]["period"] == later(AS_OF, period)
        assert customers["origin"]["event_timestamp"] == (begins + timedelta(hours=since)).isoformat()


def check_online(model: ModelSpec, number: int, debt: float) -> None:
    """What a period says that begins at the watermark is not loaded yet."""
    online_store.materialize_features(model, loans.window(model, later(AS_OF, 4)))
    code, text = explain(f"customer={number}", "amount=", "--online", "--json")
    assert code == 0, text
    record = json.loads(text)
    amount, customers = record["inputs"]
    assert (amount["value"], customers["value"], customers["source"]) == (None, debt, "online store")
    assert customers["origin"]["period"] == later(AS_OF, 3)
    code, text = explain("customer=5", "amount=1", "--online")
    assert code == 0
    assert "note: online store has no value" in text
