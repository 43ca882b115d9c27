"""What `evergreen retrain` asks a simulated supplier for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evergreen.ingest.raw_files import RawFile
from evergreen.periods import Duration
from evergreen.spec import loader
from evergreen.spec.loader import feature_spec
from evergreen_local import retraining

pytestmark = pytest.mark.unit

PROGRESS: Any = SimpleNamespace(update=lambda _: None, clear=lambda: None, print=lambda _: None)


@pytest.mark.parametrize(("may_be_absent", "requests"), [(True, 2), (False, 1)])
def test_what_may_be_absent_is_asked_for_each_time(
    may_be_absent: bool, requests: int, use_home: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Nobody but the supplier knows whether there is nothing, or nothing yet."""
    use_home(tmp_path / "home")
    model = loader.load_spec("departure_counts")
    source = feature_spec(model).source("takeoffs" if may_be_absent else "stations")
    features = feature_spec(model).model_copy(update={"sources": (source,)})
    few = {"features": features, "train": Duration(1, "h"), "holdout": Duration(2, "h")}
    asked: list[list[str]] = []

    def deliver(periods: Iterable[str]) -> None:
        asked.append(list(periods))
        for period in asked[-1]:
            file = Path(str(RawFile.from_source(source, period).path))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

    for _ in range(2):
        raw: Any = SimpleNamespace(deliver=deliver)
        retraining._deliver_raw_periods(raw, model.model_copy(update=few), "2013-01-01T08:00Z", PROGRESS)
    assert asked == [["2013-01-01T05:00Z", "2013-01-01T06:00Z", "2013-01-01T07:00Z"]] * requests
