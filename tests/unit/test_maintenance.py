"""Maintenance removes what the settings let go, and nothing that anybody needs, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pydantic import ValidationError
from typer.testing import CliRunner

from evergreen import ledger, object_store, storage
from evergreen.cli import app
from evergreen.errors import EvergreenError, PromotionRefusedError, SettingsError, SpecError
from evergreen.lake import tables
from evergreen.lake.datasets import Dataset, Manifest, open_dataset, path_in_lake
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.ledger import VerdictRecorded, VersionRegistered
from evergreen.maintenance import CleanupItem, clean_up
from evergreen.promotion import rules
from evergreen.settings import RetentionSettings, settings
from evergreen.spec.loader import load_spec
from evergreen.storage import UPath
from evergreen.training.job import ATTEMPTS_FOLDER, CHECKPOINTS_FOLDER, JOB_FILE, OUTPUT_FOLDER, RESULT_FILE
from support.calendars import cooldown
from support.interleaving import (
    before_change,
    before_store_change,
    killed_before_change,
    killed_before_store_change,
)
from support.ledger_events import day, request, verdict_event
from support.object_stores import STORES, open_store
from support.s3_server import S3

pytestmark = pytest.mark.unit

MODEL = "shop"
SPEC = """
from evergreen.spec.model import FeatureSpec, ModelSpec, RawSource, Resources

MODEL = ModelSpec(
    name="shop",
    owner="ada",
    features=FeatureSpec(
        timezone="UTC",
        first_day="2013-01-01",
        sources=(RawSource(name="flights", columns={"carrier": "string"}),),
        views=("delays",),
        spine="examples",
    ),
    feature_service="delays",
    schedule="0 0 * * *",
    train="2d",
    holdout="1d",
    gates=({"kind": "threshold", "metric": "auc", "at_least": 0.6},),
    resources=Resources(timeout_minutes=60, max_preemptions=0),
)
"""
LEFTOVERS_DAYS, VERDICT_DAYS, EXPIRY_DAYS = 2.5, 20.5, 10.5  # no age is equal to one
DATASETS = ("features", "training_sets", "models", "evaluations")
LAST_DAY = 12
BEGINNING = datetime.now(UTC) - timedelta(5000)
"""Time in these tests passes from here on. It never reaches the present, in which the code under test touches files."""


class Clock:
    """The time of the tests, which all files and entries have."""

    def __init__(self) -> None:
        self.now = BEGINNING

    @contextmanager
    def stamp(self) -> Iterator[None]:
        """Give what the code under test touches meanwhile, in the present, the time of the tests."""
        try:
            yield
        finally:
            instant = self.now.timestamp()
            for root in filter(storage.is_local, (settings().lake, Path(settings().jobs))):
                for path in root.rglob("*"):
                    if path.lstat().st_mtime > BEGINNING.timestamp() + 4000 * 86400:
                        os.utime(path, (instant, instant))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("evergreen.ledger.journal.utc_now", lambda: clock.now)
    return clock


@pytest.fixture
def models(
    tmp_path: Path, use_models: Callable[..., None], home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The model folders of a deployment that lets everything go."""
    (tmp_path / "models" / MODEL).mkdir(parents=True)
    (tmp_path / "models" / MODEL / "model.py").write_text(SPEC)
    monkeypatch.setenv("EVERGREEN_RETENTION__LEFTOVERS_DAYS", str(LEFTOVERS_DAYS))
    monkeypatch.setenv("EVERGREEN_RETENTION__VERDICT_DAYS", str(VERDICT_DAYS))
    for name in (*DATASETS, "looks", "checks", "declared", "predictions", "jobs"):
        monkeypatch.setenv(f"EVERGREEN_RETENTION__{name.upper()}_DAYS", str(EXPIRY_DAYS))
    use_models(tmp_path / "models", only=True)
    load_spec.cache_clear()
    yield tmp_path / "models"
    load_spec.cache_clear()


AGED = ("checks", "declared", "looks", "evaluations", "predictions")


def publish(kind: str, partition: str, inputs: dict[str, Any], **texts: str) -> Manifest:
    """Publish a partition as a step does: if it is not there."""
    dataset, fingerprint = open_dataset(f"{kind}/{MODEL}"), compute_fingerprint(inputs)
    if manifest := dataset.find(partition, fingerprint):
        return manifest
    folder = dataset.stage(partition, fingerprint)
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)
    return dataset.publish(partition, fingerprint, {name: folder / f"{name}.json" for name in texts}, inputs)


