"""Finds and loads the specs in the model folders."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path

from evergreen.errors import EvergreenError, Fault, SpecError, first_line
from evergreen.spec import NAME_PATTERN
from evergreen.spec.model import FeatureSpec, ModelSpec

SPEC_FILE = "model.py"


def feature_spec(model: ModelSpec) -> FeatureSpec:
    """Return the features that `model` uses: its own, or those of the model that it names."""
    if isinstance(model.features, FeatureSpec):
        return model.features
    features = load_spec(model.features).features
    if not isinstance(features, FeatureSpec):
        problem = f"{model.features} builds none, it uses those of {features}"
        raise SpecError(f"model {model.name}", [Fault("features", problem, f"name {features} instead")])
    try:
        model.check_period(features.calendar)
    except ValueError as error:
        fix = f"the features of {model.features} have this period"
        raise SpecError(f"model {model.name}", [Fault("periods", str(error), fix)]) from None
    return features


@cache
def load_spec(name: str) -> ModelSpec:
    """Load the spec in the model folder `name`. No other model is loaded.

    Raises:
        SpecError: there is not exactly one such folder, its model.py cannot be imported or has no `MODEL`, or the spec
            is invalid (with all faults).
    """
    file = model_folder(name) / SPEC_FILE

    def error(location: str, problem: str, fix: str) -> SpecError:
        return SpecError(f"model {name}", [Fault(location, problem, fix)])

    with locate_errors(name, file, f"correct it until `python -m evergreen_models.{name}.model` runs"):
        spec = getattr(import_module(f"evergreen_models.{name}.model"), "MODEL", None)
    if not isinstance(spec, ModelSpec):
        raise error(str(file), "defines no MODEL", "add MODEL = ModelSpec(...)")
    if spec.name != name:
        raise error(f"{file}: name", f"is {spec.name!r}", f"name it like its folder: {name!r}")
    return spec


def model_names() -> list[str]:
    """Return the names of all model folders, whether their specs are valid or not."""
    return sorted({file.parent.name for place in _model_places() for file in place.glob(f"*/{SPEC_FILE}")})


def model_folder(name: str) -> Path:
    """Return the folder of the model `name`.

    Raises:
        SpecError: there is none, or there are several, or its name cannot be the name of a model.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        fix = "a model and its folder have a name of a–z, 0–9 and _, with a letter first: rename it"
        raise SpecError(f"model {name}", [Fault(repr(name), "cannot be the name of a model", fix)])
    places = _model_places()
    folders = [place / name for place in places if (place / name / SPEC_FILE).is_file()]
    if not folders:
        names = model_names()
        problem = f"no folder {name} with a {SPEC_FILE}"
        similar = get_close_matches(name, names) or names[:5]
        fix = f"known models: {', '.join(similar)}" if names else "EVERGREEN_MODELS names the folder of model folders"
        raise SpecError(f"model {name}", [Fault(", ".join(map(str, places)), problem, fix)])
    if len(folders) > 1:
        faults = [Fault(str(folder), "has the name of another folder", "rename one of them") for folder in folders]
        raise SpecError(f"model {name}", faults)
    return folders[0]


@contextmanager
def locate_errors(name: str, file: Path, fix: str) -> Iterator[None]:
    """Turn any error of the code in `file`, which is a user's of the model `name`, into one that says where it is.

    Raises:
        SpecError: with file and line. Errors of Evergreen's own pass, since they say it already.
    """
    try:
        yield
    except EvergreenError:
        raise
    except (Exception, SystemExit) as cause:
        fault = Fault(_error_location(cause, file), f"{type(cause).__name__}: {first_line(cause)}", fix)
        raise SpecError(f"model {name}", [fault]) from cause


def _model_places() -> list[Path]:
    return [Path(place) for place in import_module("evergreen_models").__path__]


def _error_location(error: BaseException, file: Path) -> str:
    """Return file and line of the failure in the folder of `file`: not the libraries' that its code calls."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == file.parent
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(file)
