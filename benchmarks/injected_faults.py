"""What finds a fault of the data, in how many days: faults of ten kinds are injected into raw files of a live model.

    python benchmarks/injected_faults.py [--seed 1] [--only NAME …] [--json FILE]

A model of parcels (`measuring/deliveries.py`) has a champion, and 40 days without a fault. Then each fault lasts 14
days. All steps are the functions that the DAGs run, in one process: raw files are checked, features are built with
Spark, checked and published; `monitor_periods` and `measure_performance` judge them, and the champion is trained,
registered and promoted by the gates. Days are delivered together, but what is raised for a day depends on no later one.

A fault is *refused* if a check keeps its day from being published, raised as an *alarm*, or named as a *problem* in the
record of monitoring. Days are counted from the first one of the fault, which is 1; a loss of performance is known when
labels are, two days later. A fault that is not found stays in the table: see "Limits" in docs/monitoring-statistics.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from measuring import deliveries
from measuring.deliveries import CALENDAR, FIRST, LABEL_DELAY_DAYS, NAME, REFERENCE_DAYS, RawDay, days
from measuring.projects import write_project

if TYPE_CHECKING:
    from evergreen.monitoring.record import AlarmRecord, MonitoringRecord

CLEAN_DAYS, FAULT_DAYS = 40, 14
START = REFERENCE_DAYS + CLEAN_DAYS
END = START + FAULT_DAYS
KM_PER_MILE = 1.609
SKEW = pd.Timedelta(hours=3)

Fault = Callable[[Sequence[RawDay], int, np.random.Generator], RawDay]
"""Returns a day as the fault makes it, of all days without one and the day's number."""


@dataclass(frozen=True)
class Detection:
    """What found a fault: `day` is 1 on its first day."""

    by: str
    day: int
    detail: str


