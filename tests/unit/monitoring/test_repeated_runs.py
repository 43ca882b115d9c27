"""Whoever is killed at any step, runs twice at once or out of order: monitoring ends with the same record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.gates.evidence import Evidence, NoChampion
from evergreen.lake.datasets import Dataset, open_dataset
from evergreen.ledger import AlarmRaised
from evergreen.monitoring import matured, service
from evergreen.monitoring.matured import performance_dataset
from evergreen.monitoring.period_rows import PeriodRows, RegisteredModels
from evergreen.monitoring.record import MonitoringRecord, monitoring_dataset, read_record
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import load_spec
from evergreen.spec.model import ModelSpec
from support.ledger_events import MODEL, day, promotion, verdict_event

pytestmark = pytest.mark.unit

FIRST, AS_OF, BROKEN, END = 31, 60, 61, 63
ROWS, DAYS = 200, END - AS_OF
DATASETS = (monitoring_dataset, performance_dataset)

Step = Callable[[], object]


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def lake(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A champion, features with labels of all days, distances that become kilometres, and no model to be loaded."""
    evidence = {"evaluation": f"evaluations/{MODEL}/as_of=x"}
    event = verdict_event(AS_OF).model_copy(update={"candidate_inputs": ("distance",), "evidence": evidence})
    ledger.append_decision(MODEL, "ada", lambda _: event)
    ledger.append_decision(MODEL, "ada", lambda _: promotion("1", AS_OF, 1))
    for number in range(FIRST, END):
        publish_day(number)
    monkeypatch.setattr(service, "_render_report", lambda *_: "a page")
    monkeypatch.setattr(service, "PERIODS_AT_ONCE", 2)
    monkeypatch.setattr(matured, "open_period", open_known_rows)
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: None)


def publish_day(number: int) -> None:
    rng, fingerprint = np.random.default_rng(number), f"{number:064x}"
    known = datetime.fromisoformat(day(number)).replace(tzinfo=UTC) + timedelta(hours=2)
    distances = (500 + 100 * rng.standard_normal(ROWS) + rng.normal()) * (1.609 if number >= BROKEN else 1)
    table = {"distance": distances, "late": (rng.random(ROWS) < 0.5).astype(float)}
    table |= {"label_known_at": pa.array([known] * ROWS, pa.timestamp("us", "UTC"))}
    dataset = open_dataset(f"features/{MODEL}")
    file = dataset.stage(f"day={day(number)}", fingerprint) / "departures.parquet"
    pq.write_table(pa.table(table), file)
    dataset.publish(f"day={day(number)}", fingerprint, {"departures": file}, {})


@contextmanager
def open_known_rows(_model: Any, _gates: Any, period: str, *_: Any) -> Iterator[PeriodRows]:
    """Yield the labels of a day and made-up predictions, without a join and without a model."""
    dataset = open_dataset(f"features/{MODEL}")
    manifest = dataset.manifest(f"day={period}")
    assert manifest
    label = pq.read_table(dataset.file_path(manifest, "departures"))["late"].to_numpy()
    yield PeriodRows(Evidence(label=label, candidate=np.linspace(0.2, 0.8, ROWS), champion=NoChampion()), ROWS, [])


def model() -> ModelSpec:
    gate = AgainstChampionGate(name="loss", metric="log_loss", must_be="better")
    return load_spec(MODEL).model_copy(update={"gates": (gate,), "views": ()})


def monitor(end: int = END) -> MonitoringRecord:
    """Run what the tasks `watch` and `measure` run."""
    assert service.monitor_periods(model(), day(end), "ada")
    record = service.measure_performance(model(), day(end), "ada")
    assert record
    return record


def published() -> dict[str, str]:
    """Return the hash of each partition that monitoring has published."""
    return {
        f"{dataset.root.parent.name}/{manifest.partition}": manifest.content_hash
        for dataset in (function(MODEL) for function in DATASETS)
        for manifest in dataset.manifests()
    }


def forget() -> None:
    """Remove all that monitoring has published."""
    for dataset in (function(MODEL) for function in DATASETS):
        for name in dataset.partitions():
            dataset.manifest_path(name).unlink()


def alarms() -> list[AlarmRaised]:
    return [entry.event for entry in ledger.read_state(MODEL).entries if isinstance(entry.event, AlarmRaised)]


@contextmanager
def at_step(number: int, *, before: Step | None = None, after: Step | None = None) -> Iterator[None]:
    """Let something happen once, at step `number`, from 0: a publication, or a decision of the ledger."""
    steps = 0

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            is_it = steps == number + 1
            if is_it and before:
                before()
            result = function(*arguments, **options)
            if is_it and after:
                after()
            return result

        patch.setattr(owner, name, run)

    with pytest.MonkeyPatch.context() as patch:
        watch(Dataset, "publish")
        watch(ledger, "append_decision")
        yield


def kill() -> None:
    raise Killed


def check_as_undisturbed(record: MonitoringRecord) -> None:
    """Check that one undisturbed run publishes the same, and that the alarm was raised once."""
    done = published()
    forget()
    assert monitor() == record
    assert published() == done
    assert read_record(MODEL, record.champion_content) == record
    (alarm,) = record.open_alarms
    assert (alarm.rule, str(alarm.opened)) == ("break", day(BROKEN))
    assert [event.day for event in alarms()] == [alarm.opened]


def test_a_run_killed_at_any_step_is_completed_by_the_next() -> None:
    """Each run is killed after the first step that was new, and the next one goes on."""
    number, killed_after = 0, list[int]()
    while True:
        before = published(), alarms()
        try:
            with at_step(number, after=kill):
                record = monitor()
        except Killed:
            if (published(), alarms()) == before:
                number += 1
            else:
                killed_after.append(number)
        else:
            break
    # The reference, each day, the record, its alarm, how each day was predicted, and the record with that.
    assert len(killed_after) >= 1 + DAYS + 2 + DAYS + 1
    check_as_undisturbed(record)


@pytest.mark.parametrize("step", [0, 2, 4, 5, 8])
def test_two_runs_at_once_end_with_the_same_record(step: int) -> None:
    """A whole run happens just before a step of another."""
    others = list[MonitoringRecord]()
    with at_step(step, before=lambda: others.append(monitor())):
        record = monitor()
    assert others == [record]
    check_as_undisturbed(record)


def test_runs_out_of_order_end_with_the_same_record() -> None:
    monitor(BROKEN)
    monitor()
    monitor(AS_OF + 1)
    check_as_undisturbed(monitor())
