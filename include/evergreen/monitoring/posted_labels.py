"""Labels by prediction id: files that others write beside the log of a server, read here.

    serving_logs/flight_delay/labels/            beside the periods of the log
        day=2013-03-01/                          the period of the *request*, as in the log; labels come later
            outcomes-0001.parquet …              Parquet files of any name and number, each written whole

`label_columns` is the schema. What is delivered twice counts once; of several labels of an id the one that was known
last counts. `read_posted_labels` joins them with what was answered (`served_answers`).
"""
# ruff: noqa: S608 - names and literals are quoted, and all others are made here

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq

from evergreen.errors import Fault, ScoringError, first_line
from evergreen.gates.computation import label_type
from evergreen.ingest.databases import parquet_rows, quote_name, quote_text
from evergreen.monitoring.served_answers import answer_columns
from evergreen.monitoring.serving_logs import (
    ID,
    MAX_ID_LENGTH,
    MAX_LOGGED_TEXT,
    TIME,
    Kind,
    LogColumn,
    describe_faults,
    is_damaged_file,
    log_column,
    logged_rows,
    schema_faults,
    shorten,
)
from evergreen.spec.gates import MetricGate
from evergreen.spec.model import ModelSpec

LABELS_FOLDER = "labels"
"""In the folder of the model's log."""
KNOWN_AT = "label_known_at"
MAX_LABEL_ROWS = 10_000_000
"""Of a file: one with more is left out."""
CLOCK_MARGIN = timedelta(days=1)
"""A label that was known so long after its file was written is left out: it would hide all corrections."""

_MAX_IDS = 5  # that are named
_PRECISION = 1e-6  # of numbers that are written in single precision


class PostedFile(NamedTuple):
    """A file of labels: where it is, and when it was written, in seconds since the epoch."""

    path: Path
    changed_at: float


class PostedLabels(NamedTuple):
    """What files of labels have of a period.

    Attributes:
        labelled: predictions with a label.
        repeated: further rows with a label that its id had already.
        corrected: ids whose label was another one before.
        contradictory: ids with several labels that were known at the same time, and none later: they are left out.
        unknown: ids that no log of the period has.
        of_spine: ids whose label is not that of the spine, of those that it has with the same keys and time.
        of_spine_ids: some of these.
        unidentified: rows without an id, with too long a one, or without a time.
        of_future: rows whose time is after that of their file.
        invalid: rows whose label, or weight, is none that the metrics take.
        unanswered: labelled ids whose logged prediction is no finite number: they are left out.
        foreign: files that are left out, each with why.
    """

    labelled: int
    repeated: int
    corrected: int
    contradictory: int
    unknown: int
    of_spine: int
    of_spine_ids: tuple[str, ...]
    unidentified: int
    of_future: int
    invalid: int
    unanswered: int
    foreign: tuple[str, ...]


def label_columns(model: ModelSpec, gates: Sequence[MetricGate]) -> tuple[LogColumn, ...]:
    """Return the columns of a file of labels: id, time, label, and what else metrics need of a row.

    Raises:
        ScoringError: columns of the spec are named like those that every file has.
    """
    columns = [
        log_column(ID, "text"),
        log_column(KNOWN_AT, "instant"),
        log_column(model.label, _label_kind(model, gates)),
    ]
    columns += [log_column(model.weight, "number")] if model.weight else []
    columns += [log_column(model.query, "name")] if model.query else []
    names = [column.name.lower() for column in columns]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ScoringError(f"{', '.join(repeated)}: files of labels have a column of that name, and so has the spec")
    return tuple(columns)


