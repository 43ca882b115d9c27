"""A year of flights under Airflow: a champion, and all later days monitored by a backfill.

    python benchmarks/monitored_year.py [--until 2013-12-31] [--lake FOLDER] [--in-process] [--json FILE] [--plot FILE]

Features are those of a lake that is copied, such as `retrain_on_drift.py --only-features` leaves it; without one, they
are built by a backfill, which takes longest. The champion is trained in this process as of a day, and passes all gates
but that on latency, which a machine with other work misses. Then a backfill of `<model>.monitor` has a run for each
later week, as the spec schedules it, which says what would have been known then. `--in-process` calls what these runs
call, one after the other in this process, without Airflow: for a machine with much other work.

The table has the alarms of the year, and the runs that first and last said so; below it is what runs cost as days
gather. A run as of the last day, in this process, must name the same alarms: what is said of a day does not change
later. The plot has a row per alarm.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from evergreen import evaluation, ledger
from evergreen.client.airflow import AirflowClient, Json
from evergreen.feature_store import online_store, training_sets
from evergreen.ledger import LedgerState
from evergreen.monitoring import service
from evergreen.monitoring.record import AlarmRecord
from evergreen.periods import Calendar
from evergreen.promotion import service as promotion
from evergreen.registry import versions
from evergreen.reports.page import plot_style
from evergreen.settings import settings
from evergreen.spec import loader
from evergreen.training.backends import process
from evergreen.window import RunReason, Window
from evergreen_local import processes, services
from measuring.stack import Meter, backfill, deliver, metered, running

NAME, ZONE, FIRST = "flight_delay", "America/New_York", "2013-01-01"
FEATURES, MONITOR = f"{NAME}.features", f"{NAME}.monitor"
CALENDAR = Calendar("1d", ZONE)
FRIDAY, WEEK = 4, 7  # when the spec's schedule has a run, and the days of one
COMPARED_RUNS = 8
LATER = ("evaluations", "verdicts", "monitoring")  # of a lake that is copied
COLOURS = {"break": "#b3361e", "drift": "#e69f00", "performance": "#0072b2", "skew": "#5d6a64"}
GREEN = "#0b6e4f"
_ALARM = re.compile(r"ALARM (?P<rule>break|drift|performance) since (?P<opened>[\d-]+): (?P<changes>.*)")


@dataclass(frozen=True)
class SeenAlarm:
    """An alarm, the day from which it counts, and the first and last day on which a run said that it was open."""

    rule: str
    opened: str
    changes: str
    first_said: str
    last_said: str


def alarms_in(airflow: AirflowClient, run: Json) -> list[tuple[str, str, str]]:
    """Return rule, first day and changes of each alarm that a run of the monitor named."""
    found = []
    for instance in airflow.task_instances(MONITOR, run["dag_run_id"]):
        if instance["task_id"] in ("watch", "measure"):
            text = "\n".join(json.dumps(line, ensure_ascii=False) for line in airflow.log(instance))
            found += [(m["rule"], m["opened"], m["changes"].split('"')[0]) for m in _ALARM.finditer(text)]
    return found


def gather(named: Sequence[tuple[str, list[tuple[str, str, str]]]]) -> list[SeenAlarm]:
    """Return the alarms that runs named, by the day of each run, as one for each rule and first day."""
    alarms: dict[tuple[str, str], SeenAlarm] = {}
    for day, lines in named:
        for rule, opened, changes in lines:
            seen = alarms.get((rule, opened))
            first = seen.first_said if seen else day
            alarms[rule, opened] = SeenAlarm(rule, opened, changes, first, day)
    return sorted(alarms.values(), key=lambda alarm: (alarm.opened, alarm.rule))


def plot(
    file: Path, alarms: Sequence[AlarmRecord], seen: Sequence[SeenAlarm], state: LedgerState, days: tuple[str, str]
) -> None:
    """Draw a row per alarm: open from day to day, and a dot at the first run that named it; promotions are dashed."""
    first_said = {(alarm.rule, alarm.opened): date.fromisoformat(alarm.first_said) for alarm in seen}
    end = date.fromisoformat(days[1])
    with plot_style():
        figure = Figure(figsize=(11.4, 0.36 * len(alarms) + 1.1), layout="constrained")
        axes: Any = figure.subplots()
        for row, alarm in enumerate(alarms):
            colour, named = COLOURS[alarm.rule], first_said.get((alarm.rule, str(alarm.opened)))
            axes.plot([alarm.opened, alarm.closed or end], [row, row], color=colour, linewidth=7, solid_capstyle="butt")
            if named:
                axes.plot([named], [row], "o", color="white", markeredgecolor=colour, markersize=7)
        for tenure in state.tenures:
            axes.axvline(CALENDAR.date_of(tenure.as_of), color=GREEN, linestyle=(0, (4, 2)), linewidth=1.6)
            axes.annotate(f" version {tenure.version}", (CALENDAR.date_of(tenure.as_of), -0.8), color=GREEN)
        axes.set_yticks(range(len(alarms)), [describe(alarm) for alarm in alarms], fontsize=9)
        axes.set_ylim(len(alarms) - 0.4, -1.1)
        axes.set_xlim(date.fromisoformat(days[0]), end)
        figure.savefig(file, dpi=88, metadata={"Date": None} if file.suffix == ".svg" else {"Software": None})


def describe(alarm: AlarmRecord) -> str:
    """Return the rule, and what has changed most."""
    change = max(alarm.changes, key=lambda change: abs(change.deviation or 0.0))
    rest = f" + {len(alarm.changes) - 1}" if len(alarm.changes) > 1 else ""
    return f"{alarm.rule}: {change.column} {change.measure}{rest}"


def duration(run: Json) -> float:
    """Return the seconds that a run took."""
    start, end = (datetime.fromisoformat(run[name]) for name in ("start_date", "end_date"))
    return (end - start).total_seconds()


def build_features(airflow: AirflowClient, meter: Meter, days: Sequence[str]) -> None:
    wall, cpu, _ = backfill(airflow, meter, FEATURES, CALENDAR, days, 10)
    print(f"features of {len(days)} days: {wall:.0f} s, {cpu:.0f} s of CPU", flush=True)


def promote_champion(as_of: str) -> None:
    spec = loader.load_spec(NAME)
    model = spec.model_copy(update={"gates": tuple(gate for gate in spec.gates if gate.kind != "serving")})
    start = max(CALENDAR.period_before(CALENDAR.period_before(as_of, model.train), model.holdout), FIRST)
    window = Window.from_range(start, as_of, RunReason.MANUAL, CALENDAR)
    online_store.materialize_features(model, window)
    examples = training_sets.build_training_set(model, window)
    source = training_sets.training_set_dataset(model)
    candidate = process.train_in_process(model, examples, source, training_sets.model_input_columns(model))
    scores = evaluation.collect_evidence(model, examples, candidate, None)
    case = promotion.EvaluationContext("a benchmark", window.run_reason, examples, candidate, scores, None)
    entry = promotion.judge_candidate(model, case)
    report = promotion.verdict_report_path(model, entry)
    version = versions.register_candidate(model, examples, candidate, entry, report)
    request = promotion.PromotionRequest(entry, version, window.run_reason)
    if blocker := promotion.promote_version(model, request, actor="a benchmark"):
        raise SystemExit(f"no champion as of {as_of}: {blocker}")


@dataclass(frozen=True)
class MonitoredWeeks:
    """What runs named, by the day of each, and the wall seconds of each; CPU seconds and memory of all."""

    named: list[tuple[str, list[tuple[str, str, str]]]]
    times: list[float]
    cpu: float
    peak: int


def monitor_by_backfill(airflow: AirflowClient, meter: Meter, weeks: Sequence[str]) -> MonitoredWeeks:
    _, cpu, runs = backfill(airflow, meter, MONITOR, CALENDAR, weeks, 1)
    runs.sort(key=lambda run: run["logical_date"])
    ends = [CALENDAR.shift(day, WEEK) for day in weeks]  # a run is of the week that begins then
    named = [(day, alarms_in(airflow, run)) for day, run in zip(ends, runs, strict=True)]
    return MonitoredWeeks(named, [duration(run) for run in runs], cpu, meter.peak)


def monitor_in_process(weeks: Sequence[str]) -> MonitoredWeeks:
    """Do what the tasks `watch` and `measure` of a backfill do."""
    model, named, times = loader.load_spec(NAME), [], []
    used = time.process_time()
    for day in weeks:
        end, began = CALENDAR.shift(day, WEEK), time.monotonic()
        record = service.preview_record(model, end, with_performance=True)
        times.append(time.monotonic() - began)
        assert record
        found = [alarm.describe().partition(" since ") for alarm in record.open_alarms]
        named.append((end, [(rule, rest[:10], rest[12:]) for rule, _, rest in found]))
        print(f"{end}: {times[-1]:.1f} s, {len(record.open_alarms)} alarms are open", flush=True)
    return MonitoredWeeks(named, times, time.process_time() - used, psutil.Process().memory_info().rss)


@contextmanager
def running_registry(home: Path) -> Iterator[None]:
    """An MLflow server, and no other service."""
    server = services.mlflow_service(home, services.free_port(5000))
    identity = processes.start_process(server.command, server.environment, server.folder, home / "logs" / "mlflow.log")
    os.environ |= {"EVERGREEN_HOME": str(home), "EVERGREEN_MLFLOW": server.url}
    settings.cache_clear()
    try:
        while not server.is_ready():
            time.sleep(1)
        yield
    finally:
        processes.stop_session(identity, home, 15.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as-of", default="2013-03-01", help="of the champion")
    parser.add_argument("--until", default="2013-12-31", help="the last day that is monitored")
    parser.add_argument("--lake", type=Path, help="that has the features of all days")
    parser.add_argument("--in-process", action="store_true", help="monitor without Airflow")
    parser.add_argument("--json", type=Path, help="write the alarms that runs have named")
    parser.add_argument("--plot", type=Path, help="draw the alarms of the year into this file")
    arguments = parser.parse_args()
    end = CALENDAR.shift(arguments.until, 1)
    days = list(CALENDAR.periods_between(FIRST, end))
    later = CALENDAR.periods_between(CALENDAR.shift(arguments.as_of, 1), end)
    weeks_of = [day for day in later if date.fromisoformat(day).weekday() == FRIDAY]
    monitored = [day for day in weeks_of if CALENDAR.shift(day, WEEK) <= end]  # a run is of whole weeks
    home = Path(tempfile.mkdtemp(prefix="evergreen-bench-")) / "home"
    if arguments.lake:
        shutil.copytree(arguments.lake, home / "lake", ignore=shutil.ignore_patterns("_staging", *LATER))
    else:
        deliver(home, len(days))
    with ExitStack() as stack:
        if arguments.in_process:
            if not arguments.lake:
                parser.error("--in-process needs --lake")
            stack.enter_context(running_registry(home))
            promote_champion(arguments.as_of)
            weeks = monitor_in_process(monitored)
        else:
            airflow = stack.enter_context(running(home, MONITOR))
            meter = stack.enter_context(metered(home))
            if not arguments.lake:
                build_features(airflow, meter, days)
            promote_champion(arguments.as_of)
            weeks = monitor_by_backfill(airflow, meter, monitored)
        last = weeks.named[-1][0]
        record = service.preview_record(loader.load_spec(NAME), last, with_performance=True)
        state = ledger.read_state(NAME)
    shutil.rmtree(home.parent)
    assert record
    alarms = gather(weeks.named)
    if arguments.json:
        found = [alarm.model_dump(mode="json") for alarm in record.alarms]
        said = [asdict(alarm) for alarm in alarms]
        arguments.json.write_text(json.dumps({"said": said, "as of the last day": found}, indent=1))
    if arguments.plot:
        plot(arguments.plot, record.alarms, alarms, state, (FIRST, arguments.until))

    table = Table(title=f"{NAME}: the champion as of {arguments.as_of}, monitored until {arguments.until}")
    for column in ("alarm", "since", "said on", "until", "what"):
        table.add_column(column)
    for alarm in alarms:
        table.add_row(alarm.rule, alarm.opened, alarm.first_said, alarm.last_said, alarm.changes)
    Console(width=160).print(table)
    at_last = {(alarm.rule, str(alarm.opened)) for alarm in record.alarms}
    print(f"named by runs, and not as of the last day: {sorted({(a.rule, a.opened) for a in alarms} - at_last)}")
    print(f"as of the last day, and not named by a run: {sorted(at_last - {(a.rule, a.opened) for a in alarms})}")
    times = weeks.times
    early, late = (statistics.median(part) for part in (times[:COMPARED_RUNS], times[-COMPARED_RUNS:]))
    peak = f"peak {weeks.peak / 2**30:.2f} GiB"
    print(f"{len(times)} runs: {sum(times):.0f} s, {weeks.cpu / len(times):.2f} s of CPU a run, {peak}")
    print(
        f"a run, median of the last {COMPARED_RUNS} ÷ of the first: {late:.1f} s ÷ {early:.1f} s = {late / early:.2f}"
    )


if __name__ == "__main__":
    main()
