"""Labels that come weeks later, on a regression in another time zone: what is trained on, judged on, and spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from evergreen import evaluation, ledger
from evergreen.errors import RawDataError
from evergreen.feature_store import training_sets
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.gates import judge_evidence
from evergreen.gates.alpha_spending import next_alpha
from evergreen.lake import datasets
from evergreen.periods import Calendar, Duration
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason
from support.calendars import later
from support.loans import FIRST, ROWS, ZONE, window, write_loans

pytestmark = pytest.mark.integration

LABEL_DELAY = 30
GATES = """
dict(kind="threshold", metric="rmse", at_most=100.0),
dict(kind="against_champion", metric="rmse", must_be="not_worse", margin=5.0, guarantee="lifetime"),
dict(kind="labelled", at_least=0.95),
dict(kind="churn", at_most=2.0),
"""


def dates(first: str, end: str) -> set[date]:
    return set(map(date.fromisoformat, Calendar("1d", ZONE).periods_between(first, end)))


@pytest.fixture
def loans(home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path) -> ModelSpec:
    return write_loans(tmp_path, monkeypatch, use_models, GATES, LABEL_DELAY, "monitor=None,")


def read(model: ModelSpec, examples: datasets.Manifest, name: str) -> pa.Table:
    return pq.read_table(training_sets.training_set_dataset(model).file_path(examples, name))


def retrain(model: ModelSpec, as_of: date) -> ledger.VerdictRecorded:
    """Train, judge, and promote what passes; return the verdict's entry."""
    examples = training_sets.build_training_set(model, window(model, as_of))
    source = training_sets.training_set_dataset(model)
    candidate = process.train_in_process(model, examples, source, training_sets.model_input_columns(model))
    champion = versions.find_champion(model)
    scores = evaluation.collect_evidence(model, examples, candidate, champion)
    context = service.EvaluationContext(
        f"as of {as_of}", RunReason.SCHEDULE, examples, candidate, scores, champion.version if champion else None
    )
    number = service.judge_candidate(model, context)
    event = ledger.read_verdict_event(model.name, number)
    report = service.verdict_report_path(model, number)
    version = versions.register_candidate(model, examples, candidate, number, report)
    request = service.PromotionRequest(number, version, RunReason.SCHEDULE)
    if service.promotion_blocker(model, request) is None:
        service.promote_version(model, request, actor="a test")
    return event


def test_what_later_days_say_about_earlier_times_is_not_seen(loans: ModelSpec) -> None:
    as_of = "2024-04-15"
    known = read(loans, training_sets.build_training_set(loans, window(loans, as_of)), "train")
    features, partition = datasets.open_dataset("features/loans"), f"day={as_of}"
    files = {name: features.stage(partition, "late") / f"{name}.parquet" for name in ("requests", "customers")}
    published = features.manifest(partition)
    assert published
    for name, file in files.items():
        rows = pq.read_table(features.file_path(published, name), partitioning=None)
        if name == "customers":  # a correction of all that the training set has, a minute before it was asked for
            times = pc.subtract(known["event_timestamp"], pa.scalar(timedelta(minutes=1)))
            late = {"event_timestamp": times, "customer": known["customer"], "debt": [9.9e9] * known.num_rows}
            rows = pa.concat_tables([rows, pa.table(late, schema=rows.schema)])
        pq.write_table(rows, file)
    features.publish(partition, "late", files, {})
    shutil.rmtree(training_sets.training_set_dataset(loans).root)
    again = training_sets.build_training_set(loans, window(loans, as_of))
    assert read(loans, again, "train").equals(known)
    later_set = training_sets.build_training_set(loans, window(loans, later(as_of, 1)))
    assert max(read(loans, later_set, "train")["customers__debt"].to_pylist()) == 9.9e9


def test_training_learns_what_was_known_when_the_holdout_began(loans: ModelSpec) -> None:
    as_of = "2024-04-15"
    examples = training_sets.build_training_set(loans, window(loans, as_of))
    assert sum(duration.count for duration in loans.history) == 21 + 30 + 7 + 30
    holdout, train = read(loans, examples, "holdout"), read(loans, examples, "train")
    holdout_end = later(as_of, -LABEL_DELAY)
    assert set(holdout["day"].to_pylist()) == dates(later(holdout_end, -7), holdout_end)
    assert holdout.num_rows == 7 * ROWS, "all labels of these days are known"
    begins = Calendar("1d", ZONE).start(later(holdout_end, -7))
    assert max(train["label_known_at"].to_pylist()) < begins
    train_end = later(holdout_end, -7 - LABEL_DELAY)
    assert set(train["day"].to_pylist()) == dates(later(train_end, -21), train_end)
    # Early labels of later days are of large losses only: of rows unlike the others.
    assert train.num_rows == 21 * ROWS
    counts = read(loans, examples, "label_counts")
    assert counts["rows"].to_pylist() == counts["labelled"].to_pylist() == [ROWS] * 7
    inputs = ModelInputs.from_training_set(examples, ("amount", "customers__debt"))
    assert inputs.columns == (("amount", "double"), ("customers__debt", "double"))
    assert inputs.views["customers"].keys == {"customer": "INT64"}


def test_weekly_retrains_use_no_labelled_row_twice(loans: ModelSpec) -> None:
    """Holdouts of 37 calendar days overlap; the labelled ones do not, so each comparison has its whole share."""
    events = [retrain(loans, later("2024-04-01", 7 * week)) for week in range(4)]
    for earlier, following in pairwise(events):
        assert earlier.holdout[1] == following.holdout[0]
    assert events[0].verdict.promote
    budgets = []
    for event in events[1:]:
        result = next(result for result in event.verdict.results if result.gate == "rmse_against_champion")
        assert result.alpha is not None, result.reason
        budgets.append(result.alpha)
        assert event.verdict.unlabelled_share == 0
        churn = next(result for result in event.verdict.results if result.gate == "churn")
        assert churn.candidate > 0
    assert budgets == sorted(budgets), "each passed and carries its share over: none was halved"
    assert budgets[0] == pytest.approx(next_alpha(0.05, "rmse_against_champion", events[1].holdout, []))


def test_labels_that_come_later_than_declared_are_counted(loans: ModelSpec) -> None:
    """Without `label_delay`, the last 29 of 37 days have next to no label: days without one are not used up."""
    model = loans.model_copy(update={"label_delay": Duration(0, "d"), "holdout": Duration(37, "d")})
    as_of = "2024-04-15"
    examples = training_sets.build_training_set(model, window(model, as_of))
    candidate = process.train_in_process(
        model, examples, training_sets.training_set_dataset(model), training_sets.model_input_columns(model)
    )
    evidence = evaluation.load_evidence(model, evaluation.collect_evidence(model, examples, candidate, None))
    last_labelled = later(as_of, -11)  # its large losses, ten days and three hours later
    assert evidence.holdout == (later(as_of, -37), later(last_labelled, 1))
    verdict = judge_evidence(model.gates, evidence)
    results = {result.gate: result for result in verdict.results}
    assert results["labelled"].outcome == "failed"
    assert "0 of 30 rows have a label" in results["labelled"].reason
    share = 1 - (8 * ROWS + 19 * 6) / (37 * ROWS)
    assert verdict.unlabelled_share == pytest.approx(share)


def test_a_window_too_short_for_the_delay_says_so(loans: ModelSpec) -> None:
    text = "only 67 days of data, 7d of them for the holdout, 30d each for labels to arrive after it and before it"
    with pytest.raises(RawDataError, match=text):
        training_sets.build_training_set(loans, window(loans, later(FIRST, 67)))