def read_posted_labels(
    database: duckdb.DuckDBPyConnection,
    files: Mapping[str, PostedFile],
    model: ModelSpec,
    gates: Sequence[MetricGate],
    answers: Path,
    spine: Path | None,
    *,
    has_all_answers: bool,
) -> PostedLabels:
    """Join the labels of a period with its answers, as the table `labelled` of the database, and return what they are.

    The table has a row for each id with a label and a prediction: columns `id`, `content` of the model, `value`,
    `first_value` (before corrections; null if it was contradictory), `weight`, `query`, and the outputs of the file of
    answers. It does not depend on the order of files and rows.

    Args:
        database: it gets tables.
        files: by the name to be shown.
        model: its spec.
        gates: whose metrics need the labels.
        answers: the file of `write_answers`.
        spine: the examples of the period, whose labels are compared; None: there are none.
        has_all_answers: False if the file has a sample of them.

    Raises:
        OSError, duckdb.Error: a file cannot be read for a reason that is not its own, such as too little memory.
    """
    columns = label_columns(model, gates)
    label = columns[2]
    database.execute(
        f"CREATE OR REPLACE TEMP TABLE answered AS SELECT * FROM {parquet_rows(answers)}; "
        f"CREATE OR REPLACE TEMP TABLE posted (id VARCHAR, moment TIMESTAMPTZ, value {label.sql_type}, weight DOUBLE, "
        "query VARCHAR); "
        "CREATE OR REPLACE TEMP TABLE unknown (digest UBIGINT); "
        "CREATE OR REPLACE TEMP TABLE label_counts (kind VARCHAR, n BIGINT)"
    )
    last = database.execute(f"SELECT max(md5({ID})) FROM answered").fetchall()[0][0]
    # Of a sample, an id with a larger hash than all of it may be in the log.
    is_in_sample = "true" if has_all_answers else f"md5(id) <= {quote_text(last or '')}"
    foreign = dict[str, str]()
    for name, file in files.items():
        try:
            if faults := _read_file(database, file, model, gates, columns):
                foreign[name] = describe_faults(faults)
                continue
        except Exception as error:  # of any class: the file comes from others
            if not is_damaged_file(error, file.path):
                raise
            foreign[name] = f"cannot be read: {shorten(first_line(error))}"
            continue
        has_answer = f"id IN (SELECT {ID} FROM answered)"
        database.execute(
            "INSERT INTO label_counts SELECT kind, count(*) FROM incoming GROUP BY kind; "
            "INSERT INTO posted SELECT id, moment, value, weight, query FROM incoming "
            f"WHERE kind = 'posted' AND {has_answer}; "
            "INSERT INTO unknown SELECT DISTINCT hash(id) FROM incoming "
            f"WHERE kind = 'posted' AND NOT {has_answer} AND {is_in_sample}"
        )
    return _join(database, label, answers, spine, model.label, foreign)


def iter_label_problems(labels: PostedLabels) -> Iterator[str]:
    """Yield what is wrong with the labels of a period, besides foreign files."""
    if labels.unknown:
        yield (
            f"{labels.unknown:,} labels are of ids that no log of the period has: put a label into the folder of the "
            "request's period"
        )
    if labels.contradictory:
        yield f"{labels.contradictory:,} ids have several labels of the same time: they are left out"
    if labels.of_spine:
        yield (
            f"{labels.of_spine:,} labels are not those of the spine for the same keys and time: ids "
            f"{', '.join(labels.of_spine_ids)}; training and gates use those of the spine"
        )
    if labels.unidentified:
        yield f"{labels.unidentified:,} labels have no prediction id, too long a one, or no time: they are left out"
    if labels.of_future:
        yield f"{labels.of_future:,} labels have a {KNOWN_AT} after their file was written: they are left out"
    if labels.invalid:
        yield f"{labels.invalid:,} labels are none that the metrics take, such as null or NaN: they are left out"
    if labels.unanswered:
        yield f"{labels.unanswered:,} labelled predictions are NaN, infinite or absent: they are left out"


def _label_kind(model: ModelSpec, gates: Sequence[MetricGate]) -> Kind:
    if model.prediction_type and model.prediction_type.classes:
        return "text" if isinstance(model.prediction_type.classes[0], str) else "integer"
    return "outcome" if "binary" in _label_types(model, gates) else "number"


