"""What monitoring says of the champion: alarms are tests that have failed."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from evergreen import ledger
from evergreen.lake.datasets import open_dataset, period_partition
from evergreen.lineage_events.description import TEST_FACET, TaskLineage
from evergreen.lineage_events.monitoring_tasks import DATA_RULES, MEASURE_RULES, describe_monitoring
from evergreen.monitoring.record import (
    RECORD_FILE,
    AlarmRecord,
    ChangeRecord,
    MonitoringRecord,
    record_partition,
)
from evergreen.spec.loader import load_spec
from support.ledger_events import MODEL, day
from support.lineage_chain import DAYS, Chain, by_name, publish, version

pytestmark = pytest.mark.unit

CHANGE = ChangeRecord(column="departures.distance", measure="level", deviation=9.0, effect=300.0)


def publish_record(*alarms: AlarmRecord) -> None:
    content = ledger.read_state(MODEL).champion_content
    assert content
    record = MonitoringRecord(
        champion_version="1",
        champion_content=content,
        as_of=day(0),
        reference_days=30,
        judged_until=None,
        periods=2,
        alarms=alarms,
        problems=(),
    )
    partition = record_partition(content)
    dataset = open_dataset(f"monitoring/{MODEL}")
    file = dataset.stage(partition, "a" * 64) / "record.json"
    file.write_text(record.model_dump_json())
    histograms = {period_partition(period): "b" * 64 for period in DAYS[1:]}
    dataset.publish(partition, "a" * 64, {RECORD_FILE: file}, {"histograms": histograms})
    for period in histograms:
        publish(f"monitoring/{MODEL}", period, {"period": period}, "histograms")


def alarms_in(lineage: TaskLineage) -> dict[str, tuple[str, str, list[str]]]:
    facet: Any = lineage.run_facets[TEST_FACET]
    assert {test.severity for test in facet.tests} == {"warn"}, "an alarm blocks no run"
    return {test.name: (test.status, test.actual, test.params["changes"]) for test in facet.tests}


@pytest.fixture
def chain(home: Path) -> Chain:
    return Chain.publish()


def test_watch_reads_the_days_since_the_champion_learned(chain: Chain) -> None:
    alarm = AlarmRecord(rule="break", opened=date(2013, 1, 2), closed=None, changes=(CHANGE,))
    publish_record(alarm, alarm.model_copy(update={"rule": "drift", "closed": date(2013, 1, 3)}))
    lineage = describe_monitoring(load_spec(MODEL), DATA_RULES)
    assert alarms_in(lineage) == {
        "break": ("fail", "1 open alarms", ["departures.distance level"]),
        "drift": ("pass", "0 open alarms", []),
    }
    inputs = by_name(lineage.inputs)
    assert inputs[f"{MODEL}/departures"].inputFacets["inputStatistics"].fileCount == 2
    assert version(inputs[f"{MODEL}/predictions"]) == chain.predictions.files["predictions"].sha256
    assert "1" in {version(dataset) for dataset in lineage.inputs}
    [written] = lineage.outputs
    assert written.name.endswith(f"monitoring/{MODEL}/histograms")


def test_measure_is_about_performance(chain: Chain) -> None:
    publish_record(AlarmRecord(rule="performance", opened=date(2013, 1, 2), closed=None, changes=(CHANGE,)))
    lineage = describe_monitoring(load_spec(MODEL), MEASURE_RULES)
    assert alarms_in(lineage) == {
        "performance": ("fail", "1 open alarms", ["departures.distance level"]),
        "skew": ("pass", "0 open alarms", []),
    }


def test_nothing_is_said_without_a_record(chain: Chain) -> None:
    assert describe_monitoring(load_spec(MODEL), DATA_RULES) == TaskLineage()
