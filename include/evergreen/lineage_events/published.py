"""Published partitions as datasets of OpenLineage: one for each table of a dataset of the lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    InputDatasetFacet,
    OutputDatasetFacet,
    base_subset_dataset,
    data_quality_assertions_dataset,
    dataset_type_dataset,
    dataset_version_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
)
from openlineage.client.generated.data_quality_assertions_dataset import Assertion

from evergreen.lake.datasets import Manifest, open_dataset, partition_period
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.lineage_events.places import Place, lake_place

MAX_PARTITIONS = 400
"""That an event lists: more would be megabytes. Their version, rows and bytes are stated all the same."""


@dataclass(frozen=True)
class DatasetFacts:
    """What an event says of a dataset that a task has read or written.

    Attributes:
        version: identifies its content; None if that is not known any more.
        schema: type of each column.
        partitions: those that were read or written, as they are published.
    """

    place: Place
    kind: str
    version: str | None = None
    schema: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    size: int | None = None
    files: int | None = None
    partitions: tuple[str, ...] = ()

    def as_input(self, assertions: Sequence[Assertion] = ()) -> InputDataset:
        """Return it as read by a task, with the results of checks that it has made."""
        facets: dict[str, InputDatasetFacet] = {}
        if self.files is not None:
            facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                rowCount=self.rows, size=self.size, fileCount=self.files
            )
        if condition := self._subset():
            facets["subset"] = base_subset_dataset.InputSubsetInputDatasetFacet(inputCondition=condition)
        if assertions:
            facets["dataQualityAssertions"] = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(
                assertions=list(assertions)
            )
        return InputDataset(self.place.namespace, self.place.name, facets=self._facets(), inputFacets=facets)

    def as_output(self) -> OutputDataset:
        """Return it as written by a task."""
        facets: dict[str, OutputDatasetFacet] = {}
        if self.files is not None:
            facets["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=self.rows, size=self.size, fileCount=self.files
            )
        if condition := self._subset():
            facets["subset"] = base_subset_dataset.OutputSubsetOutputDatasetFacet(outputCondition=condition)
        return OutputDataset(self.place.namespace, self.place.name, facets=self._facets(), outputFacets=facets)

    def _facets(self) -> dict[str, DatasetFacet]:
        facets: dict[str, DatasetFacet] = {
            "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType=self.kind)
        }
        if self.version:
            facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=self.version)
        if self.schema:
            fields = [
                schema_dataset.SchemaDatasetFacetFields(name=name, type=type_, ordinal_position=number)
                for number, (name, type_) in enumerate(self.schema.items(), 1)
            ]
            facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
        return facets

    def _subset(self) -> base_subset_dataset.PartitionSubsetCondition | None:
        if not 0 < len(self.partitions) <= MAX_PARTITIONS:
            return None
        partitions = []
        for name in self.partitions:
            key, separator, _ = name.partition("=")
            dimensions = {key: partition_period(name)} if separator else {}
            partitions.append(base_subset_dataset.Partition(dimensions=dimensions, identifier=name))
        return base_subset_dataset.PartitionSubsetCondition(partitions=partitions)


def describe_contents(dataset: str, contents: Mapping[str, str], tables: Iterable[str] = ()) -> list[DatasetFacts]:
    """Return the tables of a dataset of the lake, of the partitions that have these content hashes.

    What was replaced since, or has expired, is left out, and then no version is stated. `tables` are all by default.
    """
    published = open_dataset(dataset).read_manifests(list(contents))
    present = [manifest for manifest in published if manifest.content_hash == contents[manifest.partition]]
    facts = describe_manifests(dataset, present, tables)
    return facts if len(present) == len(contents) else [replace(item, version=None) for item in facts]


def describe_reference(dataset: str, reference: Mapping[str, str], tables: Iterable[str] = ()) -> list[DatasetFacts]:
    """Return the tables of the partition that a task has handed over; none if it was replaced since."""
    manifest = find_manifest(dataset, reference)
    return describe_manifests(dataset, [manifest], tables) if manifest else []


def find_manifest(dataset: str, reference: Mapping[str, str]) -> Manifest | None:
    """Return the manifest that a `Manifest.reference` names, if it is still published."""
    manifest = open_dataset(dataset).manifest(reference["partition"])
    return manifest if manifest and manifest.fingerprint == reference["fingerprint"] else None


def describe_manifests(dataset: str, manifests: Sequence[Manifest], tables: Iterable[str] = ()) -> list[DatasetFacts]:
    """Return one description for each table; of a dataset without tables, such as that of models, one of the whole."""
    place, selected = lake_place(dataset), set(tables)
    names = sorted({name for item in manifests for name, file in item.files.items() if file.rows is not None})
    if manifests and not names:
        return [_describe_files(place, manifests)]
    return [_describe_table(place, name, manifests) for name in names if not selected or name in selected]


def _describe_table(place: Place, name: str, manifests: Sequence[Manifest]) -> DatasetFacts:
    files = {item.partition: item.files[name] for item in manifests if name in item.files}
    newest = files[max(files)]
    return DatasetFacts(
        place.child(name),
        "TABLE",
        combine_versions({partition: file.sha256 for partition, file in files.items()}),
        newest.schema or {},
        sum(file.rows or 0 for file in files.values()),
        sum(file.size for file in files.values()),
        len(files),
        tuple(sorted(files)),
    )


def _describe_files(place: Place, manifests: Sequence[Manifest]) -> DatasetFacts:
    sizes = [file.size for manifest in manifests for file in manifest.files.values()]
    return DatasetFacts(
        place,
        "FILE",
        combine_versions({manifest.partition: manifest.content_hash for manifest in manifests}),
        size=sum(sizes),
        files=len(sizes),
        partitions=tuple(sorted(manifest.partition for manifest in manifests)),
    )


def combine_versions(versions: Mapping[str, str]) -> str:
    """Return the version of a dataset from those of its parts, by their names: of a single part, its own."""
    return next(iter(versions.values())) if len(versions) == 1 else compute_fingerprint(dict(versions))