def _label_types(model: ModelSpec, gates: Sequence[MetricGate]) -> set[str]:
    return {label_type(gate, model.prediction_type) for gate in gates}


def _is_valid(model: ModelSpec, gates: Sequence[MetricGate]) -> str:
    """Return as SQL whether `value`, `weight` and `query` are what all metrics take."""
    types, prediction = _label_types(model, gates), model.prediction_type
    if prediction and prediction.classes:
        listed = (quote_text(name) if isinstance(name, str) else str(name) for name in prediction.classes)
        terms = [f"value IN ({', '.join(listed)})"]
    else:
        terms = ["isfinite(value)"]
        terms += ["value IN (0, 1)"] if "binary" in types else []
        terms += ["value >= 0"] if "count" in types else []
    terms += ["isfinite(weight) AND weight >= 0"] if model.weight else []
    terms += [f"length(query) <= {MAX_LOGGED_TEXT}"] if model.query else []
    return f"coalesce({' AND '.join(terms)}, false)"


def _read_file(
    database: duckdb.DuckDBPyConnection,
    file: PostedFile,
    model: ModelSpec,
    gates: Sequence[MetricGate],
    columns: Sequence[LogColumn],
) -> list[Fault]:
    """Read a file into the table `incoming`; return what is foreign about it."""
    if faults := schema_faults(pq.read_schema(file.path), columns):
        return faults
    if (rows := pq.read_metadata(file.path).num_rows) > MAX_LABEL_ROWS:
        return [Fault("", f"{rows:,} rows are found, and at most {MAX_LABEL_ROWS:,} are read", "write several files")]
    written = datetime.fromtimestamp(file.changed_at, UTC) + CLOCK_MARGIN
    named = {column.name: f"TRY_CAST({quote_name(column.name)} AS {column.sql_type})" for column in columns}
    for column in columns:
        if column.sql_type == "VARCHAR":  # many rows of a small file may share a text that is very long
            named[column.name] = f"left({named[column.name]}, {MAX_LOGGED_TEXT + 1})"
    terms = [f"{named[ID]} AS id", f"{named[KNOWN_AT]} AS moment", f"{named[model.label]} AS value"]
    terms.append(f"{named[model.weight] if model.weight else 'NULL::DOUBLE'} AS weight")
    terms.append(f"{named[model.query] if model.query else 'NULL::VARCHAR'} AS query")
    kind = (
        f"CASE WHEN NOT coalesce(length(id) BETWEEN 1 AND {MAX_ID_LENGTH} AND moment IS NOT NULL, false) "
        f"THEN 'unidentified' WHEN moment > TIMESTAMPTZ {quote_text(written.isoformat())} THEN 'of_future' "
        f"WHEN NOT {_is_valid(model, gates)} THEN 'invalid' ELSE 'posted' END"
    )
    database.execute(
        f"CREATE OR REPLACE TEMP TABLE incoming AS SELECT *, {kind} AS kind FROM "
        f"(SELECT {', '.join(terms)} FROM {logged_rows(file.path)})"
    )
    return []


