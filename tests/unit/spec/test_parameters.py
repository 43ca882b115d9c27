"""Parameters arrive at `train.fit` as they were written, or the spec is refused with path and fix."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.errors import SpecError
from evergreen.spec.model import ModelSpec
from evergreen.spec.parameters import MAX_DEPTH
from evergreen.training.job import Job

pytestmark = pytest.mark.unit


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Share(float):
    pass


def spec(parameters: Any, **changes: Any) -> ModelSpec:
    return ModelSpec(
        name="late",
        owner="ops",
        features="flights",
        feature_service="late",
        schedule="0 0 * * 5",
        gates=[{"kind": "threshold", "metric": "auc", "at_least": 0.6}],
        parameters=parameters,
        **changes,
    )


def nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    return value


def arrived(parameters: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return the parameters as the trainer reads them from its job's file."""
    job = Job(
        model="late",
        fingerprint="f",
        training_data="file:///data.parquet",
        training_data_sha256="0" * 64,
        training_data_size=0,
        features=("a",),
        label="late",
        parameters=parameters,
        seed=0,
        threads=1,
        gpu=0,
        processes=1,
        checkpoint_seconds=60,
        modules={},
        libraries={},
    )
    job.write(folder / "job.json")
    return Job.model_validate_json((folder / "job.json").read_bytes()).parameters


def is_same(one: Any, other: Any) -> bool:
    """Equal, with equal types and signs of zero."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT | st.just(-0.0)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


@given(st.dictionaries(TEXT, VALUES))
def test_what_is_accepted_arrives_unchanged(tmp_path_factory: pytest.TempPathFactory, parameters: Any) -> None:
    accepted = spec(parameters).parameters
    assert is_same(accepted, parameters)
    assert is_same(arrived(accepted, tmp_path_factory.getbasetemp()), parameters)


@pytest.mark.parametrize(
    "value",
    [2**70, -(10**4200), 5e-324, 1e22, 1.0, -0.0, "\x00", "", "é\n", {"": {}}, [[], {}], nested(MAX_DEPTH - 1)],
    ids=repr,
)
def test_edges_of_json_arrive_unchanged(value: Any, tmp_path: Path) -> None:
    assert is_same(arrived(spec({"edge": value}).parameters, tmp_path), {"edge": value})


CASES: dict[str, tuple[Any, str, str, str]] = {
    # case: value of `rate`, path, problem, fix
    "nan": (math.nan, "rate", "is nan, which JSON does not have", "leave it out"),
    "infinity": (math.inf, "rate", "is inf,", "leave it out"),
    "minus infinity in a list": ([1.0, -math.inf], "rate.1", "is -inf,", "leave it out"),
    "integer keys": ({0: 1.0}, "rate", "has the key 0, and keys must be text", "write '0'"),
    "a number and its text as keys": ({0: 1, "0": 2}, "rate", "has the key 0,", "write '0'"),
    "a boolean key": ({True: 1}, "rate", "has the key True,", "write 'True'"),
    "no key": ({None: 1}, "rate", "has the key None,", "write 'None'"),
    "a key of bytes": ({b"a": 1}, "rate", "has the key b'a',", "write"),
    "a key of an enum": ({Word.A: 1}, "rate", "has the key <Word.A", "write"),
    "a key that is no UTF-8": ({"\ud800": 1}, "rate", "is no text in UTF-8", "another key"),
    "a date": (date(2013, 1, 1), "rate", "is of type date,", "value.isoformat()"),
    "an instant": (datetime(2013, 1, 1, tzinfo=UTC), "rate", "is of type datetime,", "value.isoformat()"),
    "a time": (time(1), "rate", "is of type time,", "value.isoformat()"),
    "a duration": (timedelta(1), "rate", "is of type timedelta,", "total_seconds()"),
    "bytes": (b"a", "rate", "is of type bytes,", "value.hex()"),
    "a set": ({1}, "rate", "is of type set,", "sorted list"),
    "a frozen set": (frozenset({1}), "rate", "is of type frozenset,", "sorted list"),
    "a tuple": ((1, 2), "rate", "is of type tuple,", "write a list"),
    "a tuple in a dict in a list": ([{"sizes": (1, 2)}], "rate.0.sizes", "is of type tuple,", "write a list"),
    "a numpy float": (np.float64(0.5), "rate", "is of type numpy float64,", "value.tolist()"),
    "a numpy integer": (np.int64(1), "rate", "is of type numpy int64,", "value.tolist()"),
    "a numpy boolean": (np.bool_(True), "rate", "is of type numpy bool,", "value.tolist()"),
    "a numpy array": (np.zeros(2), "rate", "is of type numpy ndarray,", "value.tolist()"),
    "text of an enum": (Word.A, "rate", "is of type Word,", "write str(…)"),
    "a number of an enum": (Number.ONE, "rate", "is of type Number,", "write int(…)"),
    "a subclass of float": (Share(0.5), "rate", "is of type Share,", "write float(…)"),
    "an ordered dict": (OrderedDict(a=1), "rate", "is of type OrderedDict,", "write dict(…)"),
    "a read-only dict": (MappingProxyType({"a": 1}), "rate", "is of type mappingproxy,", "write dict(…)"),
    "a decimal": (Decimal("0.1"), "rate", "is of type Decimal,", "write text, numbers"),
    "a complex number": (1j, "rate", "is of type complex,", "write text, numbers"),
    "a path": (Path("a"), "rate", "is of type PosixPath,", "write text, numbers"),
    "a function": (len, "rate", "is of type builtin_function_or_method,", "write text, numbers"),
    "too many digits": (10**5000, "rate", "has too many digits for JSON", "another value"),
    "half a character": ("\ud800", "rate", "is no text in UTF-8", "another value"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_would_change_on_the_way_is_refused(case: str) -> None:
    value, path, problem, fix = CASES[case]
    with pytest.raises(SpecError) as refused:
        spec({"rate": value, "rounds": 3})
    (fault,) = refused.value.faults
    assert fault.location == f"parameters.{path}"
    assert problem in fault.problem
    assert fix in fault.fix


def test_all_places_are_named_at_once_with_other_faults() -> None:
    with pytest.raises(SpecError) as refused:
        spec({"a": math.nan, "b": {0: (1,)}, 1: 2}, ownr="ops")
    assert [fault.location for fault in refused.value.faults] == [
        "parameters.a",
        "parameters.b",
        "parameters.b.0",
        "parameters",
        "ownr",
    ]


def test_what_is_nested_too_deeply_or_in_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (nested(MAX_DEPTH), loop):
        with pytest.raises(SpecError, match=f"is nested more than {MAX_DEPTH} levels deep"):
            spec({"rate": value})


@pytest.mark.parametrize("parameters", [None, "rounds=3", [("rounds", 3)]])
def test_parameters_are_a_dict(parameters: Any) -> None:
    with pytest.raises(SpecError, match="parameters: input should be a valid (dictionary|mapping)"):
        spec(parameters)


@pytest.mark.parametrize("field", ["memory_gib", "shm_gib", "checkpoint_seconds"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_resource_is_infinite(field: str, value: float) -> None:
    """An infinite number would reach the trainer's job as null."""
    with pytest.raises(SpecError, match=rf"resources\.{field}: input should be a finite number"):
        spec({}, resources={field: value})
