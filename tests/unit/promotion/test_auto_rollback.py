"""A champion that falls behind the one before it is rolled back once, whoever is killed, if nothing forbids it.

Ledger and lake are real, MLflow too where something is rolled back, and so is every step from a period's rows on.
Feast's join and the scoring of models are replaced: rows are what a test has published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen import ledger
from evergreen.errors import PromotionRefusedError, ScoringError
from evergreen.gates.evidence import Evidence
from evergreen.lake.datasets import Dataset, open_dataset
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.ledger import (
    ChampionRolledBack,
    LedgerEntry,
    LedgerEvent,
    LedgerState,
    PromotionsFrozen,
    PromotionsUnfrozen,
    RollbackRejected,
    RollbackRequested,
)
from evergreen.monitoring import paired_periods
from evergreen.monitoring.champion_pair import find_pair
from evergreen.monitoring.matured import performance_dataset
from evergreen.monitoring.period_rows import PeriodRows, RegisteredModels
from evergreen.monitoring.record import MonitoringRecord
from evergreen.periods import Duration
from evergreen.promotion import auto_rollback, service
from evergreen.promotion.approvals import find_waiting_rollback
from evergreen.registry import aliases
from evergreen.spec.auto_rollback import AutoRollbackPolicy, rollback_gate
from evergreen.spec.model import ApprovalPolicy, ModelSpec
from support.ledger_events import MODEL, content, day, promotion, verdict_event
from support.ledgers import Book, ledger_model

pytestmark = pytest.mark.unit

PREVIOUS, CHAMPION, ROWS, DAYS = 20, 30, 60, 9
LOSS = {"kind": "against_champion", "metric": "log_loss", "must_be": "better", "min_rows": 100}
TWO_CHAMPIONS: tuple[LedgerEvent, ...] = (
    verdict_event(PREVIOUS),
    promotion("1", PREVIOUS, 1),
    verdict_event(CHAMPION, "1", champion_content=content(PREVIOUS)),
    promotion("2", CHAMPION, 3, "1"),
)


@dataclass
class Watch:
    """A model whose version 2 was promoted over version 1, and whose monitor runs day after day."""

    model: ModelSpec
    opened: list[str] = field(default_factory=list)
    """Periods that were measured, in order."""

    @property
    def state(self) -> LedgerState:
        return ledger.read_state(self.model.name)

    def publish(self, number: int, noise: tuple[float, float] = (0.1, 3.0), late: float = 0.0) -> None:
        """Publish a day of labels, and predictions of the one before and the champion with so much noise.

        The share `late` of labels is known 10 days later.
        """
        rng, dataset = np.random.default_rng(number), open_dataset(f"features/{self.model.name}")
        label = (rng.random(ROWS) < 0.5).astype(float)
        previous, champion = (1 / (1 + np.exp(2 - label * 4 - size * rng.normal(size=ROWS) * 2)) for size in noise)
        known = datetime.fromisoformat(day(number)).replace(tzinfo=UTC) + timedelta(hours=2)
        instants = [known + timedelta(10 if row < late * ROWS else 0) for row in range(ROWS)]
        columns = {"label": label, "previous": previous, "champion": champion}
        table = pa.table({**columns, "label_known_at": pa.array(instants, pa.timestamp("us", "UTC"))})
        name = compute_fingerprint([number, noise, late])
        file = dataset.stage(f"day={day(number)}", name) / "examples.parquet"
        pq.write_table(table, file)
        dataset.publish(f"day={day(number)}", name, {"examples": file}, {})

    def request(self, end: int, newest: int | None = None) -> LedgerEntry:
        """Run what `compare_previous` runs, as of a day; the newest day that is known is that before `newest`."""
        state = self.state
        assert state.champion
        assert state.champion_content
        record = MonitoringRecord(
            champion_version=state.champion,
            champion_content=state.champion_content,
            as_of=day(CHAMPION),
            reference_days=30,
            judged_until=date.fromisoformat(day((newest or end) - 1)),
            periods=1,
            alarms=(),
            problems=(),
        )
        return auto_rollback.request_rollback(self.model, record, day(end), actor="the monitor")

    def roll_back(self, entry: LedgerEntry, approved_by: str | None = None) -> ChampionRolledBack:
        return auto_rollback.roll_back(self.model, entry.number, actor="the monitor", approved_by=approved_by)

    def events(self, kind: type[ledger.LedgerEvent]) -> list[Any]:
        return [entry.event for entry in self.state.entries if isinstance(entry.event, kind)]

    def change(self, **fields: Any) -> None:
        self.model = self.model.model_copy(update=fields)


def make_watch(name: str, monkeypatch: pytest.MonkeyPatch) -> Watch:
    policy = AutoRollbackPolicy(confidence=0.9)
    watch = Watch(ledger_model(name, gates=(LOSS,)).model_copy(update={"auto_rollback": policy}))
    first = watch.state.tenures[0].content

    @contextmanager
    def open_known_rows(
        _model: ModelSpec, _gate: Any, period: str, contents: tuple[str, str], _: Any, known: datetime, __: Dataset
    ) -> Iterator[PeriodRows]:
        """Yield the labelled rows with the predictions that were published with them."""
        watch.opened.append(period)
        dataset = open_dataset(f"features/{name}")
        manifest = dataset.manifest(f"day={period}")
        assert manifest
        table = pq.read_table(dataset.file_path(manifest, "examples")).to_pandas()
        rows = table[table["label_known_at"] < known]
        scores = [rows["previous" if item == first else "champion"].to_numpy() for item in contents]
        evidence = Evidence(label=rows["label"].to_numpy(), candidate=scores[0], champion=scores[1])
        yield PeriodRows(evidence, len(rows), [])

    monkeypatch.setattr(paired_periods, "open_pair", open_known_rows)
    monkeypatch.setattr(RegisteredModels, "open", lambda *_: None)
    return watch


@pytest.fixture
def watch(home: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Return a watch of a model without a registry."""
    append(*TWO_CHAMPIONS)
    return make_watch(MODEL, monkeypatch)


