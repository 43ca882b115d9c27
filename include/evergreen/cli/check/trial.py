"""One period of a model, from raw data to gates, in a home folder of its own: a process that `period` starts.

    python -m evergreen.cli.check.trial MODEL PERIOD [--features-only | --with-properties]

It prints a line of JSON at the beginning and at the end of each step, and at the end what it has found. Its settings
name scratch places, so nothing that it does is seen by anybody else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException, PySparkException

from evergreen import evaluation
from evergreen.cli.check.locations import (
    ModelFault,
    describe_code_error,
    join_names,
    locate_alias,
    locate_function,
    locate_text,
    suggest,
)
from evergreen.cli.check.mutations import find_mutation_faults
from evergreen.cli.check.resuming import find_resuming_faults
from evergreen.cli.check.specs import spec_fault
from evergreen.cli.check.steps import SkippedStepError
from evergreen.cli.check.views import run_repository_file
from evergreen.errors import EvergreenError, Fault, FaultsError
from evergreen.feature_store import online_store, training_sets
from evergreen.features import build, checks, inputs, invariants, pipeline
from evergreen.features.definitions import declared_serving
from evergreen.features.invariants import FeatureFault
from evergreen.features.served_after import ServedAfter
from evergreen.gates.clusters import HOLDOUT_ADVICE
from evergreen.gates.verdict import GateResult, Verdict, judge_evidence
from evergreen.lake import datasets
from evergreen.periods import Duration
from evergreen.scaffold.guesses import MODEL_KINDS, Choices, resolve_leak_class
from evergreen.scaffold.samples import locate_sample, open_sample
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec, model_folder
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.training.backends import process
from evergreen.training.job import RESULT_FILE
from evergreen.window import RunReason, Window

_ENDED = 128 + signal.SIGTERM
_LABEL = "label"  # in training sets
_RUN_FIX = ", then clear the run"  # a trial is none
_FEATURES_FILE = "features.py"
_UNKNOWN_COLUMN = ("UNRESOLVED_COLUMN.WITH_SUGGESTION", "UNRESOLVED_COLUMN.WITHOUT_SUGGESTION")
_MAX_NAMES = 3  # of missing files, in a message


class Trial:
    """The steps of a trial, and where their progress goes."""

    def __init__(self, model: ModelSpec, period: str, output: TextIO):
        self.model, self.period, self.output = model, period, output
        self.faults: list[ModelFault] = []

    def report(self, **record: Any) -> None:
        print(json.dumps(record, default=str), file=self.output, flush=True)

    def run_step(self, name: str, step: Callable[[], str]) -> bool:
        """Run a step, which returns what it has found out; return whether it has no faults."""
        self.report(step=name, state="running")
        start, fault_count = time.monotonic(), len(self.faults)
        try:
            detail = step()
        except SkippedStepError as error:
            self.skip_step(name, str(error))
            return True
        except Exception as error:
            self.faults += describe_step_error(error, self.model)
            detail = ""
        has_passed = len(self.faults) == fault_count
        self.report(
            step=name,
            state="passed" if has_passed else "failed",
            seconds=time.monotonic() - start,
            detail=detail if has_passed else "",
        )
        return has_passed

    def skip_step(self, name: str, reason: str) -> None:
        self.report(step=name, state="skipped", detail=reason)

    def add_faults(self, faults: Sequence[FeatureFault]) -> None:
        self.faults += (_locate_feature_fault(fault, self.model) for fault in faults)


def run_steps(trial: Trial, *, features_only: bool, with_properties: bool = False) -> None:
    """Run the steps as far as they have no faults, and print what they find."""
    model, period, home = trial.model, trial.period, settings().home
    spec = feature_spec(model)
    fingerprints: dict[str, str] = {}
    folders: dict[str, str] = {}

    def check_raw() -> str:
        fingerprints.update(checks.validate_raw_files(model, [period]))
        return ", ".join(source.name for source in spec.sources)

    def build_features() -> str:
        # Not by `build_features`, whose faults do not say in which line of features.py they are.
        dataset, partition = inputs.features_dataset(model), datasets.period_partition(period)
        staged = dataset.stage(partition, fingerprints[period])
        build.compute_features(model, {period: staged})
        built = {period: str(dataset.cache_staged(partition, fingerprints[period], staged))}
        folders.update(checks.validate_features(model, built))
        trial.add_faults(invariants.find_duplicate_faults(period, Path(folders[period]), _keys_of_views(model)))
        tables = ((table, pq.read_metadata(Path(folders[period]) / f"{table}.parquet")) for table in spec.tables)
        return ", ".join(f"{table}: {count_of(metadata.num_rows, 'row')}" for table, metadata in tables)

    def change_order() -> str:
        trial.add_faults(invariants.find_order_faults(model, period, Path(folders[period]), home))
        return "the same from raw rows in another order"

    def leave_out_later_rows() -> str:
        trial.add_faults(invariants.find_future_faults(model, period, Path(folders[period]), home))
        unknown = [source.name for source in spec.sources if not (source.known_at or source.is_register)]
        rest = f"; without known_at, and so not left out: {join_names(unknown)}" if unknown else ""
        return f"the same without raw rows that were known later{rest}"

    if not (trial.run_step("raw data", check_raw) and trial.run_step("features", build_features)) or features_only:
        return
    if not trial.run_step("order of rows", change_order):
        return  # what differs from itself differs from what is known earlier, too
    if not invariants.has_known_rows(model):
        trial.skip_step("no future", "no source says by known_at when its rows were known")
    elif not trial.run_step("no future", leave_out_later_rows):
        return
    _try_training(trial, fingerprints, folders, with_properties)


def _keys_of_views(model: ModelSpec) -> dict[str, Sequence[str]]:
    """Return the columns of the keys of each table that is a view in the feature repository."""
    declared, _ = run_repository_file(model.feature_model, feature_spec(model))
    return {table: declared.keys(view) for table, view in declared.tables.items()} if declared else {}


def _locate_feature_fault(fault: FeatureFault, model: ModelSpec) -> ModelFault:
    """Return a fault with the line of `features.py` that names its column, else its table, else that of `build`."""
    file = model_folder(model.feature_model) / _FEATURES_FILE
    places = (locate_alias(file, column) or locate_text(file, column) for column in fault.columns)
    tables = (locate_text(file, table) for table in fault.tables)
    line = next(filter(None, (*places, *tables)), None) or locate_function(file, "build")
    return ModelFault(file, line, fault.location, fault.problem, fault.fix)


def training_window(model: ModelSpec, period: str) -> tuple[Window, Duration]:
    """Return the periods to try a model on as of the end of `period`, and how long it learns, and is judged.

    That is one period each, or a day of shorter ones. As of a retrain, labels are known in time; with a `label_delay`,
    `period` itself comes after those.
    """
    spec = feature_spec(model)
    calendar, length = spec.calendar, max(Duration.parse(spec.period), Duration(1, "d"), key=lambda d: d.length)
    end = calendar.period_before(calendar.shift(period, 1), model.label_delay)
    judged = calendar.period_before(end, length)
    learned_end = calendar.period_before(judged, model.label_delay)
    learned = calendar.period_before(learned_end, length)
    periods = {*calendar.periods_between(learned, learned_end), *calendar.periods_between(judged, end), period}
    return Window(tuple(sorted(periods)), RunReason.MANUAL, calendar), length


def periods_before(spec: FeatureSpec, window: Window, served: Mapping[str, ServedAfter]) -> list[str]:
    """Return the periods of which the rows of `window` have features: views may be dated at the end of their period.

    They are those right before each of the window's stretches, and more where views are `served` late.
    """
    calendar = spec.calendar
    delays = [calendar.end(window.start) - calendar.start(window.start)]
    delays += [delays[0] + delay.delay.length for delay in served.values()]
    earlier = set[str]()
    for period in window.periods:
        first = max(calendar.period_at(calendar.start(period) - max(delays)), spec.first_period)
        earlier.update(calendar.periods_between(first, period))
    return sorted(earlier - {*window.periods})


def _try_training(
    trial: Trial, fingerprints: Mapping[str, str], folders: Mapping[str, str], with_properties: bool
) -> None:
    (window, length), spec = training_window(trial.model, trial.period), feature_spec(trial.model)
    if window.start < spec.first_period:
        trial.skip_step(
            "training", f"it would learn from {window.start}, and there is no data before {spec.first_period}"
        )
        return
    earlier_periods = [
        period
        for period in periods_before(spec, window, declared_serving(trial.model.feature_model))
        if not inputs.find_missing_raw_files(spec, inputs.raw_files_for_periods(spec, [period]))
    ]
    other_periods = sorted({*window.periods, *earlier_periods} - {trial.period})
    if missing := inputs.find_missing_raw_files(spec, inputs.raw_files_for_periods(spec, other_periods)):
        names = ", ".join(sorted({file.name for file in missing})[:_MAX_NAMES])
        trial.skip_step("training", f"it would learn from {window.start} on, of which raw files are missing: {names} …")
        return
    model = trial.model.model_copy(update={"train": length, "holdout": length})
    manifests: dict[str, datasets.Manifest] = {}

    def make_training_set() -> str:
        validated = checks.validate_raw_files(model, other_periods)
        built = checks.validate_features(model, build.build_features(model, validated))
        pipeline.publish_features(model, {**fingerprints, **validated}, {**folders, **built})
        examples = manifests["training set"] = training_sets.build_training_set(model, window)
        with suppress(EvergreenError, OSError):  # the gate that needs the online store says what is missing
            online_store.materialize_features(model, window)
        learned, judged = (examples.files[name].rows or 0 for name in ("train", "holdout"))
        counts = f"{count_of(learned, 'row')} to learn from, {judged:,} to judge on, from {window.start} on"
        features = inputs.features_dataset(model)
        learned_from = features.manifest(datasets.period_partition(window.start))
        delays = label_delays(features.file_path(learned_from, spec.spine)) if learned_from else None
        if delays and not learned:
            trial.faults.append(_describe_late_labels(model, window.start, delays[0]))
        learned_file = training_sets.training_set_dataset(model).file_path(examples, "train")
        leaks = find_suspected_leaks(model, learned_file)
        suspicions = [_describe_leaks(leaks)] if leaks else []
        features_only = training_sets.model_input_columns(model)[len(model.request_columns) :]
        if empty_views := find_empty_views(learned_file, features_only):
            suspicions.append(_describe_empty_views(empty_views))
        if delays and delays[1] < model.label_delay.length / 2:
            suspicions.append(_describe_early_labels(model, delays[1]))
        newest = features.manifest(datasets.period_partition(trial.period))
        assert newest is not None  # just published
        views = {name: features.file_path(newest, name) for name in spec.views}
        declared = declared_serving(model.feature_model)
        undeclared = {name: file for name, file in views.items() if name not in declared}
        if early := find_views_dated_early(features.file_path(newest, spec.spine), undeclared):
            suspicions.append(_describe_early_views(early, spec.calendar.unit))
        return ". ".join([counts, *suspicions])

    def train() -> str:
        dataset, columns = training_sets.training_set_dataset(model), training_sets.model_input_columns(model)
        candidate = manifests["candidate"] = process.train_in_process(
            model, manifests["training set"], dataset, columns
        )
        return ", ".join(name for name in candidate.files if name != RESULT_FILE)

    def judge() -> str:
        evidence = evaluation.collect_evidence(model, manifests["training set"], manifests["candidate"], None)
        verdict = judge_evidence(model.gates, evaluation.load_evidence(model, evidence))
        verdict = describe_trial_verdict(verdict, spec.calendar.unit)
        trial.report(verdict=verdict.model_dump(mode="json"))
        computed = sum(result.outcome != "not_computed" for result in verdict.results)
        note = "; that the others need more is no fault" if computed < len(verdict.results) else ""
        return f"{computed} of {len(verdict.results)} can be computed on so few rows{note}"

    def resume_training() -> str:
        faults, detail = find_resuming_faults(model, manifests["training set"], manifests["candidate"])
        trial.faults += faults
        return detail

    def damage_champion() -> str:
        evidence = evaluation.collect_evidence(model, manifests["training set"], manifests["candidate"], None)
        faults, detail = find_mutation_faults(model.kind, model.gates, evaluation.load_evidence(model, evidence))
        trial.faults += map(ModelFault.from_fault, faults)
        return detail

    for name, step in (("training set", make_training_set), ("training", train), ("gates", judge)):
        if not trial.run_step(name, step):
            return
    if with_properties:
        trial.run_step("resumed training", resume_training)
        trial.run_step("mutated champion", damage_champion)


def describe_trial_verdict(verdict: Verdict, unit: str) -> Verdict:
    """Return the verdict of a trial, where what needs more days is not said to need another holdout of the model."""

    def describe(result: GateResult) -> GateResult:
        reason = result.reason
        for advice in HOLDOUT_ADVICE:
            reason = reason.replace(advice, f"; a trial on one {unit} has no more, which is no fault")
        return result.model_copy(update={"reason": reason})

    results = tuple(map(describe, verdict.results))
    return verdict.model_copy(update={"results": results})


def find_suspected_leaks(model: ModelSpec, examples: Path) -> list[str]:
    """Return the inputs that alone tell the label nearly always, of a file of a training set.

    That is no fault: some labels are that easy. Mostly such an input is known only when the label is.
    """
    with open_sample(locate_sample(str(examples))) as sample:
        profile = sample.profile()
        label = profile.column(_LABEL)
        if label.distinct_count < 2:
            return []
        kind = model.kind if model.kind in MODEL_KINDS else None
        positive = resolve_leak_class(label, Choices(_LABEL, kind=kind))
        relations = sample.relations(_LABEL, positive)
        inputs_of_model = training_sets.model_input_columns(model)
        return [name for name in inputs_of_model if name in relations and relations[name].is_leak]


def find_empty_views(examples: Path, features: Sequence[str]) -> list[str]:
    """Return the views, of `features` named `view__feature`, of which no example has a value, though there are some."""
    metadata = pq.read_metadata(examples)
    values: dict[str, int] = {}
    for name in features:
        column = pq.read_table(examples, columns=[name]).column(0)
        view = name.partition("__")[0]
        values[view] = values.get(view, 0) + len(column) - column.null_count
    return [view for view, count in values.items() if not count] if metadata.num_rows else []


def label_delays(spine: Path) -> tuple[timedelta, timedelta] | None:
    """Return how long after its row a label is known, at least and at most; None if the file has no such label."""
    columns = pq.read_table(spine, columns=["event_timestamp", "label_known_at"])
    made_at, known_at = (column.cast(pa.timestamp("us", "UTC")) for column in columns.columns)
    delays = pc.subtract(known_at, made_at).cast(pa.int64())  # a range of durations is not computed
    shortest, longest = (function(delays).cast(pa.duration("us")).as_py() for function in (pc.min, pc.max))
    return None if shortest is None else (shortest, longest)


def find_views_dated_early(spine: Path, views: Mapping[str, Path]) -> list[str]:
    """Return the views of which rows of a period are newer than what its own examples could have been asked with.

    A period is published when it is over. Until then requests get what the periods before it say, and so does a
    training set only if the rows of a view are dated after the examples of their period.
    """
    last_example = _edge_timestamp(spine, pc.max)
    first_rows = {name: _edge_timestamp(file, pc.min) for name, file in views.items()}
    return [name for name, first_row in first_rows.items() if last_example and first_row and first_row <= last_example]


def _edge_timestamp(file: Path, function: Callable[[pa.ChunkedArray], pa.Scalar]) -> datetime | None:
    column = pq.read_table(file, columns=["event_timestamp"]).column(0)
    return function(column.cast(pa.timestamp("us", "UTC"))).as_py()


def _describe_early_views(names: Sequence[str], unit: str) -> str:
    listed = join_names(map(repr, names))
    return (
        f"Served later than learned: rows of {listed} are dated before their {unit} is over, which is when they are "
        f"published, so a request gets older ones than its training row has. Date them at the end of the {unit}, or "
        "declare served_after in feature_source"
    )


def _describe_empty_views(names: Sequence[str]) -> str:
    listed = join_names(map(repr, names))
    return (
        f"No row to learn from has a value of {listed}: the model learns nothing of it here. Is it of the same keys, "
        "dated before the rows, and not older than its ttl?"
    )


def _describe_early_labels(model: ModelSpec, delay: timedelta) -> str:
    return (
        f"Labels are known {delay} after their rows at most, and label_delay is {model.label_delay}: one of both is "
        "wrong, and a label_known_at that is too early is a leak"
    )


def _describe_late_labels(model: ModelSpec, period: str, delay: timedelta) -> ModelFault:
    problem = f"label_delay is {model.label_delay}, and no label of {period} is known before {delay} after its row"
    fix = "set label_delay to the time until labels are complete, or correct label_known_at in features.py"
    return spec_fault(model, "label_delay", problem, fix)


def _describe_leaks(names: Sequence[str]) -> str:
    listed = join_names(map(repr, names))
    return f"Suspected leak: {listed} alone tells the label. Remove it unless it is known when a prediction is made"


def count_of(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def describe_step_error(error: Exception, model: ModelSpec) -> Iterator[ModelFault]:
    """Yield what a step that raised `error` has found, in the words of a trial."""
    if isinstance(error, FaultsError):
        yield from map(ModelFault.from_fault, _join_alike(error.faults))
    elif isinstance(error, EvergreenError):
        yield ModelFault(None, None, "", str(error), "")
    else:
        code_fault = describe_code_error(error, model_folder(model.feature_model) / _FEATURES_FILE)
        if isinstance(error, AnalysisException) and error.getCondition() in _UNKNOWN_COLUMN:
            code_fault = _describe_unknown_column(error, code_fault)
        place = _call_site(error) if code_fault.line is None and isinstance(error, PySparkException) else None
        yield replace(code_fault, file=place[0], line=place[1]) if place else code_fault


def _join_alike(faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults, one of those that differ in their file and in their numbers only: a column in many files."""
    alike: dict[tuple[str, ...], list[Fault]] = {}
    for fault in faults:
        file, separator, column = fault.location.rpartition(": ")
        if not separator and "/" in fault.location:  # a fault of a whole file
            separator, file, column = "/", fault.location, _without_numbers(fault.location)
        without_numbers = _without_numbers(fault.problem.partition(", such as ")[0])
        kind = (column, without_numbers, fault.fix) if separator else (fault.location, fault.problem, fault.fix)
        group = alike.setdefault(kind, [])
        if any(member.location == fault.location for member in group):  # two rules for one column
            group = alike.setdefault((*kind, file, fault.problem), [])
        group.append(replace(fault, fix=fault.fix.removesuffix(_RUN_FIX)))
    return [
        replace(first, problem=f"{first.problem}; so it is in {count_of(len(repeats), 'other file')}")
        if repeats
        else first
        for first, *repeats in alike.values()
    ]


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*", "#", text)