def publish_features(number: int, value: int) -> Manifest:
    return publish("features", f"day={day(number)}", {"raw": value}, delays=f"{number} {value}")


@dataclass(frozen=True)
class Retrained:
    """What one retrain has published, and its verdict."""

    as_of: int
    training_set: Manifest
    candidate: Manifest
    evaluation: Manifest
    event: VerdictRecorded
    entry: int


def publish_training_set(as_of: int) -> Manifest:
    """Publish a training set of three days, whose examples have features of a fourth day before."""
    features = open_dataset(f"features/{MODEL}")
    contents = {}
    for number in range(as_of - 4, as_of):
        manifest = features.manifest(f"day={day(number)}")
        assert manifest, f"features of day {number}, which the retrain of day {as_of} reads, are gone"
        contents[manifest.partition] = manifest.content_hash
    first = f"day={day(as_of - 4)}"
    earlier = {first: contents.pop(first)}
    inputs = {"as_of": day(as_of), "feature_model": MODEL, "features": contents, "earlier_features": earlier}
    rows = json.dumps(inputs, sort_keys=True)
    return publish("training_sets", f"as_of={day(as_of)}", inputs, train=rows, holdout=rows[:9])


def retrain(as_of: int, *, passed: bool = True) -> Retrained:
    """Publish what a retrain publishes, record its verdict and register its version."""
    training_set = publish_training_set(as_of)
    rows = training_set.to_json()
    model_inputs = {"training_set": training_set.files["train"].sha256}
    candidate = publish("models", training_set.partition, model_inputs, model=rows)
    evaluated = {"candidate": candidate.content_hash}
    name = f"{candidate.partition}-{compute_fingerprint(evaluated)[:16]}"
    evaluation = publish("evaluations", name, evaluated, scores=rows)
    fingerprints = {
        "evaluation": evaluation.content_hash,
        "training_set": training_set.content_hash,
        "candidate": candidate.fingerprint,
    }

    def decide(state: ledger.LedgerState) -> ledger.LedgerEvent | ledger.LedgerEntry:
        files = {"model.ubj": candidate.files["model"].sha256}
        event = verdict_event(
            as_of, state.champion, passed=passed, files=files, champion_content=state.champion_content
        )
        folder = open_dataset(f"evaluations/{MODEL}").root / name
        update = {"evidence": {"evaluation": path_in_lake(folder)}, "candidate_fingerprint": candidate.fingerprint}
        event = event.model_copy(update=update | {"fingerprints": fingerprints})
        return state.entries.find_last(VerdictRecorded, **dict(event)) or event

    entry = ledger.append_decision(MODEL, "retrain", decide)
    assert isinstance(entry.event, VerdictRecorded)
    registered = VersionRegistered(version=str(entry.number), verdict_entry=entry.number, manifest_sha256="0" * 64)
    ledger.append_decision(
        MODEL, "retrain", lambda state: state.entries.find_last(VersionRegistered, **dict(registered)) or registered
    )
    return Retrained(as_of, training_set, candidate, evaluation, entry.event, entry.number)


def promote(retrained: Retrained) -> None:
    promotion = request(ledger.read_state(MODEL), str(retrained.entry), retrained.entry)
    ledger.append_decision(MODEL, "ada", lambda state: rules.decide_promotion(state, promotion, **cooldown(0)))


def roll_back() -> None:
    ledger.append_decision(MODEL, "ada", lambda state: rules.decide_rollback(state, None, "worse"))


def partitions(kind: str) -> list[str]:
    return open_dataset(f"{kind}/{MODEL}").partitions()


def found(items: tuple[CleanupItem, ...], place: str) -> dict[str, int]:
    """Return the number of things of each kind in a place."""
    return {item.kind: item.count for item in items if item.place == place}


