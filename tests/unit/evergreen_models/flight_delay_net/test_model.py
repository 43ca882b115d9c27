"""The spec of the network is light to import and valid."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evergreen.spec import loader
from evergreen_models.flight_delay.features import SPINE_COLUMNS
from evergreen_models.flight_delay_net.parameters import NetworkParameters

pytestmark = pytest.mark.unit

HEAVY = ("torch", "numpy", "pyarrow", "pandas", "onnx", "xgboost", "safetensors")


def test_load_spec_imports_no_engine() -> None:
    code = (
        "import sys; from evergreen.spec import loader; loader.load_spec('flight_delay_net'); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_net_shares_features_and_adds_categories() -> None:
    net, trees = loader.load_spec("flight_delay_net"), loader.load_spec("flight_delay")
    assert net.feature_model == trees.name
    assert set(net.request_columns) - set(trees.request_columns) == {"carrier", "origin", "dest"}
    assert set(net.request_columns) <= set(SPINE_COLUMNS)


def test_parameters_are_valid_and_embed_all_texts() -> None:
    parameters = NetworkParameters.model_validate(loader.load_spec("flight_delay_net").parameters)
    assert set(parameters.embedding_sizes) == {"carrier", "origin", "dest"}
