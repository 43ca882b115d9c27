"""What served inputs are compared with: the distribution of each in the champion's training set, day by day."""
# ruff: noqa: S608 - names are quoted, and all others are made here

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from evergreen.feature_store.model_inputs import ModelInputs
from evergreen.ingest.databases import open_database, parquet_rows, quote_name, quote_text
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import code_of, compute_fingerprint
from evergreen.ledger import ChampionTenure, LedgerState
from evergreen.monitoring.histogram_files import Counted, dump_bins, load_bins, read_histograms, write_histograms
from evergreen.monitoring.histograms import BIN_SAMPLE_ROWS, ColumnBins, Histogram, count_by_bin, find_bins
from evergreen.monitoring.matured import find_promoting_verdict
from evergreen.spec.model import ModelSpec

SERVED = "serving log"
"""The table of served inputs among those of the model's inputs, none of which has such a name."""

REFERENCE_DAYS = 126
"""Of the training set, the last ones: whole weeks."""

_BINS, _HISTOGRAMS = "bins", "histograms"
_DIGITS = 16


@dataclass(frozen=True)
class ServedReference:
    """What served inputs are compared with: those of the champion's training set, day by day."""

    manifest: Manifest
    bins: tuple[ColumnBins, ...]
    days: Mapping[date, Counted]
    problems: tuple[str, ...]


def serving_dataset(model: str) -> Dataset:
    """Return the dataset of what the logs of a model's servers show."""
    return datasets.open_dataset(f"serving/{model}")


def find_served_reference(model: ModelSpec, state: LedgerState, tenure: ChampionTenure) -> ServedReference | None:
    """Return what is published of a champion, if it is to stay; None if it has to be made, or made anew."""
    dataset = serving_dataset(model.name)
    published = dataset.manifest(reference_partition(tenure.content))
    if published is None or published.inputs["champion"] != tenure.content:
        return None
    is_current = published.inputs["code"] == _reference_code() and published.inputs["training_set"]
    if is_current or _find_training_set(model, state, tenure) is None:
        return read_served_reference(dataset, published)
    return None


def publish_served_reference(
    model: ModelSpec, state: LedgerState, tenure: ChampionTenure, inputs: ModelInputs
) -> ServedReference:
    """Return what a champion learned from: histograms of each of the last days of its training set.

    The first one that is published stays, since training sets expire. `BIN_SAMPLE_ROWS` rows of it are read.
    """
    if current := find_served_reference(model, state, tenure):
        return current
    dataset, partition = serving_dataset(model.name), reference_partition(tenure.content)
    training_sets, training_set = _training_sets(model), _find_training_set(model, state, tenure)
    described = {
        "champion": tenure.content,
        "training_set": training_set.content_hash if training_set else None,
        "columns": list(inputs.column_names),
        # Which features requests may have follows from them, also where the model is not opened.
        "ttls": sorted({view.ttl_seconds for view in inputs.views.values()}),
        "code": _reference_code(),
    }
    fingerprint = compute_fingerprint(described)
    bins, counted, problems = list[ColumnBins](), dict[str, Counted](), list[str]()
    folder = dataset.stage(partition, fingerprint)
    if training_set is None:
        problems.append(
            "the distribution of inputs is not compared: the champion's training set is not in the lake any more"
        )
    else:
        files = [training_sets.file_path(training_set, name) for name in ("train", "holdout")]
        bins, counted, problems = _count_training_days(files, inputs.column_names)
    document = {"bins": dump_bins(bins), "problems": problems}
    named = {_BINS: folder / f"{_BINS}.json", _HISTOGRAMS: folder / f"{_HISTOGRAMS}.parquet"}
    named[_BINS].write_text(json.dumps(document, indent=1) + "\n")
    write_histograms(named[_HISTOGRAMS], counted)
    return read_served_reference(dataset, dataset.publish(partition, fingerprint, named, described))


def _training_sets(model: ModelSpec) -> Dataset:
    return datasets.open_dataset(f"training_sets/{model.name}")


def _find_training_set(model: ModelSpec, state: LedgerState, tenure: ChampionTenure) -> Manifest | None:
    """Return the training set that the champion's verdict names, or None: one of the same time may have replaced it."""
    verdict = find_promoting_verdict(state, tenure)
    published = _training_sets(model).manifest(f"as_of={datasets.file_name_of_period(verdict.as_of)}")
    is_of_verdict = published and published.content_hash == verdict.fingerprints.get("training_set")
    return published if is_of_verdict else None


def _reference_code() -> dict[str, str]:
    return code_of(("evergreen.monitoring.histograms", __name__), ("duckdb",))


def _count_training_days(
    files: Sequence[Path], columns: Sequence[str]
) -> tuple[list[ColumnBins], dict[str, Counted], list[str]]:
    """Return bins of the columns, and histograms of each of the last days, of a sample of the rows of `files`."""
    common = [name for name in columns if all(name in pq.read_schema(file).names for file in files)]
    with tempfile.TemporaryDirectory() as scratch, open_database() as database:
        rows = " UNION ALL ".join(f"SELECT day FROM {parquet_rows(file)}" for file in files)
        query = f"SELECT day, count(*) FROM ({rows}) GROUP BY day ORDER BY day DESC LIMIT {REFERENCE_DAYS}"
        days = dict(database.execute(query).fetchall())
        if not days:
            return [], {}, ["the distribution of inputs is not compared: the training set has no rows"]
        step = max(1, -(-sum(days.values()) // BIN_SAMPLE_ROWS))
        selected = ", ".join(["day AS evergreen_day", *map(quote_name, common)])
        parts = " UNION ALL ".join(
            f"SELECT {selected} FROM read_parquet({quote_text(str(file))}, hive_partitioning = false, "
            f"file_row_number = true) WHERE day >= DATE '{min(days)}' AND hash({number}, file_row_number) % {step} = 0"
            for number, file in enumerate(files)
        )
        database.execute(
            f"COPY ({parts}) TO {quote_text(f'{scratch}/days')} (FORMAT parquet, PARTITION_BY (evergreen_day))"
        )
        paths = {str(path): path for path in sorted(Path(scratch, "days").rglob("*.parquet"))}
        sampled = sum(pq.read_metadata(path).num_rows for path in paths.values())
        bins = find_bins(database, SERVED, list(paths.values()), common, min(sampled, BIN_SAMPLE_ROWS))
        counted: dict[str, dict[str, Histogram]] = {}
        for name, (number_of_rows, histograms) in count_by_bin(database, bins, paths).items():
            day = Path(name).parent.name.partition("=")[2]
            total = counted.setdefault(day, {})
            for key, histogram in {SERVED: Histogram(number_of_rows, 0, np.zeros(0, np.int64)), **histograms}.items():
                total[key] = total[key] + histogram if key in total else histogram
    absent = [name for name in columns if name not in {column.column for column in bins}]
    problems = [f"the distribution of {', '.join(absent)} is not compared: the training set has no values"]
    return bins, dict(sorted(counted.items())), problems if absent else []


def reference_partition(content: str) -> str:
    """Return the partition with the reference of a champion."""
    return f"reference={content[:_DIGITS]}"


def read_served_reference(dataset: Dataset, manifest: Manifest) -> ServedReference:
    """Return the reference that is published with this manifest."""
    document = json.loads(dataset.file_path(manifest, _BINS).read_text())
    days = {
        date.fromisoformat(day): item for day, item in read_histograms(dataset.file_path(manifest, _HISTOGRAMS)).items()
    }
    return ServedReference(manifest, load_bins(document["bins"]), days, tuple(document["problems"]))