class Deployment(RuleBasedStateMachine):
    """A model that lives for months, with maintenance at any moment, in any process that dies.

    Everything is published, judged and promoted by real code; the training and its data are a few bytes. The lake is in
    `folder`, or in a server with the clock of the test.
    """

    def __init__(self, clock: Clock, use_home: Callable[[Path], Path], folder: Path, server: S3 | None = None):
        super().__init__()
        self.server = server
        if server:
            server.clock = lambda: clock.now.timestamp()
            for bucket in server.buckets.values():
                bucket.clear()
        self.clock, clock.now = clock, BEGINNING
        shutil.rmtree(folder, ignore_errors=True)
        use_home(folder)
        ledger._open_journal.cache_clear()
        self.retrained: list[tuple[datetime, Retrained]] = []
        self.used_at: dict[tuple[str, str], datetime] = {}
        self.tasks: list[tuple[datetime, list[Path]]] = []

    @initialize()
    def begin(self) -> None:
        with self.clock.stamp():
            for number in range(LAST_DAY + 1):
                self._note("features", publish_features(number, 0))
            raw = settings().lake / "raw/flights/day=2013-01-01/flights.parquet"
            storage.put(raw, b"rows")
            extracts = [publish("extracts", "orders-2013-01-01", {"raw": text}, rows=text) for text in "ab"]
            folder = settings().lake / "extracts" / MODEL
            self.raw_files = [raw, *(folder / manifest.files["rows"].path for manifest in extracts)]

    def _note(self, kind: str, manifest: Manifest) -> None:
        self.used_at[kind, manifest.partition] = self.clock.now

    @rule(number=st.integers(0, LAST_DAY), value=st.integers(0, 1))
    def correct_features(self, number: int, value: int) -> None:
        with self.clock.stamp():
            self._note("features", publish_features(number, value))

    @rule(as_of=st.integers(4, LAST_DAY), passed=st.booleans())
    def retrain(self, as_of: int, passed: bool) -> None:
        needed = {f"day={day(number)}" for number in range(as_of - 4, as_of)}
        if needed <= set(partitions("features")):
            self._retrain(as_of, passed)

    @rule(passed=st.booleans())
    def retrain_next(self, passed: bool) -> None:
        """The next retrain always finds its features."""
        newest = max((retrained.as_of for _, retrained in self.retrained), default=4)
        self._retrain(min(newest + 1, LAST_DAY), passed)

    def _retrain(self, as_of: int, passed: bool) -> None:
        with self.clock.stamp():
            retrained = retrain(as_of, passed=passed)
        is_new = all(retrained.entry != other.entry for _, other in self.retrained)
        for kind, manifest in zip(
            DATASETS[1:], (retrained.training_set, retrained.candidate, retrained.evaluation), strict=True
        ):
            self._note(kind, manifest)
        if is_new:
            self.retrained.append((self.clock.now, retrained))

    @rule()
    def promote(self) -> None:
        if self.retrained:
            with suppress(PromotionRefusedError):
                promote(self.retrained[-1][1])

    @rule()
    def roll_back(self) -> None:
        with suppress(PromotionRefusedError):
            roll_back()

    @rule(days=st.sampled_from([1, 3, 11, 21]))
    def wait(self, days: int) -> None:
        self.clock.now += timedelta(days)

    @rule(kind=st.sampled_from(DATASETS), number=st.integers(0, 99))
    def begin_task(self, kind: str, number: int) -> None:
        """A task resolves what an earlier one has published, reads its files, and stages its own."""
        if names := partitions(kind):
            dataset = open_dataset(f"{kind}/{MODEL}")
            manifest = dataset.manifest(names[number % len(names)])
            assert manifest
            with self.clock.stamp():
                assert dataset.resolve(manifest.reference) == manifest
                staged = dataset.stage(manifest.partition, "f" * 64) / "rows"
                staged.touch()
            self._note(kind, manifest)
            self.tasks.append(
                (self.clock.now, [staged, *(dataset.root / file.path for file in manifest.files.values())])
            )

    @rule()
    def clean_up(self) -> None:
        needed = self._needed()
        with self.clock.stamp():
            report = clean_up(self.clock.now, is_dry_run=False)
        assert report.problems == ()
        self._check(needed)
        for kind in ("training_sets", "models"):
            young = {name for name in partitions(kind) if not self._is_old(kind, name)}
            assert set(partitions(kind)) == needed[kind] | young, f"{kind}: what nobody needs is still there"

    @rule(number=st.integers(0, 25))
    def die_in_clean_up(self, number: int) -> None:
        needed = self._needed()
        with self.clock.stamp():
            self._kill(number, lambda: clean_up(self.clock.now, is_dry_run=False))
        self._check(needed)

    @rule(number=st.integers(0, LAST_DAY), value=st.integers(0, 1), change=st.integers(0, 20))
    def clean_up_in_a_publish(self, number: int, value: int, change: int) -> None:
        needed = self._needed()
        before = before_store_change if self.server else before_change
        with self.clock.stamp(), before(change, lambda: clean_up(self.clock.now, is_dry_run=False)):
            manifest = publish_features(number, value)
        self._note("features", manifest)
        assert open_dataset(f"features/{MODEL}").manifest(manifest.partition) == manifest
        self._check(needed)

    @rule(number=st.integers(0, LAST_DAY), value=st.integers(0, 1), change=st.integers(0, 12))
    def die_in_a_publish(self, number: int, value: int, change: int) -> None:
        with self.clock.stamp():
            self._kill(change, lambda: publish_features(number, value))
            self._note("features", publish_features(number, value))

    @rule(number=st.integers(0, LAST_DAY), change=st.integers(0, 12))
    def find_in_a_clean_up(self, number: int, change: int) -> None:
        """A step that finds its partition, at any moment of maintenance, uses it from then on."""
        partition, found = f"day={day(number)}", []

        def find() -> None:
            dataset = open_dataset(f"features/{MODEL}")
            if manifest := dataset.manifest(partition):
                found.append(dataset.find(partition, manifest.fingerprint))

        # In a folder it waits where maintenance has the lock, so it ends when that lets it.
        finder = threading.Thread(target=find)
        needed = self._needed()
        before = before_store_change if self.server else before_change
        with self.clock.stamp():
            with before(change, find if self.server else finder.start):
                clean_up(self.clock.now, is_dry_run=False)
            if finder.ident:
                finder.join()
        if any(found):
            self.used_at["features", partition] = self.clock.now
        self._check(needed)

    def _kill(self, number: int, action: Callable[[], object]) -> None:
        kill = killed_before_store_change if self.server else killed_before_change
        kill(number, action)

    def _size(self, path: UPath | Path) -> int | None:
        """Return the size of a file, or None if it is gone, asking as little as possible of the code under test."""
        if storage.is_local(path):
            return path.stat().st_size if path.exists() else None
        assert self.server
        bucket, _, key = path.path.partition("/")
        return len(self.server.buckets[bucket][key]) if key in self.server.buckets[bucket] else None

    def _is_old(self, kind: str, partition: str) -> bool:
        return self.clock.now - self.used_at[kind, partition] > timedelta(EXPIRY_DAYS)

    def _needed(self) -> dict[str, set[str]]:
        """Return the partitions that must stay: of what is there now."""
        state = ledger.read_state(MODEL)
        previous = state.previous_tenure
        contents = {state.champion_content, previous and previous.content, state.challenger_content}
        needed: dict[str, set[str]] = {kind: set() for kind in DATASETS}
        needed["training_sets"] |= set(partitions("training_sets")[-1:])
        for judged_at, retrained in self.retrained:
            needed["evaluations"].add(retrained.evaluation.partition)
            is_recent = self.clock.now - judged_at < timedelta(VERDICT_DAYS)
            is_last = retrained.entry == max(other.entry for _, other in self.retrained)
            if is_recent or is_last or retrained.event.candidate_content in contents:
                inputs = {"training_sets": retrained.training_set, "models": retrained.candidate}
                for kind, manifest in inputs.items():
                    if open_dataset(f"{kind}/{MODEL}").manifest(manifest.partition) == manifest:
                        needed[kind].add(manifest.partition)
        for name in needed["training_sets"]:
            manifest = open_dataset(f"training_sets/{MODEL}").manifest(name)
            needed["features"] |= (
                {*manifest.inputs["features"], *manifest.inputs["earlier_features"]} if manifest else set()
            )
        if not needed["training_sets"]:
            needed["features"] = set(partitions("features"))
        return {kind: names & set(partitions(kind)) for kind, names in needed.items()}

    def _check(self, needed: dict[str, set[str]]) -> None:
        for kind, names in needed.items():
            assert names <= set(partitions(kind)), f"{kind}: something is gone that is needed"
            young = {name for other, name in self.used_at if other == kind and not self._is_old(kind, name)}
            assert young <= set(partitions(kind)), f"{kind}: something is gone that was used lately"

    @invariant()
    def manifests_in_force_have_their_files(self) -> None:
        for kind in (*DATASETS, "extracts"):
            dataset: Dataset = open_dataset(f"{kind}/{MODEL}")
            for manifest in dataset.manifests():
                assert all(self._size(dataset.root / file.path) == file.size for file in manifest.files.values())

    @invariant()
    def running_tasks_have_their_files(self) -> None:
        for began_at, files in self.tasks:
            if self.clock.now - began_at < timedelta(LEFTOVERS_DAYS):
                assert all(self._size(file) is not None for file in files)

    @invariant()
    def raw_data_stays(self) -> None:
        assert all(self._size(file) is not None for file in getattr(self, "raw_files", ()))


