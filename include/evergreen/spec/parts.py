"""The parts of a spec, for programs that show its fields or name them in messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel

from evergreen.spec.auto_rollback import AutoRollbackPolicy
from evergreen.spec.columns import RawColumn
from evergreen.spec.gates import Gate
from evergreen.spec.model import (
    ApprovalPolicy,
    FeatureSpec,
    HistoryColumns,
    ModelSpec,
    MonitorPolicy,
    RawSource,
    Resources,
    RetrainPolicy,
    ScorePolicy,
)
from evergreen.spec.origins import RawFiles, RawQuery, RawTable
from evergreen.spec.prediction_type import ForecastSeries

PARTS: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): ModelSpec,
    ("features",): FeatureSpec,
    ("features", "sources"): RawSource,
    ("features", "sources", "files"): RawFiles,
    ("features", "sources", "query"): RawQuery,
    ("features", "sources", "table"): RawTable,
    ("features", "sources", "history"): HistoryColumns,
    ("features", "sources", "columns"): RawColumn,
    ("resources",): Resources,
    ("monitor",): MonitorPolicy,
    ("retrain_on",): RetrainPolicy,
    ("approval",): ApprovalPolicy,
    ("auto_rollback",): AutoRollbackPolicy,
    ("score",): ScorePolicy,
    ("forecast",): ForecastSeries,
}
"""The class whose fields a part of the spec has, by its path without numbers."""

GATE_CLASSES: Mapping[str, type[BaseModel]] = {
    get_args(gate.model_fields["kind"].annotation)[0]: gate for gate in get_args(get_args(Gate)[0])
}
"""The class of each kind of gate."""
