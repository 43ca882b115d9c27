"""The values of metrics, from real ledgers, manifests and jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from evergreen import ledger, storage
from evergreen.notifications.delivery import deliver
from evergreen.notifications.events import Notification
from evergreen.notifications.outbox import outbox_file
from evergreen.plugin import model_metrics
from evergreen.plugin.model_metrics import MAX_PERIODS, MODEL_METRICS, ModelCollector
from evergreen.promotion import freshness
from evergreen.settings import NotificationRoute, settings
from evergreen.training.attempt import Attempt, ResourceAllocation
from evergreen.training.outcome import Outcome
from evergreen.training.recent_attempts import register_job
from support import tills
from support.ledger_events import look_event, promotion, registration, verdict_event

pytestmark = pytest.mark.unit

NOW = datetime(2024, 1, 7, 15, tzinfo=UTC)
RECORDED = datetime(2024, 1, 5, tzinfo=UTC)


@pytest.fixture
def model_folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("evergreen.ledger.journal.utc_now", lambda: RECORDED)
    folder = tills.write_model(tmp_path, monkeypatch, use_models)
    tills.deliver(6)
    return folder


def scrape(now: datetime = NOW) -> dict[str, float]:
    """Return the value of each series, read back from the page, by its name, its model, and its own labels."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ModelCollector(clock=lambda: now))
    values = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name not in ("model", "team")}
            model = {"model": sample.labels["model"]} if "model" in sample.labels else {}
            labels = ",".join(f"{name}={value}" for name, value in {**model, **own}.items())
            values[f"{sample.name}{{{labels}}}"] = sample.value
    return values


def of(values: dict[str, float], name: str, model: str = "tills") -> float | None:
    """Return the value of a metric without labels of its own."""
    return values.get(f"{name}{{model={model}}}")


def by_label(values: dict[str, float], name: str, label: str) -> dict[str, float]:
    """Return the values of a metric of `tills` that are not 0, by its label."""
    prefix = f"{name}{{model=tills,{label}="
    return {key[len(prefix) : -1]: value for key, value in values.items() if key.startswith(prefix) and value}


def append(*events: ledger.LedgerEvent) -> None:
    for event in events:
        ledger.append_decision("tills", "ada", lambda _, event=event: event)


def seconds(*date: int) -> float:
    return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[arg-type]


def test_a_model_without_anything(model_folder: Path) -> None:
    values = scrape()
    assert of(values, "evergreen_champion") == 0
    assert of(values, "evergreen_features_missing_periods") == 0
    assert of(values, "evergreen_approvals_waiting") == 0
    assert of(values, "evergreen_verdicts_rejected_in_a_row") == 0
    assert not {name.partition("{")[0] for name in values} & {
        "evergreen_champion_promoted_timestamp_seconds",
        "evergreen_champion_due_timestamp_seconds",
        "evergreen_features_until_timestamp_seconds",
        "evergreen_features_due_timestamp_seconds",
        "evergreen_predictions_until_timestamp_seconds",
        "evergreen_verdict",
        "evergreen_training_cost",
    }
    assert set(by_label(values, "evergreen_scrape_error", "part")) == set()


def test_features(model_folder: Path) -> None:
    days = tills.days(5)
    tills.publish(
        tills.change_spec(model_folder, 'spine="receipts",', 'spine="receipts", fresh_within="36h",'), days[:1]
    )
    tills.publish(tills.reload_spec(), [days[2]])
    values = scrape()
    assert of(values, "evergreen_features_until_timestamp_seconds") == seconds(2024, 1, 4)
    assert of(values, "evergreen_features_missing_periods") == 1  # 2 January; what follows the 3rd is due
    assert of(values, "evergreen_features_due_timestamp_seconds") == seconds(2024, 1, 6, 12)


