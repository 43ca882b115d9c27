"""What has changed since a retrain: each kind of change is named, and what no retrain uses is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen import ledger
from evergreen.errors import SpecError
from evergreen.feature_store import training_sets
from evergreen.feature_store.declared_inputs import read_declared_inputs
from evergreen.feature_store.repository import open_feature_store
from evergreen.lake import fingerprints
from evergreen.ledger import VersionPromoted
from evergreen.promotion.changed_inputs import RetrainReferences, find_changed_inputs
from evergreen.spec.model import ModelSpec
from evergreen.training import candidates
from support import tills
from support.published_retrains import AS_OF, DAYS, TRAIN, publish_retrain
from support.small_models import forget_model

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder, with features of seven days."""
    folder = tills.write_model(tmp_path, monkeypatch, use_models, has_views=True)
    (folder / "train.py").write_text(TRAIN)
    tills.deliver(7)
    tills.publish(tills.change_spec(folder, 'train="5d"', 'parameters=dict(rounds=3), train="5d"'), DAYS)
    return folder


@pytest.fixture
def run(folder: Path) -> RetrainReferences:
    return publish_retrain(tills.reload_spec())


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def replace(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    forget_model("tills")


def definitions(folder: Path) -> Path:
    return folder.parents[1] / "feature_repo/tills.py"


def build_again(raise_by: float) -> None:
    tills.deliver(7, raise_by=raise_by)
    schema = tills.NO_ROWS_OF_VIEWS if raise_by else tills.NO_ROWS
    tills.publish(tills.reload_spec(), DAYS[2:4], schema)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda _folder: None, []),
    "a comment in train.py": (lambda folder: append(folder / "train.py", "# A comment.\n"), []),
    "train.py": (lambda folder: append(folder / "train.py", "A = 1\n"), ["tills/train.py has changed"]),
    "a module that train.py imports": (
        lambda folder: [
            (folder / "rounds.py").write_text("A = 1\n"),
            append(folder / "train.py", "from evergreen_models.tills.rounds import A\n"),
        ],
        ["tills/rounds.py is new", "tills/train.py has changed"],
    ),
    "features.py": (lambda folder: append(folder / "features.py", "A = 1\n"), ["tills/features.py has changed"]),
    "features.py, and features are built again": (
        lambda folder: [
            append(folder / "features.py", "A = 1\n"),
            tills.publish(tills.reload_spec(), DAYS, tills.NO_ROWS_OF_VIEWS),
        ],
        ["features of 7 days, 2024-01-01 – 2024-01-07 are new, or were built again"],
    ),
    "features are built again to the same bytes": (lambda _folder: build_again(0.0), []),
    "features of other raw data": (
        lambda _folder: build_again(1.0),
        ["features of 2 days, 2024-01-03 – 2024-01-04 are new, or were built again"],
    ),
    "a parameter": (
        lambda folder: replace(folder / "model.py", "rounds=3", "rounds=4"),
        ["parameters.rounds was 3 and is 4"],
    ),
    "the holdout": (
        lambda folder: replace(folder / "model.py", 'holdout="2d"', 'holdout="1d"'),
        [
            "training_set.holdout was '2024-01-06' and is '2024-01-07'",
            "training_set.start was '2024-01-01' and is '2024-01-02'",
            "training_set.train_end was '2024-01-06' and is '2024-01-07'",
        ],
    ),
    "a gate": (
        lambda folder: replace(folder / "model.py", "100.0", "99.0"),
        ["the gates have changed, or what they measure by"],
    ),
    "the kind": (
        lambda folder: replace(folder / "model.py", "schedule=", 'kind="regression", schedule='),
        ["kind is new"],
    ),
    "the clusters": (
        lambda folder: replace(folder / "model.py", "schedule=", 'clusters=["till"], schedule='),
        ["the gates have changed, or what they measure by"],
    ),
    "the schedule": (lambda folder: replace(folder / "model.py", "0 0 * * 1", "0 0 * * 2"), []),
    "the time to live of a view": (
        lambda folder: replace(definitions(folder), "days=1", "days=2"),
        ["views.takings.ttl_seconds was 86400.0 and is 172800.0"],
    ),
    "a feature that is not read any more": (
        lambda folder: replace(definitions(folder), ', Field(name="floor", dtype=Int64)', ""),
        [
            "types.takings.floor is no longer used",
            "views.takings.features.floor is no longer used",
            "features was ['takings__takings', 'takings__floor'] and is ['takings__takings']",
        ],
    ),
}


