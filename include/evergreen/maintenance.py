"""Removes what nobody needs any more: of the lake by the rules of `evergreen.lake.retention`, and of training jobs.

`EVERGREEN_RETENTION__…` says what goes; by default nothing does. Whatever the settings say, these stay: raw data, and
what was read of queries and tables; the ledger, and what it names as evidence; backtests, and the files that they name.
And what these were made from:

- the champion, the one before it, the challenger, and the newest verdict, which may wait for an approval
- verdicts of the last `verdict_days`
- the next training set of each model: its newest one, and the features that a retrain may read

Everything else stays by its age, which begins anew whenever a step uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from evergreen import ledger, storage
from evergreen.errors import DatasetError, EvergreenError, Fault, LedgerError, SettingsError
from evergreen.lake import datasets, exchange, retention, tables
from evergreen.lake.datasets import Dataset, Manifest
from evergreen.lake.retention import Removal, RemovalKind, RetentionRule
from evergreen.settings import RetentionSettings, settings, variable_name
from evergreen.spec.loader import feature_spec, load_spec, model_names
from evergreen.spec.model import ModelSpec
from evergreen.storage import UPath
from evergreen.training.job import CHECKPOINTS_FOLDER, OUTPUT_FOLDER, RESULT_FILE

_MARGIN = timedelta(hours=2)  # what was used an hour ago is not renewed, and tasks need time to end
_EXPIRING_DATASETS = (
    "features",
    "training_sets",
    "looks",
    "models",
    "evaluations",
    "checks",
    "declared",
    "predictions",
)
_OTHER_DATASETS = (  # only leftovers go
    "backtests",
    "estimates",
    "extracts",
    "labelled_answers",
    "monitoring",
    "performance",
    "serving",
    "verdict_tables",
)
_DATASETS_WITH_TABLES = frozenset(["features", "training_sets", "verdict_tables", "predictions"])
_RAW_DATASETS = frozenset(["extracts"])
_JOB_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CleanupItem:
    """What goes, or has gone, of one kind in one place.

    A place is a dataset, by its path in the lake, a model's jobs, the exchange with Spark, or uploads to the lake.
    """

    place: str
    kind: RemovalKind
    count: int
    size: int
    oldest: datetime


@dataclass(frozen=True)
class VerdictInputs:
    """What verdicts of a model were made from, and what the ledger names as their evidence.

    Attributes:
        hashes: content hashes and fingerprints of training sets, candidates, evaluations and examples that stay.
        evaluations: names of all partitions that the ledger names.
    """

    hashes: frozenset[str]
    evaluations: frozenset[str]

    def need(self, manifest: Manifest) -> bool:
        """Return whether a partition of a dataset of the model stays."""
        return not self.hashes.isdisjoint((manifest.fingerprint, manifest.content_hash))


@dataclass(frozen=True)
class CleanupReport:
    """What goes, or has gone, by place and kind; and the problems of places that are not cleaned up."""

    items: tuple[CleanupItem, ...] = ()
    problems: tuple[str, ...] = ()

    def raise_problems(self) -> None:
        """Raise an EvergreenError if there are problems."""
        if self.problems:
            raise EvergreenError("\n".join(self.problems))


def clean_up(now: datetime, *, is_dry_run: bool) -> CleanupReport:
    """Remove what the settings let go at the instant `now`, or with `is_dry_run` only report it.

    Raises:
        SettingsError: leftovers would go while tasks may still read them.
        SpecError: the spec of a model is invalid, so nobody can say what the model needs.
    """
    policy = settings().retention
    if policy.leftovers_days is None:
        return CleanupReport()
    specs = [load_spec(name) for name in model_names()]
    _check_time_limits(specs, policy.leftovers_days)
    table_format = tables.configured_table_format()
    cold = _cold_rule(policy)
    items: list[CleanupItem] = []
    problems: list[str] = []
    for kind in (*_EXPIRING_DATASETS, *_OTHER_DATASETS):
        for dataset in datasets.list_datasets(kind):
            place, removals = f"{kind}/{dataset.root.name}", list[Removal]()
            has_tables = kind in _DATASETS_WITH_TABLES and not is_dry_run
            try:
                rule = replace(_retention_rule(kind, dataset, specs, policy, now), **cold)
                plan = retention.plan_removals(retention.take_inventory(dataset), rule, now.timestamp())
                if has_tables and table_format and plan:
                    tables.sync_tables(dataset, table_format)  # they may be behind, and name files that go now
                for removal in plan if is_dry_run else retention.apply_removals(dataset, plan, rule, now.timestamp()):
                    removals.append(removal)
            except (EvergreenError, OSError) as error:
                problems.append(f"{place} is not cleaned up: {error}")
            if has_tables and removals:
                tables.follow_publication(dataset, [])  # the files of what has expired go later
            items += _summarize(place, removals)
    leftovers: list[Removal] = []
    try:
        cutoff = (now - timedelta(policy.leftovers_days)).timestamp()
        for removal in exchange.remove_leftovers(cutoff, is_dry_run=is_dry_run):
            leftovers.append(removal)
    except (EvergreenError, OSError) as error:
        problems.append(f"{settings().spark_exchange}, the exchange with Spark, is not cleaned up: {error}")
    items += _summarize("exchange with Spark", leftovers)
    uploads: list[Removal] = []
    try:
        for removal in _end_lake_uploads(cutoff, is_dry_run=is_dry_run):
            uploads.append(removal)
    except (EvergreenError, OSError) as error:
        problems.append(f"uploads to {settings().lake} that killed tasks have left are not ended: {error}")
    items += _summarize("uploads to the lake", uploads)
    if policy.jobs_days is not None:
        root, cutoff = storage.storage_path(settings().jobs), (now - timedelta(policy.jobs_days)).timestamp()
        for model in storage.list_names(root):
            ended: list[Removal] = []
            for name in filter(_JOB_NAME.fullmatch, storage.list_names(root / model)):
                try:
                    ended += _clean_up_job(root, root / model / name, cutoff, is_dry_run=is_dry_run)
                except OSError as error:
                    problems.append(f"jobs/{model}/{name} is not cleaned up: {error}")
            items += _summarize(f"jobs/{model}", ended)
    return CleanupReport(tuple(items), tuple(problems))


def _end_lake_uploads(cutoff: float, *, is_dry_run: bool) -> Iterator[Removal]:
    """End what killed tasks have left of uploads to a lake in S3; yield that, without those to the exchange in it."""
    lake, spark_exchange = datasets.lake_root(), settings().spark_exchange
    if storage.is_local(lake):
        return
    for removal in retention.end_uploads(lake, cutoff, is_dry_run=is_dry_run):
        if not f"{lake}/{removal.path}".startswith(f"{spark_exchange}/"):
            yield removal


def find_verdict_inputs(model: str, since: datetime) -> VerdictInputs:
    """Return what stays of a model by its ledger: of its verdicts since an instant, and of those still in force.

    Raises:
        LedgerError: it is damaged, or it is not that of the lake.
    """
    state = ledger.read_state(model)
    reports = datasets.lake_root() / "verdicts" / model
    if not state.entries and any(reports.glob("*.html")):
        raise LedgerError(
            f"the ledger of {model} has no entry, and there are verdicts in {reports}: correct "
            f"{variable_name('ledger')}, or remove them if the ledger was given up"
        )
    contents = {state.champion_content, state.challenger_content, getattr(state.previous_tenure, "content", None)}
    verdicts = [(entry, entry.event) for entry in state.entries if isinstance(entry.event, ledger.VerdictRecorded)]
    newest = verdicts[-1][0].number if verdicts else 0
    hashes: set[str] = set()
    for entry, event in verdicts:
        if entry.recorded_at >= since or entry.number == newest or event.candidate_content in contents:
            hashes |= {event.candidate_fingerprint, *event.fingerprints.values()}
    evaluations = {PurePosixPath(event.evidence.get("evaluation", "")).name for _, event in verdicts}
    return VerdictInputs(frozenset(hashes), frozenset(evaluations))


def _check_time_limits(specs: Sequence[ModelSpec], leftovers_days: float) -> None:
    startup, days = settings().pods.startup_timeout_minutes, timedelta(leftovers_days)
    limits = {spec.name: spec.resources.time_limit(startup) + _MARGIN for spec in specs}
    faults = [
        Fault(
            variable_name("retention", "leftovers_days"),
            f"is {leftovers_days:g}, and a training of {name} may take {limit / timedelta(1):.1f} days and reads what "
            "was published before",
            f"set it to {limit // timedelta(1) + 1} or more",
        )
        for name, limit in limits.items()
        if limit > days
    ]
    if faults:
        raise SettingsError("the environment", faults)


def _cold_rule(policy: RetentionSettings) -> dict[str, Any]:
    """Return what the rules of all datasets say about storage classes."""
    if policy.cold_days is None:
        return {}
    lake = settings().lake
    if storage.is_local(lake) or lake.protocol not in ("s3", "s3a"):
        problem = f"is set, and the lake is not in S3, which has storage classes: {lake}"
        raise SettingsError(
            "the environment", [Fault(variable_name("retention", "cold_days"), problem, "leave it out")]
        )
    return {"cold_after": timedelta(policy.cold_days).total_seconds(), "cold_class": policy.cold_storage_class}


def _retention_rule(
    kind: str, dataset: Dataset, specs: Sequence[ModelSpec], policy: RetentionSettings, now: datetime
) -> RetentionRule:
    name = dataset.root.name
    assert policy.leftovers_days is not None
    leftovers_after = timedelta(policy.leftovers_days).total_seconds()
    days = policy.expiry_days(kind) if kind in _EXPIRING_DATASETS else None
    since = now - timedelta(policy.verdict_days)
    pinned = frozenset(_files_in_backtests(name, kind)) if kind in ("training_sets", "models") else frozenset()
    if days is None:
        return RetentionRule(leftovers_after, pinned_files=pinned, keeps_replaced=kind in _RAW_DATASETS)
    expires_after = timedelta(days).total_seconds()
    if kind == "features":
        first = _first_needed_partition(name, specs, since)
        return RetentionRule(
            leftovers_after,
            expires_after,
            is_needed=lambda manifest: first is None or manifest.partition >= first,
            oldest_first=True,
        )
    if kind in ("checks", "declared", "predictions"):
        return RetentionRule(leftovers_after, expires_after, is_needed=lambda _: False)
    inputs = find_verdict_inputs(name, since)
    newest = dataset.partitions()[-1:] if kind == "training_sets" else []
    return RetentionRule(
        leftovers_after,
        expires_after,
        is_needed=lambda manifest: (
            inputs.need(manifest)
            or manifest.partition in newest
            or (kind == "evaluations" and manifest.partition in inputs.evaluations)
        ),
        pinned_files=pinned,
    )


def _first_needed_partition(feature_model: str, specs: Sequence[ModelSpec], since: datetime) -> str | None:
    """Return the oldest partition of features that training sets which stay, or the next retrain, read.

    None, which is all of them, if a model that uses them has no training set: nobody knows how far its views look back.
    """
    needed: set[str] = set()
    for spec in specs:
        if spec.feature_model != feature_model:
            continue
        newest = datasets.open_dataset(f"training_sets/{spec.name}").newest()
        if newest is None:
            return None
        needed |= _features_read(newest)
        start, calendar = newest.inputs["as_of"], feature_spec(spec).calendar
        for duration in spec.history:
            start = calendar.period_before(start, duration)
        needed.add(datasets.period_partition(start))
    for training_sets in datasets.list_datasets("training_sets"):
        inputs = find_verdict_inputs(training_sets.root.name, since)
        for manifest in training_sets.manifests():
            if manifest.inputs["feature_model"] == feature_model and inputs.need(manifest):
                needed |= _features_read(manifest)
    return min(needed, default=None)


def _features_read(training_set: Manifest) -> set[str]:
    return {*training_set.inputs["features"], *training_set.inputs["earlier_features"]}


def _files_in_backtests(model: str, kind: str) -> Iterator[str]:
    """Yield the files of training sets or models that the candidates of the model's backtest name."""
    dataset = datasets.open_dataset(f"backtests/{model}")
    name = {"training_sets": "training_set", "models": "candidate"}[kind]
    for point in dataset.manifests():
        try:
            manifest = Manifest.from_json(dataset.file_path(point, name).read_bytes())
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{dataset.root}: {point.partition} does not say which files it needs: {error}: remove its manifest, "
                "and backfill it again"
            ) from None
        yield from (file.path for file in manifest.files.values())