def _describe_unknown_column(error: AnalysisException, fault: ModelFault) -> ModelFault:
    """Return the fault of a column that is not there, without the words of Spark."""
    parameters = error.getMessageParameters() or {}
    name = parameters.get("objectName", "").strip("`")
    names = [text.strip().strip("`") for text in parameters.get("proposal", "").split("`, `")]
    problem = f"there is no column {name!r} here; the most similar are {join_names(filter(None, names))}"
    line = (locate_text(fault.file, name) if fault.file else None) or fault.line
    return replace(fault, line=line, problem=problem, fix=suggest(name, names, "name a column that is there"))


def _call_site(error: PySparkException) -> tuple[Path, int] | None:
    """Return the line of the column whose values Spark has failed to compute, if it knows it."""
    for context in error.getQueryContext() or ():
        file, _, line = (
            context.callSite().rpartition(":") if context.contextType().name == "DataFrame" else ("", "", "")
        )
        if line.isdecimal():
            return Path(file), int(line)
    return None


@contextmanager
def _own_output() -> Iterator[TextIO]:
    """Yield the standard output; whatever else writes to it, such as user code, writes to the standard error."""
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        yield output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("period")
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--features-only", action="store_true")
    scope.add_argument("--with-properties", action="store_true", help="also train again, and judge a damaged model")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_ENDED))  # so that what it has started is ended, too
    with _own_output() as output:
        trial = Trial(load_spec(arguments.model), arguments.period, output)
        run_steps(trial, features_only=arguments.features_only, with_properties=arguments.with_properties)
        trial.report(faults=[fault.to_json() for fault in trial.faults])


if __name__ == "__main__":
    main()
