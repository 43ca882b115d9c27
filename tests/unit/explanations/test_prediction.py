"""Requests as people type them; explanations of models whose library has none; and how they are printed."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from evergreen.cli.explain import explanation_record, parse_pairs, print_explanation
from evergreen.errors import RequestError
from evergreen.explanations import prediction
from evergreen.explanations.feature_origins import FeatureOrigin
from evergreen.explanations.prediction import ExplainedInput, ExplainedPrediction
from evergreen.explanations.request import parse_request
from evergreen.feature_store.model_inputs import ModelInputs, ViewDefinition
from evergreen.scoring.predictions import TableScorer
from support.onnx_models import COLUMNS, expected, network, rows, save

pytestmark = pytest.mark.unit

VIEW = ViewDefinition(
    table="t", keys={"day": "STRING", "id": "INT64"}, key_columns={"id": "customer"}, ttl_seconds=0, features={"f": "X"}
)
INPUTS = ModelInputs(
    feature_model="shop",
    columns=(("amount", "double"), ("v__f", "int32"), ("is_new", "bool"), ("day", "string"), ("count", "int16")),
    views={"v": VIEW},
)


def test_a_request_is_read_in_the_types_of_features_and_model() -> None:
    text = {"customer": "12", "day": "a=b", "amount": "", "is_new": "true", "count": "-3"}
    request = parse_request("request", INPUTS, text)
    assert request.keys.to_pylist() == [{"day": "a=b", "customer": 12}]
    assert request.columns.to_pylist() == [{"amount": None, "is_new": True, "day": "a=b", "count": -3}]
    assert [str(field.type) for field in request.columns.schema] == ["double", "bool", "string", "int16"]
    assert request.keys.schema.field("customer").type == pa.int64()


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"count": "70000"}, ["count: '70000' is no int16"]),
        (
            {"id": "1"},
            ["id: is neither a key nor a column of the request → the model takes amount, is_new, day, count"],
        ),
        ({"v__f": "1"}, ["v__f: is neither"]),
        ({"customer": "", "amount": "1,5"}, ["customer: is empty, a key", "amount: '1,5' is no double"]),
        ({"is_new": None, "customer": None}, ["is_new: is missing, a column", "customer: is missing, a key of its"]),
    ],
)
def test_all_faults_of_a_request_are_named(changes: dict[str, str | None], problems: list[str]) -> None:
    text = {"customer": "12", "day": "x", "amount": "1", "is_new": "true", "count": "3"} | changes
    with pytest.raises(RequestError) as caught:
        parse_request("request", INPUTS, {name: value for name, value in text.items() if value is not None})
    assert len(caught.value.faults) == len(problems)
    assert all(problem in str(caught.value) for problem in problems)


def test_pairs_may_hold_equals_signs() -> None:
    assert parse_pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(RequestError, match="2 faults"):
        parse_pairs(["=1", "a=1", "a=2"])


def test_a_network_is_explained_by_what_each_input_alone_changes(tmp_path: Path) -> None:
    save(network(), tmp_path)
    table = rows(50)
    names = table.column_names
    scorer = TableScorer(tmp_path, names, names)
    row, usual = table.slice(0, 1), table.slice(1, 1)
    score = np.atleast_1d(scorer.score(row)[0])
    parts = prediction._differences(scorer, row, usual, score)
    assert parts.shape == (1, len(names))
    for place, name in enumerate(names):
        changed = row.set_column(place, row.schema.field(place), usual[name])
        assert parts[0, place] == pytest.approx(float(expected(row)[0] - expected(changed)[0]), abs=1e-5)
    assert scorer.predictor.contributions(row) is None
    assert not prediction._differences(scorer, row, row, score).any()
    assert set(names) == set(COLUMNS)


@pytest.mark.parametrize(
    ("values", "usual"),
    [
        (pa.array([3, 1, None, 9, 5]), 3),
        (pa.array([0.5, None]), 0.5),
        (pa.array(["b", "a", "a", None, "b", "a"]), "a"),
        (pa.array([True, False, True]), True),
        (pa.array([None, None], pa.float64()), None),
        (pa.array([None], pa.string()), None),
        (pa.array([], pa.int8()), None),
    ],
)
def test_usual_values_are_values_that_occur(values: pa.Array, usual: Any) -> None:
    found = prediction._usual_value(pa.chunked_array([values]))
    assert found.to_pylist() == [usual]
    assert found.type == values.type


BEGINS = datetime(2024, 2, 8, tzinfo=UTC)


def explained(**fields: Any) -> ExplainedPrediction:
    origin = FeatureOrigin("2024-02-08", BEGINS)
    defaults: dict[str, Any] = {
        "model": "parcels",
        "version": "3",
        "role": "champion",
        "as_of": BEGINS,
        "is_online": False,
        "kind": "multiclass",
        "predictions": {"on time": 0.2, "[red]late[/red]": 0.7, "lost": 0.1},
        "inputs": (
            ExplainedInput("weak", 1234567, "request", None, (0.0, 0.1, 3.0)),
            ExplainedInput("items__text", "[bold]x[/bold]", "items", origin, (2.0, -1.5, 0.0)),
            ExplainedInput("items__gone", None, "items", FeatureOrigin(problem="has no row"), (0.0, 0.5, 0.0)),
        ),
        "method": "shap",
        "base": (0.0, 0.5, 0.1),
        "scores": (2.0, -0.4, 3.1),
        "notes": ("items has no row: its features are missing",),
    }
    return ExplainedPrediction(**defaults | fields)


def printed(explanation: ExplainedPrediction, output: str | None = None) -> str:
    console = Console(file=StringIO(), width=150, highlight=False, markup=False, soft_wrap=True)
    print_explanation(explanation, console, output)
    text = console.file
    assert isinstance(text, StringIO)
    return text.getvalue()


def test_the_most_probable_class_is_explained_by_default() -> None:
    text = printed(explained())
    assert "* [red]late[/red]: 0.7000" in text
    assert "raw score of [red]late[/red] −0.4000 = 0.5000, the mean" in text
    assert text.index("items__text") < text.index("items__gone") < text.index("weak")
    assert "items: 2024-02-08T00:00:00+00:00, in 2024-02-08" in text
    assert "items: no row" in text
    assert "[bold]x[/bold]" in text
    assert "1,234,567" in text
    assert "note: items has no row" in text
    lost = printed(explained(), "lost")
    assert "* lost: 0.1000" in lost
    assert lost.index("weak") < lost.index("items__text")
    with pytest.raises(RequestError, match=r"'x' is none of the model's → one of on time, .*, lost"):
        printed(explained(), "x")


def test_of_quantiles_the_one_in_the_middle_is_explained() -> None:
    numbers = {"0.1": 1.0, "0.5": 2.0, "0.9": 3.0}
    assert "* 0.5: 2" in printed(explained(kind="quantile", predictions=numbers))
    assert "* 0.9: 3" in printed(explained(predictions=numbers))


def test_differences_come_with_usual_values() -> None:
    inputs = (ExplainedInput("x", 5.0, "request", None, (0.25,), 2.5),)
    one = {"predictions": {"prediction": 0.3}, "kind": None, "base": (), "scores": (), "notes": ()}
    text = printed(explained(method="difference", inputs=inputs, **one))
    assert "usual value" in text
    assert "+0.2500" in text
    assert "2.5" in text
    bare = printed(explained(method="none", inputs=(ExplainedInput("x", float("nan"), "request"),), **one))
    assert "contribution " not in bare
    assert "no contributions" in bare
    assert "–" in bare


def test_the_record_has_every_output_by_its_name() -> None:
    record = explanation_record(explained())
    assert record["as_of"] == "2024-02-08T00:00:00+00:00"
    assert record["base"] == {"on time": 0.0, "[red]late[/red]": 0.5, "lost": 0.1}
    assert record["inputs"][1]["contributions"]["[red]late[/red]"] == -1.5
    assert record["inputs"][1]["origin"]["event_timestamp"] == "2024-02-08T00:00:00+00:00"


def test_the_command_loads_no_engine() -> None:
    engines = "'xgboost', 'lightgbm', 'onnxruntime', 'mlflow', 'feast', 'pandas', 'duckdb', 'numpy', 'pyarrow'"
    code = f"import sys, evergreen.cli, evergreen.cli.explain; print([m for m in ({engines}) if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