def change_unit(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """Distances in kilometres, which are no miles out of range."""
    return replace(raw[number], parcels=_parcels(raw, number).assign(distance=lambda t: t.distance * KM_PER_MILE))


def freeze_sensor(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """Each day's temperatures are that day's median: the level does not move."""
    return _with_readings(raw, number, temperature=lambda t: t.temperature.median())


def freeze_at_few_values(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """Loads are the day's quartiles: three values, as usual in the mean."""
    quartiles = (0.25, 0.5, 0.75)
    return _with_readings(
        raw,
        number,
        load=lambda t: np.resize(np.quantile(t.load, quartiles), len(t)),  # in turns
    )


def add_category(raw: Sequence[RawDay], number: int, rng: np.random.Generator) -> RawDay:
    """A fifth of the parcels has a service that the champion does not know."""
    parcels = _parcels(raw, number)
    is_new = rng.random(len(parcels)) < 0.2
    return replace(raw[number], parcels=parcels.assign(service=np.where(is_new, "express", parcels.service)))


def shift_labels(raw: Sequence[RawDay], number: int, rng: np.random.Generator) -> RawDay:
    """Late parcels are three times as frequent, and like late ones before: P(x | y) stays."""
    parcels = _parcels(raw, number)
    weights = np.where(parcels.late > 0, 3.0, 1.0)
    drawn = rng.choice(len(parcels), len(parcels), p=weights / weights.sum())
    return replace(raw[number], parcels=parcels.iloc[drawn].assign(parcel=parcels.parcel.to_numpy()))


def change_concept(raw: Sequence[RawDay], number: int, rng: np.random.Generator) -> RawDay:
    """Labels are dealt anew among parcels of the same service and depot: inputs, and the share of late ones, stay."""
    parcels = _parcels(raw, number)
    late = parcels.groupby(["service", "depot"]).late.transform(lambda values: rng.permutation(values.to_numpy()))
    return replace(raw[number], parcels=parcels.assign(late=late))


def lose_source(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """The file of readings does not come."""
    return replace(raw[number], readings=None)


def deliver_twice(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """Each parcel is in the file twice."""
    parcels = _parcels(raw, number)
    return replace(raw[number], parcels=pd.concat([parcels, parcels], ignore_index=True))


def deliver_the_day_before(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """The file of the last day before the fault comes again and again, as it was."""
    return replace(raw[number], parcels=_parcels(raw, START - 1))


def deliver_with_new_dates(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """The parcels of the week before come again, with the dates of today and new numbers."""
    parcels, week = _parcels(raw, number - 7), pd.Timedelta(days=7)
    return replace(
        raw[number],
        parcels=parcels.assign(
            parcel=parcels.parcel + 70_000, made_at=parcels.made_at + week, known_at=parcels.known_at + week
        ),
    )


def skew_clock(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """The clock of the producer is ahead, by which it files: some rows of the day before are in the file of today."""
    both = pd.concat([_parcels(raw, number - 1), _parcels(raw, number)], ignore_index=True)
    # On the first day, those of the day before have been filed by the right clock.
    both = both if number > START else _parcels(raw, number)
    made_at = both.made_at + SKEW
    day = pd.Timestamp(FIRST) + pd.Timedelta(days=number)
    return replace(raw[number], parcels=both.assign(made_at=made_at)[made_at.dt.normalize() == day])


def delay_labels(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """Labels do not come in time: none is known yet."""
    return replace(raw[number], parcels=_parcels(raw, number).assign(late=np.nan, known_at=pd.NaT))


def cut_day(raw: Sequence[RawDay], number: int, _: np.random.Generator) -> RawDay:
    """The producer is down from 10 to 15 o'clock: these rows are lost."""
    parcels = _parcels(raw, number)
    return replace(raw[number], parcels=parcels[~parcels.made_at.dt.hour.between(10, 14)])


FAULTS: dict[str, Fault] = {
    "unit change: miles become km": change_unit,
    "frozen column: a value a day": freeze_sensor,
    "frozen column: three values": freeze_at_few_values,
    "new category: 20 % of rows": add_category,
    "label shift: odds of late × 3": shift_labels,
    "concept shift: labels dealt anew": change_concept,
    "missing source": lose_source,
    "duplicate delivery: rows twice": deliver_twice,
    "duplicate delivery: an old file": deliver_the_day_before,
    "duplicate delivery: new dates": deliver_with_new_dates,
    "clock skew: 3 hours": skew_clock,
    "delayed labels": delay_labels,
    "outage: 5 hours a day": cut_day,
}


def find_detections(
    alarms: Sequence[AlarmRecord], problems: Sequence[str], refusals: Sequence[tuple[str, str]], start: date
) -> list[Detection]:
    """Return what found a fault, the earliest first.

    Args:
        alarms: of the record.
        problems: of the record that there were none of before the fault.
        refusals: the days that were not published, each with the first fault of it.
        start: first day of the fault.
    """
    found = []
    if refusals:
        day, what = min(refusals)
        found.append(Detection("refused", (date.fromisoformat(day) - start).days + 1, what))
    for alarm in alarms:
        if alarm.opened >= start:
            delay = LABEL_DELAY_DAYS if alarm.rule == "performance" else 0
            changed = ", ".join(change.describe() for change in alarm.changes[:3])
            found.append(Detection(alarm.rule, (alarm.opened - start).days + 1 + delay, changed))
    found += [Detection("problem", LABEL_DELAY_DAYS + 1, problem) for problem in problems]
    return sorted(found, key=lambda detection: detection.day)


def count_false_alarms(alarms: Sequence[AlarmRecord], start: date) -> int:
    """Return how many alarms were raised before the fault began."""
    return sum(alarm.opened < start for alarm in alarms)


def deliver(raw: RawDay, day: str) -> None:
    """Write the raw files of a day."""
    from evergreen.ingest.raw_files import raw_file

    for source, table in (("parcels", raw.parcels), ("readings", raw.readings)):
        if table is not None:
            file = raw_file(source, day)
            file.parent.mkdir(parents=True, exist_ok=True)
            times = table.select_dtypes("datetime").columns
            table = table.assign(**{name: table[name].dt.tz_localize("UTC") for name in times})
            table.to_parquet(str(file), index=False, coerce_timestamps="us")


def use_home(home: Path) -> None:
    """Let this process use another home."""
    from evergreen.feature_store import repository
    from evergreen.settings import settings

    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    repository.open_feature_store.cache_clear()


def make_champion() -> None:
    """Train as of the end of the reference, judge, register and promote."""
    from evergreen import evaluation
    from evergreen.feature_store import training_sets
    from evergreen.promotion import service
    from evergreen.registry import versions
    from evergreen.spec import loader
    from evergreen.training.backends import process
    from evergreen.window import RunReason, Window

    model = loader.load_spec(NAME)
    window = Window.from_range(FIRST, CALENDAR.shift(FIRST, REFERENCE_DAYS), RunReason.MANUAL, CALENDAR)
    examples = training_sets.build_training_set(model, window)
    source = training_sets.training_set_dataset(model)
    candidate = process.train_in_process(model, examples, source, training_sets.model_input_columns(model))
    scores = evaluation.collect_evidence(model, examples, candidate, None)
    context = service.EvaluationContext("a benchmark", window.run_reason, examples, candidate, scores, None)
    judged = service.judge_candidate(model, context)
    version = versions.register_candidate(
        model, examples, candidate, judged, service.verdict_report_path(model, judged)
    )
    request = service.PromotionRequest(judged, version, window.run_reason)
    held_back = service.promote_version(model, request, actor="a benchmark")
    if held_back is not None:
        raise SystemExit(f"the champion was not promoted: {held_back}")


def publish(raw: Sequence[RawDay], first: int) -> list[tuple[str, str]]:
    """Deliver and publish days from number `first` on; return those that were refused, each with the first fault."""
    from evergreen.errors import FaultyPeriodsError
    from evergreen.features.inputs import features_dataset
    from evergreen.features.pipeline import run_feature_pipeline
    from evergreen.lake.datasets import period_partition
    from evergreen.spec import loader

    model, names = loader.load_spec(NAME), days(first, first + len(raw))
    for day, tables in zip(names, raw, strict=True):
        deliver(tables, day)
    try:
        run_feature_pipeline(model, names)
    except FaultyPeriodsError as error:
        faults = [str(fault) for fault in error.faults]
        dataset = features_dataset(model)
        refused = [day for day in names if dataset.manifest(period_partition(day)) is None]
        return [(day, next((fault for fault in faults if day in fault), faults[0])) for day in refused]
    return []


def monitor(end: int) -> MonitoringRecord:
    """Run what the tasks `watch` and `measure` run, when the days before number `end` are known."""
    from evergreen.monitoring.service import measure_performance, monitor_periods
    from evergreen.spec import loader

    model, until = loader.load_spec(NAME), CALENDAR.shift(FIRST, end)
    monitor_periods(model, until, "a benchmark")
    record = measure_performance(model, until, "a benchmark")
    assert record
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="faults whose name begins so")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    begun, scratch = time.monotonic(), Path(tempfile.mkdtemp(prefix="evergreen-bench-"))
    os.environ |= write_project(scratch / "project", NAME, deliveries.MODULES, deliveries.DEFINITIONS)
    console, results = Console(width=160), list[dict[str, object]]()
    try:
        raw = deliveries.draw_days(END, options.seed)
        use_home(scratch / "before")
        assert not publish(raw[:START], 0)
        make_champion()
        before = monitor(START)
        console.print(f"{time.monotonic() - begun:.0f} s: {START} days are published, and a champion is monitored")
        start = date.fromisoformat(FIRST) + timedelta(START)
        table = Table("fault", "found by", "on day", "what", "later", title=f"seed {options.seed}")
        chosen = [name for name in FAULTS if not options.only or name.startswith(tuple(options.only))]
        for home, name in enumerate(["no fault", *chosen]):
            # Each in a place of its own: a ledger never gets shorter, and this process would refuse one that does.
            use_home(scratch / str(home))
            shutil.copytree(scratch / "before", scratch / str(home))
            rng = np.random.default_rng([options.seed, START])
            fault = FAULTS.get(name)
            faulty = [fault(raw, number, rng) if fault else raw[number] for number in range(START, END)]
            refusals = publish(faulty, START)
            record = monitor(END)
            problems = [problem for problem in record.problems if problem not in before.problems]
            found = find_detections(record.alarms, problems, refusals, start)
            results.append({"fault": name, "found": [asdict(detection) for detection in found]})
            first, *later = found or [Detection("nothing", 0, "")]
            others = ", ".join(f"{detection.by} {detection.day}" for detection in later)
            table.add_row(name, first.by, str(first.day or "–"), first.detail[:200], others)
            shutil.rmtree(scratch / str(home))
            console.print(f"{time.monotonic() - begun:.0f} s: {name}: {first.by} {first.day}")
        console.print(table)
        console.print(f"false alarms in {CLEAN_DAYS} days before: {count_false_alarms(before.alarms, start)}")
        console.print(f"{time.monotonic() - begun:.0f} s")
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    finally:
        shutil.rmtree(scratch)


def _parcels(raw: Sequence[RawDay], number: int) -> pd.DataFrame:
    parcels = raw[number].parcels
    assert parcels is not None
    return parcels


def _with_readings(raw: Sequence[RawDay], number: int, **columns: Callable[[pd.DataFrame], object]) -> RawDay:
    readings = raw[number].readings
    assert readings is not None
    return replace(raw[number], readings=readings.assign(**columns))


if __name__ == "__main__":
    main()
