"""Faults of `model.py`: of the spec itself, of its sources, and of what it names elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from evergreen.cli.check.locations import (
    ModelFault,
    describe_code_error,
    find_field,
    join_names,
    locate_field,
    suggest,
)
from evergreen.errors import Fault, SpecError
from evergreen.settings import settings, variable_name
from evergreen.spec import NAME_PATTERN
from evergreen.spec.gates import METRIC_SCALES, CustomGate, MetricGate
from evergreen.spec.loader import SPEC_FILE, feature_spec, load_spec, model_folder, model_names
from evergreen.spec.model import FeatureSpec, ModelSpec
from evergreen.spec.origins import RawFiles, RawQuery, RawTable
from evergreen.spec.parts import GATE_CLASSES, PARTS

_GATE_FIELDS = sorted({field for gate in GATE_CLASSES.values() for field in gate.model_fields})
_EXTRA, _MISSING = "extra inputs are not permitted", "field required"
_QUOTED = re.compile(r"'([^']+)'")
_INPUT = re.compile(r", got '([^']+)'$")
_TAG = re.compile(r"input tag '([^']*)' found using 'kind'")
_WORD = re.compile(r"[\w\[\]]+")
_WRITTEN_FIX = re.compile(
    r": ((?:write|declare|leave|drop|rename|raise|swap|take|name|choose|give|set|list|add|correct|remove)\b.*)$"
)
_NAME_PATTERN, _CHOICE = f"should match pattern '^{NAME_PATTERN}$'", "input should be '"
_SPEC_FIX = "correct it: the reference of the spec has all fields"

_FORMATS = {
    "parquet": "parquet",
    "orc": "orc",
    "csv": "csv",
    "tsv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
}
_COMPRESSIONS = ("gz", "gzip", "zst", "zstd")
_LITERAL_WILDCARDS = "?[{"


def read_spec(name: str) -> tuple[ModelSpec | None, list[ModelFault]]:
    """Return the spec of a model, or its faults."""
    try:
        file = model_folder(name) / SPEC_FILE
    except SpecError as error:
        return None, [ModelFault(None, None, fault.location, fault.problem, fault.fix) for fault in error.faults]
    try:
        spec = load_spec(name)
    except SpecError as error:
        if error.__cause__:
            return None, [describe_code_error(error.__cause__, file)]
        return None, [_locate_fault(file, fault) for fault in _join_misspelled(error.faults)]
    try:
        feature_spec(spec)
    except SpecError as error:
        if error.subject == f"model {name}":
            return None, [_locate_fault(file, fault) for fault in error.faults]
        problem = f"{error.subject} builds its features, and is invalid"
        fix = f"evergreen check {spec.feature_model}"
        if spec.feature_model not in model_names():
            problem, fix = f"there is no model {spec.feature_model!r}", error.faults[0].fix
        return None, [ModelFault(*locate_field(file, "features"), "features", problem, fix)]
    return spec, []


def _locate_fault(file: Path, fault: Fault) -> ModelFault:
    if fault.location == str(file):
        return ModelFault(file, None, "", fault.problem, fault.fix)
    path = fault.location.removeprefix(f"{file}: ")
    problem, fix = fault.problem, fault.fix
    # What a class of the spec has found, it says in one sentence.
    if match := _WRITTEN_FIX.search(problem) if not fix else None:
        problem, fix = problem[: match.start()], match[1]
        fix = suggest(_first_word(problem), _WORD.findall(fix), fix) if "one of" in fix else fix
    if field := find_field(file, path, {_first_word(problem), *_QUOTED.findall(problem)}):
        path, problem = f"{path}.{field}" if path else field, problem.removeprefix(f"{field}: ")
    return ModelFault(*locate_field(file, path), path, problem, fix or _suggest_word(problem))


def _first_word(problem: str) -> str:
    return problem.partition(" ")[0].rstrip(":").strip("'")


def _join_misspelled(faults: Sequence[Fault]) -> Iterator[Fault]:
    """Yield the faults: a field with a typo names the one that is meant, and that one is not also missing."""
    required = {fault.location for fault in faults if fault.problem.startswith(_MISSING)}
    corrected = set()
    results = []
    for fault in faults:
        if fault.problem.startswith(_EXTRA):
            parent, _, name = fault.location.rpartition(".")
            absent = {path for path in required if path.rpartition(".")[0] == parent}
            siblings = {path.rpartition(".")[2]: path for path in absent}
            similar = get_close_matches(name, siblings, n=1) or get_close_matches(name, _fields_of(parent), n=1)
            corrected |= {siblings[field] for field in similar if field in siblings}
            names = join_names(_fields_of(parent))
            fix = f"did you mean {similar[0]!r}?" if similar else f"remove it: the fields here are {names}"
            results.append(Fault(fault.location, "there is no such field", fix))
        elif match := _TAG.match(fault.problem):
            kinds = list(GATE_CLASSES)
            problem = f"{match[1]!r} is no kind of gate; there are {', '.join(kinds)}"
            results.append(Fault(f"{fault.location}.kind", problem, suggest(match[1], kinds, "write one of them")))
        else:
            results.append(fault)
    yield from (fault for fault in results if fault.location not in corrected)


def _fields_of(path: str) -> list[str]:
    parts = tuple(part for part in path.split(".") if part and not part.isdecimal())
    if parts[:1] == ("gates",):
        return _GATE_FIELDS
    if parts[:3] == ("features", "sources", "columns"):
        parts = parts[:3]  # what follows is the name of a column
    return list(PARTS[parts].model_fields) if parts in PARTS else []


def _suggest_word(problem: str) -> str:
    """Return the fix for a problem that names what was written, and what may be: the word that is like it."""
    if _NAME_PATTERN in problem:
        return "write a–z, 0–9 and _, with a letter first"
    if match := _INPUT.search(problem) or _QUOTED.search(problem):
        own_words = _WORD.findall(match[1])
        words = [word for word in _WORD.findall(problem) if word not in own_words]
        return suggest(match[1], words, "write one of them" if _CHOICE in problem else _SPEC_FIX)
    return _SPEC_FIX


def find_source_faults(model: ModelSpec, spec: FeatureSpec) -> Iterator[ModelFault]:
    """Yield connections that are not set, and paths that no file of the source's format has."""
    for number, source in enumerate(spec.sources):
        origin, path = source.origin, f"features.sources.{number}"
        if isinstance(origin, RawQuery):
            yield from _connection_faults(model, origin.connection, f"{path}.query.connection")
        elif isinstance(origin, RawTable):
            yield from _connection_faults(model, origin.catalog, f"{path}.table.catalog")
        else:
            yield from _path_faults(model, origin, f"{path}.files.path")


