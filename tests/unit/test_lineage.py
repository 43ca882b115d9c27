"""A version is followed back to its raw files by hashes; what is gone or was replaced is named, and not guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from evergreen import ledger
from evergreen.cli import app
from evergreen.cli.lineage import fold_periods
from evergreen.errors import DatasetError, DataVersionError
from evergreen.gates.verdict import decide_verdict
from evergreen.lake.datasets import Manifest, open_dataset
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.lineage import RawFileCheck, trace_predictions, trace_version
from support.ledger_events import MODEL, day, loss, promotion, registration, release, rollback, verdict, verdict_event

pytestmark = pytest.mark.unit

AS_OF = day(10)
DAYS = [day(number) for number in range(3)]
CODE = {"pyspark": "4.3", "evergreen_models.flight_delay.features": "e" * 64}


@pytest.fixture(autouse=True)
def lake(home: Path) -> None:
    """An empty lake in a folder."""


def publish(dataset: str, partition: str, digit: str, inputs: dict[str, Any], *names: str) -> Manifest:
    opened = open_dataset(dataset)
    staged = opened.stage(partition, digit * 64)
    files = {name: staged / f"{name}.parquet" for name in names}
    for name, file in files.items():
        pq.write_table(pa.table({name: [f"{partition} {digit}"] * 3}), file)
    return opened.publish(partition, digit * 64, files, inputs)


def publish_day(period: str, digit: str, register: str = "9") -> Manifest:
    raw = {f"sales-{period}": digit * 64, f"sales-2012-12-3{digit}": None, "tills": register * 64}
    return publish(f"features/{MODEL}", f"day={period}", digit, {"period": period, "raw": raw, "code": CODE}, "spine")


def publish_check(name: str, digit: str, file: str, expectations: int, faults: int = 0) -> Manifest:
    dataset = open_dataset(f"checks/{MODEL}")
    report = dataset.stage(name, digit * 64) / "report.json"
    results = {"stage 0": [{"success": True}] * expectations} if expectations else {}
    report.write_text(json.dumps({"faults": [{"subject": "x"}] * faults, "results": results}))
    return dataset.publish(name, digit * 64, {"report": report}, {"file": file, "code": CODE})


def publish_predictions(period: str, digit: str, version: str, content: str, features: list[Manifest]) -> Manifest:
    inputs = {
        "feature_model": MODEL,
        "features": {features[-1].partition: features[-1].content_hash},
        "earlier_features": {manifest.partition: manifest.content_hash for manifest in features[:-1]},
        "model": {"version": version, "content": content, "labels_until": DAYS[0]},
    }
    return publish(f"predictions/{MODEL}", f"day={period}", digit, inputs, "predictions")


def record(*events: ledger.LedgerEvent) -> None:
    for event in events:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)


def publish_training_set(features: list[Manifest]) -> Manifest:
    inputs = {
        "as_of": AS_OF,
        "start": DAYS[0],
        "known_before": f"{AS_OF}T00:00:00",
        "feature_model": MODEL,
        "features": {manifest.partition: manifest.content_hash for manifest in features[1:]},
        "earlier_features": {features[0].partition: features[0].content_hash},
    }
    return publish(f"training_sets/{MODEL}", f"as_of={AS_OF}", "c", inputs, "train", "holdout")


def publish_candidate(training_set: Manifest, digit: str = "d") -> Manifest:
    code = {"modules": {"train": "e" * 64}, "libraries": {"xgboost": "3.0"}}
    inputs = {"training_set": training_set.files["train"].sha256, "code": code}
    return publish(f"models/{MODEL}", f"as_of={AS_OF}", digit, inputs, "model")


@pytest.fixture
def features() -> list[Manifest]:
    """A champion, and the features that it was made from."""
    manifests = [publish_day(period, str(number), "89"[number == 2]) for number, period in enumerate(DAYS)]
    candidate = publish_candidate(publish_training_set(manifests))
    judged = verdict_event(10).model_copy(update={"candidate_fingerprint": candidate.fingerprint})
    record(judged, registration("1", 1), promotion("1", 10, 1))
    return manifests


def test_every_raw_file_is_found_by_its_hash(features: list[Manifest]) -> None:
    trace = trace_version(MODEL)
    assert trace == trace_version(MODEL, "1")
    assert (trace.version, trace.verdict_entry, trace.problems) == ("1", 1, ())
    assert [(period.period, period.content) for period in trace.features] == [
        (period, manifest.content_hash) for period, manifest in zip(DAYS, features, strict=True)
    ]
    assert trace.raw_files == {
        **{f"sales-2012-12-3{number}": {None} for number in range(3)},
        **{f"sales-{period}": {str(number) * 64} for number, period in enumerate(DAYS)},
        "tills": {"8" * 64, "9" * 64},
    }


def test_features_that_were_replaced_are_no_evidence(features: list[Manifest]) -> None:
    newer = publish_day(DAYS[1], "7")
    first, replaced, last = trace_version(MODEL).features
    assert (replaced.raw, replaced.problem) == (None, f"was replaced since, by {newer.content_hash[:12]}")
    assert first.raw
    assert last.raw
    assert "7" * 64 not in {sha256 for hashes in trace_version(MODEL).raw_files.values() for sha256 in hashes}


def test_a_training_set_of_other_bytes_is_not_the_one(features: list[Manifest]) -> None:
    publish(f"training_sets/{MODEL}", f"as_of={AS_OF}", "f", {"as_of": AS_OF}, "train", "holdout")
    trace = trace_version(MODEL)
    assert trace.candidate
    assert (trace.training_set, trace.features) == (None, ())
    [problem] = trace.problems
    assert problem.startswith("training set with the train file ")
    assert problem.endswith(f"was replaced since, by {'f' * 12}")


def test_a_candidate_that_is_gone_is_named(features: list[Manifest]) -> None:
    publish_candidate(publish_training_set(features), "a")
    trace = trace_version(MODEL)
    assert trace.candidate is None
    assert trace.problems == (f"candidate {'d' * 12} was replaced since, by {'a' * 12}",)


def test_unknown_versions_are_refused(features: list[Manifest]) -> None:
    with pytest.raises(DataVersionError, match="has no version '2': the ledger knows 1. .* others has no lineage$"):
        trace_version(MODEL, "2")
    with pytest.raises(DataVersionError, match=r"has no version '\\x1b\[2J': the ledger knows 1"):
        trace_version(MODEL, "\x1b[2J")
    with pytest.raises(DataVersionError, match=r"departure_counts has no champion: .* the ledger knows none"):
        trace_version("departure_counts")
    with pytest.raises(DataVersionError, match="no model"):
        trace_version("../other")


def test_command_shows_the_tree(features: list[Manifest]) -> None:
    publish_day(DAYS[1], "7")
    result = CliRunner().invoke(app, ["lineage", MODEL, "--files"])
    assert result.exit_code == 0, result.output
    assert f"{MODEL} version 1: model " in result.output
    assert "trained by 1 modules with xgboost 3.0" in result.output
    assert f"features of {MODEL}: 3 periods, {DAYS[0]} – {DAYS[2]}" in result.output
    assert f"{DAYS[1]}: was replaced since, their raw files are not known any more" in result.output
    assert "raw sales: 4 files, 2 of them absent" in result.output
    assert "raw tills: 1 file, in 2 versions" in result.output
    assert "2" * 64 in result.output
    record = json.loads(CliRunner().invoke(app, ["lineage", MODEL, "1", "--json"]).stdout)
    assert record["features"][2]["raw"]["tills"] == "9" * 64
    assert record["problems"] == []


def test_predictions_name_their_version_and_features(features: list[Manifest]) -> None:
    publish_predictions(DAYS[2], "e", "1", "f" * 64, features[1:])
    publish_day(DAYS[1], "7")
    trace = trace_predictions(MODEL, DAYS[2])
    assert (trace.version, trace.content) == ("1", "f" * 64)
    replaced, own = trace.features
    assert (own.period, own.raw) == (DAYS[2], features[2].inputs["raw"])
    assert replaced.problem
    result = CliRunner().invoke(app, ["lineage", MODEL, "--predictions", DAYS[2], "--files"])
    assert result.exit_code == 0, result.output
    assert f"3 predictions of {DAYS[2]}" in result.output
    assert f"version 1: model {'f' * 12}; `evergreen lineage {MODEL} 1` shows" in " ".join(result.output.split())
    assert "2" * 64 in result.output
    for period in (DAYS[0], "../../secret"):
        with pytest.raises(DataVersionError, match=f"the newest are those of {DAYS[2]}"):
            trace_predictions(MODEL, period)
    with pytest.raises(DataVersionError, match="there are none"):
        trace_predictions("departure_counts", DAYS[2])
    assert CliRunner().invoke(app, ["lineage", MODEL, "1", "--predictions", DAYS[2]]).exit_code == 1


def test_aliases_are_those_of_the_ledger(features: list[Manifest]) -> None:
    assert trace_version(MODEL, "champion") == trace_version(MODEL, "1")
    for alias in ("previous", "challenger"):
        with pytest.raises(DataVersionError, match=f"{MODEL} has no {alias}: name a version; the ledger knows 1"):
            trace_version(MODEL, alias)
    record(verdict_event(20, "1", champion_content=trace_version(MODEL).content))
    record(registration("2", 4), promotion("2", 20, 4, "1"))
    assert [trace_version(MODEL, alias).version for alias in ("champion", "previous")] == ["2", "1"]


def test_every_time_as_champion_is_told(features: list[Manifest]) -> None:
    assert [(span.entry, span.end) for span in trace_version(MODEL, "1").champion] == [(3, None)]
    record(verdict_event(20, "1", champion_content=trace_version(MODEL).content))
    record(registration("2", 4))
    assert trace_version(MODEL, "2").champion == ()
    record(promotion("2", 20, 4, "1"), rollback("1", "2"))
    entries = ledger.read_state(MODEL).entries
    first, second = trace_version(MODEL, "1").champion
    assert (first.since, first.end) == (entries[2].recorded_at, entries[5].recorded_at)
    assert (second.since, second.end, second.event.kind) == (entries[6].recorded_at, None, "rolled_back")
    record(release("2"), loss("1", None))
    assert trace_version(MODEL, "1").champion[1].end == ledger.read_state(MODEL).entries[8].recorded_at
    record(verdict_event(30), registration("3", 10), promotion("3", 30, 10))
    assert trace_version(MODEL, "1").champion[1].end == ledger.read_state(MODEL).entries[8].recorded_at
    # It comes back, and is lost once more: that does not move the end of the time before.
    record(registration("1", 1), rollback("1", "3"), loss("1", None))
    entries = ledger.read_state(MODEL).entries
    ends = [span.end for span in trace_version(MODEL, "1").champion]
    assert ends == [entries[number - 1].recorded_at for number in (6, 9, len(entries))]
    result = CliRunner().invoke(app, ["lineage", MODEL, "1"])
    assert "rolled back in entry 7 of the ledger" in result.output
    assert "was never champion" not in result.output


def test_a_number_that_was_given_again_is_said(features: list[Manifest]) -> None:
    before = trace_version(MODEL, "1")
    record(verdict_event(20, "1", champion_content=before.content), registration("1", 4))
    trace = trace_version(MODEL, "1")
    assert trace.content != before.content
    assert f"before entry 5, version 1 named another model, {before.content[:12]}" in trace.problems


def test_expectations_count_only_for_the_bytes_they_saw(features: list[Manifest]) -> None:
    publish_check(f"sales-{DAYS[0]}", "1", "0" * 64, expectations=7)
    publish_check(f"sales-{DAYS[1]}", "2", "6" * 64, expectations=7)
    publish_check("tills", "3", "9" * 64, expectations=2, faults=1)
    checks = {(check.name, check.sha256[0]): check for check in trace_version(MODEL).checks}
    other, expired = "its report is about another version", "its report has expired"
    assert checks == {
        (f"sales-{DAYS[0]}", "0"): RawFileCheck(f"sales-{DAYS[0]}", "0" * 64, 7, 0),
        (f"sales-{DAYS[1]}", "1"): RawFileCheck(f"sales-{DAYS[1]}", "1" * 64, problem=other),
        (f"sales-{DAYS[2]}", "2"): RawFileCheck(f"sales-{DAYS[2]}", "2" * 64, problem=expired),
        ("tills", "8"): RawFileCheck("tills", "8" * 64, problem=other),
        ("tills", "9"): RawFileCheck("tills", "9" * 64, 2, 1),
    }
    result = CliRunner().invoke(app, ["lineage", MODEL])
    assert "expectations: 7 met by 1 version" in result.output
    assert f"expectations: not known of 1 version: {other}" in result.output
    assert f"tills {'9' * 12}: 1 fault when it was checked last" in result.output


def test_a_report_that_was_changed_or_is_gone_is_no_evidence(features: list[Manifest]) -> None:
    manifest = publish_check(f"sales-{DAYS[0]}", "1", "0" * 64, expectations=7)
    report = open_dataset(f"checks/{MODEL}").file_path(manifest, "report")
    report.unlink()
    assert trace_version(MODEL).checks[0].problem == "its report is missing"
    report.write_text('{"faults": [], "results": {}}')
    with pytest.raises(DatasetError, match="is not what its manifest names"):
        trace_version(MODEL)


def test_predictions_are_those_of_the_model_and_not_of_the_number(features: list[Manifest]) -> None:
    content = trace_version(MODEL).content
    for number, made_by in enumerate((content, "f" * 64, content, content)):
        publish_predictions(day(20 + number), str(number), "1", made_by, features)
    trace = trace_version(MODEL)
    assert [(item.period, item.rows) for item in trace.predictions] == [(day(20 + number), 3) for number in (0, 2, 3)]
    result = CliRunner().invoke(app, ["lineage", MODEL])
    assert f"9 predictions: 3 periods, {day(20)}, {day(22)} – {day(23)}" in result.output


def test_verdict_and_code_are_shown(features: list[Manifest]) -> None:
    trace = trace_version(MODEL)
    assert {period.code for period in trace.features} == {compute_fingerprint(CODE)}
    result = CliRunner().invoke(app, ["lineage", MODEL])
    assert "in entry 1 of the ledger, by flight_delay.retrain manual__1: may be promoted" in " ".join(
        result.output.replace("│", "").split()
    )
    assert "gate auc passed: auc 0.7" in result.output
    assert f"built by code {compute_fingerprint(CODE)[:12]}" in result.output
    shown = json.loads(CliRunner().invoke(app, ["lineage", MODEL, "--json"]).stdout)
    assert shown["verdict"]["results"][0]["outcome"] == "passed"
    assert shown["champion"][0]["until"] is None


@pytest.mark.parametrize("inputs", [{}, {"raw": ["sales"], "code": CODE}, {"raw": {"sales": "../../x"}, "code": CODE}])
def test_inputs_that_are_none_are_named(features: list[Manifest], inputs: dict[str, Any]) -> None:
    file = open_dataset(f"features/{MODEL}").manifest_path(f"day={DAYS[1]}")
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "inputs": inputs}))
    result = CliRunner().invoke(app, ["lineage", MODEL])
    assert result.exit_code == 1
    assert "are not those of such a manifest" in result.stderr
    assert f"day={DAYS[1]}.json" in result.stderr


def test_names_move_no_cursor(features: list[Manifest]) -> None:
    file = open_dataset(f"features/{MODEL}").manifest_path(f"day={DAYS[1]}")
    manifest = json.loads(file.read_text())
    manifest["inputs"]["raw"] = {"[red]till\u202es\n\x1b[2J": "1" * 64}
    file.write_text(json.dumps(manifest))
    result = CliRunner().invoke(app, ["lineage", MODEL, "--files"])
    assert (result.exit_code, "\x1b" in result.stderr) == (1, False)
    assert r"'[red]till\u202es\n\x1b[2J' is no file name" in result.stderr
    gate = verdict().results[0].model_copy(update={"reason": "auc [b]0.7\x1b[2J\nrejected"})
    judged = verdict_event(20, "1")
    record(judged.model_copy(update={"verdict": decide_verdict([gate])}), registration("2", 4))
    result = CliRunner().invoke(app, ["lineage", MODEL, "2"])
    assert r"auc [b]0.7\x1b[2J\nrejected" in result.output


@pytest.mark.parametrize(
    ("periods", "ranges"),
    [
        ([], []),
        (["2013-01-01"], [("2013-01-01", "2013-01-01")]),
        (["2013-01-01", "2013-01-02", "2013-01-05"], [("2013-01-01", "2013-01-02"), ("2013-01-05", "2013-01-05")]),
        (["2013-01-07", "2013-01-14", "2013-01-21"], [("2013-01-07", "2013-01-21")]),
        (
            ["2013-01-01T22:00Z", "2013-01-01T23:00Z", "2013-01-02T00:00Z", "2013-01-02T02:00Z"],
            [("2013-01-01T22:00Z", "2013-01-02T00:00Z"), ("2013-01-02T02:00Z", "2013-01-02T02:00Z")],
        ),
        (["2013-01-01", "x", "y"], [(name, name) for name in ("2013-01-01", "x", "y")]),
    ],
)
def test_neighbouring_periods_are_a_range(periods: list[str], ranges: list[tuple[str, str]]) -> None:
    assert fold_periods(periods) == ranges
