"""The common mistakes that only raw data shows, and `evergreen check --period` names: one message for each."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from evergreen.cli.check.locations import ModelFault
from evergreen.cli.check.trial import Trial, run_steps
from evergreen.spec.loader import load_spec
from support.mistakes import FEATURES, MODEL, SPEC, Mistake, assert_is_named, make_mistake, write_model
from support.scaffolds import Project
from support.small_models import UseModels

pytestmark = pytest.mark.integration

PERIOD = "2026-03-05"
MISTAKES = {
    "key that is not in the raw data": Mistake(
        FEATURES,
        'F.col("article_no")',
        'F.col("article_nr")',
        "there is no column 'article_nr' here; the most similar are article_no, ",
        "did you mean 'article_no'?",
        "article_nr",
    ),
    "non-determinism": Mistake(
        FEATURES,
        'F.col("rabatt").cast("double")',
        "F.rand()",
        "differs when it is computed from the same rows in another order: ",
        "break ties by more columns",
        '"rabatt"',
    ),
    "leak": Mistake(
        FEATURES,
        'F.col("rabatt").cast("double")',
        'F.expr("count(*) over (partition by Store)").cast("double")',
        "without the rows known after it: ",
        "use no row before its known_at",
        '"rabatt"',
    ),
    "rows that are there twice": Mistake(
        FEATURES,
        '.groupBy("day", "event_timestamp", *keys)',
        '.groupBy("day", "event_timestamp", LABEL, *keys)',
        "have the same keys and event_timestamp as another row",
        "group by the keys and the time only",
        "store_history",
    ),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: UseModels) -> Project:
    return write_model(tmp_path / "project", monkeypatch, use_models)


def try_model() -> list[ModelFault]:
    """Try the model as `evergreen check --period` does, but in this process, whose session of Spark tests share."""
    trial = Trial(load_spec(MODEL), PERIOD, io.StringIO())
    run_steps(trial, features_only=False)
    return trial.faults


@pytest.mark.parametrize("case", MISTAKES)
def test_a_common_mistake_is_one_message(project: Project, case: str) -> None:
    make_mistake(project, MISTAKES[case])
    assert_is_named(project, MISTAKES[case], try_model())


def test_an_input_that_tells_the_label_is_suspected(project: Project) -> None:
    leak = Mistake(FEATURES, 'F.col("`Price €`")', 'F.col("profit")', "", "", None)
    assert not [record for record in steps_of_trial() if "Suspected leak" in record.get("detail", "")]
    make_mistake(project, leak)
    [record] = [record for record in steps_of_trial() if record["step"] == "training set" and "detail" in record]
    assert "Suspected leak: 'price' alone tells the label" in record["detail"]
    assert record["state"] == "passed"


@pytest.mark.slow
def test_a_history_that_is_dated_too_early_is_suspected(project: Project) -> None:
    assert not [record for record in steps_of_trial() if "Served later" in record.get("detail", "")]
    end = "calendar.end(day) - timedelta(microseconds=1)"
    make_mistake(project, Mistake(FEATURES, end, "calendar.start(day)", "", "", None))
    [record] = [record for record in steps_of_trial() if record["step"] == "training set" and "detail" in record]
    assert "Served later than learned: rows of 'store_history'" in record["detail"]
    assert record["state"] == "passed"


@pytest.mark.slow
def test_a_label_that_is_known_too_early_is_suspected(project: Project) -> None:
    make_mistake(project, Mistake(FEATURES, '"interval 1 day"', '"interval 0 days"', "", "", None))
    [record] = [record for record in steps_of_trial() if record["step"] == "training set" and "detail" in record]
    assert "Labels are known 0:00:00 after their rows at most, and label_delay is 1d: one of both" in record["detail"]


def test_a_label_that_is_never_known_in_time_is_one_fault(project: Project) -> None:
    late = "and no label of 2026-03-0[1-9] is known before 9 days, 0:00:00 after its row"
    make_mistake(project, Mistake(FEATURES, '"interval 1 day"', '"interval 9 days"', "", "", None))
    [fault] = try_model()
    assert re.search(late, fault.problem), fault.problem
    assert fault.problem.startswith("label_delay is 1d")
    assert fault.file == project.folder / SPEC
    assert fault.line
    assert "label_delay" in fault.file.read_text().splitlines()[fault.line - 1]


def steps_of_trial() -> list[dict[str, str]]:
    trial = Trial(load_spec(MODEL), PERIOD, output := io.StringIO())
    run_steps(trial, features_only=False)
    assert trial.faults == []
    return [record for record in map(json.loads, output.getvalue().splitlines()) if "step" in record]


def test_a_column_of_another_type_is_one_message_for_all_files(project: Project) -> None:
    make_mistake(project, Mistake(SPEC, '"rabatt": dict(type="float64"', '"rabatt": dict(type="int64"', "", "", None))
    [fault] = try_model()
    assert fault.subject.endswith("day=2026-03-02/project.parquet: rabatt")
    assert "cannot be read as int64 without loss, such as 0.5 in row 1: the file has double" in fault.problem
    assert fault.problem.endswith("so it is in 3 other files")
    assert fault.fix == "deliver it again, or correct the type in `columns` of the source"
