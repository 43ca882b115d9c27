"""What the tasks about features read and write, as they published it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openlineage.client.serde import Serde

from evergreen.features import inputs
from evergreen.lake.datasets import period_partition
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.lineage_events import published
from evergreen.lineage_events.feature_tasks import (
    describe_announcement,
    describe_check,
    describe_materialization,
    describe_publication,
)
from evergreen.spec.loader import feature_spec, load_spec
from support.ledger_events import MODEL
from support.lineage_chain import DAYS, NOT_NULL, Chain, by_name, deliver, publish, publish_report, version

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    """An empty lake."""


def partitions(facet: Any) -> list[str]:
    return [item.identifier for item in facet.partitions]


def assertions(dataset: Any) -> dict[str, bool]:
    return {item.assertion: item.success for item in dataset.inputFacets["dataQualityAssertions"].assertions}


def test_check_raw_says_what_holds_of_each_source() -> None:
    hashes = deliver(DAYS[1])
    broken = {**NOT_NULL, "success": False, "partial_unexpected_list": ["Ada Lovelace"]}
    for name, sha256 in hashes.items():
        publish_report(name, sha256, [broken] if name == f"flights-{DAYS[1]}" else [NOT_NULL], name == "planes")
    lineage = describe_check(load_spec(MODEL), [DAYS[1]])
    sources = by_name(lineage.inputs)
    flights, weather = sources["raw/flights"], sources["raw/weather"]
    assert assertions(flights) == {"is_as_declared": True, NOT_NULL["expectation"]: False}
    assert assertions(weather) == {"is_as_declared": True, NOT_NULL["expectation"]: True}
    assert assertions(sources["planes/planes.parquet"])["is_as_declared"] is False, "a fault that is no expectation"
    [_, expectation] = flights.inputFacets["dataQualityAssertions"].assertions
    assert (expectation.column, expectation.actual) == ("carrier", "holds of 1 of 2 files")
    assert version(flights) == compute_fingerprint({name: hashes[name] for name in hashes if "flights" in name})
    assert partitions(flights.inputFacets["subset"].inputCondition) == [period_partition(day) for day in DAYS[:2]]
    assert flights.facets["schema"].fields[0].name == "year"
    assert [dataset.name.split("/")[-2:] for dataset in lineage.outputs] == [["checks", MODEL]]
    for dataset in (*lineage.inputs, *lineage.outputs):
        assert "Ada Lovelace" not in Serde.to_json(dataset), "no event has values of data"


def test_check_raw_that_fails_names_what_is_missing() -> None:
    file = inputs.raw_files_for_period(feature_spec(load_spec(MODEL)), DAYS[0])[0]
    hashes = deliver(DAYS[0])
    Path(str(file.path)).unlink()
    del hashes[file.name]
    for name, sha256 in hashes.items():
        publish_report(name, sha256)
    flights = by_name(describe_check(load_spec(MODEL), [DAYS[0]]).inputs)["raw/flights"]
    assert assertions(flights) == {"is_delivered": False}
    assert version(flights) is None


def test_a_report_on_other_bytes_says_nothing() -> None:
    for name in deliver(DAYS[0]):
        publish_report(name, "f" * 64)
    lineage = describe_check(load_spec(MODEL), [DAYS[0]])
    assert all("dataQualityAssertions" not in dataset.inputFacets for dataset in lineage.inputs)
    assert lineage.outputs == ()


def test_publish_has_raw_files_and_tables() -> None:
    chain = Chain.publish()
    contents = {period: manifest.content_hash for period, manifest in zip(DAYS, chain.features, strict=True)}
    lineage = describe_publication(load_spec(MODEL), contents)
    tables = by_name(lineage.outputs)
    assert set(tables) == {f"{MODEL}/departures", f"{MODEL}/carrier_delays"}
    delays = tables[f"{MODEL}/carrier_delays"]
    statistics = delays.outputFacets["outputStatistics"]
    files = {item.partition: item.files["carrier_delays"] for item in chain.features}
    assert (statistics.rowCount, statistics.fileCount) == (9, 3)
    assert statistics.size == sum(file.size for file in files.values())
    assert version(delays) == compute_fingerprint({name: file.sha256 for name, file in files.items()})
    assert [item.name for item in delays.facets["schema"].fields] == ["carrier_delays", "number"]
    assert partitions(delays.outputFacets["subset"].outputCondition) == [period_partition(day) for day in DAYS]
    raw = by_name(lineage.inputs)["raw/flights"]
    assert partitions(raw.inputFacets["subset"].inputCondition) == [period_partition(day) for day in DAYS]
    hashes = {name: sha for item in chain.features for name, sha in item.inputs["raw"].items() if "flights" in name}
    assert version(raw) == compute_fingerprint(hashes)


def test_publish_of_one_day_has_the_hash_of_its_file() -> None:
    chain = Chain.publish()
    [first, *_] = chain.features
    lineage = describe_publication(load_spec(MODEL), {DAYS[0]: first.content_hash})
    assert version(by_name(lineage.outputs)[f"{MODEL}/departures"]) == first.files["departures"].sha256


def test_what_was_replaced_meanwhile_was_not_published_by_the_task() -> None:
    chain = Chain.publish()
    publish(f"features/{MODEL}", period_partition(DAYS[0]), {"raw": {}}, "departures", "carrier_delays", rows=7)
    assert describe_publication(load_spec(MODEL), {DAYS[0]: chain.features[0].content_hash}).outputs == ()
    assert describe_publication(load_spec(MODEL), {}).inputs == ()


def test_announce_is_of_the_asset() -> None:
    chain = Chain.publish()
    lineage = describe_announcement(load_spec(MODEL), DAYS[:1], f"evergreen://features/{MODEL}")
    [asset] = lineage.outputs
    assert asset.name.endswith(f"lake/features/{MODEL}")
    assert version(asset) == chain.features[0].content_hash
    assert set(by_name(lineage.inputs)) == {f"{MODEL}/departures", f"{MODEL}/carrier_delays"}


def test_materialize_brings_a_stretch_online(home: Path) -> None:
    chain = Chain.publish()
    lineage = describe_materialization(load_spec(MODEL), {"start": DAYS[1], "end": DAYS[2]})
    [store] = lineage.outputs
    assert (store.namespace, store.name) == ("file", f"{home}/online/{MODEL}")
    assert version(store) == chain.features[1].content_hash
    tables = by_name(lineage.inputs)
    assert tables[f"{MODEL}/carrier_delays"].inputFacets["inputStatistics"].rowCount == 3
    nothing = describe_materialization(load_spec(MODEL), {})
    assert (nothing.inputs, nothing.outputs) == ((), ())


def test_many_partitions_are_counted_and_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.publish()
    monkeypatch.setattr(published, "MAX_PARTITIONS", 2)
    [facts, *_] = published.describe_manifests(f"features/{MODEL}", chain.features)
    assert "subset" not in facts.as_output().outputFacets
    assert facts.as_output().outputFacets["outputStatistics"].fileCount == 3