@pytest.fixture
def book(new_book: Callable[[], Book]) -> Book:
    book = new_book()
    for as_of in (PREVIOUS, CHAMPION):
        book.promote(book.judge(as_of))
    return book


@pytest.fixture
def registered(book: Book, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Return a watch of a model with versions in MLflow."""
    return make_watch(book.model, monkeypatch)


def append(*events: LedgerEvent) -> None:
    for event in events:
        ledger.append_decision(MODEL, "ada", lambda _, event=event: event)


def publish_days(watch: Watch, days: int, **options: Any) -> int:
    """Publish this many days since the promotion; return the day after them."""
    for number in range(CHAMPION, CHAMPION + days):
        watch.publish(number, **options)
    return CHAMPION + days


def test_a_champion_that_is_worse_is_rolled_back_with_its_evidence(registered: Watch, book: Book) -> None:
    for end in range(CHAMPION + 1, CHAMPION + DAYS + 1):
        registered.publish(end - 1)
        try:
            entry = registered.request(end)
        except PromotionRefusedError as refusal:
            text = str(refusal)
            assert "are not compared yet" in text or "is not shown to do better" in text
        else:
            break
    else:
        pytest.fail("the loss was not found in time")
    days = end - CHAMPION
    assert days >= 7
    assert registered.opened == [day(CHAMPION + number) for number in range(days)], "each day was measured once"
    request = entry.event
    assert isinstance(request, RollbackRequested)
    assert (request.champion, request.previous, request.look.days, request.rows) == ("2", "1", days, ROWS * days)
    assert request.look.low > 0
    assert registered.state.champion == "2", "nothing acts before it is recorded"

    event = registered.roll_back(entry)
    assert (event.restored_version, event.barred_version) == ("1", "2")
    assert (event.request_entry, event.reason) == (entry.number, request.reason)
    assert "version 1 does better than version 2, which replaced it, by log_loss on matured labels" in event.reason
    assert (registered.state.champion, registered.state.barred_versions) == ("1", {"2"})
    assert book.aliases == book.expected_aliases

    registered.publish(end, noise=(1.5, 0.1))
    with pytest.raises(PromotionRefusedError, match="was not promoted over another one: there is nothing to compare"):
        registered.request(end + 1)


def test_a_champion_that_is_not_worse_stays(watch: Watch) -> None:
    end = publish_days(watch, DAYS, noise=(0.5, 0.5))
    with pytest.raises(PromotionRefusedError, match="version 2 stays: version 1 is not shown to do better than"):
        watch.request(end)
    assert not watch.events(RollbackRequested)


def test_whoever_is_killed_there_is_one_rollback(
    registered: Watch, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = publish_days(registered, DAYS)
    entry = registered.request(end)
    assert registered.request(end) == entry, "equal evidence is recorded once"

    def die(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for place, name in ((ledger, "append_decision"), (aliases, "sync_aliases")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, die)
            with pytest.raises(KeyboardInterrupt):
                registered.roll_back(entry)
    assert (registered.state.champion, book.aliases["champion"]) == ("1", "2"), "killed between the two"
    for _ in range(2):
        event = registered.roll_back(entry)
        assert event.request_entry == entry.number
        assert book.aliases == book.expected_aliases
    assert registered.events(ChampionRolledBack) == [event]
    assert registered.events(RollbackRequested) == [entry.event]


def test_two_at_once_roll_back_once(registered: Watch) -> None:
    entry = registered.request(publish_days(registered, DAYS))
    with ThreadPoolExecutor(2) as pool:
        events = list(pool.map(lambda _: registered.roll_back(entry), range(2)))
    assert len(registered.events(ChampionRolledBack)) == 1
    assert events[0] == events[1]


def test_a_person_approves_it_where_the_model_needs_approval(registered: Watch) -> None:
    registered.change(approval=ApprovalPolicy())
    entry = registered.request(publish_days(registered, DAYS))
    assert find_waiting_rollback(registered.model, registered.state) == entry
    with pytest.raises(PromotionRefusedError, match="nobody has approved the rollback"):
        registered.roll_back(entry)
    service.freeze_promotions(registered.model, "stocktaking", actor="ada")
    with pytest.raises(PromotionRefusedError, match="version 2 is not rolled back: the model is frozen"):
        registered.roll_back(entry, approved_by="grace")
    assert find_waiting_rollback(registered.model, registered.state) is None
    service.unfreeze_promotions(registered.model, "done", actor="ada")
    event = registered.roll_back(entry, approved_by="grace")
    assert (event.approved_by, registered.state.champion) == ("grace", "1")
    assert find_waiting_rollback(registered.model, registered.state) is None


def test_a_person_who_was_first_is_not_repeated(registered: Watch) -> None:
    entry = registered.request(publish_days(registered, DAYS))
    by_hand = service.roll_back_champion(registered.model, None, "I saw it", actor="ada")
    assert registered.roll_back(entry) == by_hand
    assert len(registered.events(ChampionRolledBack)) == 1


def test_who_rejects_it_is_not_asked_again(watch: Watch) -> None:
    watch.change(approval=ApprovalPolicy())
    entry = watch.request(publish_days(watch, DAYS))
    for _ in range(2):
        auto_rollback.reject_rollback(
            watch.model, entry.number, actor="the monitor", rejected_by="grace", reason="it was the weather"
        )
    assert len(watch.events(RollbackRejected)) == 1
    assert find_waiting_rollback(watch.model, watch.state) is None
    rejected = "grace did not approve a rollback of version 2: it was the weather"
    with pytest.raises(PromotionRefusedError, match=rejected):
        watch.request(publish_days(watch, DAYS + 1))
    assert watch.state.champion == "2"


def test_what_is_shown_while_it_is_held_back_is_said_and_not_recorded(watch: Watch) -> None:
    append(PromotionsFrozen(reason="stocktaking"))
    end = publish_days(watch, DAYS)
    with pytest.raises(PromotionRefusedError, match="version 1 does better .* it is not rolled back: the model is fr"):
        watch.request(end)
    append(PromotionsUnfrozen(reason="done"))
    assert isinstance(watch.request(end).event, RollbackRequested)
    assert len(watch.opened) == DAYS


def test_the_next_champion_is_compared_with_the_one_that_it_replaced(watch: Watch) -> None:
    watch.request(publish_days(watch, DAYS))
    append(verdict_event(44, "2", champion_content=content(CHAMPION)), promotion("3", 44, 6, "2"))
    with pytest.raises(PromotionRefusedError, match="versions 3 and 2 are not compared yet: 0 of 7 days"):
        watch.request(45)


def test_a_run_that_is_killed_while_it_measures_loses_no_day(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    end, dataset, numbers = publish_days(watch, DAYS), type(performance_dataset(MODEL)), iter(range(100))
    publish = dataset.publish

    def die_at_fifth(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == 4:
            raise KeyboardInterrupt
        return publish(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(dataset, "publish", die_at_fifth)
        with pytest.raises(KeyboardInterrupt):
            watch.request(end)
    watch.request(end)
    assert watch.opened == [day(CHAMPION + number) for number in (0, 1, 2, 3, 4, *range(4, DAYS))]


def test_a_run_about_the_past_asks_for_nothing(watch: Watch) -> None:
    end = publish_days(watch, DAYS)
    with pytest.raises(PromotionRefusedError, match="is not the newest that is known of the champion"):
        watch.request(end, newest=end + 1)
    assert watch.opened == []
    entry = watch.request(end)
    with pytest.raises(PromotionRefusedError, match="a run that knows more than one as of .* has compared them"):
        watch.request(end - 1)
    assert watch.events(RollbackRequested) == [entry.event]
    assert len(watch.opened) == DAYS


def test_it_ends_some_time_after_the_promotion(watch: Watch) -> None:
    watch.change(auto_rollback=AutoRollbackPolicy(confidence=0.9, within="10d"), label_delay=Duration(2, "d"))
    publish_days(watch, 12)
    with pytest.raises(PromotionRefusedError, match=f"for 10d after its promotion: that was over as of {day(42)}"):
        watch.request(43)
    event = watch.request(42).event
    assert isinstance(event, RollbackRequested)
    assert event.days == (date.fromisoformat(day(30)), date.fromisoformat(day(40)))


def test_days_are_measured_again_if_their_labels_are_others(watch: Watch) -> None:
    end = publish_days(watch, 8, noise=(0.5, 0.5), late=0.5)
    for as_of, rows, opened in ((end, 240, 8), (end, 240, 8), (end + 15, 480, 16), (end + 16, 480, 16)):
        with pytest.raises(PromotionRefusedError, match=f"on {rows} rows of 8 days"):
            watch.request(as_of)
        assert len(watch.opened) == opened
    watch.publish(CHAMPION, noise=(0.4, 0.4), late=0.5)
    with pytest.raises(PromotionRefusedError, match="on 480 rows of 8 days"):
        watch.request(end + 16)
    assert watch.opened[16:] == [day(CHAMPION)]


def test_what_fails_of_a_day_keeps_no_other_from_being_measured(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    end, open_pair = publish_days(watch, 8, noise=(0.5, 0.5)), paired_periods.open_pair

    def fail_once(*arguments: Any) -> Any:
        if arguments[2] == day(32):
            raise ScoringError("the file is gone")
        return open_pair(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(paired_periods, "open_pair", fail_once)
        with pytest.raises(PromotionRefusedError, match=f"7 days .*; {day(32)} cannot be measured: the file is gone"):
            watch.request(end)
    with pytest.raises(PromotionRefusedError, match="of 8 days from"):
        watch.request(end)
    assert watch.opened[-1] == day(32)


def test_what_is_measured_stays_when_its_features_expire(watch: Watch) -> None:
    end = publish_days(watch, 8, noise=(0.5, 0.5))
    for _ in range(2):
        with pytest.raises(PromotionRefusedError, match="of 8 days from"):
            watch.request(end)
        open_dataset(f"features/{MODEL}").manifest_path(f"day={day(30)}").unlink(missing_ok=True)
    assert len(watch.opened) == 8


def test_measuring_stops_after_its_time_and_goes_on_at_the_next_run(watch: Watch) -> None:
    end, seconds = publish_days(watch, 8), iter([0.0, 0.0, 0.0, 1e6])
    pair, policy = find_pair(watch.state), watch.model.auto_rollback
    assert pair
    assert policy
    gate = rollback_gate(policy, watch.model.gates, None)
    measured = paired_periods.measure_pair(watch.model, gate, pair, day(end), clock=lambda: next(seconds))
    assert list(measured.periods) == [day(30), day(31)]
    assert measured.problems == ["6 periods or fewer are measured by the next runs"]
    again = paired_periods.measure_pair(watch.model, gate, pair, day(end))
    assert (len(again.periods), again.problems) == (8, [])
    assert watch.opened == [day(number) for number in range(30, 38)]
