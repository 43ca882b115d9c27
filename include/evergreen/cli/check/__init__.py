"""`evergreen check`: everything that is wrong with a model folder and that needs no data to be seen, all at once.

It needs no Airflow, no JVM and no server, and leaves nothing behind. `model.py`, `features.py`, `expectations.py` and
the model's file in the feature repository are imported; `train.py` is only parsed, because its packages may be in the
trainer's environment, which is asked for the exporter of scikit-learn's pipelines. Databases and servers are asked by
`evergreen.cli.doctor`.

    locations   file and line of a fault
    specs       `model.py`: spec, sources, gates
    modules     `features.py` and `expectations.py`
    views       the feature repository, and what spec, features and repository say about each other
    trainer     `train.py`
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evergreen.cli.check import specs, trainer
from evergreen.cli.check.locations import ModelFault, locate_field
from evergreen.cli.doctor import ChecksFailedError
from evergreen.cli.options import print_json
from evergreen.errors import Fault
from evergreen.settings import settings
from evergreen.spec.loader import SPEC_FILE, feature_spec, model_folder, model_names
from evergreen.spec.model import ModelSpec


def run_model_checks(names: Sequence[str], console: Console, as_json: bool = False) -> None:
    """Check these models, or all, and print the result of each.

    Raises:
        ChecksFailedError: models have faults; has all of them.
    """
    faults, hints = {}, {}
    if not (names := names or model_names()):
        places = ", ".join(map(str, settings().models))
        fault = Fault(places, "no folder in it has a model.py", "EVERGREEN_MODELS names the folder of model folders")
        raise ChecksFailedError("models", [fault])
    for name in dict.fromkeys(names):
        with Console(stderr=True).status(f"checking {name}"):
            faults[name] = find_model_faults(name)
            hints[name] = [] if faults[name] else find_model_hints(name)
    if as_json:
        records = [_to_record(name, model_faults, hints[name]) for name, model_faults in faults.items()]
        print_json(console, records)
    else:
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("", "model", "result"):
            table.add_column(column, no_wrap=True)
        for name, model_faults in faults.items():
            sign = Text("✗", style="red") if model_faults else Text("✓", style="green")
            table.add_row(sign, name, _count_faults(model_faults) if model_faults else "no fault")
        console.print(table, soft_wrap=False)
        for hint in (hint for model_hints in hints.values() for hint in model_hints):
            console.print(Text(f"hint: {hint.to_fault()}", style="yellow"), soft_wrap=True)
    faulty = [name for name, model_faults in faults.items() if model_faults]
    if faulty:
        listed = [fault.to_fault() for model_faults in faults.values() for fault in model_faults]
        raise ChecksFailedError(", ".join(faulty), list(dict.fromkeys(listed)))


def find_model_faults(name: str) -> list[ModelFault]:
    """Return everything that is wrong with a model folder, and that needs no data to be seen.

    Faults of features that another model builds are found by checking that model.
    """
    with _leave_nothing_behind():
        faults = list(_find_faults(name))
    # A module that is missing, or cannot be imported, is one fault, whoever imports it.
    for absent in [fault.file for fault in faults if fault.file and not fault.file.exists()]:
        module = f"No module named 'evergreen_models.{absent.parent.name}.{absent.stem}'"
        faults = [fault for fault in faults if not fault.problem.endswith(module)]
    return list({(fault.file, fault.line, fault.problem): fault for fault in reversed(faults)}.values())[::-1]


def find_model_hints(name: str) -> list[ModelFault]:
    """Return what is no fault of a model folder without faults, and probably not meant."""
    from evergreen.cli.check import modules, views  # import Feast

    with _leave_nothing_behind():
        model, _ = specs.read_spec(name)
        if model is None or not model.builds_features:
            return []
        spec = feature_spec(model)
        built, _ = modules.check_features_module(name)
        declared, _ = views.run_repository_file(name, spec)
        return list(views.find_unread_columns(spec, declared, built)) if declared else []


def _find_faults(name: str) -> Iterator[ModelFault]:
    model, faults = specs.read_spec(name)
    yield from faults
    if any(fault.file is None for fault in faults):  # there is no such folder
        return
    if model:
        yield from specs.find_gate_faults(model)
        yield from specs.find_library_faults(model)
    if model is None or model.builds_features:
        yield from _check_own_features(name, model)
    else:
        yield from _check_borrowed_features(model)
    yield from trainer.find_trainer_faults(name)


def _check_own_features(name: str, model: ModelSpec | None) -> Iterator[ModelFault]:
    """Check the files that a model with features of its own has; without a spec, those that are there."""
    from evergreen.cli.check import modules, views  # import Feast

    folder = model_folder(name)
    if model is None:
        if (folder / "features.py").is_file():
            yield from modules.check_features_module(name)[1]
        if (folder / "expectations.py").is_file():
            yield from modules.check_expectations(name, None, {})
        if (settings().feature_repo / f"{name}.py").is_file():
            yield from views.run_repository_file(name, None)[1]
        return
    spec = feature_spec(model)
    yield from specs.find_source_faults(model, spec)
    built, features_faults = modules.check_features_module(name)
    yield from features_faults
    declared, repository_faults = views.run_repository_file(name, spec)
    yield from repository_faults
    yield from views.find_table_faults(model, spec, declared, built)
    yield from views.find_missing_columns(model, spec, declared, built)
    yield from views.find_input_faults(model, spec, declared, built.columns.get(spec.spine))
    yield from modules.check_expectations(name, spec, views.columns_of_tables(spec, declared, built))


def _check_borrowed_features(model: ModelSpec) -> Iterator[ModelFault]:
    """Check what a model names of features that another one builds."""
    from evergreen.cli.check import modules, views  # import Feast

    built, features_faults = modules.check_features_module(model.feature_model)
    spec = feature_spec(model)
    declared, repository_faults = views.run_repository_file(model.feature_model, spec)
    if count := len({(fault.file, fault.line, fault.problem) for fault in [*features_faults, *repository_faults]}):
        problem = f"{model.feature_model} builds its features, and has {count} fault{'s' if count > 1 else ''}"
        place = locate_field(model_folder(model.name) / SPEC_FILE, "features")
        yield ModelFault(*place, "features", problem, f"evergreen check {model.feature_model}")
    yield from views.find_input_faults(model, spec, declared, built.columns.get(spec.spine))


@contextmanager
def _leave_nothing_behind() -> Iterator[None]:
    """Import without writing bytecode, and let user code print to the standard error output only."""
    writes_no_bytecode = sys.dont_write_bytecode
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read once, when the package is imported
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            _import_engines()
            sys.dont_write_bytecode = True
            yield
    finally:
        sys.dont_write_bytecode = writes_no_bytecode


@cache
def _import_engines() -> None:
    """Import the packages that model folders import, which is nearly all that a check takes.

    Their own bytecode is kept: some installers write none. What is imported stays, so that there is no garbage to find.
    """
    collects_garbage = gc.isenabled()
    gc.disable()
    try:
        # One that is not installed is a fault of the module that imports it.
        with suppress(ImportError):
            from evergreen.feature_store import feast_import

            feast_import.check_declarations()
        with suppress(ImportError):
            import great_expectations.expectations  # noqa: F401
    finally:
        if collects_garbage:
            gc.enable()


def _count_faults(faults: Sequence[ModelFault]) -> str:
    return f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"


def _to_record(name: str, faults: Sequence[ModelFault], hints: Sequence[ModelFault]) -> dict[str, Any]:
    listed = {"faults": [fault.to_json() for fault in faults], "hints": [hint.to_json() for hint in hints]}
    return {"model": name, "passed": not faults, **listed}
