"""Labels that come weeks later, on a regression in another time zone: what is trained on, judged on, and spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import evaluation, ledger
from evergreen.errors import RawDataError
from evergreen.feature_store import training_sets
from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.gates import judge_evidence
from evergreen.gates.alpha_spending import next_alpha
from evergreen.lake import datasets
from evergreen.periods import Duration
from evergreen.promotion import service
from evergreen.registry import versions
from evergreen.spec.model import ModelSpec
from evergreen.training.backends import process
from evergreen.window import RunReason, days_between, midnight
from support.calendars import later
from support.loans import FIRST, ROWS, ZONE, loan_project, window

pytestmark = pytest.mark.integration

LABEL_DELAY = 30
GATES = """
dict(kind="threshold", metric="rmse", at_most=100.0),
dict(kind="against_champion", metric="rmse", must_be="not_worse", margin=5.0, guarantee="lifetime"),
dict(kind="labelled", at_least=0.95),
dict(kind="churn", at_most=2.0),
"""


@pytest.fixture
def loans(
    home: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None], tmp_path: Path
) -> Iterator[ModelSpec]:
    with loan_project(tmp_path, monkeypatch, use_models, GATES, LABEL_DELAY, "monitor=None,") as model:
        yield model


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


def test_training_learns_what_was_known_when_the_holdout_began(loans: ModelSpec) -> None:
    as_of = "2024-04-15"
    examples = training_sets.build_training_set(loans, window(loans, as_of))
    assert loans.history_days == 21 + 30 + 7 + 30
    holdout, train = read(loans, examples, "holdout"), read(loans, examples, "train")
    holdout_end = as_of - timedelta(LABEL_DELAY)
    assert set(holdout["day"].to_pylist()) == set(days_between(holdout_end - timedelta(7), holdout_end))
    assert holdout.num_rows == 7 * ROWS, "all labels of these days are known"
    begins = midnight(holdout_end - timedelta(7), ZONE)
    assert max(train["label_known_at"].to_pylist()) < begins
    train_end = begins.date() - timedelta(LABEL_DELAY)
    assert set(train["day"].to_pylist()) == set(days_between(train_end - timedelta(21), train_end))
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
        assert earlier.holdout[1] == later.holdout[0]
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
    model = loans.model_copy(update={"label_delay": Duration(0, "d"), "holdout": "37d"})
    as_of = "2024-04-15"
    examples = training_sets.build_training_set(model, window(model, as_of))
    candidate = process.train_in_process(
        model, examples, training_sets.training_set_dataset(model), training_sets.model_input_columns(model)
    )
    evidence = evaluation.load_evidence(model, evaluation.collect_evidence(model, examples, candidate, None))
    last_labelled = as_of - timedelta(11)  # its large losses, ten days and three hours later
    assert evidence.days == (as_of - timedelta(37), last_labelled + timedelta(1))
    verdict = judge_evidence(model.gates, evidence)
    results = {result.gate: result for result in verdict.results}
    assert results["labelled"].outcome == "failed"
    assert "0 of 30 rows have a label" in results["labelled"].reason
    share = 1 - (8 * ROWS + 19 * 6) / (37 * ROWS)
    assert verdict.unlabelled_share == pytest.approx(share)


def test_a_window_too_short_for_the_delay_says_so(loans: ModelSpec) -> None:
    text = "only 67 days of data, 7 of them for the holdout, 60 for labels to arrive after it and before it"
    with pytest.raises(RawDataError, match=text):
        training_sets.build_training_set(loans, window(loans, later(FIRST, 67)))
