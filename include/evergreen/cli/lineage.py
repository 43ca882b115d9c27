"""`evergreen lineage`: a version of a model as a tree, down to the raw files that it was made from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from evergreen import lineage
from evergreen.cli.options import print_json
from evergreen.lake.datasets import Manifest
from evergreen.lineage import FeaturePeriod, Lineage

_DIGITS = 12
_PERIOD = re.compile(r"-\d{4}-\d\d.*$")  # in the name of a raw file


def show_lineage(model: str, version: str | None, console: Console, with_files: bool, as_json: bool) -> None:
    """Print what a version was made from; `with_files`: also the hash of every raw file."""
    trace = lineage.trace_version(model, version)
    if as_json:
        print_json(console, _lineage_record(trace))
        return
    event = trace.verdict
    tree = Tree(Text(f"{trace.model} version {trace.version}: model {trace.content[:_DIGITS]}"))
    tree.add(Text(f"judged as of {event.judged_as_of}, in entry {trace.verdict_entry} of the ledger, by {event.run}"))
    branch = tree
    if candidate := trace.candidate:
        files = ", ".join(f"{name} {sha256[:_DIGITS]}" for name, sha256 in event.candidate_files.items())
        branch = tree.add(Text(f"candidate {candidate.fingerprint[:_DIGITS]}: {files}"))
        code = candidate.inputs["code"]
        libraries = ", ".join(f"{name} {number}" for name, number in code["libraries"].items())
        branch.add(Text(f"trained by {len(code['modules'])} modules with {libraries or 'no library'}"))
    if training_set := trace.training_set:
        branch = branch.add(Text(_training_set_line(training_set)))
        _add_features(branch, training_set.inputs["feature_model"], trace, with_files)
    for problem in trace.problems:
        branch.add(Text(problem, style="yellow"))
    console.print(tree, soft_wrap=False)


def _training_set_line(training_set: Manifest) -> str:
    inputs, files = training_set.inputs, training_set.files
    rows = ", ".join(f"{files[name].rows or 0:,} rows {name}" for name in ("train", "holdout"))
    span = f"{inputs['start']} – {inputs['as_of']}, known before {inputs['known_before']}"
    return f"training set {training_set.content_hash[:_DIGITS]}: {span}; {rows}"


def _add_features(branch: Tree, feature_model: str, trace: Lineage, with_files: bool) -> None:
    periods = trace.features
    branch = branch.add(Text(f"features of {feature_model}: {_span(periods)}"))
    for problem, of_problem in _group_by_problem(periods).items():
        branch.add(Text(f"{_span(of_problem)}: {problem}, their raw files are not known any more", style="yellow"))
    sources: dict[str, dict[str, set[str | None]]] = defaultdict(dict)
    for name, hashes in trace.raw_files.items():
        sources[_PERIOD.sub("", name)][name] = hashes
    for source, files in sources.items():
        absent = sum(hashes == {None} for hashes in files.values())
        versions = sum(len(hashes - {None}) for hashes in files.values())
        line = f"raw {source}: {len(files)} {'file' if len(files) == 1 else 'files'}"
        line += f", {absent} of them absent" if absent else ""
        line += f", in {versions} versions" if versions > len(files) else ""
        node = branch.add(Text(line))
        for name, hashes in files.items() if with_files else ():
            node.add(Text(f"{name} {', '.join(sorted(sha256 or 'absent' for sha256 in hashes))}"))


def _group_by_problem(periods: Sequence[FeaturePeriod]) -> dict[str, list[FeaturePeriod]]:
    groups: dict[str, list[FeaturePeriod]] = defaultdict(list)
    for period in periods:
        if period.problem:
            groups[period.problem.partition(",")[0]].append(period)
    return groups


def _span(periods: Sequence[FeaturePeriod]) -> str:
    if len(periods) == 1:
        return periods[0].period
    return f"{len(periods)} periods, {periods[0].period} – {periods[-1].period}" if periods else "none"


def _lineage_record(trace: Lineage) -> dict[str, Any]:
    return {
        "model": trace.model,
        "version": trace.version,
        "content": trace.content,
        "verdict_entry": trace.verdict_entry,
        "run": trace.verdict.run,
        "as_of": trace.verdict.judged_as_of,
        "candidate": trace.candidate and asdict(trace.candidate),
        "training_set": trace.training_set and asdict(trace.training_set),
        "features": [asdict(period) for period in trace.features],
        "problems": list(trace.problems),
    }
