"""Of the days of a job that fails, those that fail alone are blamed, and the others are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.errors import AnalysisException, PySparkException
from pyspark.errors.exceptions.connect import SparkConnectGrpcException

from evergreen.errors import Fault, FeatureError, StoreError
from evergreen.features import build
from evergreen.spec import loader
from support.calendars import later

pytestmark = pytest.mark.unit

MODEL = loader.load_spec("flight_delay")
DAYS = [str(later("2013-03-01", n)) for n in range(32)]

Job = Callable[[Any, Mapping[str, Path]], None]


def job(bad: set[str], jobs: list[list[str]], error: Exception | None = None) -> Job:
    """Return a job that fails if it is about a bad day."""

    def run(_: Any, folders: Mapping[str, Path]) -> None:
        jobs.append(list(folders))
        if bad & folders.keys():
            raise error or ValueError(f"negative amount on {min(bad & folders.keys())}")

    return run


def run(bad: set[str], error: Exception | None = None) -> tuple[dict[str, list[Fault]], list[list[str]]]:
    jobs: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compute_features", job(bad, jobs, error))
        return build._build_periods(MODEL, dict.fromkeys(DAYS, Path())), jobs


@given(st.sets(st.sampled_from(DAYS[1:])))
def test_exactly_the_bad_days_are_blamed(bad: set[str]) -> None:
    faults, jobs = run(bad)
    if len(bad) < build._MAX_FAILURES:
        assert set(map(str, faults)) == bad
    for day, day_faults in faults.items():
        if str(day) in bad and "not tried" not in day_faults[0].problem:
            assert str(day_faults[0]).startswith(f"{day}: cannot be built: ValueError: negative amount on {day} → ")
    assert len(jobs) <= 1 + 2 * max(1, len(bad)) * 5


def test_a_day_is_found_with_few_jobs() -> None:
    faults, jobs = run({DAYS[20]})
    assert list(map(str, faults)) == [DAYS[20]]
    assert len(jobs) == 11


def test_code_that_fails_for_all_days_is_not_tried_on_all() -> None:
    faults, jobs = run(set(DAYS))
    assert len(faults) == len(DAYS)
    assert len(jobs) < 12
    assert faults[DAYS[-1]][0].problem == "not tried, because the first 4 periods of the job fail"


@pytest.mark.parametrize(
    "error",
    [
        AnalysisException("[UNRESOLVED_COLUMN] no column", errorClass="UNRESOLVED_COLUMN", messageParameters={}),
        KeyError("price"),
        FeatureError("features", [Fault("sold", "1 rows have no day", "set it")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_rows_or_code_cause_is_blamed_on_days(error: Exception) -> None:
    assert list(map(str, run({DAYS[3]}, error)[0])) == [DAYS[3]]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ConnectionRefusedError(),
        MemoryError(),
        SparkConnectGrpcException("<_InactiveRpcError: UNAVAILABLE>"),
        PySparkException("[INTERNAL_ERROR] a bug", errorClass="INTERNAL_ERROR", messageParameters={}),
        PySparkException(
            "[TASK_WRITE_FAILED] Task failed while writing rows to s3a://lake/_spark.\nCaused by: "
            "org.apache.hadoop.fs.s3a.AWSClientIOException: software.amazon.awssdk.core.exception.SdkClientException",
            errorClass="TASK_WRITE_FAILED",
            messageParameters={},
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_server_or_a_disk_causes_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        run({DAYS[3]}, error)


def test_a_trace_with_methods_of_a_store_is_no_failure_of_it() -> None:
    """Methods of the store's client are in the trace of any error, also where a row is at fault."""
    trace = "Caused by: [DIVIDE_BY_ZERO] zero\n\tat org.apache.hadoop.fs.s3a.S3ABlockOutputStream.write("
    text = f"[TASK_WRITE_FAILED] failed\n{trace}"
    error = PySparkException(text, errorClass="TASK_WRITE_FAILED", messageParameters={})
    assert list(map(str, run({DAYS[3]}, error)[0])) == [DAYS[3]]


def test_a_spark_without_a_client_of_the_store_is_no_fault_of_days() -> None:
    missing = "java.lang.ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found"
    with pytest.raises(StoreError, match="S3AFileSystem is missing → set EVERGREEN_SPARK_CONF=.*hadoop-aws"):
        run({DAYS[3]}, PySparkException(missing, errorClass="TASK_WRITE_FAILED", messageParameters={}))


def test_the_cause_of_a_failed_task_is_told() -> None:
    text = (
        "[TASK_WRITE_FAILED] Task failed while writing rows.\n\nCaused by: X: [USER_RAISED_EXCEPTION] no amount\n\tat Y"
    )
    (fault,) = build._build_faults(MODEL, DAYS[0], ValueError(text))
    assert fault.problem.endswith("[USER_RAISED_EXCEPTION] no amount")
