"""What monitoring has measured in a period: one JSON file, published as a partition of its own."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from evergreen.errors import DatasetError, first_line, validation_problem
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.spec import Frozen

_Record = TypeVar("_Record", bound=Frozen)


def publish_record(dataset: Dataset, partition: str, name: str, text: str, inputs: dict[str, Any]) -> Manifest:
    """Publish `text`, which is JSON, as the file `name` of a partition that has no other; it follows from `inputs`."""
    fingerprint = compute_fingerprint(inputs)
    file = dataset.stage(partition, fingerprint) / f"{name}.json"
    file.write_text(f"{text}\n")
    return dataset.publish(partition, fingerprint, {name: file}, inputs)


def read_record(dataset: Dataset, manifest: Manifest, name: str, record_type: type[_Record]) -> _Record:
    """Return what `publish_record` has published.

    Raises:
        DatasetError: the file is damaged, or gone.
    """
    try:
        return record_type.model_validate_json(dataset.file_path(manifest, name).read_bytes())
    except (ValidationError, OSError, KeyError) as error:
        problem = validation_problem(error) if isinstance(error, ValidationError) else first_line(error)
        file = f"{name} of {dataset.root.name} {manifest.partition}"
        raise DatasetError(f"{file} is damaged: {problem}: find out who can write to the lake") from None
