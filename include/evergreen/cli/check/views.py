"""Faults of the feature repository, and of what spec, `features.py` and feature repository say about each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.cli.check.locations import (
    ModelFault,
    describe_code_error,
    join_names,
    locate_definition,
    locate_field,
    locate_function,
    locate_text,
    missing_file_fault,
    suggest,
)
from evergreen.cli.check.modules import BuiltTables
from evergreen.cli.check.specs import spec_fault
from evergreen.errors import EvergreenError, Fault, SpecError
from evergreen.features import definitions as feature_definitions
from evergreen.lake.datasets import PERIOD_COLUMN
from evergreen.settings import settings
from evergreen.spec.gates import (
    DAY_CLUSTER,
    PRIOR_BASELINE,
    BaselineGate,
    BySliceGate,
    CustomGate,
    FairnessGate,
    MetricGate,
)
from evergreen.spec.loader import SPEC_FILE, model_folder
from evergreen.spec.model import FeatureSpec, ModelSpec

if TYPE_CHECKING:
    from feast import FeatureService, FeatureView

_STORE_FILE = "feature_store.yaml"
_EVENT_TIME, _LABEL, _LABEL_TIME = "event_timestamp", "label", "label_known_at"
_ADDED_COLUMNS = ("day", PERIOD_COLUMN, _LABEL)
"""Columns of a holdout that Evergreen adds to those of the spine and the features."""
_KEPT_COLUMNS = (_EVENT_TIME, PERIOD_COLUMN, "day")
"""Columns that a table of a view has besides keys and features."""
_PLAIN_NAME = re.compile(r"\w+")


@dataclass(frozen=True)
class Definitions:
    """What a file of the feature repository declares."""

    file: Path
    items: Sequence[Any] = ()

    @cached_property
    def views(self) -> Mapping[str, FeatureView]:
        from feast import FeatureView

        return {item.name: item for item in self.items if type(item) is FeatureView}

    @cached_property
    def services(self) -> Mapping[str, FeatureService]:
        from feast import FeatureService

        return {item.name: item for item in self.items if isinstance(item, FeatureService)}

    @cached_property
    def entities(self) -> Mapping[str, Any]:
        from feast import Entity

        return {item.name: item for item in self.items if isinstance(item, Entity)}

    @cached_property
    def tables(self) -> Mapping[str, FeatureView]:
        """The views by the tables that they read, also those of a class that is refused."""
        return {item.batch_source.name: item for item in self.items if getattr(item, "batch_source", None)}

    @cached_property
    def hidden_views(self) -> Mapping[str, FeatureService]:
        """The services of views that are in no variable of the file, by the names of these views."""
        names = {item.name for item in self.items}
        services = {
            view.name: service for service in self.services.values() for view in service.feature_view_projections
        }
        return {name: service for name, service in services.items() if name not in names}

    def keys(self, view: FeatureView) -> Sequence[str]:
        return list(feature_definitions.key_types(view, self.items))

    def line(self, item: Any) -> int | None:
        return locate_definition(self.file, type(item).__name__, item.name)

    def input_columns(self, service: str) -> list[str]:
        """Return the features of a service, as `view__feature`."""
        projections = self.services[service].feature_view_projections
        return [f"{view.name_to_use()}__{feature.name}" for view in projections for feature in view.features]


def run_repository_file(feature_model: str, spec: FeatureSpec | None) -> tuple[Definitions | None, list[ModelFault]]:
    """Return what the model's file in the feature repository declares, and faults of the file alone.

    Without a spec, whether a column of a table has one type cannot be told.
    """
    folder = settings().feature_repo
    file = folder / f"{feature_model}.py"
    faults = []
    if not (folder / _STORE_FILE).is_file():
        fix = "copy feature_repo/feature_store.yaml from a checkout of Evergreen: it needs no change"
        faults.append(ModelFault(folder / _STORE_FILE, None, "", "no such file, and Feast needs it", fix))
    if not file.is_file():
        return None, [*faults, missing_file_fault(file, "defines entities, feature views and the feature service")]
    try:
        items = feature_definitions.run_definitions(feature_model)
    except EvergreenError as error:
        return None, [*faults, describe_code_error(error.__cause__ or error, file)]
    declared = Definitions(file, items)
    declaration_faults = feature_definitions.find_definition_faults(items)
    if spec and not declaration_faults:
        try:
            feature_definitions.column_types(feature_model, items)
        except SpecError as error:
            declaration_faults = list(error.faults)
    faults += [_locate_declaration(declared, fault) for fault in declaration_faults]
    return declared, [*faults, *_entity_faults(declared), *_source_faults(declared, feature_model)]


def _locate_declaration(declared: Definitions, fault: Fault) -> ModelFault:
    view, _, column = fault.location.removeprefix("view ").partition(".")
    items = [item for item in declared.items if item.name == view]
    line = locate_text(declared.file, column) if column else None
    line = line or next((declared.line(item) for item in items), None)
    return ModelFault(declared.file, line, fault.location, fault.problem, fault.fix)


def _entity_faults(declared: Definitions) -> Iterator[ModelFault]:
    """Yield entities and views that are used, and that the file does not define where Evergreen looks for them."""
    from feast.feature_view import DUMMY_ENTITY_NAME

    fix = "assign it to a variable of the file, or to a list in one"
    for view in declared.views.values():
        for name in view.entities:
            if name not in declared.entities and name != DUMMY_ENTITY_NAME:
                problem = (
                    f"its entity {name!r} is in no variable of the file; entities are {join_names(declared.entities)}"
                )
                fix_name = suggest(name, declared.entities, fix)
                yield ModelFault(declared.file, declared.line(view), f"view {view.name}", problem, fix_name)
    for name, service in declared.hidden_views.items():
        problem = f"its view {name!r} is in no variable of the file; views are {join_names(declared.views)}"
        line = locate_definition(declared.file, "FeatureView", name) or declared.line(service)
        yield ModelFault(declared.file, line, f"service {service.name}", problem, fix)


def _source_faults(declared: Definitions, feature_model: str) -> Iterator[ModelFault]:
    """Yield views that read something else than what the model publishes."""
    from evergreen.feature_store.repository import feature_source

    for view in declared.views.values():
        table = view.batch_source.name if view.batch_source else view.name
        expected = feature_source(feature_model, table)
        path = getattr(view.batch_source, "path", None)
        if type(view.batch_source) is not type(expected) or path != getattr(expected, "path", None):
            problem = f"reads {path or type(view.batch_source).__name__}, which this model does not publish"
            fix = f"write source=feature_source({feature_model!r}, {table!r})"
            yield ModelFault(declared.file, declared.line(view), f"view {view.name}", problem, fix)


def find_table_faults(
    model: ModelSpec, spec: FeatureSpec, declared: Definitions | None, built: BuiltTables
) -> Iterator[ModelFault]:
    """Yield tables that one of spec, `features.py` and feature repository names, and another lacks."""
    features_file, spec_file = model_folder(model.name) / "features.py", model_folder(model.name) / SPEC_FILE
    places: list[tuple[str, Path, int | None, set[str]]] = []
    if declared:
        places.append(("defines no view over", declared.file, None, {*declared.tables, *declared.hidden_views}))
    if built.is_complete:
        line = locate_function(features_file, "build")
        places.append(("builds no table", features_file, line, set(built.columns) - {spec.spine}))
    explained: set[str] = set()
    extra = set().union(*(names for *_, names in places)) - {*spec.views, spec.spine}
    if built.is_complete and spec.spine not in built.columns:
        similar = get_close_matches(spec.spine, extra, n=1)
        explained |= set(similar)
        problem = f"features.py builds no table {spec.spine!r}; it builds {join_names(built.columns)}"
        fix = suggest(spec.spine, extra, "let build return it, or correct the name")
        yield ModelFault(*locate_field(spec_file, "features.spine"), "features.spine", problem, fix)
    for number, view in enumerate(spec.views):
        lacking = [place for place in places if view not in place[-1]]
        if not lacking:
            continue
        similar = get_close_matches(view, extra, n=1)
        explained |= set(similar)
        if len(lacking) == len(places):
            field = f"features.views.{number}"
            existing = join_names(sorted(set().union(*(names for *_, names in places)) - {spec.spine}))
            problem = f"there is no view {view!r} in the feature repository or in features.py; there are {existing}"
            fix = suggest(view, extra, f"define it in {places[0][1]}, or correct the name")
            yield ModelFault(*locate_field(spec_file, field), field, problem, fix)
            continue
        [(verb, file, line, names)] = lacking
        fix = suggest(view, set(names) & extra, "add it, or remove it from `views` of the spec")
        line = locate_text(file, similar[0]) or line if similar else line
        yield ModelFault(
            file, line, "", f"{verb} {view!r}, which the spec names; there are {join_names(sorted(names))}", fix
        )
    for name in sorted(extra - explained):
        _, file, _, _ = next(place for place in places if name in place[-1])
        problem = f"has {name!r}, and `views` of the spec does not; it has {join_names(spec.views)}"
        line = declared.line(declared.tables[name]) if declared and name in declared.tables else locate_text(file, name)
        yield ModelFault(file, line, "", problem, "add it to `views`, or remove it")


def find_missing_columns(
    model: ModelSpec, spec: FeatureSpec, declared: Definitions | None, built: BuiltTables
) -> Iterator[ModelFault]:
    """Yield columns that `features.py` does not build: those that Feast declares, and those that every table needs."""
    file = model_folder(model.name) / "features.py"

    def fault(table: str, column: str, reason: str) -> ModelFault:
        names = built.columns[table]
        problem = f"the table {table!r} has no column {column!r}, {reason}; it has {join_names(names)}"
        line = locate_text(file, table) or locate_function(file, "build")
        return ModelFault(file, line, "", problem, suggest(column, names, "let build return it"))

    for table, names in built.columns.items():
        if table in spec.tables:
            needed = (_EVENT_TIME, _LABEL_TIME) if table == spec.spine else (_EVENT_TIME,)
            yield from (fault(table, column, "which it needs") for column in needed if column not in names)
    if declared:
        yield from _declared_column_faults(spec, declared, built)


def _declared_column_faults(spec: FeatureSpec, declared: Definitions, built: BuiltTables) -> Iterator[ModelFault]:
    """Yield features and keys that Feast declares, and that `features.py` does not build."""
    spine = built.columns.get(spec.spine)
    missing_keys = set()
    reported: set[tuple[int, str]] = set()  # one line may declare a feature of many views
    for view in declared.views.values():
        names = built.columns.get(view.batch_source.name) if view.batch_source else None
        keys = declared.keys(view)
        for column in (*(feature.name for feature in view.features), *keys):
            if names and column not in names and column not in missing_keys:
                missing_keys |= {column} & set(keys)
                problem = f"declares {column!r}, and features.py builds {join_names(names)}"
                line = locate_text(declared.file, column) or declared.line(view)
                fix = suggest(column, names, "build the column, or remove it here")
                if line is None or (line, column) not in reported:
                    yield ModelFault(declared.file, line, f"view {view.name}", problem, fix)
                reported |= {(line, column)} if line else set()
    for service in declared.services.values() if spine else ():
        for projection in service.feature_view_projections:
            keys = declared.keys(declared.views[projection.name]) if projection.name in declared.views else []
            for key in (projection.join_key_map.get(key, key) for key in keys if key not in missing_keys):
                if spine and key not in spine and key not in missing_keys:
                    missing_keys.add(key)
                    problem = f"its key {key!r} is no column of the spine {spec.spine!r}, which has {join_names(spine)}"
                    fix = suggest(key, spine, "let build return it in the spine, or correct the key")
                    line = locate_text(declared.file, key) or declared.line(service)
                    yield ModelFault(declared.file, line, f"view {projection.name_to_use()}", problem, fix)


def find_unread_columns(spec: FeatureSpec, declared: Definitions, built: BuiltTables) -> Iterator[ModelFault]:
    """Yield columns of views that `features.py` builds and no view declares: they are stored, and no model reads them.

    That is no fault.
    """
    read: dict[str, set[str]] = {}
    for view in declared.views.values():
        if view.batch_source:
            names = {*declared.keys(view), *(feature.name for feature in view.features)}
            read[view.batch_source.name] = read.get(view.batch_source.name, set()) | names
    for table in spec.views:
        if table not in read:
            continue
        unread = [name for name in built.columns.get(table, ()) if name not in {*read[table], *_KEPT_COLUMNS}]
        if unread:
            view = declared.tables[table]
            problem = f"features.py builds {join_names(unread)} in {table!r}, which no view declares and no model reads"
            fix = "declare a Field for it, or let build leave it out"
            yield ModelFault(declared.file, declared.line(view), f"view {view.name}", problem, fix)


def columns_of_tables(
    spec: FeatureSpec, declared: Definitions | None, built: BuiltTables
) -> dict[str, tuple[str, ...] | None]:
    """Return the columns of each table: what is built, else what Feast declares of a view; None if nothing says them.

    A table of the spec that nobody builds or declares is a fault already, and left out.
    """
    columns: dict[str, tuple[str, ...] | None] = {}
    for view in declared.views.values() if declared else ():
        if declared and view.batch_source:
            names = (_EVENT_TIME, *declared.keys(view), *(feature.name for feature in view.features))
            columns[view.batch_source.name] = (*(columns.get(view.batch_source.name) or ()), *names)
    columns |= built.columns
    is_known = built.is_complete or declared is not None
    absent = {view for view in spec.views if is_known and view not in columns}
    if built.is_complete and spec.spine not in columns:
        absent.add(spec.spine)
    return {table: columns.get(table) for table in spec.tables if table not in absent}


def find_input_faults(
    model: ModelSpec, spec: FeatureSpec, declared: Definitions | None, spine: Sequence[str] | None
) -> Iterator[ModelFault]:
    """Yield what the spec names and what does not exist: service, label, inputs, columns of gates and clusters.

    `spine` has the columns of the spine, if they are known.
    """
    for number, name in enumerate(model.request_columns):
        if name in (model.label, _LABEL, _LABEL_TIME):
            problem = f"{name!r} is of the label, so nobody knows it when a prediction is made"
            fix = "remove it: the model would learn the label from it"
            yield spec_fault(model, f"request_columns.{number}", problem, fix)
    features: list[str] | None = None
    if declared and model.feature_service not in declared.services:
        problem = (
            f"{declared.file} defines no service {model.feature_service!r}; it has {join_names(declared.services)}"
        )
        fix = suggest(
            model.feature_service, declared.services, f"add FeatureService(name={model.feature_service!r}, …)"
        )
        yield spec_fault(model, "feature_service", problem, fix)
    elif declared:
        features = declared.input_columns(model.feature_service)
        for field, names in (("label", (model.label,)), ("request_columns", model.request_columns)):
            for name in set(names) & set(features):
                problem = f"{name!r} is also the name of a feature of the service {model.feature_service}"
                yield spec_fault(model, field, problem, "rename the column of the spine")
    if features is not None:
        yield from _input_group_faults(model, [*model.request_columns, *features])
    columns = [*(spine or ()), *_ADDED_COLUMNS, *(features or ())]
    if spine is not None:
        if model.label != _LABEL and _LABEL in spine:
            problem = f"{model.label!r} is renamed to {_LABEL!r} in training sets, and the spine has such a column, too"
            yield spec_fault(model, "label", problem, "rename that column in features.py, or name it as the label")
        yield from _spine_faults(model, spec, spine)
    if features is not None:
        for number, gate in enumerate(model.gates):
            if isinstance(gate, BaselineGate) and gate.baseline != PRIOR_BASELINE:
                yield from _holdout_faults(model, gate.baseline, f"gates.{number}.baseline", columns, spine is not None)
            if isinstance(gate, CustomGate | MetricGate):
                for place, name in enumerate(gate.columns):
                    field = f"gates.{number}.columns.{place}"
                    yield from _holdout_faults(model, name, field, columns, spine is not None)
            if isinstance(gate, BySliceGate | FairnessGate):
                yield from _holdout_faults(model, gate.group_by, f"gates.{number}.group_by", columns, spine is not None)


def _input_group_faults(model: ModelSpec, inputs: Sequence[str]) -> Iterator[ModelFault]:
    """Yield members of `input_groups` that are no input and no view of one, and inputs that are in two groups."""
    views = dict.fromkeys(name.partition("__")[0] for name in inputs if "__" in name)
    groups: dict[str, str] = {}
    for group, members in model.input_groups.items():
        for number, member in enumerate(members):
            field = f"input_groups.{group}.{number}"
            contained = [name for name in inputs if name == member or name.startswith(f"{member}__")]
            if not contained:
                problem = f"{member!r} is no input and no view; there are {join_names([*inputs, *views])}"
                fix = suggest(member, [*inputs, *views], "name an input, or a view for all of its features")
                yield spec_fault(model, field, problem, fix)
            if repeated := [name for name in contained if groups.get(name, group) != group]:
                problem = f"{join_names(repeated)} is in the group {groups[repeated[0]]!r}, too"
                yield spec_fault(model, field, problem, "an input is in one group at most: remove it from one of them")
            groups |= dict.fromkeys(contained, group)


def _spine_faults(model: ModelSpec, spec: FeatureSpec, spine: Sequence[str]) -> Iterator[ModelFault]:
    named = [("label", model.label)]
    named += [(f"request_columns.{number}", name) for number, name in enumerate(model.request_columns)]
    named += [(f"clusters.{number}", name) for number, name in enumerate(model.clusters) if name != DAY_CLUSTER]
    if model.score:
        named += [(f"score.columns.{number}", name) for number, name in enumerate(model.score.columns)]
    named += [("query", model.query)] if model.query else []
    named += [("weight", model.weight)] if model.weight else []
    if model.forecast:
        named += [(f"forecast.series.{number}", name) for number, name in enumerate(model.forecast.series)]
        named.append(("forecast.horizon", model.forecast.horizon))
    for field, name in named:
        if name not in spine:
            problem = f"the spine {spec.spine!r} has no column {name!r}; it has {join_names(spine)}"
            yield spec_fault(
                model, field, problem, suggest(name, spine, "let features.py build it, or correct the name")
            )


def _holdout_faults(
    model: ModelSpec, text: str, field: str, columns: Sequence[str], is_complete: bool
) -> Iterator[ModelFault]:
    """Yield names in a gate's column, or SQL expression over columns, that the holdout lacks.

    If not all columns are known, only a name like `view__feature` of a view that exists can be wrong.
    """
    names: Iterable[str] = (text,)
    if not _PLAIN_NAME.fullmatch(text) and text not in columns:
        problem, names = _read_expression(text)
        if problem:
            yield spec_fault(
                model, field, f"{text!r} is no SQL: {problem}", "write a column, or DuckDB's SQL over columns"
            )
    prefixes = tuple(f"{column.partition('__')[0]}__" for column in columns if "__" in column)
    existing = {column.casefold() for column in columns}
    for name in names:
        if name.casefold() not in existing and (is_complete or name.startswith(prefixes)):
            problem = f"the holdout has no column {name!r}; it has {join_names(columns)}"
            similar = get_close_matches(name, columns, n=1) or [c for c in columns if c.endswith(f"__{name}")][:1]
            fix = f"did you mean {similar[0]!r}?" if similar else "name one of its columns"
            yield spec_fault(model, field, problem, fix)


def _read_expression(text: str) -> tuple[str, list[str]]:
    """Return why an expression is no SQL, and the columns that it names if it is."""
    import duckdb

    with duckdb.connect() as database:
        query = database.execute("SELECT json_serialize_sql(?)", [f"SELECT ({text}) FROM holdout"])  # noqa: S608
        [(serialized,)] = query.fetchall()
    tree = json.loads(serialized)
    if tree["error"]:
        return str(tree["error_message"]).splitlines()[0], []
    nodes, names = [tree], []
    is_lambda = '"class":"LAMBDA"' in serialized  # its parameters look like columns
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if node.get("class") == "COLUMN_REF" and not is_lambda:
                names.append(str(node["column_names"][-1]))
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return "", sorted(set(names))
