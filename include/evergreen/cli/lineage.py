"""`evergreen lineage`: a version of a model as a tree, down to the raw files that it was made from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from evergreen import lineage
from evergreen.cli.options import print_json
from evergreen.cli.tables import format_time
from evergreen.lake import datasets
from evergreen.lake.datasets import Manifest
from evergreen.ledger import VerdictRecorded
from evergreen.lineage import ChampionSpan, FeaturePeriod, Lineage, PredictedPeriod, RawFileCheck

_DIGITS = 12
_MAX_RANGES = 5  # of periods in one line
_PERIOD = re.compile(r"-\d{4}-\d\d.*$")  # in the name of a raw file


def show_lineage(model: str, version: str | None, console: Console, with_files: bool, as_json: bool) -> None:
    """Print what a version was made from; `with_files`: also the hash of every raw file."""
    trace = lineage.trace_version(model, version)
    if as_json:
        print_json(console, _lineage_record(trace))
        return
    tree = Tree(_line(f"{trace.model} version {trace.version}: model {trace.content[:_DIGITS]}"))
    _add_verdict(tree, trace.verdict_entry, trace.verdict)
    for span in trace.champion or (None,):
        tree.add(_line(_champion_line(span)))
    tree.add(_line(_predictions_line(trace.predictions)))
    branch = tree
    if candidate := trace.candidate:
        files = ", ".join(f"{name} {sha256[:_DIGITS]}" for name, sha256 in trace.verdict.candidate_files.items())
        branch = tree.add(_line(f"candidate {candidate.fingerprint[:_DIGITS]}: {files}"))
        code = candidate.inputs["code"]
        libraries = ", ".join(f"{name} {number}" for name, number in code["libraries"].items())
        branch.add(_line(f"trained by {len(code['modules'])} modules with {libraries or 'no library'}"))
    if trace.training_set and trace.feature_model:
        branch = branch.add(_line(_training_set_line(trace.training_set)))
        _add_features(branch, trace.feature_model, trace.features, trace.checks, with_files)
    for problem in trace.problems:
        branch.add(_line(problem, style="yellow"))
    console.print(tree, soft_wrap=False)


def show_prediction_lineage(model: str, period: str, console: Console, with_files: bool, as_json: bool) -> None:
    """Print what the batch predictions of a period were made from."""
    trace = lineage.trace_predictions(model, period)
    if as_json:
        features = [asdict(feature) for feature in trace.features]
        record = {"model": model, "predictions": asdict(trace.predictions), "features": features}
        print_json(console, {**record, "checks": [asdict(check) for check in trace.checks]})
        return
    rows = sum(file.rows or 0 for file in trace.predictions.files.values())
    tree = Tree(_line(f"{model}: {rows:,} predictions of {period}: {trace.predictions.content_hash[:_DIGITS]}"))
    advice = f"`evergreen lineage {model} {trace.version}` shows what it was made from"
    tree.add(_line(f"version {trace.version}: model {trace.content[:_DIGITS]}; {advice}"))
    _add_features(tree, trace.feature_model, trace.features, trace.checks, with_files)
    console.print(tree, soft_wrap=False)


def fold_periods(periods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the first and last period of each run of neighbours; `periods` are in order.

    The model and its calendar may be gone, so neighbours are as far apart as the two nearest. A period that is no date
    or instant is alone.
    """
    times = [_parse_period(period) for period in periods]
    gaps = [later - earlier if earlier and later else None for earlier, later in pairwise(times)]
    step = min(filter(None, gaps), default=timedelta())
    starts = [0, *(place for place, gap in enumerate(gaps, 1) if gap != step)] if periods else []
    return [(periods[first], periods[end - 1]) for first, end in pairwise([*starts, len(periods)])]


