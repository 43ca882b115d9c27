"""The steps of a day of features, run again, run together, and left tidy."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from evergreen import features, lake
from evergreen import model as models

pytestmark = pytest.mark.integration

DAY = date(2013, 1, 12)


def test_a_published_day_is_not_computed_again(own_january: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.load("flight_delay")
    wanted = features.check_raw(model, [DAY])
    assert features.build(model, wanted) == {}
    assert f"{DAY}: published already" in capsys.readouterr().out
    features.check(model, {})
    assert features.publish(model, wanted, {})[str(DAY)]


def test_a_day_by_itself_and_twice_at_once_has_the_bytes_of_a_day_among_others(own_january: Path) -> None:
    model = models.load("flight_delay")
    dataset = features.dataset(model)
    before = dataset.manifest(lake.day_partition(DAY))
    assert before is not None
    (dataset.root / "_manifests" / f"{lake.day_partition(DAY)}.json").unlink()

    wanted = features.check_raw(model, [DAY])
    one, twin = features.build(model, wanted), features.build(model, wanted)
    assert one != twin, "two attempts share no folder"
    features.check(model, one)
    features.publish(model, wanted, one)
    # The first to finish clears away what both have staged: the other finds the day done.
    features.check(model, twin)
    features.publish(model, wanted, twin)
    assert dataset.manifest(lake.day_partition(DAY)) == before
    assert not list((dataset.root / "_staging").iterdir())


def test_nothing_stays_cached_in_spark(january: Path) -> None:
    # A server outlives its sessions: what one left cached would fill it, and answer others with old data.
    session = SparkSession.getActiveSession()
    assert session is not None
    assert session._jsparkSession.sharedState().cacheManager().isEmpty()


def test_a_changed_raw_row_changes_the_days_that_look_back_to_it_and_no_others(own_january: Path) -> None:
    import pandas as pd

    model = models.load("flight_delay")
    days = [date(2013, 1, n) for n in range(1, 18)]
    before = features.check_raw(model, days)
    file = lake.raw_file("flights", date(2013, 1, 5))
    pd.read_parquet(file).iloc[1:].to_parquet(file, index=False, coerce_timestamps="us")
    after = features.check_raw(model, days)
    assert [day for day in before if before[day] != after[day]] == [f"2013-01-{n:02}" for n in range(5, 15)]