@pytest.mark.parametrize("place", ["folder", pytest.param("store", marks=pytest.mark.slow)])
def test_no_life_of_a_deployment_loses_what_is_needed(
    models: Path,
    clock: Clock,
    use_home: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    options = hypothesis_settings(
        max_examples=20 if place == "folder" else 2,  # requests take longer than files
        stateful_step_count=20 if place == "folder" else 12,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    if place == "folder":
        run_state_machine_as_test(lambda: Deployment(clock, use_home, tmp_path / "life"), settings=options)
        return
    with open_store("own", monkeypatch) as (uri, server):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        object_store.deletes_on_condition.cache_clear()
        run_state_machine_as_test(lambda: Deployment(clock, use_home, tmp_path / "life", server), settings=options)


def pass_days(clock: Clock, days: float) -> None:
    clock.now += timedelta(days)


def clean(clock: Clock, *, is_dry_run: bool = False) -> dict[str, dict[str, int]]:
    """Clean up, and return the number of things that went by place and kind."""
    with clock.stamp():
        report = clean_up(clock.now, is_dry_run=is_dry_run)
    assert report.problems == ()
    return {item.place: found(report.items, item.place) for item in report.items}


@pytest.fixture
def history(models: Path, clock: Clock) -> list[Retrained]:
    """Four retrains with 30 days between them; the second is champion, the first was."""
    retrained = []
    with clock.stamp():
        for number in range(LAST_DAY + 1):
            publish_features(number, 0)
        for as_of in (4, 6, 8, 10):
            retrained.append(retrain(as_of, passed=as_of < 8))
            if as_of < 8:
                promote(retrained[-1])
    return retrained


def test_what_champions_were_made_from_stays(history: list[Retrained], clock: Clock) -> None:
    pass_days(clock, 100)
    gone = clean(clock)
    assert gone == {"training_sets/shop": {"expired": 1}, "models/shop": {"expired": 1}}
    assert partitions("training_sets") == [f"as_of={day(number)}" for number in (4, 6, 10)]
    assert partitions("models") == partitions("training_sets")
    assert len(partitions("evaluations")) == 4, "the ledger names them"
    roll_back()
    assert clean(clock) == {}


def test_a_dry_run_lists_and_removes_nothing(history: list[Retrained], clock: Clock) -> None:
    pass_days(clock, 100)
    listed = clean(clock, is_dry_run=True)
    assert len(partitions("training_sets")) == 4
    assert listed == clean(clock)


def test_the_command_prints_what_goes(models: Path) -> None:
    publish("checks", "flights-2013-01-01", {"n": 1}, report="{}")
    os.utime(open_dataset(f"checks/{MODEL}").manifest_path("flights-2013-01-01"), (0, 0))
    expected = {"place": "checks/shop", "kind": "expired", "count": 1, "size": 2, "oldest": "1970-01-01 00:00:00+00:00"}
    result = CliRunner().invoke(app, ["maintenance", "--dry-run", "--json"])
    assert json.loads(result.stdout) == {"is_dry_run": True, "items": [expected]}
    result = CliRunner().invoke(app, ["maintenance"])
    assert re.search(r"removed\s.*checks/shop\s+expired\s+1\s+0.0\s+1970-01-01", result.stdout, re.DOTALL)
    result = CliRunner().invoke(app, ["maintenance"])
    assert (result.exit_code, result.stdout) == (0, "nothing is old enough to go\n")


def test_nothing_goes_by_default(history: list[Retrained], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EVERGREEN_RETENTION__")]:
        monkeypatch.delenv(name)
    settings.cache_clear()
    pass_days(clock, 10_000)
    assert clean(clock) == {}


def test_old_features_go_that_no_retrain_reads(history: list[Retrained], clock: Clock) -> None:
    with clock.stamp():
        for as_of in (11, 12):
            promote(retrain(as_of))
    pass_days(clock, 100)
    # Champions and the newest retrain read the days from 7 on; what the newest could read of the day before is there.
    assert clean(clock)["features/shop"] == {"expired": 7}
    assert partitions("features") == [f"day={day(number)}" for number in range(7, LAST_DAY + 1)]


def test_tables_lose_what_expires(history: list[Retrained], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    dataset = open_dataset(f"features/{MODEL}")
    with clock.stamp():
        for number in range(LAST_DAY + 1):
            partition = f"day={day(number)}"
            file = dataset.stage(partition, "rides") / "rides.parquet"
            pq.write_table(pa.table({"n": [number]}), file)
            dataset.publish(partition, "rides", {"rides": file}, {})
        tables.follow_publication(dataset, dataset.partitions())
        for as_of in (11, 12):
            promote(retrain(as_of))

    def numbers() -> list[int]:
        return sorted(DeltaTable(dataset.root / "rides").to_pyarrow_dataset().to_table()["n"].to_pylist())

    pass_days(clock, 100)
    clean(clock, is_dry_run=True)
    assert numbers() == list(range(LAST_DAY + 1))
    clean(clock)
    assert numbers() == list(range(7, LAST_DAY + 1))


def test_tables_of_training_sets_lose_what_expires(
    history: list[Retrained], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    dataset = open_dataset(f"training_sets/{MODEL}")
    inputs = {"as_of": "2013-01-04", "feature_model": MODEL, "features": {}, "earlier_features": {}}
    with clock.stamp():
        for partition in ("as_of=2013-01-01", "as_of=2013-01-02T0600Z", "as_of=2013-02-01"):
            file = dataset.stage(partition, "rows") / "rows.parquet"
            pq.write_table(pa.table({"n": [1]}), file)
            dataset.publish(partition, "rows", {"rows": file}, inputs)
        tables.follow_publication(dataset, dataset.partitions())

    def partitions_of_table() -> list[str]:
        return sorted(DeltaTable(dataset.root / "rows").to_pyarrow_dataset().to_table()["as_of"].to_pylist())

    assert partitions_of_table() == ["2013-01-01", "2013-01-02T06:00Z", "2013-02-01"]
    pass_days(clock, 100)
    clean(clock)
    assert partitions_of_table() == ["2013-02-01"]


def test_no_file_goes_whose_table_cannot_be_written(
    history: list[Retrained], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_TABLES", "delta")
    settings.cache_clear()
    dataset = open_dataset(f"training_sets/{MODEL}")
    log = dataset.root / "train" / "_delta_log"
    log.mkdir()
    (log / f"{0:020}.json").write_text("x")
    pass_days(clock, 100)
    before = partitions("training_sets")
    with clock.stamp():
        report = clean_up(clock.now, is_dry_run=False)
    [problem] = report.problems
    assert problem.startswith("training_sets/shop is not cleaned up: ")
    assert "_delta_log is damaged" in problem
    assert partitions("training_sets") == before
    assert "models/shop" in {item.place for item in report.items}, "others are"


@pytest.mark.parametrize("kind", [store for store in STORES if store != "own"])
def test_uploads_to_the_lake_that_nobody_completes_end(
    kind: str, models: Path, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    with open_store(kind, monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_LAKE", f"{uri}/lake")
        monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", f"{uri}/lake/_spark")
        use_home(home)
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        client = boto3.Session().client("s3")
        keys = ["lake/features/shop/days/day=1/a.parquet", "lake/_spark/jobs/part.parquet", "lakeside/b.parquet"]
        for key in keys:
            name = {"Bucket": bucket, "Key": f"{prefix}/{key}"}
            upload = client.create_multipart_upload(**name)["UploadId"]
            client.upload_part(**name, UploadId=upload, PartNumber=1, Body=b"12345")

        def uploads_that_go(days: float, *, is_dry_run: bool = False) -> dict[str, tuple[int, int]]:
            report = clean_up(datetime.now(UTC) + timedelta(days), is_dry_run=is_dry_run)
            assert report.problems == ()
            return {item.place: (item.count, item.size) for item in report.items}

        expected = {"uploads to the lake": (1, 5), "exchange with Spark": (1, 5)}
        assert uploads_that_go(LEFTOVERS_DAYS - 1) == {}
        assert uploads_that_go(LEFTOVERS_DAYS + 1, is_dry_run=True) == expected
        assert uploads_that_go(LEFTOVERS_DAYS + 1) == expected
        assert uploads_that_go(LEFTOVERS_DAYS + 1) == {}
        left = client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", ())
        assert [upload["Key"] for upload in left] == [f"{prefix}/lakeside/b.parquet"]


def test_storage_classes_are_of_s3(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_RETENTION__COLD_DAYS", "90")
    with pytest.raises(ValidationError, match="belong together"):
        RetentionSettings(leftovers_days=7, cold_days=90)
    monkeypatch.setenv("EVERGREEN_RETENTION__COLD_STORAGE_CLASS", "STANDARD_IA")
    settings.cache_clear()
    with pytest.raises(SettingsError, match="the lake is not in S3, which has storage classes"):
        clean_up(datetime.now(UTC), is_dry_run=True)


def test_features_of_a_longer_window_stay(history: list[Retrained], clock: Clock, models: Path) -> None:
    """The spec has changed since the newest training set."""
    with clock.stamp():
        for as_of in (11, 12):
            promote(retrain(as_of))
    pass_days(clock, 100)
    replace_spec(models, 'train="2d"', 'train="6d"')
    assert clean(clock)["features/shop"] == {"expired": 5}


def test_features_of_a_model_that_never_trained_stay(models: Path, clock: Clock) -> None:
    with clock.stamp():
        publish_features(0, 0)
    pass_days(clock, 100)
    assert clean(clock) == {}


def test_the_newest_training_set_stays_without_a_verdict(models: Path, clock: Clock) -> None:
    """A run was paused after it. The next one compares features with it, and reads about as far back."""
    with clock.stamp():
        for number in range(LAST_DAY + 1):
            publish_features(number, 0)
        publish_training_set(LAST_DAY)
    pass_days(clock, 100)
    assert clean(clock) == {"features/shop": {"expired": LAST_DAY - 4}}
    assert partitions("training_sets") == [f"as_of={day(LAST_DAY)}"]


def test_features_stay_for_a_model_that_never_trained(history: list[Retrained], clock: Clock, models: Path) -> None:
    (models / "cafe").mkdir()
    start, end = SPEC.index("    features="), SPEC.index("    feature_service")
    text = SPEC[:start] + '    features="shop",\n' + SPEC[end:]
    (models / "cafe/model.py").write_text(text.replace('name="shop"', 'name="cafe"'))
    with clock.stamp():
        for as_of in (11, 12):
            promote(retrain(as_of))
    pass_days(clock, 100)
    assert "features/shop" not in clean(clock)


def test_features_expire_without_a_hole(history: list[Retrained], clock: Clock) -> None:
    with clock.stamp():
        for as_of in (11, 12):
            promote(retrain(as_of))
    pass_days(clock, 100)
    with clock.stamp():
        publish_features(2, 1)
    assert clean(clock)["features/shop"] == {"expired": 2}


def test_caches_and_what_no_verdict_names_go_by_age(history: list[Retrained], clock: Clock) -> None:
    with clock.stamp():
        for kind in AGED:
            publish(kind, "old", {"n": 1}, rows="1")
    pass_days(clock, 11)
    with clock.stamp():
        for kind in AGED:
            publish(kind, "young", {"n": 2}, rows="2")
    expired = {place: kinds for place, kinds in clean(clock).items() if place.partition("/")[0] not in DATASETS[:3]}
    assert expired == {f"{kind}/shop": {"expired": 1} for kind in AGED}


def test_files_that_a_backtest_names_stay(history: list[Retrained], clock: Clock) -> None:
    third = history[2]
    with clock.stamp():
        texts = {"training_set": third.training_set.to_json(), "candidate": third.candidate.to_json()}
        publish("backtests", third.training_set.partition, {"spec": "s"}, **texts)
    pass_days(clock, 100)
    assert clean(clock) == {"training_sets/shop": {"expired": 1}, "models/shop": {"expired": 1}}
    pass_days(clock, 100)
    assert clean(clock) == {}
    for kind, manifest in (("training_sets", third.training_set), ("models", third.candidate)):
        assert all(open_dataset(f"{kind}/{MODEL}").file_path(manifest, name).exists() for name in manifest.files)


def write_job(name: str) -> Path:
    folder = Path(settings().jobs) / MODEL / name
    for path in (
        JOB_FILE,
        f"{CHECKPOINTS_FOLDER}/5/state",
        f"{OUTPUT_FOLDER}/{RESULT_FILE}",
        f"{ATTEMPTS_FOLDER}/1.json",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")
    return folder


def test_checkpoints_and_output_of_ended_jobs_go(models: Path, clock: Clock) -> None:
    with clock.stamp():
        ended, running = write_job("a" * 64), write_job("b" * 64)
    pass_days(clock, 11)
    with clock.stamp():
        (running / ATTEMPTS_FOLDER / "1.json").write_text("{ }")
    assert clean(clock) == {"jobs/shop": {"staged": 1}}
    assert sorted(path.name for path in ended.iterdir()) == [ATTEMPTS_FOLDER, JOB_FILE], "its costs are known"
    assert len(list(running.iterdir())) == 4


def test_no_job_is_removed_through_a_link(models: Path, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/data").touch()
    with clock.stamp():
        folder = write_job("a" * 64)
        shutil.rmtree(folder / OUTPUT_FOLDER)
        (folder / OUTPUT_FOLDER).symlink_to(tmp_path / "elsewhere")
        os.utime(folder / OUTPUT_FOLDER, (0, 0), follow_symlinks=False)
    pass_days(clock, 11)
    [problem] = clean_up(clock.now, is_dry_run=False).problems
    assert "it is a link" in problem
    assert (tmp_path / "elsewhere/data").exists()


def test_list_files_of_an_object_store_has_times() -> None:
    folder = storage.storage_path("memory://jobs/shop")
    storage.put(folder / "a/b", b"123")
    [(path, size, changed_at)] = storage.list_files(folder)
    assert (path, size) == ("a/b", 3)
    assert abs(changed_at - datetime.now(UTC).timestamp()) < 3600


def replace_spec(models: Path, old: str, new: str) -> None:
    file = models / MODEL / "model.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    sys.modules.pop(f"evergreen_models.{MODEL}.model", None)
    load_spec.cache_clear()


def test_leftovers_outlive_every_task(history: list[Retrained], clock: Clock, models: Path) -> None:
    replace_spec(models, "timeout_minutes=60", "timeout_minutes=4000")
    pass_days(clock, 100)
    with pytest.raises(
        SettingsError, match=r"RETENTION__LEFTOVERS_DAYS: is 2.5, and a training of shop may take 2.9 days"
    ):
        clean_up(clock.now, is_dry_run=False)


def test_a_broken_model_keeps_everything(history: list[Retrained], clock: Clock, models: Path) -> None:
    replace_spec(models, "owner=", "ownr=")
    pass_days(clock, 100)
    with pytest.raises(SpecError, match="ownr"):
        clean_up(clock.now, is_dry_run=False)
    assert len(partitions("training_sets")) == 4


def test_another_ledger_keeps_everything(
    history: list[Retrained], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = settings().lake / "verdicts" / MODEL / "report.html"
    page.parent.mkdir(parents=True)
    page.touch()
    monkeypatch.setenv("EVERGREEN_LEDGER", str(tmp_path / "elsewhere"))
    settings.cache_clear()
    pass_days(clock, 100)
    report = clean_up(clock.now, is_dry_run=False)
    assert "correct EVERGREEN_LEDGER" in report.problems[0]
    assert [len(partitions(kind)) for kind in DATASETS] == [LAST_DAY + 1, 4, 4, 4]
    with pytest.raises(EvergreenError, match="is not cleaned up"):
        report.raise_problems()
