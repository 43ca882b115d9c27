"""What a reader gets from the online store, after whatever happened to those who write it.

Real Feast, on a real SQLite and a real Redis.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import SpecError
from evergreen.feature_store import online_store, repository
from evergreen.lake import datasets, fingerprints
from evergreen.settings import REPOSITORY
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support.online_stores import Kept

pytestmark = pytest.mark.integration

ZONE = "America/New_York"
FIELDS = dict(owner="tests", label="full", schedule="0 0 * * 1", train_days=3, holdout_days=1)
GATES = [dict(kind="threshold", metric="auc", at_least=0.5)]
SPEC = """
from evergreen.model import Model
MODEL = Model(
    name="ponds", feature_service="ponds",
    features=dict(timezone="America/New_York", first_day="2013-01-01", spine="visits", views=["levels", "depths"],
                  sources=[dict(name="gauges")]),
    owner="tests", label="full", schedule="0 0 * * 1", train_days=3, holdout_days=1,
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.data_source import published

pond = Entity(name="pond", join_keys=["pond"], value_type=ValueType.STRING)
def view(name, of, table, ttl, *columns):
    return FeatureView(name=name, entities=[pond], ttl=timedelta(hours=ttl), source=published(of, table),
                       schema=[Field(name=column, dtype=Float64) for column in columns])
levels = view("levels", "ponds", "levels", 72, "level")
depths = view("depths", "ponds", "depths", 24, "depth")
rivers = view("rivers", "rivers", "rivers", 24, "width")
ponds = FeatureService(name="ponds", features=[levels])
depth_only = FeatureService(name="depth_only", features=[depths])
foreign = FeatureService(name="foreign", features=[levels, rivers])
"""


@pytest.fixture
def ponds(kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelSpec]:
    """A model with two views, of hourly rows, whose definitions and features are small and a test's own."""
    (tmp_path / "evergreen_models/ponds").mkdir(parents=True)
    (tmp_path / "evergreen_models/ponds/__init__.py").touch()
    (tmp_path / "evergreen_models/ponds/model.py").write_text(SPEC)
    monkeypatch.setattr(import_module("evergreen_models"), "__path__", [str(tmp_path / "evergreen_models")])
    define(DEFINITIONS, tmp_path / "feature_repo")
    monkeypatch.setenv("EVERGREEN_FEATURE_REPO", str(tmp_path / "feature_repo"))
    kept.use(tmp_path / "home")
    loader.load_spec.cache_clear()
    yield loader.load_spec("ponds")
    loader.load_spec.cache_clear()


def define(text: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", folder)
    (folder / "ponds.py").write_text(text)
    repository.open_feature_store.cache_clear()


def publish(*days: int, values: Mapping[tuple[str, int], float | None] | None = None, ponds: str = "ab") -> None:
    """Features of days in January: the level of a pond is its day and hour, as in 9.23, its depth a hundred more.

    `values` replaces levels by pond and hour; None leaves the row out.
    """
    for day in days:
        midnight = datetime(2013, 1, day, tzinfo=ZoneInfo(ZONE))
        levels = {(pond, hour): day + hour / 100 for pond in ponds for hour in range(24)} | dict(values or {})
        kept = {key: level for key, level in levels.items() if level is not None}
        dataset, partition = datasets.open_dataset("features/ponds"), datasets.day_partition(midnight.date())
        mark = fingerprints.compute_fingerprint(sorted(map(str, kept.items())))
        folder = dataset.stage(partition, mark)
        for name, column, more in (("levels", "level", 0), ("depths", "depth", 100)):
            times = [midnight + timedelta(hours=hour) for _, hour in kept]
            table = {
                "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
                "pond": pa.array([pond for pond, _ in kept], pa.string()),
                column: pa.array([level + more for level in kept.values()], pa.float64()),
                "murk": pa.array([level / 2 for level in kept.values()], pa.float64()),
            }
            pq.write_table(pa.table(table), folder / f"{name}.parquet")
        files = {path.stem: path for path in folder.iterdir()}
        dataset.publish(partition, mark, files, {})


def unpublish(day: int) -> None:
    Path(datasets.open_dataset("features/ponds").root / f"_manifests/day=2013-01-{day:02}.json").unlink()


def window(end: int) -> Window:
    return Window.from_range(date(2013, 1, 1), date(2013, 1, end), RunReason.MANUAL, ZONE)


def span(start: int, end: int) -> dict[str, str]:
    return {"start": f"2013-01-{start:02}", "end": f"2013-01-{end:02}"}


def read(pond: str = "a", feature: str = "levels:level") -> float | None:
    response = repository.open_feature_store().get_online_features([feature], [{"pond": pond}]).to_dict()
    return response[feature.split(":")[1]][0]


def clean(kept: Kept, home: Path, end: int) -> object:
    """What one undisturbed run up to `end` leaves in a new online store, over the same features."""
    shutil.copytree(repository.settings().lake / "features", home / "lake/features")
    before = repository.settings().home
    kept.use(home)
    online_store.materialize_features(loader.load_spec("ponds"), window(end))
    found = kept.contents()
    kept.use(before)
    return found


def forked(action: Callable[[], object]) -> int:
    """A child process that opens the stores itself and exits with 0 if `action` comes to its end; gives its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        repository.open_feature_store.cache_clear()
        action()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_first_time_writes_what_can_still_be_served(ponds: ModelSpec) -> None:
    publish(2, ponds="abz")
    publish(*range(3, 10))
    publish(10)  # already there, but not to be known
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert read("a") == 9.23
    assert read("b", "depths:depth") == 109.23
    assert read("z") is None  # three days old at most; Feast would serve it for ever


def test_later_only_new_days_are_written(ponds: ModelSpec, capsys: pytest.CaptureFixture[str]) -> None:
    publish(*range(1, 10))
    online_store.materialize_features(ponds, window(10))
    assert online_store.materialize_features(ponds, window(10)) == {}
    assert "nothing to do as of 2013-01-10" in capsys.readouterr().out
    publish(10)
    assert online_store.materialize_features(ponds, window(11)) == span(10, 11)
    assert read() == 10.23
    publish(*range(11, 18))
    assert online_store.materialize_features(ponds, window(18)) == span(15, 18)
    assert read() == 17.23


def test_an_older_window_does_nothing(ponds: ModelSpec, kept: Kept) -> None:
    publish(*range(1, 10))
    online_store.materialize_features(ponds, window(10))
    before = kept.contents()
    assert online_store.materialize_features(ponds, window(5)) == {}
    publish(2, values={("a", 23): 0.5})
    assert online_store.materialize_features(ponds, window(5)) == {}  # corrected, but nobody can be served it any more
    assert kept.contents() == before


def test_a_corrected_day_changes_only_what_is_newest_in_it(ponds: ModelSpec) -> None:
    publish(*range(1, 10))
    online_store.materialize_features(ponds, window(10))
    publish(8, values={("a", 23): 0.5})
    assert online_store.materialize_features(ponds, window(9)) == span(7, 10)
    assert read() == 9.23
    publish(9, values={("a", 5): 0.5})
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert read() == 9.23
    publish(9, values={("a", 23): 0.5})
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert (read("a"), read("b")) == (0.5, 9.23)


def test_a_row_that_is_corrected_away_gives_way_to_the_one_before_it(ponds: ModelSpec) -> None:
    publish(7, 8, ponds="az")
    publish(9, values={("z", 4): 1.5})
    online_store.materialize_features(ponds, window(10))
    assert read("z") == 1.5
    publish(9)
    online_store.materialize_features(ponds, window(10))
    assert (read("a"), read("z")) == (9.23, 8.23)
    unpublish(9)
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert read("a") == 8.23
    assert online_store.materialize_features(ponds, window(10)) == {}


@pytest.mark.parametrize("end", [9, 10], ids=["older window", "same window"])
def test_a_late_day_fills_its_gap(ponds: ModelSpec, end: int) -> None:
    publish(7, 9)
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    publish(8, ponds="az")
    assert online_store.materialize_features(ponds, window(end)) == span(8, 10)
    assert (read("a"), read("z")) == (9.23, 8.23)
    assert online_store.materialize_features(ponds, window(end)) == {}


def test_values_that_hold_for_ever_are_written_from_the_first_day(ponds: ModelSpec, tmp_path: Path) -> None:
    define(DEFINITIONS.replace('"depths", 24', '"depths", 0'), tmp_path / "feature_repo")
    publish(1, ponds="az")
    publish(2, 9)
    assert online_store.materialize_features(ponds, window(10)) == span(1, 10)
    assert read("z", "depths:depth") == 101.23
    publish(10)
    assert online_store.materialize_features(ponds, window(11)) == span(10, 11)
    publish(1, ponds="z", values={("z", 23): 0.5})
    assert online_store.materialize_features(ponds, window(11)) == span(1, 11)
    assert (read("z"), read("a")) == (0.5, 10.23)


@pytest.mark.parametrize("writes", [1, 2, 3], ids=["before all views", "between the two", "after both"])
def test_a_kill_leaves_neither_gap_nor_older_values(ponds: ModelSpec, kept: Kept, tmp_path: Path, writes: int) -> None:
    publish(*range(5, 9))
    online_store.materialize_features(ponds, window(9))
    publish(9, 10, 11)
    child = forked(lambda: dying_after(kept, writes, lambda: online_store.materialize_features(ponds, window(12))))
    assert ended(child) == -signal.SIGKILL
    assert read() in (
        8.23,
        11.23,
    )  # Feast's own state says that it is being written: it is served nevertheless
    assert online_store.materialize_features(ponds, window(10)) == span(
        9, 12
    )  # the window is older than what was being written
    assert kept.contents() == clean(kept, tmp_path / "clean", 12)
    assert online_store.materialize_features(ponds, window(12)) == {}


def dying_after(kept: Kept, writes: int, action: Callable[[], object]) -> None:
    """Be killed where the view number `writes` is about to be written, or once all are but no one was told."""
    todo, write = writes, kept.writer.online_write_batch

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_or_die(*arguments: object, **named: object) -> None:
        nonlocal todo
        todo -= 1
        if todo == 0:
            die()
        write(*arguments, **named)

    kept.writer.online_write_batch = write_or_die
    online_store.write_online_marker = lambda *_: die()
    action()


def test_two_at_once_wait_for_each_other(ponds: ModelSpec, kept: Kept, tmp_path: Path) -> None:
    publish(*range(5, 12))
    repository.open_feature_store()
    reached, go_on = os.pipe(), os.pipe()

    def slow_and_older() -> None:
        write = kept.writer.online_write_batch

        def held_up(*arguments: object, **named: object) -> None:
            os.write(reached[1], b".")
            os.read(go_on[0], 1)
            write(*arguments, **named)

        kept.writer.online_write_batch = held_up
        online_store.materialize_features(ponds, window(9))

    older = forked(slow_and_older)
    os.read(reached[0], 1)
    newer = forked(lambda: online_store.materialize_features(ponds, window(12)))
    time.sleep(1)  # unless it waits, the newer is done by then, and the older writes over it
    os.write(go_on[1], b"..")
    assert [ended(older), ended(newer)] == [0, 0]
    assert kept.contents() == clean(kept, tmp_path / "clean", 12)


def test_a_store_that_is_gone_or_restored_is_filled_again(ponds: ModelSpec, kept: Kept) -> None:
    publish(*range(5, 10))
    online_store.materialize_features(ponds, window(10))
    backup = kept.copy()
    publish(10)
    online_store.materialize_features(ponds, window(11))
    kept.lose()
    repository.open_feature_store.cache_clear()
    assert read() is None
    assert online_store.materialize_features(ponds, window(11)) == span(8, 11)
    assert read() == 10.23
    kept.restore(backup)
    repository.open_feature_store.cache_clear()
    assert read() == 9.23
    assert online_store.materialize_features(ponds, window(6)) == span(8, 11)
    assert read() == 10.23


def test_what_is_lost_while_it_is_written_is_not_taken_for_written(
    ponds: ModelSpec, kept: Kept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(*range(5, 10))
    write = kept.writer.online_write_batch

    def emptied(*arguments: object, **named: object) -> None:
        write(*arguments, **named)
        kept.lose()

    with monkeypatch.context() as patched:
        patched.setattr(kept.writer, "online_write_batch", emptied)
        with pytest.raises(Exception, match="was emptied while it was written|no such table|readonly database"):
            online_store.materialize_features(ponds, window(10))
    repository.open_feature_store.cache_clear()
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert kept.contents() == clean(kept, tmp_path / "clean", 10)


def test_a_store_is_rebuilt_as_far_as_it_came(ponds: ModelSpec, kept: Kept, tmp_path: Path) -> None:
    assert online_store.rebuild_online_store(ponds) == {}  # nothing was ever in it
    publish(*range(5, 12))
    online_store.materialize_features(ponds, window(10))
    kept.lose()
    repository.open_feature_store.cache_clear()
    assert online_store.rebuild_online_store(ponds) == span(7, 10)
    assert kept.contents() == clean(kept, tmp_path / "clean", 10)
    assert online_store.rebuild_online_store(ponds) == span(7, 10)  # also if nothing seems to be wrong
    assert online_store.materialize_features(ponds, window(10)) == {}


def test_a_new_column_is_filled_for_all_that_can_be_served(ponds: ModelSpec, tmp_path: Path) -> None:
    publish(*range(5, 10))
    online_store.materialize_features(ponds, window(10))
    define(DEFINITIONS.replace('"level")', '"level", "murk")'), tmp_path / "feature_repo")
    assert read(feature="levels:murk") is None
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert read(feature="levels:murk") == 9.23 / 2
    assert online_store.materialize_features(ponds, window(10)) == {}


def test_a_second_model_finds_its_views_written_by_the_first(ponds: ModelSpec) -> None:
    second = ModelSpec(name="puddles", features="ponds", feature_service="depth_only", gates=GATES, **FIELDS)
    publish(8, 9)
    online_store.materialize_features(ponds, window(10))
    assert read(feature="depths:depth") == 109.23  # only the other's service lists this view
    assert online_store.materialize_features(second, window(10)) == {}
    publish(10)
    assert online_store.materialize_features(second, window(11)) == span(10, 11)
    assert online_store.materialize_features(ponds, window(11)) == {}
    assert (read(), read(feature="depths:depth")) == (10.23, 110.23)


def test_views_of_other_features_are_refused(ponds: ModelSpec) -> None:
    other = ModelSpec(name="puddles", features="ponds", feature_service="foreign", gates=GATES, **FIELDS)
    with pytest.raises(SpecError, match="view rivers is not over the features of ponds"):
        online_store.materialize_features(other, window(10))
