"""Exports the trained network as an ONNX graph, which contains no code and takes the columns as callers have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from evergreen_models.flight_delay_net.column_statistics import ColumnStatistics
from evergreen_models.flight_delay_net.columns import UNKNOWN_CODE, InputColumns
from evergreen_models.flight_delay_net.network import CLIP_DEVIATIONS, Network

OUTPUT_NAME = "probability"
MAX_EXPORT_ERROR = 1e-6

# Older versions, because the runtime of a server may be some years old.
_OPSETS = {"": 18, "ai.onnx.ml": 3}
_IR_VERSION = 8

_PROBE_ROWS = 1024


def export_onnx(name: str, network: Network, columns: InputColumns, statistics: ColumnStatistics) -> bytes:
    """Return a graph with one input per column, in their order, of shape (N,), and the output `probability`, (N,).

    Numbers are float32, NaN where missing. Categories are strings; an empty one is missing, and is treated like those
    that training has not seen. The same weights give the same bytes.

    Raises:
        AssertionError: the graph's predictions differ from the network's.
    """
    graph = _GraphBuilder(network, columns, statistics)
    data = graph.model(name).SerializeToString(deterministic=True)
    _check_parity(data, network, columns, statistics)
    return data


class _GraphBuilder:
    """Builds the graph node by node: the output of tracing exporters varies by version, and they support no strings."""

    def __init__(self, network: Network, columns: InputColumns, statistics: ColumnStatistics):
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._columns = columns
        x = self._concat("x", [*self._numbers(network), *self._categories(network, statistics)])
        for number, layer in enumerate(network.hidden_layers):
            x = self._add_node("Relu", [self._linear(f"layer_{number}", x, layer)], f"hidden_{number}")
        logit = self._linear("last", x, network.output_layer)
        self._append_node("Sigmoid", [self._add_node("Squeeze", [logit, self._axis()], "logit")], OUTPUT_NAME)

    def model(self, name: str) -> onnx.ModelProto:
        types = {
            name: TensorProto.STRING if name in self._columns.categories else TensorProto.FLOAT
            for name in self._columns.inputs
        }
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(column, kind, ["N"]) for column, kind in types.items()],
            [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N"])],
            self._weights,
        )
        model = helper.make_model(
            graph,
            producer_name="evergreen",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()],
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _numbers(self, network: Network) -> list[str]:
        if not self._columns.numbers:
            return []
        numbers = self._concat(
            "numbers",
            [self._add_node("Unsqueeze", [name, self._axis()], f"{name}/n") for name in self._columns.numbers],
        )
        means = self._weight("means", network.means)
        missing = self._add_node("IsNaN", [numbers], "is_missing")
        filled = self._add_node("Where", [missing, means, numbers], "known")
        difference = self._add_node("Sub", [filled, means], "apart")
        scaled = self._add_node("Mul", [difference, self._weight("factors", network.scale_factors)], "scaled")
        limits = [
            self._weight(side, torch.tensor(limit))
            for side, limit in (("low", -CLIP_DEVIATIONS), ("high", CLIP_DEVIATIONS))
        ]
        return [
            self._add_node("Clip", [scaled, *limits], "clipped"),
            self._add_node("Cast", [missing], "missing", to=TensorProto.FLOAT),
        ]

    def _categories(self, network: Network, statistics: ColumnStatistics) -> list[str]:
        embedded = []
        columns = zip(self._columns.categories, statistics.vocabularies, network.embeddings, strict=True)
        for name, words, embedding in columns:
            code = self._add_node(
                "LabelEncoder",
                [name],
                f"{name}/code",
                domain="ai.onnx.ml",
                keys_strings=["", *words],
                values_int64s=[UNKNOWN_CODE, *range(1, len(words) + 1)],
                default_int64=UNKNOWN_CODE,
            )
            table = self._weight(f"{name}/table", embedding.weight)
            embedded.append(self._add_node("Gather", [table, code], f"{name}/embedded"))
        return embedded

    def _linear(self, name: str, x: str, layer: torch.nn.Linear) -> str:
        parts = [x, self._weight(f"{name}/weight", layer.weight), self._weight(f"{name}/bias", layer.bias)]
        return self._add_node("Gemm", parts, f"{name}/out", transB=1)

    def _concat(self, name: str, parts: list[str]) -> str:
        return self._add_node("Concat", parts, name, axis=1)

    def _axis(self) -> str:
        """Return the axis of the columns, as a tensor, which the operators that add and drop it require."""
        if "/axis" not in (weight.name for weight in self._weights):
            self._weight("axis", torch.tensor([1]))
        return "/axis"

    def _add_node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        # No column begins with a slash, so these names are unique.
        self._append_node(operator, inputs, f"/{name}", **attributes)
        return f"/{name}"

    def _append_node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def _weight(self, name: str, tensor: torch.Tensor) -> str:
        self._weights.append(numpy_helper.from_array(tensor.detach().cpu().numpy(), f"/{name}"))
        return f"/{name}"


def _check_parity(data: bytes, network: Network, columns: InputColumns, statistics: ColumnStatistics) -> None:
    """Compare the graph with the network on synthetic rows with missing values, outliers and unknown categories."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    shape = (_PROBE_ROWS, len(columns.numbers))
    numbers = (np.array(statistics.means) + random.standard_cauchy(shape) * np.array(statistics.deviations)).astype(
        np.float32
    )
    numbers[random.random(shape) < 0.1] = np.nan
    codes = np.zeros((_PROBE_ROWS, len(columns.categories)), np.int32)
    for n, words in enumerate(statistics.vocabularies):
        codes[:, n] = random.integers(0, len(words) + 1, _PROBE_ROWS)
    inputs: dict[str, NDArray[np.float32] | NDArray[np.object_]] = {
        name: numbers[:, n] for n, name in enumerate(columns.numbers)
    }
    for n, (name, words) in enumerate(zip(columns.categories, statistics.vocabularies, strict=True)):
        inputs[name] = np.array(["", *words], dtype=object)[codes[:, n]]
    with torch.inference_mode():
        expected = torch.sigmoid(network(torch.from_numpy(numbers), torch.from_numpy(codes))).numpy()
    (actual,) = session.run([OUTPUT_NAME], inputs)
    max_error = float(np.abs(actual - expected).max())
    if not max_error <= MAX_EXPORT_ERROR:
        raise AssertionError(f"the probabilities of the ONNX graph differ from the network's by up to {max_error:g}")
