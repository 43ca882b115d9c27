"""The verdicts of a model as tables, for programs that do not read the ledger: `verdicts`, and their `gates`.

::

    verdict_tables/flight_delay/
        _manifests/page=000000.json
        verdicts/page=000000/3f9a….parquet      a row for each verdict among the first hundred entries of the ledger
        gates/page=000000/07c4….parquet         a row for each result of a gate

They follow the ledger as tables follow manifests: whatever is there before, `publish_verdicts` makes it what the ledger
says. Nothing of Evergreen reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from evergreen import ledger
from evergreen.lake import datasets, tables
from evergreen.lake.datasets import Dataset
from evergreen.lake.fingerprints import compute_fingerprint
from evergreen.ledger import LedgerState, VerdictRecorded

_PAGE_LENGTH = 100
_MAX_TRIES = 10  # of a page, while other writers publish it
_ROWS_VERSION = 1  # to be raised when the same entries give other rows

_Row = dict[str, Any]


def open_verdict_tables(model: str) -> Dataset:
    """Return the dataset with the tables of a model's verdicts."""
    return datasets.open_dataset(f"verdict_tables/{model}")


def follow_verdicts(model: str) -> None:
    """Bring the tables of a model's verdicts to its ledger, where the settings ask for tables.

    Whatever goes wrong is logged: the verdict is recorded without its tables.
    """

    def sync(table_format: tables.TableFormat) -> None:
        # By name: in an object store, two publications of a page within a second have the same time.
        dataset, pages = _publish_pages(model)
        tables.sync_tables(dataset, table_format, pages)

    tables.try_sync(f"verdict_tables/{model}", sync)


def publish_verdicts(model: str, *, all_pages: bool = False) -> Dataset:
    """Publish the verdicts in the ledger of `model`, and return the dataset.

    From the newest page back, until one is as the ledger says; with `all_pages` every one of them.

    Raises:
        LedgerError: the ledger is damaged.
    """
    return _publish_pages(model, all_pages=all_pages)[0]


def _publish_pages(model: str, *, all_pages: bool = False) -> tuple[Dataset, set[str]]:
    """Do what `publish_verdicts` does; return the dataset, and the partitions that were published."""
    dataset, state = open_verdict_tables(model), ledger.read_state(model)
    published: set[str] = set()
    while True:
        for page, hashes in reversed(_verdict_hashes(state).items()):
            if _publish_page(dataset, state, page, hashes):
                published.add(_partition_name(page))
            elif not all_pages:
                break
        # A writer that had read less of the ledger may have come last; it reads on, and so it ends with everything.
        state, earlier = ledger.read_state(model), state
        if state.entries.head_hash == earlier.entries.head_hash:
            return dataset, published


def _verdict_hashes(state: LedgerState) -> dict[int, dict[int, str]]:
    """Return the hash of each entry with a verdict, by page and number. No entry is read."""
    kind = VerdictRecorded.model_fields["kind"].default
    pages: dict[int, dict[int, str]] = {}
    for number, record in enumerate(state.entries.records, 1):
        if record.kind == kind:
            pages.setdefault((number - 1) // _PAGE_LENGTH, {})[number] = record.hash
    return pages


def _publish_page(dataset: Dataset, state: LedgerState, page: int, hashes: Mapping[int, str]) -> bool:
    """Publish a page; return False if it was published already."""
    inputs = {"entries": {str(number): digest for number, digest in hashes.items()}, "rows_version": _ROWS_VERSION}
    partition, fingerprint = _partition_name(page), compute_fingerprint(inputs)
    if dataset.find(partition, fingerprint):
        return False
    verdicts, gates = list[_Row](), list[_Row]()
    for number in hashes:
        entry = state.entries[number - 1]
        assert isinstance(entry.event, VerdictRecorded)
        verdicts.append({"entry": number, "recorded_at": entry.recorded_at, **_verdict_row(number, entry.event)})
        gates += [{"entry": number, **row} for row in _gate_rows(entry.event)]
    tries = 0
    while True:
        tries += 1
        staged = dataset.stage(partition, fingerprint)
        files = {"verdicts": staged / "verdicts.parquet", "gates": staged / "gates.parquet"}
        try:
            _write_rows(files["verdicts"], _VERDICT_COLUMNS, verdicts)
            _write_rows(files["gates"], _GATE_COLUMNS, gates)
            dataset.publish(partition, fingerprint, files, inputs)
        except FileNotFoundError:
            # Another writer has published these rows, and removed what is staged for them; a third one may have
            # replaced them since.
            if tries == _MAX_TRIES:
                raise
            if dataset.find(partition, fingerprint) is None:
                continue
        return True


def _partition_name(page: int) -> str:
    return f"page={page:06}"


_VERDICT_COLUMNS = {
    "entry": int,
    "recorded_at": datetime,
    "run": str,
    "run_reason": str,
    "as_of": str,
    "judged_as_of": str,
    "first_entry": int,
    "first_day": date,
    "end_day": date,
    "candidate_content": str,
    "candidate_fingerprint": str,
    "training_set": str,
    "champion_version": str,
    "champion_content": str,
    "promote": bool,
    "is_inconclusive": bool,
    "unlabelled_share": float,
    "reason": str,
    "report": str,
}
_GATE_COLUMNS = {
    "entry": int,
    "gate": str,
    "outcome": str,
    "candidate": float,
    "champion": float,
    "low": float,
    "high": float,
    "threshold": float,
    "alpha": float,
    "rows": int,
    "days": int,
    "reason": str,
}


def _verdict_row(number: int, event: VerdictRecorded) -> _Row:
    first_day, end_day = event.days
    return {
        "run": event.run,
        "run_reason": str(event.run_reason),
        "as_of": event.as_of,
        "judged_as_of": event.judged_as_of,
        "first_entry": event.later_look.first_entry if event.later_look else number,
        "first_day": first_day,
        "end_day": end_day,
        "candidate_content": event.candidate_content,
        "candidate_fingerprint": event.candidate_fingerprint,
        "training_set": event.fingerprints.get("training_set"),
        "champion_version": event.champion_version,
        "champion_content": event.champion_content,
        "promote": event.verdict.promote,
        "is_inconclusive": event.verdict.is_inconclusive,
        "unlabelled_share": event.verdict.unlabelled_share,
        "reason": event.verdict.reason,
        "report": event.evidence.get("report"),
    }


def _gate_rows(event: VerdictRecorded) -> list[_Row]:
    return [
        {
            "gate": result.gate,
            "outcome": result.outcome,
            "candidate": result.candidate,
            "champion": result.champion,
            "low": result.interval[0] if result.interval else None,
            "high": result.interval[1] if result.interval else None,
            "threshold": result.threshold,
            "alpha": result.alpha,
            "rows": result.rows,
            "days": result.days,
            "reason": result.reason,
        }
        for result in event.verdict.results
    ]


def _write_rows(file: Path, columns: Mapping[str, type], rows: Sequence[_Row]) -> None:
    import pyarrow as pa  # here, so that deployments without tables do not load it
    import pyarrow.parquet as pq

    types = {
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        str: pa.string(),
        date: pa.date32(),
        datetime: pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