def _clean_up_job(root: UPath, folder: UPath, cutoff: float, *, is_dry_run: bool) -> Iterator[Removal]:
    """Remove checkpoints and output of a job in which nothing has changed since `cutoff`; yield that.

    The records of its attempts stay: they are what training has cost. A job that is trained again writes its file anew,
    and its attempts renew their records.
    """
    storage.check_no_link(folder, root)  # which a pod may have placed
    files = list(storage.list_files(folder))
    freed = [size for path, size, _ in files if path.partition("/")[0] in (CHECKPOINTS_FOLDER, OUTPUT_FOLDER)]
    newest = max((changed_at for *_, changed_at in files), default=cutoff)
    if not freed or newest >= cutoff:
        return
    if not is_dry_run:
        # First what says that the others are complete.
        for path in (f"{OUTPUT_FOLDER}/{RESULT_FILE}", OUTPUT_FOLDER, CHECKPOINTS_FOLDER):
            storage.check_no_link(folder / path, root)
            storage.remove(folder / path)
    yield Removal("staged", folder.name, sum(freed), newest)


def _summarize(place: str, removals: Sequence[Removal]) -> Iterator[CleanupItem]:
    for kind in dict.fromkeys(removal.kind for removal in removals):
        group = [removal for removal in removals if removal.kind == kind]
        oldest = datetime.fromtimestamp(min(removal.changed_at for removal in group), UTC)
        yield CleanupItem(place, kind, len(group), sum(removal.size for removal in group), oldest)
