"""Two models whose features are known: their raw data, and the hashes that a local Spark gives."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from evergreen.features import inputs
from evergreen.features.pipeline import run_feature_pipeline
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.spec import loader
from integration.conftest import DAYS
from support.feature_builds import Hashes

_BUILT_DAYS, _BUILT_HOURS = DAYS[9:11], slice(25, 29)  # night and morning: hours without departures, and with


@dataclass(frozen=True)
class KnownFeatures:
    """Raw data of two models, in a folder, and the content of some of their periods by a local Spark."""

    raw: Path
    hashes: Hashes

    @property
    def periods(self) -> dict[str, list[str]]:
        return {model: list(hashes) for model, hashes in self.hashes.items()}


@pytest.fixture(scope="session")
def known_features(january: Path, tmp_path_factory: pytest.TempPathFactory) -> KnownFeatures:
    from evergreen_models.departure_counts.raw import deliver

    home = tmp_path_factory.mktemp("known") / "home"
    shutil.copytree(january / "lake" / "raw", home / "lake" / "raw")
    published = datasets.dataset_at(january / "lake" / "features" / "flight_delay")
    days = {day: published.manifest(datasets.period_partition(day)) for day in _BUILT_DAYS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERGREEN_HOME", str(home))
        settings.cache_clear()
        counts = loader.load_spec("departure_counts")
        first, calendar = counts.features.first_period, counts.features.calendar
        hours = list(calendar.periods_between(first, calendar.shift(first, 32)))
        deliver(hours)
        hashes = run_feature_pipeline(counts, hours[_BUILT_HOURS])
        assert inputs.features_dataset(counts).partitions()[0].startswith("period=2013-01-")
    settings.cache_clear()
    of_days = {day: manifest.content_hash for day, manifest in days.items() if manifest}
    return KnownFeatures(home / "lake" / "raw", {"flight_delay": of_days, counts.name: hashes})
