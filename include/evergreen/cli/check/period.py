"""`evergreen check MODEL --period` and `evergreen preview`: one period, up to the gates, and nothing left behind.

The steps run in a process of their own (`trial`), with settings that name scratch places: a lake, an online store and a
feature registry that exist for this only. Raw data is read where it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evergreen.cli.check.locations import ModelFault
from evergreen.cli.doctor import ChecksFailedError
from evergreen.cli.options import print_json
from evergreen.errors import EvergreenError, WindowError
from evergreen.settings import settings, variable_name
from evergreen.spec.loader import feature_spec, load_spec

if TYPE_CHECKING:
    from evergreen.reports.table_profile import TableProfile

_LOG_LINES = 15  # of a trial that ends without an answer
_SIGNS = {"passed": Text("✓", style="green"), "failed": Text("✗", style="red"), "skipped": Text("–")}


class TrialFailedError(EvergreenError):
    """The process of a trial has ended without an answer."""


@dataclass
class TrialResult:
    """What a trial has found: its steps in order, its faults, and the verdict if it came so far."""

    steps: list[Mapping[str, Any]] = field(default_factory=list)
    faults: list[ModelFault] = field(default_factory=list)
    verdict: Mapping[str, Any] | None = None
    has_ended: bool = False


def check_period(name: str, period: str, console: Console, as_json: bool = False) -> None:
    """Try a model on one period, and print what each step has found.

    Raises:
        ChecksFailedError: there are faults; has those of the first steps that have any.
        TrialFailedError: the process was killed, or something failed that is no fault of the model.
    """
    period = resolve_period(name, period)
    result = try_period(name, period)
    if as_json:
        faults = [fault.to_json() for fault in result.faults]
        record = {"model": name, "period": period, "steps": result.steps, "faults": faults}
        print_json(console, {**record, "verdict": result.verdict})
    else:
        _show_steps(name, period, result, console)
    if result.faults:
        raise ChecksFailedError(f"{name} on {period}", [fault.to_fault() for fault in result.faults])


def try_period(name: str, period: str) -> TrialResult:
    """Try a model on one period, up to its gates, and leave nothing behind.

    Raises:
        TrialFailedError: see `check_period`.
    """
    with tempfile.TemporaryDirectory(prefix="evergreen-check-") as home:
        return run_trial(name, period, Path(home), features_only=False)


@dataclass(frozen=True)
class TableSample:
    """A table of one period: its profile and its first rows."""

    profile: TableProfile
    rows: Sequence[Mapping[str, Any]]


def preview_features(
    name: str, period: str | None, table: str | None, rows: int, console: Console, as_json: bool = False
) -> None:
    """Compute the features of one period, by default the first, and print the first rows of its tables, or of one.

    Raises:
        ChecksFailedError: raw data or features have faults.
        EvergreenError: there is no such table.
    """
    period = resolve_period(name, period)
    samples = sample_features(name, period, table, rows)
    if as_json:
        print_json(console, {sample.profile.name: sample.rows for sample in samples})
        return
    for sample in samples:
        console.print(_sample_table(sample, period, console.width), soft_wrap=False)


def _sample_table(sample: TableSample, period: str, width: int) -> Table:
    """Return the first rows of a table: with a line for each column where they are wider than the terminal.

    Then as many rows are shown as fit, and at least one.
    """
    profile = sample.profile
    title = f"{profile.name} of {period}: {profile.row_count:,} rows, {len(profile.columns)} columns"
    headers = [f"{column.name}\n{column.type}" for column in profile.columns]
    rows = [["–" if value is None else str(value) for value in row.values()] for row in sample.rows]
    if _natural_width(headers, rows) > width:
        lines = [
            [column.name, column.type, *(row[number] for row in rows)] for number, column in enumerate(profile.columns)
        ]
        headers = ["column", "type", *(f"row {number}" for number in range(1, len(rows) + 1))]
        fitting = (count for count in range(3, len(headers) + 1) if _natural_width(headers[:count], lines) <= width)
        count = max(fitting, default=min(3, len(headers)))
        if count < len(headers):
            title = f"{title}, of which {count - 2} fit here"
        headers, rows = headers[:count], [line[:count] for line in lines]
    printed = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for header in headers:
        printed.add_column(header, overflow="fold")
    for row in rows:
        printed.add_row(*row)
    return printed


def _natural_width(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how wide a table is in which no cell is folded."""
    columns = [[*header.splitlines(), *values] for header, *values in zip(headers, *rows, strict=False)]
    return sum(max(map(len, column)) + 3 for column in columns) + 1


