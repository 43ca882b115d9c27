"""A fingerprint covers everything that a day depends on, and nothing else."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from evergreen.features import inputs
from evergreen.lake import fingerprints
from evergreen.settings import settings
from evergreen.spec.loader import feature_spec, load_spec
from evergreen.spec.model import FeatureSpec
from support.histories import tariff_source

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import evergreen_models

    model = tmp_path / "tide"
    model.mkdir()
    (model / "__init__.py").touch()
    (model / "features.py").write_text(
        "import json\nfrom evergreen_models.tide import moon\ndef f():\n    from .sun import LIGHT, missing\n"
    )
    (model / "moon.py").write_text("import evergreen_models.tide.stars\n")
    (model / "sun.py").write_text("LIGHT = 1\n")
    (model / "stars.py").write_text("import pandas\n")
    (model / "weather.py").write_text("raise SystemExit('never imported')\n")
    monkeypatch.setattr(evergreen_models, "__path__", [*evergreen_models.__path__, str(tmp_path)])
    return model


def code() -> dict[str, str]:
    return fingerprints.code_of(["evergreen_models.tide.features"], ["pyarrow"])


def test_imported_modules_of_a_model_folder_count(folder: Path) -> None:
    before = code()
    assert set(before) == {
        "pyarrow",
        "evergreen_models.tide",
        *(f"evergreen_models.tide.{m}" for m in ("features", "moon", "sun", "stars")),
    }
    assert not [name for name in sys.modules if name.startswith("evergreen_models.tide")], "nothing was imported"
    (folder / "weather.py").write_text("changed")
    assert code() == before
    (folder / "stars.py").write_text("import numpy\n")
    assert {name for name in before if before[name] != code()[name]} == {"evergreen_models.tide.stars"}


def test_a_missing_module_is_named(folder: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"models\.tide\.train"):
        fingerprints.code_of(["evergreen_models.tide.train"], [])


@pytest.mark.parametrize(
    ("zone", "day", "trailing", "start", "hours"),
    [
        ("UTC", "2024-03-10", 0, "2024-03-10T00:00", 24),
        ("America/New_York", "2024-03-10", 0, "2024-03-10T05:00", 23),
        ("America/New_York", "2024-11-03", 0, "2024-11-03T04:00", 25),
        ("America/New_York", "2024-03-11", 1, "2024-03-10T05:00", 47),
        ("Pacific/Kiritimati", "2024-03-10", 0, "2024-03-09T10:00", 24),
        ("Asia/Beirut", "2024-03-31", 0, "2024-03-30T22:00", 23),  # its first hour is missing
    ],
)
def test_a_day_sees_a_history_until_its_midnight(zone: str, day: str, trailing: int, start: str, hours: int) -> None:
    source = tariff_source(dates=False, trailing=f"{trailing}d")
    spec = FeatureSpec(timezone=zone, first_day="2024-01-01", sources=[source], views=["a"], spine="b")
    begins = datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert inputs.visible_span(spec, source, day) == (begins, begins + timedelta(hours=hours))
    by_days = tariff_source(trailing=f"{trailing}d")
    first = date.fromisoformat(day) - timedelta(trailing)
    assert inputs.visible_span(spec, by_days, day) == (first, first + timedelta(trailing + 1))


@pytest.mark.parametrize(
    ("period", "name", "trailing", "start", "hours", "days"),
    [
        ("1h", "2024-03-10T06:00Z", "0h", "2024-03-10T06:00", 1, ("2024-03-10", "2024-03-11")),
        ("1h", "2024-03-10T03:00Z", "6h", "2024-03-09T21:00", 7, ("2024-03-09", "2024-03-10")),
        ("1w", "2024-03-04", "1w", "2024-02-26T05:00", 14 * 24 - 1, ("2024-02-26", "2024-03-11")),
    ],
)
def test_other_periods_see_a_history(
    period: str, name: str, trailing: str, start: str, hours: int, days: tuple[str, str]
) -> None:
    source, by_days = (tariff_source(dates=dates, trailing=trailing) for dates in (False, True))
    spec = FeatureSpec(
        period=period, timezone="America/New_York", first_day="2024-01-01", sources=[source], views=["a"], spine="b"
    )
    begins = datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert inputs.visible_span(spec, source, name) == (begins, begins + timedelta(hours=hours))
    assert inputs.visible_span(spec, by_days, name) == tuple(map(date.fromisoformat, days))


@pytest.mark.parametrize(
    ("period", "limit", "count"),
    [("1d", 31, 31), ("1w", 31, 31), ("1h", 31, 744), ("30min", 1, 48), ("1w", 1, 1)],
)
def test_a_run_builds_a_number_of_days_or_of_weeks(
    period: str, limit: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_MAX_DAYS_PER_RUN", str(limit))
    settings.cache_clear()
    spec = feature_spec(load_spec("flight_delay")).model_copy(update={"period": period})
    assert inputs.max_periods_per_run(spec) == count
