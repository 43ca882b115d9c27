"""What readers get from the online store, after kills, races, losses and corrections.

Real Feast, on a real SQLite and a real Redis.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.errors import SpecError
from evergreen.feature_store import online_store, repository
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec
from support.forks import fork, wait
from support.online_stores import OnlineFixture
from support.ponds import DEFINITIONS, publish, unpublish, window, write_definitions

pytestmark = pytest.mark.integration

FIELDS = dict(owner="tests", label="full", schedule="0 0 * * 1", train="3d", holdout="1d")
GATES = [dict(kind="threshold", metric="auc", at_least=0.5)]


def span(start: int, end: int) -> dict[str, str]:
    return {"start": f"2013-01-{start:02}", "end": f"2013-01-{end:02}"}


def read(pond: str = "a", feature: str = "levels:level") -> float | None:
    response = repository.open_feature_store("ponds").get_online_features([feature], [{"pond": pond}]).to_dict()
    return response[feature.split(":")[1]][0]


def clean_contents(online: OnlineFixture, home: Path, end: int) -> object:
    """Return what one uninterrupted run up to `end` writes to a new online store, over the same features."""
    shutil.copytree(repository.settings().lake / "features", home / "lake/features")
    previous_home = repository.settings().home
    online.use(home)
    online_store.materialize_features(loader.load_spec("ponds"), window(end))
    contents = online.contents()
    online.use(previous_home)
    return contents


def test_first_materialization_writes_servable_days(ponds: ModelSpec) -> None:
    publish(2, ponds="abz")
    publish(*range(3, 10))
    publish(10)  # already there, but not to be known
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert read("a") == 9.23
    assert read("b", "depths:depth") == 109.23
    assert read("z") is None  # three days old at most; Feast would serve it for ever


def test_later_materializations_write_only_new_days(ponds: ModelSpec, caplog: pytest.LogCaptureFixture) -> None:
    publish(*range(1, 10))
    online_store.materialize_features(ponds, window(10))
    caplog.set_level(logging.INFO)
    assert online_store.materialize_features(ponds, window(10)) == {}
    assert "nothing to do as of 2013-01-10" in caplog.text
    publish(10)
    assert online_store.materialize_features(ponds, window(11)) == span(10, 11)
    assert read() == 10.23
    publish(*range(11, 18))
    assert online_store.materialize_features(ponds, window(18)) == span(15, 18)
    assert read() == 17.23


def test_an_older_window_does_nothing(ponds: ModelSpec, online: OnlineFixture) -> None:
    publish(*range(1, 10))
    online_store.materialize_features(ponds, window(10))
    before = online.contents()
    assert online_store.materialize_features(ponds, window(5)) == {}
    publish(2, values={("a", 23): 0.5})
    assert online_store.materialize_features(ponds, window(5)) == {}  # corrected, but nobody can be served it any more
    assert online.contents() == before


def test_corrected_day_changes_only_its_newest_values(ponds: ModelSpec) -> None:
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


def test_removed_row_is_replaced_by_the_one_before(ponds: ModelSpec) -> None:
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


def test_a_new_day_may_say_something_about_earlier_ones(ponds: ModelSpec) -> None:
    """What it says is served, unless a newer row of the same key is there."""
    publish(7, 9)
    publish(8, values={("z", 12): 8.5})
    online_store.materialize_features(ponds, window(10))
    publish(10, values={("y", -20): 9.5, ("z", -45): 0.5})  # hours before the day
    assert online_store.materialize_features(ponds, window(11)) == span(8, 11)
    assert (read("a"), read("y"), read("z")) == (10.23, 9.5, 8.5)


@pytest.mark.parametrize("end", [9, 10], ids=["older window", "same window"])
def test_late_day_fills_its_gap(ponds: ModelSpec, end: int) -> None:
    publish(7, 9)
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    publish(8, ponds="az")
    assert online_store.materialize_features(ponds, window(end)) == span(8, 10)
    assert (read("a"), read("z")) == (9.23, 8.23)
    assert online_store.materialize_features(ponds, window(end)) == {}


def test_views_without_ttl_are_written_from_the_first_day(ponds: ModelSpec, tmp_path: Path) -> None:
    write_definitions(DEFINITIONS.replace('"depths", 24', '"depths", 0'), tmp_path / "feature_repo")
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
def test_kill_leaves_neither_gaps_nor_older_values(
    ponds: ModelSpec, online: OnlineFixture, tmp_path: Path, writes: int
) -> None:
    publish(*range(5, 9))
    online_store.materialize_features(ponds, window(9))
    publish(9, 10, 11)
    child = fork(lambda: run_and_die(writes, lambda: online_store.materialize_features(ponds, window(12))))
    assert wait(child) == -signal.SIGKILL
    assert read() in (8.23, 11.23)  # Feast's own state says that it is being written: it is served nevertheless
    assert online_store.materialize_features(ponds, window(10)) == span(
        9, 12
    )  # the window is older than what was being written
    assert online.contents() == clean_contents(online, tmp_path / "clean", 12)
    assert online_store.materialize_features(ponds, window(12)) == {}


def run_and_die(writes: int, action: Callable[[], object]) -> None:
    """Run `action`, killed before it writes view number `writes`, or after all views but before the marker."""
    remaining, write = writes, online_store.write_online_rows

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_or_die(*arguments: object, **named: object) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            die()
        write(*arguments, **named)

    online_store.write_online_rows = write_or_die
    online_store.write_online_marker = lambda *_: die()
    action()


def test_concurrent_materializations_wait(ponds: ModelSpec, online: OnlineFixture, tmp_path: Path) -> None:
    publish(*range(5, 12))
    repository.open_feature_store("ponds")
    reached, released = os.pipe(), os.pipe()

    def materialize_older_slowly() -> None:
        write = online_store.write_online_rows

        def write_when_released(*arguments: object, **named: object) -> None:
            os.write(reached[1], b".")
            os.read(released[0], 1)
            write(*arguments, **named)

        online_store.write_online_rows = write_when_released
        online_store.materialize_features(ponds, window(9))

    older = fork(materialize_older_slowly)
    os.read(reached[0], 1)
    newer = fork(lambda: online_store.materialize_features(ponds, window(12)))
    time.sleep(1)  # unless it waits, the newer is done by then, and the older writes over it
    os.write(released[1], b"." * 100)  # more than it writes
    assert [wait(older), wait(newer)] == [0, 0]
    assert online.contents() == clean_contents(online, tmp_path / "clean", 12)


def test_lost_or_restored_store_is_filled_again(ponds: ModelSpec, online: OnlineFixture) -> None:
    publish(*range(5, 10))
    online_store.materialize_features(ponds, window(10))
    backup = online.copy()
    publish(10)
    online_store.materialize_features(ponds, window(11))
    online.empty()
    repository.open_feature_store.cache_clear()
    assert read() is None
    assert online_store.materialize_features(ponds, window(11)) == span(8, 11)
    assert read() == 10.23
    online.restore(backup)
    repository.open_feature_store.cache_clear()
    assert read() == 9.23
    assert online_store.materialize_features(ponds, window(6)) == span(8, 11)
    assert read() == 10.23


def test_store_emptied_while_written_is_written_again(
    ponds: ModelSpec, online: OnlineFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(*range(5, 10))
    write = online_store.write_online_rows

    def write_and_empty(*arguments: object, **named: object) -> None:
        write(*arguments, **named)
        online.empty()

    with monkeypatch.context() as patched:
        patched.setattr(online_store, "write_online_rows", write_and_empty)
        with pytest.raises(Exception, match="was emptied while it was written|no such table|readonly database"):
            online_store.materialize_features(ponds, window(10))
    repository.open_feature_store.cache_clear()
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert online.contents() == clean_contents(online, tmp_path / "clean", 10)


def test_rebuild_writes_up_to_the_watermark(ponds: ModelSpec, online: OnlineFixture, tmp_path: Path) -> None:
    assert online_store.rebuild_online_store(ponds) == {}  # nothing was ever in it
    publish(*range(5, 12))
    online_store.materialize_features(ponds, window(10))
    online.empty()
    repository.open_feature_store.cache_clear()
    assert online_store.rebuild_online_store(ponds) == span(7, 10)
    assert online.contents() == clean_contents(online, tmp_path / "clean", 10)
    assert online_store.rebuild_online_store(ponds) == span(7, 10)  # also if nothing seems to be wrong
    assert online_store.materialize_features(ponds, window(10)) == {}


def test_new_column_is_filled_for_servable_days(ponds: ModelSpec, tmp_path: Path) -> None:
    publish(*range(5, 10))
    online_store.materialize_features(ponds, window(10))
    write_definitions(DEFINITIONS.replace('"level")', '"level", "murk")'), tmp_path / "feature_repo")
    assert read(feature="levels:murk") is None
    assert online_store.materialize_features(ponds, window(10)) == span(7, 10)
    assert read(feature="levels:murk") == 9.23 / 2
    assert online_store.materialize_features(ponds, window(10)) == {}


def test_models_of_the_same_features_share_one_state(ponds: ModelSpec) -> None:
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
