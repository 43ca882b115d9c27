"""The ONNX graph makes the network's predictions, for all inputs that a caller may send."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from evergreen.training.rows import TrainingRows
from evergreen_models.flight_delay_net import export
from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics, compute_column_statistics
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns, to_float32
from evergreen_models.flight_delay_net.network import Network
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.train import fit
from support.interruptions import StopAfter
from support.training_data import CATEGORIES, INPUTS, NUMBERS, net_job, table, write

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def columns() -> InputColumns:
    return InputColumns.from_schema(table(1).schema, INPUTS, "label", CATEGORIES)


@pytest.fixture(scope="module")
def statistics(train: Path, columns: InputColumns) -> ColumnStatistics:
    return compute_column_statistics(TrainingRows(train), columns, min_category_rows=10)


@pytest.fixture
def network(train: Path, columns: InputColumns, statistics: ColumnStatistics) -> Network:
    torch.manual_seed(1)
    parameters = NetworkParameters.model_validate(net_job(train).parameters)
    return Network(columns, statistics, parameters).eval()


def predict(graph: bytes, **columns: object) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph)
    inputs = {name: np.asarray(values, np.float32 if name in NUMBERS else object) for name, values in columns.items()}
    (predictions,) = session.run(["probability"], inputs)
    return predictions


def test_graph_has_one_input_per_column_and_one_output(
    network: Network, columns: InputColumns, statistics: ColumnStatistics
) -> None:
    session = onnxruntime.InferenceSession(export.export_onnx("net", network, columns, statistics))
    assert [column.name for column in session.get_inputs()] == list(INPUTS)
    assert {column.name: column.type for column in session.get_inputs()} == {
        name: "tensor(string)" if name in CATEGORIES else "tensor(float)" for name in INPUTS
    }
    assert all(column.shape == ["N"] for column in session.get_inputs())
    [output] = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("probability", "tensor(float)", ["N"])


def test_graph_predicts_what_the_network_predicts(
    network: Network, columns: InputColumns, statistics: ColumnStatistics
) -> None:
    graph = export.export_onnx("net", network, columns, statistics)
    rows = table(2_000, seed=99)
    inputs = {name: to_float32(rows[name]) for name in NUMBERS}
    inputs |= {name: rows[name].fill_null("").to_numpy() for name in CATEGORIES}
    numbers = torch.from_numpy(np.stack([inputs[name] for name in NUMBERS], axis=1))
    codes = torch.from_numpy(np.stack([statistics.encode(n, rows[name]) for n, name in enumerate(CATEGORIES)], axis=1))
    with torch.inference_mode():
        expected = torch.sigmoid(network(numbers, codes)).numpy()
    np.testing.assert_allclose(predict(graph, **inputs), expected, rtol=0, atol=export.MAX_EXPORT_ERROR)


def test_missing_unknown_and_extreme_inputs(
    network: Network, columns: InputColumns, statistics: ColumnStatistics
) -> None:
    graph = export.export_onnx("net", network, columns, statistics)
    usual = dict(departure_minute=600, carrier="UA", rain=0.3, dest="LAX", late_rate=0.2)
    unusual = [
        {},
        {"carrier": ""},
        {"carrier": "never seen"},
        {"carrier": "ua"},
        {"rain": np.nan},
        {"rain": np.inf},
        {"rain": 1e30},
        {"departure_minute": np.nan, "rain": np.nan, "late_rate": np.nan, "carrier": "", "dest": ""},
    ]
    requests = [usual | row for row in unusual]
    predictions = predict(graph, **{name: [row[name] for row in requests] for name in INPUTS})
    assert np.isfinite(predictions).all()
    assert predictions[1] == predictions[2] == predictions[3] != predictions[0]
    assert predictions[5] == predictions[6] != predictions[4]


def test_same_weights_give_the_same_bytes(
    network: Network, columns: InputColumns, statistics: ColumnStatistics
) -> None:
    graph = export.export_onnx("net", network, columns, statistics)
    assert export.export_onnx("net", network, columns, statistics) == graph
    with torch.no_grad():
        network.output_layer.bias += 1
    assert export.export_onnx("net", network, columns, statistics) != graph


def test_graph_that_differs_from_the_network_is_refused(
    network: Network, columns: InputColumns, statistics: ColumnStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CLIP_DEVIATIONS", 1.0)
    with pytest.raises(AssertionError, match="differ from the network's by up to"):
        export.export_onnx("net", network, columns, statistics)


@pytest.mark.parametrize("inputs", [NUMBERS, tuple(CATEGORIES), ("x", "missing", "last")])
def test_any_column_names_can_be_exported(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    rows = table(600)
    rows = rows.append_column("x", rows["rain"]).append_column("missing", rows["carrier"])
    rows = rows.append_column("last", rows["late_rate"])
    job = net_job(
        write(rows, tmp_path / "train.parquet", 200),
        embedding_sizes={name: 2 for name in inputs if name in (*CATEGORIES, "missing")},
    ).model_copy(update={"features": inputs})
    fit(job, tmp_path, StopAfter(tmp_path))
    model = onnx.load(tmp_path / "model.onnx")
    assert [column.name for column in model.graph.input] == list(inputs)


def test_column_with_only_rare_categories_is_unknown(tmp_path: Path) -> None:
    job = net_job(write(table(600), tmp_path / "train.parquet", 200), min_category_rows=10_000)
    fit(job, tmp_path, StopAfter(tmp_path))
    graph = (tmp_path / "model.onnx").read_bytes()
    other_inputs = dict(departure_minute=[600] * 2, rain=[0.3] * 2, dest=["LAX"] * 2, late_rate=[0.2] * 2)
    frequent, unseen = predict(graph, carrier=["UA", "ZZ"], **other_inputs)
    assert frequent == unseen


def test_masking_applies_in_training_only(network: Network, columns: InputColumns) -> None:
    numbers, codes = (
        torch.zeros(5_000, len(columns.numbers)),
        torch.ones(5_000, len(columns.categories), dtype=torch.int32),
    )
    embedded: list[torch.Tensor] = []
    network.embeddings[0].register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))
    network.train()
    network(numbers, codes)
    network.eval()
    network(numbers, codes)
    assert (embedded[0] == UNKNOWN_CODE).float().mean() == pytest.approx(network.mask_rate, rel=0.3)
    assert (embedded[1] != UNKNOWN_CODE).all()