def test_only_the_last_periods_are_read(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tills.publish(tills.reload_spec(), tills.days(5))
    starts = []
    read = freshness.published_periods
    monkeypatch.setattr(
        freshness, "published_periods", lambda model, start=None: starts.append(start) or read(model, start)
    )
    late = NOW + timedelta(days=MAX_PERIODS)
    assert of(scrape(late), "evergreen_features_missing_periods") == 0
    assert starts == ["2024-01-07", None]  # nothing is that new, so the newest of all is looked for
    starts.clear()
    assert of(scrape(), "evergreen_features_missing_periods") == 0
    assert starts == ["2024-01-01"]


def test_champion_verdict_and_ledger(model_folder: Path) -> None:
    tills.change_spec(model_folder, 'train="5d",', 'train="5d", fresh_within="1w",')
    append(verdict_event(10), registration("1", 1), promotion("1", 10, 1))
    append(verdict_event(20, "1", passed=False), verdict_event(30, "1", passed=False))
    values = scrape()
    assert of(values, "evergreen_champion") == 1
    assert of(values, "evergreen_champion_promoted_timestamp_seconds") == RECORDED.timestamp()
    assert of(values, "evergreen_champion_data_until_timestamp_seconds") == seconds(2013, 1, 11)
    assert of(values, "evergreen_champion_due_timestamp_seconds") == seconds(2013, 1, 18)
    assert of(values, "evergreen_verdict_timestamp_seconds") == RECORDED.timestamp()
    assert by_label(values, "evergreen_verdict", "outcome") == {"reject": 1}
    assert by_label(values, "evergreen_verdict_gates", "outcome") == {"failed": 1}
    assert of(values, "evergreen_verdicts_rejected_in_a_row") == 2
    assert by_label(values, "evergreen_ledger_entries_total", "kind") == {"judged": 3, "registered": 1, "promoted": 1}


def test_rejections_are_counted_up_to_a_bound(model_folder: Path) -> None:
    append(*(verdict_event(day, passed=False) for day in range(10, 10 + model_metrics.MAX_VERDICTS + 3)))
    assert of(scrape(), "evergreen_verdicts_rejected_in_a_row") == model_metrics.MAX_VERDICTS


def test_a_challenger_and_its_comparison(model_folder: Path) -> None:
    gate = 'dict(kind="against_champion", metric="rmse", must_be="better", name="beats", confidence=0.9)'
    tills.change_spec(model_folder, 'holdout="2d",', 'holdout="14d",')
    tills.change_spec(model_folder, "gates=[", f"gates=[{gate}, ")
    append(verdict_event(10), registration("1", 1), promotion("1", 10, 1))
    event = look_event(verdict_event(30, "1"), "inconclusive", level=0.02)
    [result] = event.verdict.results
    verdict = event.verdict.model_copy(update={"results": (result.model_copy(update={"gate": "beats"}),)})
    append(event.model_copy(update={"verdict": verdict}))
    values = scrape()
    assert by_label(values, "evergreen_verdict", "outcome") == {"inconclusive": 1}
    assert by_label(values, "evergreen_challengers", "state") == {"gathering_evidence": 1}
    assert by_label(values, "evergreen_comparison_alpha", "gate") == {"beats": 0.02}
    assert by_label(values, "evergreen_comparison_alpha_budget", "gate") == pytest.approx({"beats": 0.1})
    assert of(values, "evergreen_verdicts_rejected_in_a_row") == 0


def test_an_approval_waits_until_somebody_answers(model_folder: Path) -> None:
    append(verdict_event(10), registration("1", 1))
    assert of(scrape(), "evergreen_approvals_waiting") == 0  # nobody is asked
    tills.change_spec(model_folder, 'train="5d",', 'train="5d", approval={},')
    values = scrape()
    assert of(values, "evergreen_approvals_waiting") == 1
    assert of(values, "evergreen_approval_waiting_since_timestamp_seconds") == RECORDED.timestamp()
    rejection = ledger.PromotionRejected(version="1", verdict_entry=1, rejected_by="bo", reason="no")
    append(rejection)
    assert of(scrape(), "evergreen_approvals_waiting") == 0
    append(verdict_event(20), registration("2", 4))
    assert of(scrape(), "evergreen_approvals_waiting") == 1
    append(ledger.PromotionsFrozen(reason="stocktaking"))
    values = scrape()
    assert of(values, "evergreen_promotions_frozen") == 1
    assert of(values, "evergreen_approvals_waiting") == 0  # it is deferred, and nobody is asked
    append(ledger.PromotionsUnfrozen(reason="done"), promotion("2", 20, 4))
    assert of(scrape(), "evergreen_approvals_waiting") == 0


def test_an_approval_waits_for_a_challenger_that_has_proved_itself(model_folder: Path) -> None:
    tills.change_spec(model_folder, 'train="5d",', 'train="5d", approval={},')
    append(verdict_event(10), registration("1", 1), promotion("1", 10, 1))
    append(look_event(verdict_event(30, "1"), "inconclusive"), registration("2", 4))
    assert of(scrape(), "evergreen_approvals_waiting") == 0
    append(look_event(verdict_event(30, "1"), "passed", looks=2, first_entry=4))
    values = scrape()
    assert by_label(values, "evergreen_verdict", "outcome") == {"promote": 1}
    assert of(values, "evergreen_approvals_waiting") == 1


def record_attempt(job: str, name: str, outcome: Outcome | None, start: datetime, hours: float = 1) -> None:
    folder = storage.storage_path(settings().jobs) / "tills" / (job * 64)
    register_job(folder, start)
    Attempt(
        id=name,
        dag_run="",
        model="tills",
        team="tests",
        allocation=ResourceAllocation(cpu=2, memory_gib=4, gpu=1),
        started_at=start,
        last_heartbeat=start + timedelta(hours=hours),
        ended_at=start + timedelta(hours=hours) if outcome else None,
        outcome=outcome,
    ).write(folder / "attempts" / f"{name}.json")


def test_attempts_and_cost_of_the_last_30_days(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.toml"
    rates = "cpu_hour = 0.5\nmemory_gib_hour = 0.25\ngpu_hour = { default = 2.0 }\n"
    prices.write_text(f'currency = "EUR"\n[on_demand]\n{rates}[spot]\n{rates}')
    monkeypatch.setenv("EVERGREEN_PRICES", str(prices))
    settings.cache_clear()
    record_attempt("a", "one", Outcome.PREEMPTED, NOW - timedelta(days=3))
    record_attempt("a", "two", Outcome.SUCCEEDED, NOW - timedelta(days=3))
    record_attempt("b", "three", Outcome.BAD_CODE, NOW - timedelta(days=29), hours=3)  # of the month before
    record_attempt("c", "four", None, NOW - timedelta(hours=1))
    record_attempt("d", "old", Outcome.SUCCEEDED, NOW - timedelta(days=40))
    values = scrape()
    expected = {"preempted": 1, "succeeded": 1, "bad_code": 1, "running": 1}
    assert by_label(values, "evergreen_training_attempts", "outcome") == expected
    assert of(values, "evergreen_training_cpu_seconds") == 6 * 3600 * 2
    assert of(values, "evergreen_training_memory_gibibyte_seconds") == 6 * 3600 * 4
    assert of(values, "evergreen_training_gpu_seconds") == 6 * 3600
    assert by_label(values, "evergreen_training_cost", "currency") == {"EUR": 6 * (2 * 0.5 + 4 * 0.25 + 2)}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return how many folders are listed and files are read by the first scrape of a process."""
    counts = Counter[str]()

    def counted(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def call(argument: Any, *rest: Any) -> Any:
            counts[name] += len(argument) if isinstance(argument, list) else 1
            return read(argument, *rest)

        return call

    ledger._open_journal.cache_clear()
    with monkeypatch.context() as patched:
        for name in ("list_names", "read_files"):
            patched.setattr(storage, name, counted(name, getattr(storage, name)))
        scrape()
    return counts["list_names"], counts["read_files"]


def test_reads_do_not_grow_with_the_history(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(*(verdict_event(day, passed=False) for day in range(1, 220)))
    short = count_reads(monkeypatch)
    append(*(verdict_event(day, passed=False) for day in range(220, 620)))
    long = count_reads(monkeypatch)
    assert long[0] == short[0] < 10
    assert long[1] <= short[1] + 10  # of snapshots, one more whenever the number of pages doubles


@pytest.fixture
def broken_models(model_folder: Path, use_models: Callable[..., None]) -> Path:
    folder = model_folder.parent
    sources = {
        "broken": "raise RuntimeError('no')",
        "exits": "import sys; sys.exit(3)",
        "lost": "MODEL = None",
        'hostile"}\n# x': "MODEL = 1",
        "uses_none": (model_folder / "model.py").read_text().replace('name="tills"', 'name="uses_none"'),
    }
    for name, text in sources.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / name / "model.py").write_text(text)
    use_models(folder, only=True)
    return folder


def test_a_broken_model_hides_no_other(broken_models: Path) -> None:
    append(verdict_event(10), registration("1", 1), promotion("1", 10, 1))
    values = scrape()
    assert of(values, "evergreen_champion") == 1
    assert of(values, "evergreen_champion", "uses_none") == 0
    for name in ("broken", "exits", "lost"):
        assert values[f"evergreen_scrape_error{{model={name},part=spec}}"] == 1
        assert of(values, "evergreen_champion", name) is None
    assert values['evergreen_scrape_error{model=hostile"}\n# x,part=spec}'] == 1


def test_a_part_that_cannot_be_read_hides_no_other(model_folder: Path) -> None:
    append(verdict_event(10), registration("1", 1), promotion("1", 10, 1))
    tills.publish(tills.reload_spec(), [day for day in tills.days(5) if day != tills.days(5)[1]])
    [entry] = Path(settings().ledger).rglob("000002.json")
    entry.write_text("{}")
    ledger._open_journal.cache_clear()
    values = scrape()
    assert by_label(values, "evergreen_scrape_error", "part") == {"ledger": 1}
    assert of(values, "evergreen_champion") is None
    assert of(values, "evergreen_features_missing_periods") == 1
    assert by_label(values, "evergreen_scrape_error", "part") == {"ledger": 1}


def test_what_routes_of_notifications_have_not_sent(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Notification) -> None:
        raise ConnectionError

    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES", '{"ops": {}, "new": {}, "damaged": {}}')
    settings.cache_clear()
    route = settings().notifications.routes["ops"]
    deliver("ops", route, refuse, RECORDED)
    append(verdict_event(10, passed=False), verdict_event(20, passed=False))
    deliver("ops", route, refuse, RECORDED)
    storage.put(outbox_file("damaged"), b"{")
    values = scrape()
    assert values["evergreen_notifications_unsent{route=ops}"] == 2
    assert values["evergreen_notifications_unsent_since_timestamp_seconds{route=ops}"] == RECORDED.timestamp()
    assert values["evergreen_notifications_given_up_total{route=ops}"] == 0
    assert values["evergreen_notifications_unsent{route=new}"] == 0
    assert "evergreen_notifications_unsent_since_timestamp_seconds{route=new}" not in values
    assert not [name for name in values if "damaged" in name]
    assert of(values, "evergreen_champion") == 0
    assert values["evergreen_notifications_checked_timestamp_seconds{route=ops}"] == RECORDED.timestamp()
    assert values["evergreen_notifications_checked_timestamp_seconds{route=new}"] == 0
    deliver("ops", route, refuse, RECORDED + timedelta(days=4))
    values = scrape()
    assert values["evergreen_notifications_unsent{route=ops}"] == 0
    assert values["evergreen_notifications_given_up_total{route=ops}"] == 2


def test_what_a_route_that_was_renamed_has_not_sent(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Notification) -> None:
        raise ConnectionError

    for name in ("old", "sent"):
        deliver(name, NotificationRoute(), refuse, RECORDED)
    append(verdict_event(10, passed=False))
    deliver("old", NotificationRoute(), refuse, RECORDED)
    deliver("sent", NotificationRoute(), lambda _: None, RECORDED)
    storage.put(outbox_file("broken"), b"{")
    storage.put(outbox_file("ops").with_name("not a route.json"), b"{}")
    monkeypatch.setenv("EVERGREEN_NOTIFICATIONS__ROUTES", '{"new": {}}')
    settings.cache_clear()
    values = {name: value for name, value in scrape().items() if "notifications_unsent" in name}
    assert values == {
        "evergreen_notifications_unsent{route=new}": 0,
        "evergreen_notifications_unsent{route=old}": 1,
        "evergreen_notifications_unsent_since_timestamp_seconds{route=old}": RECORDED.timestamp(),
    }


def test_labels_and_names_are_those_of_the_reference(model_folder: Path) -> None:
    names = [metric.name for metric in MODEL_METRICS]
    assert len(set(names)) == len(names)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ModelCollector(clock=lambda: NOW))
    declared = {metric.name: set(metric.label_names) for metric in MODEL_METRICS}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert all(set(sample.labels) == declared[family.name] for sample in family.samples)
