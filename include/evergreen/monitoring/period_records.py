"""What monitoring has measured in a period: one JSON file, published as a partition of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from evergreen.errors import DatasetError, first_line, validation_problem
from evergreen.lake import datasets
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec import Frozen

_Record = TypeVar("_Record", bound=Frozen)


def read_period_manifests(dataset: Dataset, periods: Iterable[str]) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Return the manifests of published periods; and why others cannot be read, by period."""
    partitions = [datasets.period_partition(period) for period in periods] if dataset.exists() else []
    manifests, problems = list[Manifest](), dict[str, str]()
    try:
        manifests = dataset.read_manifests(partitions)  # at once, of an object store
    except DatasetError:
        for partition in partitions:
            try:
                manifests += dataset.read_manifests([partition])
            except DatasetError as error:
                problems[datasets.partition_period(partition)] = first_line(error)
    return {datasets.partition_period(manifest.partition): manifest for manifest in manifests}, problems


def publish_period_record(dataset: Dataset, partition: str, name: str, text: str, inputs: dict[str, Any]) -> Manifest:
    """Publish `text`, which is JSON, as the file `name` of a partition that has no other; it follows from `inputs`."""
    fingerprint = compute_fingerprint(inputs)
    file = dataset.stage(partition, fingerprint) / f"{name}.json"
    file.write_text(f"{text}\n")
    return dataset.publish(partition, fingerprint, {name: file}, inputs)


def read_period_record(dataset: Dataset, manifest: Manifest, name: str, record_type: type[_Record]) -> _Record:
    """Return what `publish_period_record` has published.

    Raises:
        DatasetError: the file is damaged, or cannot be read.
    """
    file = f"{name} of {dataset.root.name} {manifest.partition}"
    try:
        return record_type.model_validate_json(dataset.file_path(manifest, name).read_bytes())
    except ValidationError as error:
        problem = f"is damaged: {validation_problem(error)}: find out who can write to the lake"
    except (OSError, KeyError) as error:
        problem = f"cannot be read: {first_line(error)}"
    raise DatasetError(f"{file} {problem}")
