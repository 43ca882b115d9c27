"""The ONNX graph gives what the network gives, for whatever a caller may ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from evergreen_models.flight_delay_net import export, scales
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns, to_float32
from evergreen_models.flight_delay_net.network import Network
from evergreen_models.flight_delay_net.parameters import NetworkParameters
from evergreen_models.flight_delay_net.train import fit
from support.interruptions import LeavesAfter
from support.training_data import CATEGORIES, INPUTS, NUMBERS, net_job, table, write

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def columns() -> InputColumns:
    return InputColumns.from_schema(table(1).schema, INPUTS, "label", CATEGORIES)


@pytest.fixture(scope="module")
def known(train: Path, columns: InputColumns) -> scales.ColumnStatistics:
    return scales.compute_column_statistics(str(train), columns, min_category_rows=10)


@pytest.fixture
def network(train: Path, columns: InputColumns, known: scales.ColumnStatistics) -> Network:
    torch.manual_seed(1)
    parameters = NetworkParameters.model_validate(net_job(train).parameters)
    return Network(columns, known, parameters).eval()


def ask(graph: bytes, **columns: object) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph)
    given = {name: np.asarray(values, np.float32 if name in NUMBERS else object) for name, values in columns.items()}
    (answer,) = session.run(["probability"], given)
    return answer


def test_inputs_are_the_columns_in_the_models_order_and_one_probability_comes_out(
    network: Network, columns: InputColumns, known: scales.ColumnStatistics
) -> None:
    session = onnxruntime.InferenceSession(export.export_onnx("net", network, columns, known))
    assert [given.name for given in session.get_inputs()] == list(INPUTS)
    assert {given.name: given.type for given in session.get_inputs()} == {
        name: "tensor(string)" if name in CATEGORIES else "tensor(float)" for name in INPUTS
    }
    assert all(given.shape == ["N"] for given in session.get_inputs())
    [answer] = session.get_outputs()
    assert (answer.name, answer.type, answer.shape) == ("probability", "tensor(float)", ["N"])


def test_it_gives_what_the_network_gives(
    network: Network, columns: InputColumns, known: scales.ColumnStatistics
) -> None:
    graph = export.export_onnx("net", network, columns, known)
    rows = table(2_000, seed=99)
    asked = {name: to_float32(rows[name]) for name in NUMBERS}
    asked |= {name: rows[name].fill_null("").to_numpy() for name in CATEGORIES}
    numbers = torch.from_numpy(np.stack([asked[name] for name in NUMBERS], axis=1))
    codes = torch.from_numpy(np.stack([known.encode(n, rows[name]) for n, name in enumerate(CATEGORIES)], axis=1))
    with torch.inference_mode():
        own = torch.sigmoid(network(numbers, codes)).numpy()
    np.testing.assert_allclose(ask(graph, **asked), own, rtol=0, atol=export.MAX_EXPORT_ERROR)


def test_what_is_missing_unknown_or_absurd_is_answered_too(
    network: Network, columns: InputColumns, known: scales.ColumnStatistics
) -> None:
    graph = export.export_onnx("net", network, columns, known)
    usual = dict(departure_minute=600, carrier="UA", rain=0.3, dest="LAX", late_rate=0.2)
    odd = [
        {},
        {"carrier": ""},
        {"carrier": "never seen"},
        {"carrier": "ua"},
        {"rain": np.nan},
        {"rain": np.inf},
        {"rain": 1e30},
        {"departure_minute": np.nan, "rain": np.nan, "late_rate": np.nan, "carrier": "", "dest": ""},
    ]
    given = [usual | row for row in odd]
    answer = ask(graph, **{name: [row[name] for row in given] for name in INPUTS})
    assert np.isfinite(answer).all()
    assert answer[1] == answer[2] == answer[3] != answer[0]
    assert answer[5] == answer[6] != answer[4]


def test_the_same_weights_give_the_same_bytes(
    network: Network, columns: InputColumns, known: scales.ColumnStatistics
) -> None:
    once = export.export_onnx("net", network, columns, known)
    assert export.export_onnx("net", network, columns, known) == once
    with torch.no_grad():
        network.output_layer.bias += 1
    assert export.export_onnx("net", network, columns, known) != once


def test_a_graph_that_gives_something_else_is_not_left(
    network: Network, columns: InputColumns, known: scales.ColumnStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CLIP_DEVIATIONS", 1.0)
    with pytest.raises(AssertionError, match="differ from the network's by up to"):
        export.export_onnx("net", network, columns, known)


@pytest.mark.parametrize("inputs", [NUMBERS, tuple(CATEGORIES), ("x", "missing", "last")])
def test_any_columns_will_do_whatever_their_names(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    rows = table(600)
    rows = rows.append_column("x", rows["rain"]).append_column("missing", rows["carrier"])
    rows = rows.append_column("last", rows["late_rate"])
    job = net_job(
        write(rows, tmp_path / "train.parquet", 200),
        embedding={name: 2 for name in inputs if name in (*CATEGORIES, "missing")},
    ).model_copy(update={"features": inputs})
    fit(job, tmp_path, LeavesAfter(tmp_path))
    model = onnx.load(tmp_path / "model.onnx")
    assert [given.name for given in model.graph.input] == list(inputs)


def test_a_column_without_a_usual_category_is_always_unknown(tmp_path: Path) -> None:
    job = net_job(write(table(600), tmp_path / "train.parquet", 200), rare=10_000)
    fit(job, tmp_path, LeavesAfter(tmp_path))
    graph = (tmp_path / "model.onnx").read_bytes()
    same = dict(departure_minute=[600] * 2, rain=[0.3] * 2, dest=["LAX"] * 2, late_rate=[0.2] * 2)
    one, other = ask(graph, carrier=["UA", "ZZ"], **same)
    assert one == other


def test_hidden_inputs_teach_the_network_what_the_data_never_shows(network: Network, columns: InputColumns) -> None:
    numbers, codes = (
        torch.zeros(5_000, len(columns.numbers)),
        torch.ones(5_000, len(columns.categories), dtype=torch.int32),
    )
    seen: list[torch.Tensor] = []
    network.embeddings[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.train()
    network(numbers, codes)
    network.eval()
    network(numbers, codes)
    assert (seen[0] == UNKNOWN_CODE).float().mean() == pytest.approx(network.mask_rate, rel=0.3)
    assert (seen[1] != UNKNOWN_CODE).all()
