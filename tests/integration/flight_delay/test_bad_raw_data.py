"""Bad raw days stop a run at its first step, with an error that names file, column, rule and count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from evergreen.errors import RawDataError
from evergreen.features import checks, inputs
from evergreen.features.inputs import features_dataset
from evergreen.features.pipeline import publish_features
from evergreen.ingest import raw_files
from evergreen.lake import datasets
from evergreen.spec import loader
from evergreen.spec.model import ModelSpec

pytestmark = pytest.mark.integration

DAY = "2013-01-10"
FILE = "day=2013-01-10/flights.parquet"


def check_raw(model: ModelSpec, days: list[date]) -> inputs.FingerprintsByPeriod:
    return checks.validate_raw_files(model, days)


def rewrite(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        change(pd.read_parquet(file)).to_parquet(file, index=False, coerce_timestamps="us")

    return spoil


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20_000])


BAD = {
    "missing": (Path.unlink, ["missing", "deliver it, then clear the run"]),
    "truncated": (cut, ["not a readable Parquet file"]),
    "empty file": (lambda file: file.write_bytes(b""), ["not a readable Parquet file"]),
    "renamed column": (
        rewrite(lambda t: t.rename(columns={"dep_time": "departure"})),
        ["1 declared columns are missing: dep_time", "1 undeclared columns: departure"],
    ),
    "retyped column": (
        rewrite(lambda t: t.assign(distance=t.distance.astype(str))),
        ["distance:", "rows cannot be read as int64 without loss", "the file has string"],
    ),
    "dropped column": (rewrite(lambda t: t.drop(columns="air_time")), ["1 declared columns are missing: air_time"]),
    "added column": (rewrite(lambda t: t.assign(gate="B7")), ["1 undeclared columns: gate"]),
    "duplicated flights": (
        rewrite(lambda t: pd.concat([t, t.head(7)])),
        ["compound columns to be unique", "14 of"],
    ),
    "impossible values": (
        rewrite(lambda t: t.assign(arr_time=t.arr_time.mask(t.index < 3, 2567))),
        ["arr_time: column values to be between (min_value=1.0, max_value=2400.0): 3 of", "such as 2567"],
    ),
    "arrival without departure": (
        rewrite(lambda t: t.assign(dep_time=t.dep_time.mask((t.index < 5) & t.arr_delay.notna()))),
        ["dep_time", "not be null", "5 of"],
    ),
    "no rows": (rewrite(lambda t: t.head(0)), ["has no rows"]),
    "half of the day": (rewrite(lambda t: t.head(250)), ["table row count to be between", "found 250"]),
    "another day's rows": (rewrite(lambda t: t.assign(day=11)), ["day: column values to be in set"]),
    "an airport gone": (
        rewrite(lambda t: t[t.origin != "LGA"]),
        ["origin: column distinct values to equal set"],
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_raw_data_stops_the_run_before_anything_changes(own_january: Path, kind: str) -> None:
    spoil, sentences = BAD[kind]
    model = loader.load_spec("flight_delay")
    published = features_dataset(model)
    before = published.manifests()
    file = raw_files.raw_file("flights", DAY)
    good = file.read_bytes()

    spoil(file)
    with pytest.raises(RawDataError) as raised:
        check_raw(model, [DAY])
    message = str(raised.value)
    assert FILE in message
    for sentence in sentences:
        assert sentence in message, message
    assert published.manifests() == before

    file.write_bytes(good)
    fingerprints = check_raw(model, [DAY])
    assert fingerprints == {"2013-01-10": published.manifest("day=2013-01-10").fingerprint}


def test_a_bad_day_stops_only_the_days_that_look_back_to_it(own_january: Path) -> None:
    model = loader.load_spec("flight_delay")
    raw_files.raw_file("flights", "2013-01-05").unlink()
    for day in ("2013-01-05", "2013-01-14"):
        with pytest.raises(RawDataError, match="day=2013-01-05"):
            check_raw(model, [day])
    check_raw(model, ["2013-01-04", "2013-01-15"])


def test_a_bad_register_is_named(own_january: Path) -> None:
    rewrite(lambda t: pd.concat([t, t.head(1)]))(raw_files.raw_file("planes"))
    with pytest.raises(RawDataError, match=r"planes.parquet: tailnum: column values to be unique: 2 of"):
        check_raw(loader.load_spec("flight_delay"), [DAY])


def test_every_broken_rule_is_reported(own_january: Path) -> None:
    rewrite(lambda t: t.assign(distance=0, minute=75))(raw_files.raw_file("flights", DAY))
    with pytest.raises(RawDataError) as raised:
        check_raw(loader.load_spec("flight_delay"), [DAY])
    assert len(raised.value.faults) == 2


def test_raw_data_that_changes_during_a_run_is_not_published(own_january: Path) -> None:
    model = loader.load_spec("flight_delay")
    rewrite(lambda t: t.iloc[1:])(raw_files.raw_file("flights", DAY))
    fingerprints = check_raw(model, [DAY])
    before = features_dataset(model).manifests()
    rewrite(lambda t: t.iloc[1:])(raw_files.raw_file("flights", DAY))
    assert publish_features(model, fingerprints, {"2013-01-10": "never read"}) == {}
    assert features_dataset(model).manifests() == before


def test_the_report_of_a_failed_check_is_kept(own_january: Path) -> None:
    rewrite(lambda t: t.assign(minute=75))(raw_files.raw_file("flights", DAY))
    with pytest.raises(RawDataError):
        check_raw(loader.load_spec("flight_delay"), [DAY])
    reports = datasets.open_dataset("checks/flight_delay")
    manifest = reports.manifest("flights-2013-01-10")
    assert manifest is not None
    assert '"minute"' in reports.file_path(manifest, "report").read_text()
