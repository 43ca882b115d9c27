"""The lake: raw days as they arrived, and datasets that are published partition by partition.

Layout under the lake's root::

    raw/flights/day=2013-01-01/flights.parquet         put there by whoever delivers data
    features/flight_delay/                              a dataset
        _manifests/day=2013-01-01.json                  the partition exists when this file does
        carrier_delays/day=2013-01-01/3f9a….parquet     immutable, named by its content

Publishing links every file of a partition into place under its content hash and then replaces the
manifest, one atomic rename. So a reader that goes through manifests sees a partition whole or not at
all, whatever is killed when; writing twice, or twice at once, ends in the same bytes; and files that a
newer manifest no longer names stay readable for those who hold the older one.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from evergreen.errors import InputsChangedError
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.settings import settings
from evergreen.storage import atomic_write, file_sha256, fsync_path

_MANIFESTS = "_manifests"
_STAGING = "_staging"
_CACHE = "built"


@dataclass(frozen=True)
class PublishedFile:
    """One file of a partition. `path` is relative to the dataset; `rows` and `schema` only for Parquet."""

    path: str
    sha256: str
    size: int
    rows: int | None = None
    schema: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Manifest:
    """What a partition holds and what it was made from. Has no clock in it: same inputs, same bytes."""

    partition: str
    fingerprint: str
    inputs: Mapping[str, Any]
    files: Mapping[str, PublishedFile]

    @property
    def content_hash(self) -> str:
        """Hash of the bytes of all files: equal content means equal data, whatever made it."""
        return compute_fingerprint({name: file.sha256 for name, file in self.files.items()})

    @property
    def reference(self) -> dict[str, str]:
        """Small enough to hand from task to task; `Dataset.get` finds the manifest by it."""
        return {"partition": self.partition, "fingerprint": self.fingerprint}

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        fields = json.loads(text)
        fields["files"] = {name: PublishedFile(**file) for name, file in fields["files"].items()}
        return cls(**fields)


@dataclass(frozen=True)
class Dataset:
    """A folder of the lake whose partitions become visible one by one, each all at once."""

    root: Path

    def manifest(self, partition: str) -> Manifest | None:
        """What is published under `partition`, or None."""
        try:
            return Manifest.from_json(self._manifest_path(partition).read_text())
        except FileNotFoundError:
            return None

    def find(self, partition: str, fingerprint: str) -> Manifest | None:
        """The manifest of `partition` if it was made from exactly this `fingerprint`, or None."""
        manifest = self.manifest(partition)
        return manifest if manifest and manifest.fingerprint == fingerprint else None

    def resolve(self, reference: Mapping[str, str]) -> Manifest:
        """What an earlier step of the run published, by the reference that it handed on.

        Raises:
            InputsChangedError: something else has been published there since.
        """
        manifest = self.find(reference["partition"], reference["fingerprint"])
        if manifest is None:
            raise InputsChangedError(
                f"{self.root.name} {reference['partition']}: what this run published was replaced by another run "
                "with other inputs; clear this run from the start"
            )
        return manifest

    def partitions(self) -> list[str]:
        """Names of everything published, in order."""
        return sorted(path.stem for path in (self.root / _MANIFESTS).glob("*.json"))

    def manifests(self) -> list[Manifest]:
        """Everything published, in the order of the partitions' names."""
        return [
            Manifest.from_json(path.read_text())
            for path in sorted((self.root / _MANIFESTS).glob("*.json"), key=lambda path: path.name)
        ]

    def file_path(self, manifest: Manifest, name: str) -> Path:
        """Where the file `name` of a published partition lies."""
        return self.root / manifest.files[name].path

    def stage(self, partition: str, fingerprint: str) -> Path:
        """A new, empty, private folder to prepare a partition in. Two attempts never share one."""
        folder = self._staging_folder(partition, fingerprint) / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def find_cached(self, partition: str, fingerprint: str) -> Path | None:
        """The folder that `keep` has kept for this fingerprint, whole, or None."""
        folder = self._staging_folder(partition, fingerprint) / _CACHE
        return folder if folder.is_dir() else None

    def cache_staged(self, partition: str, fingerprint: str, staged: Path) -> Path:
        """Let the files in a folder from `stage`, all of them written, be found by `built` until published.

        Of two that keep the same, the first wins; their bytes are the same.
        """
        kept = self._staging_folder(partition, fingerprint) / _CACHE
        for file in staged.iterdir():
            fsync_path(file)
        fsync_path(staged)
        try:
            staged.rename(kept)
        except OSError:
            if not kept.is_dir():
                raise
            shutil.rmtree(staged, ignore_errors=True)
        return kept

    def publish(
        self, partition: str, fingerprint: str, files: Mapping[str, Path], inputs: Mapping[str, Any]
    ) -> Manifest:
        """Make `files` (name → staged file) the content of `partition`, atomically.

        Does nothing when this fingerprint is already published, so a twin or a re-run may find its staged
        files gone and still be done.
        """
        if done := self.find(partition, fingerprint):
            return done
        try:
            entries = {name: self._publish_file(name, partition, file) for name, file in sorted(files.items())}
        except FileNotFoundError:
            if done := self.find(partition, fingerprint):  # a twin was faster, and has cleared up
                return done
            raise
        text = Manifest(partition, fingerprint, inputs, entries).to_json()
        with atomic_write(self._manifest_path(partition)) as scratch:
            scratch.write_text(text)
        shutil.rmtree(self._staging_folder(partition, fingerprint), ignore_errors=True)
        return Manifest.from_json(text)  # what everybody will read, tuples turned into lists and all

    def _publish_file(self, name: str, partition: str, file: Path) -> PublishedFile:
        fsync_path(file)
        digest = file_sha256(file)
        placed = self.root / name / partition / f"{digest[:32]}{file.suffix}"
        placed.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # the same bytes, placed by an earlier attempt
            os.link(file, placed)
        fsync_path(placed.parent)
        rows, schema = None, None
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq  # here, so that looking at manifests stays light

            metadata = pq.read_metadata(placed)
            rows = metadata.num_rows
            schema = {column.name: str(column.type) for column in metadata.schema.to_arrow_schema()}
        return PublishedFile(
            str(placed.relative_to(self.root)), digest, placed.stat().st_size, rows=rows, schema=schema
        )

    def _manifest_path(self, partition: str) -> Path:
        return self.root / _MANIFESTS / f"{partition}.json"

    def _staging_folder(self, partition: str, fingerprint: str) -> Path:
        return self.root / _STAGING / f"{partition}-{fingerprint[:16]}"


def open_dataset(name: str) -> Dataset:
    """The dataset `name`, such as `features/flight_delay`, of the configured lake."""
    return Dataset(settings().lake / name)


def day_partition(day: date | str) -> str:
    """Of a date, or of one that is written as in 2013-01-01."""
    return f"day={day}"


def published_files(path: str) -> list[str] | None:
    """The files that are published under `<dataset>/<name>`, oldest partition first.

    None if `path` does not lie in a dataset, so that readers can treat it as an ordinary path.
    """
    folder = Path(path)
    if not (folder.parent / _MANIFESTS).is_dir():
        return None
    published = Dataset(folder.parent)
    return [
        str(published.file_path(manifest, folder.name))
        for manifest in published.manifests()
        if folder.name in manifest.files
    ]