def _join(
    database: duckdb.DuckDBPyConnection,
    label: LogColumn,
    answers: Path,
    spine: Path | None,
    label_name: str,
    foreign: Mapping[str, str],
) -> PostedLabels:
    keys, outputs = answer_columns(answers)
    named = {output: quote_name(output) for output in outputs}

    def labels_at(end: str) -> str:
        """Return the labels of ids at the first or the last time as SQL: `n` differ, with their weights and queries."""
        return (
            "SELECT p.id, min(value) AS value, count(DISTINCT (value, weight, query)) AS n, min(weight) AS weight, "
            "min(query) AS query "
            f"FROM posted p JOIN spans s ON p.id = s.id AND p.moment = s.{end} GROUP BY p.id"
        )

    database.execute(
        "CREATE OR REPLACE TEMP TABLE spans AS SELECT id, min(moment) AS first_at, max(moment) AS last_at, "
        "count(*) AS copies, count(DISTINCT value) AS n FROM posted GROUP BY id"
    )
    is_finite = " AND ".join(f"coalesce(isfinite(a.{name}), false)" for name in named.values()) or "false"
    selected = "".join(f", a.{name}" for name in [*named.values(), *map(quote_name, keys.values())])
    database.execute(
        f"CREATE OR REPLACE TEMP TABLE labelled AS SELECT l.id, a.model_content AS content, a.{TIME} AS moment, "
        "l.value, CASE WHEN f.n = 1 THEN f.value END AS first_value, l.weight, l.query, "
        f"s.n > 1 AS is_corrected, {is_finite} AS is_answered{selected} "
        f"FROM ({labels_at('last_at')}) l JOIN ({labels_at('first_at')}) f ON l.id = f.id JOIN spans s ON l.id = s.id "
        f"JOIN answered a ON l.id = a.{ID} WHERE l.n = 1 ORDER BY l.id"
    )
    counts = dict(database.execute("SELECT kind, sum(n)::BIGINT FROM label_counts GROUP BY kind").fetchall())
    [(repeated, ids)] = database.execute("SELECT coalesce(sum(copies - n), 0)::BIGINT, count(*) FROM spans").fetchall()
    [(judged, corrected, unanswered)] = database.execute(
        "SELECT count(*), count(*) FILTER (is_corrected), count(*) FILTER (NOT is_answered) FROM labelled"
    ).fetchall()
    unknown = database.execute("SELECT count(DISTINCT digest) FROM unknown").fetchall()[0][0]
    of_spine = _compare_with_spine(database, label, keys, spine, label_name)
    database.execute("DELETE FROM labelled WHERE NOT is_answered")
    return PostedLabels(
        labelled=judged - unanswered,
        repeated=repeated,
        corrected=corrected,
        contradictory=ids - judged,
        unknown=unknown,
        of_spine=len(of_spine),
        of_spine_ids=tuple(shorten(name) for name in of_spine[:_MAX_IDS]),
        unidentified=counts.get("unidentified", 0),
        of_future=counts.get("of_future", 0),
        invalid=counts.get("invalid", 0),
        unanswered=unanswered,
        foreign=tuple(f"{shorten(name)}: {problem}" for name, problem in foreign.items()),
    )


def _compare_with_spine(
    database: duckdb.DuckDBPyConnection,
    label: LogColumn,
    keys: Mapping[str, str],
    spine: Path | None,
    label_name: str,
) -> list[str]:
    """Return the ids whose label is none of those that the spine has for the same keys and time, in order."""
    names = set(pq.read_schema(spine).names) if spine else set()
    if spine is None or not keys or not {*keys, label_name, "event_timestamp"} <= names:
        return []
    matching = " AND ".join(
        f"CAST(l.{quote_name(column)} AS VARCHAR) = CAST(s.{quote_name(key)} AS VARCHAR)"
        for key, column in keys.items()
    )
    spine_label = f"TRY_CAST(s.{quote_name(label_name)} AS {label.sql_type})"
    differs = f"l.value <> {spine_label}"
    if label.sql_type == "DOUBLE":
        differs = f"abs(l.value - {spine_label}) > {_PRECISION} * greatest(abs(l.value), abs({spine_label}))"
    rows = database.execute(
        f"SELECT l.id FROM labelled l JOIN {parquet_rows(spine)} s "
        f"ON CAST(s.event_timestamp AS TIMESTAMPTZ) = l.moment AND {matching} "
        f"GROUP BY l.id HAVING bool_and({differs}) ORDER BY l.id"  # a forecast has a row for each horizon
    ).fetchall()
    return [name for (name,) in rows]
