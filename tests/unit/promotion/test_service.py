"""What is recorded once, however often it is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from evergreen import ledger
from evergreen.promotion import service
from evergreen.spec import loader

pytestmark = pytest.mark.unit


def test_record_backtest_records_equal_backtests_once(home: Path) -> None:
    model, report = loader.load_spec("flight_delay"), home / "lake/backtests/flight_delay/report.html"
    for as_of, fingerprint in ((11, "a"), (18, "b"), (11, "a"), (11, "c")):
        candidate = SimpleNamespace(fingerprint=fingerprint)
        service.record_backtest(model, f"2013-01-{as_of}", candidate, report, actor="a backfill")
    events = [entry.event for entry in ledger.read_state(model.name).entries]
    assert [(int(event.as_of[-2:]), event.candidate_fingerprint) for event in events] == [
        (11, "a"),
        (18, "b"),
        (11, "c"),
    ]