def _connection_faults(model: ModelSpec, name: str | None, path: str) -> Iterator[ModelFault]:
    connections = settings().connections
    if name and name not in connections:
        variables = join_names(variable_name("connections", key) for key in connections)
        fix = suggest(name, connections, "set it to the URL of the database")
        yield spec_fault(model, path, f"{variable_name('connections', name)} is not set; set are {variables}", fix)


def _path_faults(model: ModelSpec, files: RawFiles, path: str) -> Iterator[ModelFault]:
    if literal := sorted(set(_LITERAL_WILDCARDS) & set(files.path)):
        problem = f"{files.path!r} has {literal[0]}, which stands for itself: no usual name has it"
        yield spec_fault(model, path, problem, "only * stands for other characters: write * there")
    endings = files.path.rpartition("/")[2].lower().split(".")[1:]
    is_compressed = bool(endings) and endings[-1] in _COMPRESSIONS
    if is_compressed:
        endings.pop()
    ending = endings[-1] if endings else ""
    if ending in _FORMATS and _FORMATS[ending] != files.format:
        problem = f"{files.path!r} names files of .{ending}, and format is {files.format!r}"
        yield spec_fault(model, path, problem, f"write format={_FORMATS[ending]!r}, or correct the path")
    elif is_compressed and files.format not in ("csv", "jsonl"):
        problem = f"{files.path!r} names compressed files, and format is {files.format!r}"
        yield spec_fault(model, path, problem, "only CSV and JSON lines may be compressed: correct path or format")


def find_gate_faults(model: ModelSpec) -> Iterator[ModelFault]:
    """Yield metrics that are for other labels than those of the other gates, and functions that do not exist."""
    types: dict[str, list[int]] = {}
    for number, gate in enumerate(model.gates):
        if isinstance(gate, MetricGate):
            if ":" not in gate.metric and model.kind is None:  # of a declared kind, the spec itself is checked
                types.setdefault("binary" if gate.scale.label_type == "binary" else "number", []).append(number)
            elif ":" in gate.metric:
                yield from _function_faults(model, gate.metric, f"gates.{number}.metric")
        elif isinstance(gate, CustomGate):
            yield from _function_faults(model, gate.function, f"gates.{number}.function")
    if len(types) > 1:
        kind, numbers = min(types.items(), key=lambda item: len(item[1]))
        labels = {"binary": "0 or 1", "number": "amounts or counts"}
        [usual_kind] = types.keys() - {kind}
        for number in numbers:
            metric = getattr(model.gates[number], "metric", "")
            metrics = join_names(getattr(model.gates[n], "metric", "") for n in types[usual_kind])
            problem = f"{metric} is for labels that are {labels[kind]}; {metrics} are for {labels[usual_kind]}"
            is_fit = [
                name
                for name, scale in METRIC_SCALES.items()
                if ("regression" if kind == "binary" else "binary") in scale.kinds
            ]
            fix = f"the label is one of the two: write one of {', '.join(is_fit)} here, or correct the others"
            yield spec_fault(model, f"gates.{number}.metric", problem, fix)


def _function_faults(model: ModelSpec, path: str, field: str) -> Iterator[ModelFault]:
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        located = describe_code_error(error, model_folder(model.name) / SPEC_FILE)
        problem = f"{module_name} cannot be imported: {located.problem}"
        if located.line and located.file:
            problem += f" ({located.file}, line {located.line})"
        yield spec_fault(model, field, problem, "correct it, or the name of the function's module")
        return
    if not callable(getattr(module, name, None)):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        problem = f"{module_name} has no function {name!r}; it has {join_names(names)}"
        yield spec_fault(model, field, problem, suggest(name, names, "define it there"))


def find_library_faults(model: ModelSpec) -> Iterator[ModelFault]:
    """Yield training libraries that the trainer's lock file lacks."""
    from evergreen.training.candidates import pinned_library_versions  # imports pyarrow

    try:
        pinned_library_versions(model)
    except SpecError as error:
        for fault in error.faults:
            yield spec_fault(model, fault.location, fault.problem, fault.fix)


def spec_fault(model: ModelSpec, path: str, problem: str, fix: str) -> ModelFault:
    """Return a fault of the field `path` of a valid spec."""
    return ModelFault(*locate_field(model_folder(model.name) / SPEC_FILE, path), path, problem, fix)