def _line(text: str, style: str = "") -> Text:
    """Return `text` as one line, in which whatever a manifest says moves no cursor."""
    return Text("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text), style=style)


def _add_verdict(tree: Tree, entry: int, event: VerdictRecorded) -> None:
    outcome = "may be promoted" if event.verdict.promote else "not promoted"
    line = f"judged as of {event.judged_as_of}, in entry {entry} of the ledger, by {event.run}: {outcome}"
    node = tree.add(_line(line))
    for result in event.verdict.results:
        style = "" if result.outcome == "passed" else "yellow"
        node.add(_line(f"gate {result.gate} {result.outcome.replace('_', ' ')}: {result.reason}", style=style))
    for kind, path in event.evidence.items():
        node.add(_line(f"{kind}: {datasets.lake_path(path)}"))


def _champion_line(span: ChampionSpan | None) -> str:
    if span is None:
        return "was never champion"
    end = format_time(span.end) if span.end else "now"
    reason = f"{span.event.kind.replace('_', ' ')} in entry {span.entry} of the ledger"
    return f"champion from {format_time(span.since)} until {end} (UTC), {reason}"


def _predictions_line(periods: Sequence[PredictedPeriod]) -> str:
    if not periods:
        return "no published batch predictions"
    return f"{sum(period.rows for period in periods):,} predictions: {_span([period.period for period in periods])}"


def _training_set_line(training_set: Manifest) -> str:
    inputs, files = training_set.inputs, training_set.files
    rows = ", ".join(f"{files[name].rows or 0:,} rows {name}" for name in ("train", "holdout") if name in files)
    span = f"{inputs['start']} – {inputs['as_of']}, known before {inputs['known_before']}"
    return f"training set {training_set.content_hash[:_DIGITS]}: {span}; {rows}"


def _add_features(
    branch: Tree,
    feature_model: str,
    periods: Sequence[FeaturePeriod],
    checks: Sequence[RawFileCheck],
    with_files: bool,
) -> None:
    branch = branch.add(_line(f"features of {feature_model}: {_span([period.period for period in periods])}"))
    by_code, by_problem = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for period in periods:
        if period.problem:
            by_problem[period.problem.partition(",")[0]].append(period.period)
        elif period.code:
            by_code[period.code].append(period.period)
    for code, names in by_code.items():
        branch.add(_line(f"built by code {code[:_DIGITS]}" + (f": {_span(names)}" if len(by_code) > 1 else "")))
    for problem, names in by_problem.items():
        branch.add(_line(f"{_span(names)}: {problem}, their raw files are not known any more", style="yellow"))
    sources: dict[str, dict[str, set[str | None]]] = defaultdict(dict)
    for name, hashes in lineage.raw_file_hashes(periods).items():
        sources[_PERIOD.sub("", name)][name] = hashes
    for source, files in sources.items():
        absent = sum(hashes == {None} for hashes in files.values())
        versions = sum(len(hashes - {None}) for hashes in files.values())
        line = f"raw {source}: {len(files)} {'file' if len(files) == 1 else 'files'}"
        line += f", {absent} of them absent" if absent else ""
        line += f", in {versions} versions" if versions > len(files) else ""
        node = branch.add(_line(line))
        for text, is_fault in _check_lines([check for check in checks if check.name in files]):
            node.add(_line(text, style="yellow" if is_fault else ""))
        for name, hashes in files.items() if with_files else ():
            node.add(_line(f"{name} {', '.join(sorted(sha256 or 'absent' for sha256 in hashes))}"))


def _check_lines(checks: Sequence[RawFileCheck]) -> Iterator[tuple[str, bool]]:
    """Yield what reports of expectations say about the files of a source, and whether it is a fault."""
    met = [check for check in checks if check.faults == 0]
    if met:
        expectations = sum(check.expectations or 0 for check in met)
        yield f"expectations: {expectations:,} met by {_count(len(met), 'version')}", False
    for check in checks:
        if check.faults:
            yield (
                f"{check.name} {check.sha256[:_DIGITS]}: {_count(check.faults, 'fault')} when it was checked last",
                True,
            )
    by_problem = defaultdict[str, int](int)
    for check in checks:
        if check.problem:
            by_problem[check.problem] += 1
    for problem, count in by_problem.items():
        yield f"expectations: not known of {_count(count, 'version')}: {problem}", False


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _span(periods: Sequence[str]) -> str:
    if len(periods) < 3:
        return ", ".join(periods) or "none"
    ranges = fold_periods(periods)
    texts = [first if first == last else f"{first} – {last}" for first, last in ranges[:_MAX_RANGES]]
    rest = f" and {len(ranges) - _MAX_RANGES:,} more" if len(ranges) > _MAX_RANGES else ""
    return f"{len(periods):,} periods, {', '.join(texts)}{rest}"


def _parse_period(period: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(period)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    except ValueError:
        return None


def _lineage_record(trace: Lineage) -> dict[str, Any]:
    return {
        "model": trace.model,
        "version": trace.version,
        "content": trace.content,
        "verdict_entry": trace.verdict_entry,
        "run": trace.verdict.run,
        "as_of": trace.verdict.judged_as_of,
        "verdict": trace.verdict.verdict.model_dump(mode="json"),
        "evidence": {kind: str(datasets.lake_path(path)) for kind, path in trace.verdict.evidence.items()},
        "champion": [
            {
                "since": span.since.isoformat(),
                "until": span.end and span.end.isoformat(),
                "entry": span.entry,
                "event": span.event.kind,
            }
            for span in trace.champion
        ],
        "predictions": [asdict(period) for period in trace.predictions],
        "candidate": trace.candidate and asdict(trace.candidate),
        "training_set": trace.training_set and asdict(trace.training_set),
        "features": [asdict(period) for period in trace.features],
        "checks": [asdict(check) for check in trace.checks],
        "problems": list(trace.problems),
    }
