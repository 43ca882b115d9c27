"""How faults of a trial are joined, and which inputs it suspects, without Spark."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.cli.check import trial
from evergreen.errors import Fault, FaultsError
from evergreen.features.served_after import ServedAfter
from evergreen.gates.evidence import Evidence
from evergreen.gates.verdict import judge_evidence
from evergreen.periods import Calendar
from evergreen.spec.gates import AgainstChampionGate, ThresholdGate
from evergreen.spec.loader import load_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.window import RunReason, Window
from support.mistakes import MODEL, write_model
from support.scaffolds import order_lines

pytestmark = pytest.mark.unit


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_models: Callable[..., None]) -> ModelSpec:
    write_model(tmp_path / "project", monkeypatch, use_models)
    return load_spec(MODEL)


def join(model: ModelSpec, *faults: Fault) -> list[str]:
    described = trial.describe_step_error(FaultsError("raw data", faults), model)
    return [str(fault.to_fault()) for fault in described]


def test_a_column_that_is_wrong_in_many_files_is_one_fault(model: ModelSpec) -> None:
    files = [
        Fault(f"/raw/day={n}/x.parquet: price", f"{n} rows break it, such as {n}.5", "correct it") for n in (1, 2, 3)
    ]
    [text] = join(model, *files)
    assert text == "/raw/day=1/x.parquet: price: 1 rows break it, such as 1.5; so it is in 2 other files → correct it"


def test_a_file_that_is_wrong_in_many_periods_is_one_fault(model: ModelSpec) -> None:
    files = [Fault(f"/raw/orders/week=1997-0{n}-03/orders.parquet", "1 is missing", "deliver it") for n in (1, 2, 3)]
    files += [Fault("/raw/sales/week=1997-01-03/sales.parquet", "1 is missing", "deliver it")]
    first, second = join(model, *files)
    assert first.startswith("/raw/orders/week=1997-01-03/orders.parquet: 1 is missing; so it is in 2 other files →")
    assert second.startswith("/raw/sales/week=1997-01-03/sales.parquet: 1 is missing →")


def test_other_columns_rules_and_files_stay_faults_of_their_own(model: ModelSpec) -> None:
    faults = [
        Fault("/raw/a: price", "is to be at most 3", "correct it"),
        Fault("/raw/a: price", "is to be at most 5", "correct it"),
        Fault("/raw/a: size", "is to be at most 3", "correct it"),
        Fault("/raw/a", "missing 1", "deliver it, then clear the run"),
        Fault("/raw/b", "missing 1", "deliver it, then clear the run"),
    ]
    texts = join(model, *faults)
    assert len(texts) == len(faults)
    assert texts[-1] == "/raw/b: missing 1 → deliver it"


def test_delays_of_labels_are_those_of_rows_that_have_one(tmp_path: Path) -> None:
    at = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    known = [at[0] + timedelta(hours=3), None, at[2], at[3] + timedelta(days=28)]
    for type_, clock in ((pa.timestamp("us", "UTC"), at), (pa.timestamp("ns", "Asia/Tokyo"), at)):
        columns = {"event_timestamp": pa.array(clock, type_), "label_known_at": pa.array(known, type_)}
        pq.write_table(pa.table(columns), tmp_path / "spine.parquet")
        assert trial.label_delays(tmp_path / "spine.parquet") == (timedelta(0), timedelta(days=28))
    none = columns | {"label_known_at": pa.nulls(4, pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table(none), tmp_path / "spine.parquet")
    assert trial.label_delays(tmp_path / "spine.parquet") is None


def test_views_that_requests_get_later_are_found(tmp_path: Path) -> None:
    """A period is published when it is over: its rows are of no use to its own requests."""
    day = datetime(2024, 3, 5, tzinfo=UTC)

    def write(name: str, *hours: float, unit: str = "us", zone: str = "UTC") -> Path:
        moments, type_ = [day + timedelta(hours=hour) for hour in hours], pa.timestamp(unit, zone)
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"event_timestamp": pa.array(moments, type_)}), file)
        return file

    end = 24 - 1 / 3.6e9
    spine = write("spine", 0, 9, 23.99)
    views = {
        "at_the_end": write("at_the_end", end, end),
        "next_midnight": write("next_midnight", 24, unit="ns", zone="Asia/Tokyo"),
        "empty": write("empty"),
    }
    assert trial.find_views_dated_early(spine, views) == []
    assert trial.find_views_dated_early(write("nobody"), views | {"at_the_start": write("at_the_start", 0)}) == []
    within = {"at_the_start": write("at_the_start", 0), "hourly": write("hourly", 1, 23, 24)}
    assert trial.find_views_dated_early(spine, views | within) == ["at_the_start", "hourly"]


def test_inputs_that_tell_the_label_are_suspected(model: ModelSpec, tmp_path: Path) -> None:
    lines = order_lines(days=6)
    labels = [int(value == "yes") for value in lines["loss"].to_pylist()]
    told = {"label": pa.array(labels), "price": lines["profit"], "rabatt": lines["rabatt"], "select": lines["select"]}
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table(told), file)
    assert trial.find_suspected_leaks(model, file) == ["price"]
    pq.write_table(pa.table(told | {"price": lines["Price €"]}), file)
    assert trial.find_suspected_leaks(model, file) == []
    pq.write_table(pa.table(told | {"label": pa.array([0] * len(labels))}), file)
    assert trial.find_suspected_leaks(model, file) == []


def test_what_one_period_cannot_show_is_no_advice_for_the_model() -> None:
    columns = {"day": ["2024-01-01"] * 40, "shop": ["a", "b"] * 20}
    scores = [0.1, 0.2, 0.9, 0.7] * 10
    champion, days = [0.5 + score / 9 for score in scores], (date(2024, 1, 1), date(2024, 1, 2))
    evidence = Evidence([0, 0, 1, 1] * 10, scores, champion, days, clusters=columns)
    compared = AgainstChampionGate(metric="brier", must_be="better", min_rows=20)
    judged = judge_evidence([compared, ThresholdGate(metric="auc", at_least=0.5, min_rows=20)], evidence)
    assert "raise holdout" in judged.results[0].reason, judged.results[0].reason
    assert "larger holdout" in judged.results[0].reason
    verdict = trial.describe_trial_verdict(judged, "week")
    assert "holdout" not in verdict.results[0].reason
    assert verdict.results[0].reason.count("; a trial on one week has no more, which is no fault") == 2
    assert "1 day is too few" in verdict.results[0].reason
    assert verdict.results[1] == judged.results[1]
    assert verdict.results[1].outcome == "passed"


def test_the_periods_of_which_rows_have_features_are_built_too() -> None:
    """Views that are dated at the end of a period have values for the rows of the next one."""
    source = dict(name="asked", columns={"at": "timestamp[us, tz=UTC]"})
    spec = FeatureSpec(timezone="UTC", first_day="2026-03-01", spine="asked", sources=[source], views=["history"])
    calendar = Calendar("1d", "UTC")
    window = Window(("2026-03-05", "2026-03-08", "2026-03-09"), RunReason.MANUAL, calendar)
    assert trial.periods_before(spec, window, {}) == ["2026-03-04", "2026-03-07"]
    late = {"history": ServedAfter.declare("26h", calendar)}
    assert trial.periods_before(spec, window, late) == [
        "2026-03-02",
        "2026-03-03",
        "2026-03-04",
        "2026-03-06",
        "2026-03-07",
    ]
    first = Window(("2026-03-01",), RunReason.MANUAL, calendar)
    assert trial.periods_before(spec, first, late) == [], "there is no data before the first day"


def test_views_without_any_value_are_named(tmp_path: Path) -> None:
    nulls = pa.array([None, None], pa.float64())
    columns = {"utm__source": nulls, "state__mean": nulls, "state__most": nulls, "history__rate": pa.array([None, 0.5])}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    features = [name for name in columns if name != "utm__source"]  # which comes with the request
    assert trial.find_empty_views(tmp_path / "train.parquet", features) == ["state"]
    pq.write_table(pa.table(columns).slice(0, 0), tmp_path / "none.parquet")
    assert trial.find_empty_views(tmp_path / "none.parquet", features) == [], "there are no rows at all"
