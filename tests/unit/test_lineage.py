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
from evergreen.errors import DataVersionError
from evergreen.lake.datasets import Manifest, open_dataset
from evergreen.lineage import trace_version
from support.ledger_events import MODEL, day, promotion, registration, verdict_event

pytestmark = pytest.mark.unit

AS_OF = day(10)
DAYS = [day(number) for number in range(3)]


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
    return publish(f"features/{MODEL}", f"day={period}", digit, {"period": period, "raw": raw}, "spine")


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
    for event in (judged, registration("1", 1), promotion("1", 10, 1)):
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)
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
    with pytest.raises(DataVersionError, match="has no version '2': the ledger knows 1$"):
        trace_version(MODEL, "2")
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