def sample_features(name: str, period: str, table: str | None, rows: int) -> list[TableSample]:
    """Compute the features of one period, and return the profile and the first rows of its tables, or of one.

    Raises:
        ChecksFailedError: raw data or features have faults.
        EvergreenError: there is no such table.
    """
    import pyarrow.parquet as pq

    from evergreen.reports.table_profile import profile_table

    model = load_spec(name)
    spec = feature_spec(model)
    if table and table not in spec.tables:
        raise EvergreenError(f"{name} has no table {table!r}: choose one of {', '.join(spec.tables)}")
    with tempfile.TemporaryDirectory(prefix="evergreen-check-") as home:
        result = run_trial(name, period, Path(home), features_only=True)
        if result.faults:
            raise ChecksFailedError(f"{name} on {period}", [fault.to_fault() for fault in result.faults])
        samples = []
        for table_name in (table,) if table else spec.tables:
            [file] = Path(home).rglob(f"{table_name}.parquet")
            with pq.ParquetFile(file) as content:
                first = next(content.iter_batches(rows), None)
            profile = profile_table(table_name, file, model.label if table_name == spec.spine else None)
            samples.append(TableSample(profile, first.to_pylist() if first else []))
        return samples


def resolve_period(name: str, period: str | None) -> str:
    """Return the period with this name, or the model's first one.

    Raises:
        WindowError: there is no such period, or no data of it.
    """
    spec = feature_spec(load_spec(name))
    if period is None:
        return spec.first_period
    period = spec.calendar.parse(period)
    if period < spec.first_period or (spec.end_period and period >= spec.end_period):
        end = f", before {spec.end_period}" if spec.end_period else ""
        fix = "name such a period, or correct first_day or last_day in model.py"
        raise WindowError(f"{period}: {name} has data from {spec.first_period} on{end}: {fix}")
    return period


def run_trial(name: str, period: str, home: Path, *, features_only: bool, with_properties: bool = False) -> TrialResult:
    """Run the steps in a process that works in `home`, with progress, and return what it has found.

    `with_properties` also trains again, interrupted, and judges a damaged model.

    Raises:
        TrialFailedError: it has ended without an answer.
    """
    command = [
        sys.executable,
        "-m",
        f"{__package__}.trial",
        name,
        period,
        *(["--features-only"] if features_only else []),
        *(["--with-properties"] if with_properties else []),
    ]
    result, log = TrialResult(), home / "log"
    with (
        log.open("wb") as errors,
        _process(command, trial_environment(home), errors) as process,
        Console(stderr=True, force_jupyter=False).status(f"{name} on {period}: starting Spark") as status,
    ):
        for line in process.stdout or ():
            record = json.loads(line)
            if record.get("state") == "running":
                status.update(f"{name} on {period}: {record['step']}")
            elif "state" in record:
                result.steps.append(record)
            elif "verdict" in record:
                result.verdict = record["verdict"]
            else:
                result.faults = [ModelFault.from_json(fault) for fault in record["faults"]]
                result.has_ended = True
    if not result.has_ended:
        end = "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise TrialFailedError(f"the trial of {name} on {period} ended with {process.returncode}:\n{end}")
    return result


@contextmanager
def _process(command: list[str], variables: Mapping[str, str], errors: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables) as process:
        try:
            yield process
        finally:
            process.terminate()  # of no effect on one that has ended


def trial_environment(home: Path) -> dict[str, str]:
    """Return the environment of a trial: that of this process, but with the defaults in `home` for all it writes.

    Its temporary files are there, too.
    """
    current = settings()
    defaults = ("lake", "cache", "tables", "ledger", "jobs", "mlflow", "feast_registry", "online_store")
    engines = ("spark", "spark_conf", "spark_exchange", "training_set_engine", "training_backend")
    values = {
        "home": str(home),
        "project": str(current.project),
        "raw": current.raw,
        **dict.fromkeys((*defaults, *engines), ""),
    }
    scratch = home / "scratch"  # engines leave files where temporary ones are
    scratch.mkdir()
    variables = {"TMPDIR": str(scratch)} | {variable_name(name): value for name, value in values.items()}
    # Settings are read whatever the case of their names, and an empty one does not count.
    return {name: value for name, value in os.environ.items() if name.upper() not in variables} | variables


def _show_steps(name: str, period: str, result: TrialResult, console: Console) -> None:
    table = Table(title=f"{name} on {period}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("", "step", "s", "result"):
        table.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for step in result.steps:
        seconds = f"{step['seconds']:.1f}" if "seconds" in step else ""
        table.add_row(_SIGNS[step["state"]], step["step"], seconds, step["detail"] or "see below")
    console.print(table, soft_wrap=False)
    if result.verdict:
        from evergreen.gates.verdict import Verdict
        from evergreen.reports.gate_table import GATE_COLUMNS, gate_rows

        gates = Table(title="gates, on one period", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for column in GATE_COLUMNS:
            gates.add_column(column, overflow="fold")
        for row in gate_rows(Verdict.model_validate(result.verdict), load_spec(name).gates):
            gates.add_row(*row)
        console.print(gates, soft_wrap=False)
