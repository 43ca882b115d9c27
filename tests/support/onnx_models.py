"""ONNX models small enough to compute by hand: one input per column, lookups inside the graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit

COLUMNS = {"distance": "float", "temperature": "float", "carrier": "string", "hour": "int64"}
CARRIERS = ("UA", "AA")
_TYPES = {"float": TensorProto.FLOAT, "string": TensorProto.STRING, "int64": TensorProto.INT64}
_CODES = np.array([[0.2, -0.4], [1.5, 0.3], [-0.7, 0.9]], np.float32)
"""Embeddings: of an unknown carrier, then of each of CARRIERS."""


def weights(columns: Mapping[str, str]) -> NDArray[np.float32]:
    """Return one weight per number, two per text: (width, 1)."""
    width = sum(2 if kind == "string" else 1 for kind in columns.values())
    return np.linspace(-0.8, 0.9, width, dtype=np.float32).reshape(-1, 1)


def network(columns: Mapping[str, str] = COLUMNS, rank: int = 1) -> onnx.ModelProto:
    """Return a logistic regression on numbers (0 if missing) and embedded texts; inputs are [rows] or [rows, 1]."""
    inputs, nodes, parts = [], [], []
    for name, kind in columns.items():
        shape = ["rows", 1][:rank]
        inputs.append(helper.make_tensor_value_info(name, _TYPES[kind], shape))
        nodes += _encoded(name, kind)
        parts.append(f"{name}.part")
    nodes += [
        helper.make_node("Concat", parts, ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weights"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    constants = {
        "weights": weights(columns),
        "codes": _CODES,
        "zero": np.array(0, np.float32),
        "one_column": np.array([-1, 1]),
        "flat": np.array([-1]),
    }
    graph = helper.make_graph(
        nodes,
        "network",
        inputs,
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _encoded(name: str, kind: str) -> list[onnx.NodeProto]:
    """Return the nodes from an input to its feature columns, (rows, 1) or (rows, 2)."""
    if kind == "string":
        return [
            helper.make_node(
                "LabelEncoder", [name], [f"{name}.code"], domain="ai.onnx.ml",
                keys_strings=list(CARRIERS), values_int64s=[1, 2], default_int64=0,
            ),
            helper.make_node("Reshape", [f"{name}.code", "flat"], [f"{name}.codes"]),
            helper.make_node("Gather", ["codes", f"{name}.codes"], [f"{name}.part"]),
        ]  # fmt: skip
    return [
        helper.make_node("Cast", [name], [f"{name}.number"], to=TensorProto.FLOAT),
        helper.make_node("IsNaN", [f"{name}.number"], [f"{name}.missing"]),
        helper.make_node("Where", [f"{name}.missing", "zero", f"{name}.number"], [f"{name}.filled"]),
        helper.make_node("Reshape", [f"{name}.filled", "one_column"], [f"{name}.part"]),
    ]


def expected(table: pa.Table, columns: Mapping[str, str] = COLUMNS) -> NDArray[np.float64]:
    """Return the predictions that `network` must make for the rows of a table, (n,)."""
    parts = []
    for name, kind in columns.items():
        values = table[name].to_pylist()
        if kind == "string":
            codes = {carrier: n for n, carrier in enumerate(CARRIERS, start=1)}
            parts.append(_CODES[[codes.get(value, 0) for value in values]].astype(float))
        else:
            numbers = np.array([np.nan if value is None else value for value in values], float)
            parts.append(np.nan_to_num(numbers, nan=0.0).reshape(-1, 1))
    logit = np.hstack(parts) @ weights(columns).astype(float)
    return expit(logit.reshape(-1))


def rows(count: int, seed: int = 3) -> pa.Table:
    """Return rows with missing numbers, missing carriers, and unknown carriers."""
    rng = np.random.default_rng(seed)
    temperature = rng.normal(size=count)
    temperature[rng.random(count) < 0.2] = np.nan
    carriers = np.array([*CARRIERS, "ZZ", None], object)
    return pa.table(
        {
            "distance": rng.normal(size=count),
            "temperature": temperature,
            "carrier": pa.array(carriers[rng.integers(4, size=count)], pa.string()),
            "hour": rng.integers(4, size=count),
        }
    )


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write the model as `model.onnx`."""
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file
