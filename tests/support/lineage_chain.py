"""Everything that is published on the way from raw files to predictions, without rows that mean anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from openlineage.client.event_v2 import Dataset

from evergreen import ledger
from evergreen.features import inputs
from evergreen.ingest import raw_files
from evergreen.lake.datasets import Manifest, open_dataset, period_partition
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec.loader import feature_spec, load_spec
from support.ledger_events import MODEL, day, promotion, registration, verdict_event

AS_OF = 10
DAYS = [day(number) for number in range(3)]
NOT_NULL = {"expectation": "expect_column_values_to_not_be_null", "kwargs": {"column": "carrier"}, "success": True}
VIEWS = {"delays": {"table": "carrier_delays"}}


def publish(dataset: str, partition: str, inputs_: Mapping[str, Any], *names: str, rows: int = 3) -> Manifest:
    """Publish tables of so many rows, or a text file if no name of a table is given."""
    opened, fingerprint = open_dataset(dataset), compute_fingerprint(dict(inputs_))
    staged = opened.stage(partition, fingerprint)
    files = {name: staged / f"{name}.parquet" for name in names} or {"model": staged / "model.txt"}
    for name, file in files.items():
        if names:
            pq.write_table(pa.table({name: [partition] * rows, "number": range(rows)}), file)
        else:
            file.write_text(f"{dataset} {partition}")
    return opened.publish(partition, fingerprint, files, inputs_)


def deliver(period: str | None = None) -> dict[str, str]:
    """Deliver the raw files that features of a day need; return their hashes by name."""
    spec = feature_spec(load_spec(MODEL))
    files = inputs.raw_files_for_period(spec, period or DAYS[0])
    for file in files:
        path = Path(str(file.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"raw data {file.name}".encode())
    return {file.name: sha256 for file, sha256 in raw_files.hash_raw_files(files).items()}


def publish_report(name: str, sha256: str, results: Sequence[Mapping[str, Any]] = (NOT_NULL,), faults: int = 0) -> None:
    dataset = open_dataset(f"checks/{MODEL}")
    report = dataset.stage(name, sha256) / "report.json"
    document = {"faults": [{"location": "x", "problem": "Ada Lovelace"}] * faults, "results": {"stage 0": [*results]}}
    report.write_text(json.dumps(document))
    dataset.publish(name, sha256, {"report": report}, {"file": sha256})


@dataclass(frozen=True)
class Chain:
    """What a champion was made from, and what it has predicted."""

    features: list[Manifest]
    training_set: Manifest
    candidate: Manifest
    evaluation: Manifest
    predictions: Manifest
    entry: int = 1
    version: str = "1"

    @classmethod
    def publish(cls) -> Chain:
        features = [
            publish(
                f"features/{MODEL}", period_partition(period), {"raw": deliver(period)}, "departures", "carrier_delays"
            )
            for period in DAYS
        ]
        joined = {
            "features": {manifest.partition: manifest.content_hash for manifest in features[1:]},
            "earlier_features": {features[0].partition: features[0].content_hash},
            "definitions": VIEWS,
        }
        partition = f"as_of={day(AS_OF)}"
        training_set = publish(f"training_sets/{MODEL}", partition, joined, "train", "holdout")
        learned = {"training_set": training_set.files["train"].sha256, "features": ["distance"]}
        candidate = publish(f"models/{MODEL}", partition, learned)
        evaluation = publish(f"evaluations/{MODEL}", f"{partition}-against-none-1", {"exact": True}, "scores")
        judged = verdict_event(AS_OF).model_copy(
            update={
                "candidate_fingerprint": candidate.fingerprint,
                "evidence": {"evaluation": f"evaluations/{MODEL}/_manifests/{evaluation.partition}"},
            }
        )
        record(judged, registration("1", 1), promotion("1", AS_OF, 1))
        content = ledger.read_state(MODEL).champion_content
        scored = {**joined, "model": {"version": "1", "content": content, "labels_until": DAYS[0]}}
        predictions = publish(f"predictions/{MODEL}", period_partition(DAYS[2]), scored, "predictions", rows=5)
        return cls(features, training_set, candidate, evaluation, predictions)


def record(*events: ledger.LedgerEvent) -> None:
    for event in events:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)


def by_name(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return datasets by the last two parts of their names."""
    return {"/".join(dataset.name.split("/")[-2:]): dataset for dataset in datasets}


def version(dataset: Dataset) -> str | None:
    facet: Any = (dataset.facets or {}).get("version")
    return facet and str(facet.datasetVersion)
