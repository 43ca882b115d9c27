"""The tasks of the features DAG, and the one that brings features to the online store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from openlineage.client.generated.data_quality_assertions_dataset import Assertion
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from evergreen import storage
from evergreen.features import inputs
from evergreen.ingest import raw_files
from evergreen.ingest.raw_files import RawFile
from evergreen.lake.datasets import Manifest, open_dataset, period_partition
from evergreen.lineage_events.description import TaskLineage
from evergreen.lineage_events.places import asset_place, online_store_place, raw_place
from evergreen.lineage_events.published import (
    DatasetFacts,
    combine_versions,
    describe_manifests,
)
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.spec.origins import RawFiles

_MAX_REPORT_BYTES = 2**24


class _ExpectationResult(TypedDict):
    expectation: str
    kwargs: dict[str, Any]
    success: bool


class _CheckReport(TypedDict):
    faults: list[object]
    results: Annotated[dict[str, list[_ExpectationResult]], Field(max_length=1000)]


_CHECK_REPORT = TypeAdapter(_CheckReport)


def describe_check(model: ModelSpec, periods: Sequence[str]) -> TaskLineage:
    """Return what `check_raw` has read for these periods: raw data, with what was expected of it.

    Also if it fails: reports are published before faults are raised. They have examples of values; an event has none.
    """
    spec = feature_spec(model)
    files = inputs.raw_files_for_periods(spec, periods)
    dataset = f"checks/{model.feature_model}"
    reports = {item.partition: item for item in open_dataset(dataset).read_manifests([file.name for file in files])}
    hashes = raw_files.hash_raw_files(files)
    assertions: dict[str, list[Assertion]] = {}
    for source in spec.sources:
        source_files = [file for file in files if file.source == source.name]
        checked = [
            reports[file.name] for file in source_files if _is_report_of(reports.get(file.name), hashes.get(file))
        ]
        absent = [file for file in inputs.find_missing_raw_files(spec, source_files) if file not in hashes]
        assertions[source.name] = [*_missing_assertion(absent), *_merge_assertions(dataset, checked)]
    facts = describe_raw_data(spec, files, {file.name: hashes.get(file) for file in files})
    valid = [item for item in reports.values() if item.inputs["file"] in hashes.values()]
    return TaskLineage(
        tuple(item.as_input(assertions[source]) for source, item in facts.items()),
        tuple(item.as_output() for item in describe_manifests(dataset, valid)),
    )


def _is_report_of(report: Manifest | None, sha256: str | None) -> bool:
    return report is not None and report.inputs["file"] == sha256


def _missing_assertion(absent: Sequence[RawFile]) -> list[Assertion]:
    if not absent:
        return []
    return [Assertion(assertion="is_delivered", success=False, actual=f"{len(absent)} missing", severity="error")]


def _merge_assertions(dataset: str, reports: Sequence[Manifest]) -> list[Assertion]:
    """Return each expectation once: it holds of a source if it holds of all its files."""
    broken, total, arguments = defaultdict[tuple[str, str], int](int), defaultdict[tuple[str, str], int](int), {}
    unreadable = 0
    for manifest in reports:
        path = open_dataset(dataset).published_path(manifest, "report")
        stored = storage.read_version(path, _MAX_REPORT_BYTES)
        if stored is None:
            continue
        report = _CHECK_REPORT.validate_json(stored.data)
        results = [result for stage in report["results"].values() for result in stage]
        unreadable += bool(report["faults"]) and all(result["success"] for result in results)
        for result in results:
            kwargs = {name: value for name, value in result["kwargs"].items() if value is not None}
            column = str(kwargs.pop("column", ""))
            key = result["expectation"], column
            arguments[key] = kwargs
            total[key] += 1
            broken[key] += not result["success"]
    merged = [
        Assertion(
            assertion=name,
            success=not broken[name, column],
            column=column or None,
            severity="error",
            actual=f"holds of {count - broken[name, column]} of {count} files",
            params=arguments[name, column],
        )
        for (name, column), count in total.items()
    ]
    as_declared = Assertion(
        assertion="is_as_declared",
        success=not unreadable,
        severity="error",
        actual=f"holds of {len(reports) - unreadable} of {len(reports)} files",
    )
    return [as_declared, *merged] if reports else []


def describe_raw_data(
    spec: FeatureSpec, files: Sequence[RawFile], hashes: Mapping[str, str | None]
) -> dict[str, DatasetFacts]:
    """Return the raw data of each source; `hashes` are those of its files by name, None of one that is not there."""
    facts = {}
    for source in spec.sources:
        delivered = {
            file.name: hashes[file.name] for file in files if file.source == source.name and hashes.get(file.name)
        }
        periods = sorted(file.period for file in files if file.period and file.name in delivered)
        facts[source.name] = DatasetFacts(
            raw_place(spec, source),
            "FILE" if isinstance(source.origin, RawFiles) else "TABLE",
            combine_versions({name: str(sha256) for name, sha256 in delivered.items()}) if delivered else None,
            {name: column.type for name, column in source.columns.items()},
            files=len(delivered),
            partitions=tuple(map(period_partition, periods)),
        )
    return facts


def describe_publication(model: ModelSpec, contents: Mapping[str, str]) -> TaskLineage:
    """Return what `publish` has published: periods with these contents, and the raw data that they were made from."""
    spec, dataset = feature_spec(model), f"features/{model.feature_model}"
    names = {period_partition(period): period for period in contents}
    published = open_dataset(dataset).read_manifests(list(names))
    in_force = [item for item in published if item.content_hash == contents[names[item.partition]]]
    files = inputs.raw_files_for_periods(spec, [names[item.partition] for item in in_force])
    hashes = {name: sha256 for item in in_force for name, sha256 in item.inputs["raw"].items()}
    raw_data = describe_raw_data(spec, files, hashes).values() if in_force else ()
    return TaskLineage(
        tuple(item.as_input() for item in raw_data),
        tuple(item.as_output() for item in describe_manifests(dataset, in_force)),
    )


def describe_announcement(model: ModelSpec, periods: Sequence[str], asset_uri: str) -> TaskLineage:
    """Return what `announce` has told of: these periods, as the asset that DAGs wait for."""
    place = asset_place(asset_uri)
    assert place
    manifests = list(inputs.published_manifests(model, periods).values())
    version = combine_versions({item.partition: item.content_hash for item in manifests}) if manifests else None
    tables = describe_manifests(f"features/{model.feature_model}", manifests)
    return TaskLineage(tuple(item.as_input() for item in tables), (DatasetFacts(place, "TABLE", version).as_output(),))


def describe_materialization(model: ModelSpec, span: Mapping[str, str]) -> TaskLineage:
    """Return what `materialize` has brought to the online store: features of `start` ≤ period < `end`; or nothing."""
    if not span:
        return TaskLineage()
    periods = list(feature_spec(model).calendar.periods_between(span["start"], span["end"]))
    manifests = list(inputs.published_manifests(model, periods).values())
    tables = describe_manifests(f"features/{model.feature_model}", manifests)
    version = combine_versions({item.partition: item.content_hash for item in manifests}) if manifests else None
    store = DatasetFacts(online_store_place(model.feature_model), "TABLE", version)
    return TaskLineage(tuple(item.as_input() for item in tables), (store.as_output(),))
