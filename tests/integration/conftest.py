"""Real days of flights with real features, made once and copied for each test that changes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evergreen.features.pipeline import run_feature_pipeline
from evergreen.settings import settings
from evergreen.spec import loader
from support.calendars import later

DAYS = [later("2013-01-01", n) for n in range(17)]


@pytest.fixture(scope="session")
def january(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose lake holds 17 raw days and their published features. Not to be changed."""
    from evergreen_models.flight_delay.raw import deliver

    home = tmp_path_factory.mktemp("january") / "home"
    before = os.environ.get("EVERGREEN_HOME")
    os.environ["EVERGREEN_HOME"] = str(home)
    settings.cache_clear()
    deliver(DAYS)
    run_feature_pipeline(loader.load_spec("flight_delay"), DAYS)
    yield home
    if before is None:
        del os.environ["EVERGREEN_HOME"]
    else:
        os.environ["EVERGREEN_HOME"] = before
    settings.cache_clear()


@pytest.fixture
def own_january(january: Path, use_home: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of january that the test may change; the settings point at it."""
    shutil.copytree(january, tmp_path / "home")
    return use_home(tmp_path / "home")