def test_what_has_changed_is_named(folder: Path, run: RetrainReferences, home: Path, tmp_path: Path) -> None:
    """One after the other, each from the same state: to make that takes longer than to compare."""
    places = [folder, definitions(folder).parent, home]
    for number, place in enumerate(places):
        shutil.copytree(place, tmp_path / f"saved_{number}")
    changes = {}
    for name, (act, _) in CHANGES.items():
        act(folder)
        changes[name] = sorted(find_changed_inputs(tills.reload_spec(), run))
        for number, place in enumerate(places):
            shutil.rmtree(place)
            shutil.copytree(tmp_path / f"saved_{number}", place)
        forget_model("tills")
    assert changes == {name: sorted(expected) for name, (_, expected) in CHANGES.items()}


def test_declared_inputs_are_those_that_are_applied(folder: Path) -> None:
    replace(definitions(folder), 'feature_source("tills", "takings")', 'feature_source("tills", "takings", "6h")')
    replace(definitions(folder), "features=[takings]", 'features=[takings.with_name("late")[["floor"]], takings]')
    model = tills.change_spec(folder, "schedule=", 'request_columns=["day"], schedule=')
    declared = read_declared_inputs(model)
    assert declared.columns == ("day", "late__floor", "takings__takings", "takings__floor")
    open_feature_store.cache_clear()
    assert training_sets.model_input_columns(model) == declared.columns
    assert training_sets._view_definitions(model) == declared.views


def test_a_service_that_is_not_defined_is_named(folder: Path, run: RetrainReferences) -> None:
    replace(folder / "model.py", 'feature_service="tills"', 'feature_service="shops"')
    with pytest.raises(SpecError, match="feature service shops: is not defined"):
        find_changed_inputs(tills.reload_spec(), run)


def test_a_run_is_not_outdated_by_its_own_promotion(folder: Path, run: RetrainReferences) -> None:
    event = VersionPromoted(version="1", previous_champion=None, as_of=AS_OF, verdict_entry=run.verdict_entry or 0)
    ledger.append_decision("tills", "ada", lambda _state: event)
    assert ledger.read_state("tills").champion == "1"
    assert find_changed_inputs(tills.reload_spec(), run) == []


def test_a_run_that_came_half_way_is_compared_as_far(folder: Path, run: RetrainReferences) -> None:
    append(folder / "train.py", "A = 1\n")
    assert find_changed_inputs(tills.reload_spec(), RetrainReferences(run.training_set)) == []
    half_way = RetrainReferences(run.training_set, run.candidate)
    assert find_changed_inputs(tills.reload_spec(), half_way) == ["tills/train.py has changed"]
    replace(folder / "model.py", "schedule=", 'clusters=["till"], schedule=')
    measured = RetrainReferences(run.training_set, run.candidate, run.evaluation)
    assert find_changed_inputs(tills.reload_spec(), measured)[1:] == ["the gates have changed, or what they measure by"]


def test_what_another_run_has_replaced_is_named(folder: Path, run: RetrainReferences) -> None:
    append(folder / "train.py", "A = 1\n")
    replaced = publish_retrain(tills.reload_spec())
    [change] = find_changed_inputs(tills.reload_spec(), run)
    assert change.startswith("what it was made from is not published any more")
    assert find_changed_inputs(tills.reload_spec(), replaced) == []


def test_custom_gates_count_with_their_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gates.py").write_text("def margin(evidence):\n    return 1.0\n")
    gate = 'dict(kind="custom", function="evergreen_models.tills.gates:margin")'
    model = tills.change_spec(folder, "gates=[", f"gates=[{gate}, ")
    run = publish_retrain(model)
    assert find_changed_inputs(model, run) == []
    replace(folder / "gates.py", "1.0", "2.0")
    assert find_changed_inputs(tills.reload_spec(), run) == ["the code of the gates has changed"]


@pytest.mark.parametrize("library", ["duckdb", "onnxruntime"])  # which join training sets, and score candidates
def test_an_upgrade_of_a_library_counts(
    folder: Path, run: RetrainReferences, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    read_version = fingerprints.version
    monkeypatch.setattr(fingerprints, "version", lambda name: "99.0" if name == library else read_version(name))
    assert find_changed_inputs(tills.reload_spec(), run) == [f"{library} was {read_version(library)} and is 99.0"]


def test_libraries_that_are_not_pinned_here_hide_no_other_change(
    folder: Path, run: RetrainReferences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A client of a remote Airflow need not have the lock of its trainers."""
    recorded = candidates.candidate_dataset(tills.reload_spec()).newest()
    assert recorded
    append(folder / "train.py", "A = 1\n")
    monkeypatch.setattr(candidates, "pinned_library_versions", _raise_unpinned)
    assert find_changed_inputs(tills.reload_spec(), run) == ["tills/train.py has changed"]


def _raise_unpinned(model: ModelSpec) -> dict[str, str]:
    raise SpecError(f"model {model.name}", [])
