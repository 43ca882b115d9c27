"""Labels come from others, twice, late, corrected and wrong: each id counts once, and what is wrong is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.errors import ScoringError
from evergreen.ingest.databases import open_database
from evergreen.monitoring import posted_labels
from evergreen.monitoring.posted_labels import (
    PostedFile,
    PostedLabels,
    iter_label_problems,
    label_columns,
    read_posted_labels,
)
from evergreen.monitoring.served_answers import answer_columns, write_answers
from evergreen.monitoring.serving_logs import log_columns
from evergreen.spec.gates import AgainstChampionGate
from evergreen.spec.loader import load_spec
from evergreen.spec.model import ModelSpec
from support.documents import ROOT
from support.ledger_events import MODEL
from support.serving_logs import INPUTS, INSTANT, START, log_table, write_log

pytestmark = pytest.mark.unit

END = START + timedelta(days=1)
SCHEMA = log_columns(INPUTS)
POSTED = START + timedelta(days=3)


def spec(metric: str = "log_loss", **changes: Any) -> ModelSpec:
    gates = (AgainstChampionGate(name=metric, metric=metric, must_be="better"),)
    return load_spec(MODEL).model_copy(update={"gates": gates, "label": "full", **changes})


def keep(folder: Path, *tables: pa.Table, max_rows: int = 100) -> tuple[Path, bool]:
    files = {f"{n}": write_log(folder / f"log-{n}.parquet", table) for n, table in enumerate(tables)}
    target = folder / "answers.parquet"
    with open_database() as database:
        has_all, problems = write_answers(database, files, SCHEMA, (START, END), target, max_rows)
    assert problems == []
    return target, has_all


def post(ids: Sequence[str | None], labels: Any, hours: Sequence[float | None] | float = 0, **more: Any) -> pa.Table:
    """Return a file of labels that were known so many hours after the first."""
    given = [hours] * len(ids) if isinstance(hours, int | float) else hours
    times = [None if hour is None else POSTED + timedelta(hours=hour) for hour in given]
    columns = {"prediction_id": pa.array(ids, pa.string()), "label_known_at": pa.array(times, INSTANT), "full": labels}
    return pa.table(columns | more)


def read(
    folder: Path,
    *tables: pa.Table,
    model: ModelSpec | None = None,
    answers: tuple[Path, bool] | None = None,
    spine: Path | None = None,
) -> tuple[PostedLabels, dict[str, tuple[Any, Any]]]:
    """Return what files of labels have, and by id the label and the one before corrections."""
    model = model or spec()
    answers = answers or keep(folder, log_table(["a", "b", "c"]))
    files = {}
    for number, table in enumerate(tables):
        file = write_log(folder / f"labels-{number}.parquet", table)
        files[f"{number}.parquet"] = PostedFile(file, (POSTED + timedelta(hours=12)).timestamp())
    with open_database() as database:
        labels = read_posted_labels(
            database,
            files,
            model,
            model.gates,
            answers[0],
            spine,
            has_all_answers=answers[1],  # type: ignore[arg-type]
        )
        rows = database.execute("SELECT id, value, first_value FROM labelled").fetchall()
    return labels, {name: (value, first) for name, value, first in rows}


def test_labels_count_once_whatever_the_files_and_their_order(tmp_path: Path) -> None:
    tables = (
        post(["a", "b"], [1, 0]),
        post(["a", "b"], [1, 0]),  # delivered again
        post(["b"], [1], hours=5),  # corrected
        post(["c", "c"], [True, True], hours=[1, 2]),  # known again, as a boolean
    )
    orders = [tables, tables[::-1], (tables[2], tables[0], tables[3], tables[1])]
    results = {read(tmp_path, *order)[0] for order in orders}
    (labels,) = results
    assert (labels.labelled, labels.repeated, labels.corrected, labels.contradictory) == (3, 3, 1, 0)
    assert read(tmp_path, *tables)[1] == {"a": (1, 1), "b": (1, 0), "c": (1, 1)}
    assert list(iter_label_problems(labels)) == []


def test_contradictions_of_one_time_are_left_out_until_a_later_label(tmp_path: Path) -> None:
    table = post(["a", "a", "b"], [1, 0, 1])
    labels, rows = read(tmp_path, table)
    assert (labels.labelled, labels.contradictory, rows) == (1, 1, {"b": (1, 1)})
    assert list(iter_label_problems(labels)) == ["1 ids have several labels of the same time: they are left out"]
    labels, rows = read(tmp_path, table, post(["a"], [0], hours=1))
    assert (labels.contradictory, labels.corrected, rows["a"]) == (0, 1, (0, None))


def test_ids_that_no_log_has_are_counted_once(tmp_path: Path) -> None:
    labels, rows = read(tmp_path, post(["a", "x", "x", "y"], [1, 1, 0, 0]), post(["x"], [1]))
    assert (labels.unknown, list(rows)) == (2, ["a"])
    assert list(iter_label_problems(labels)) == [
        "2 labels are of ids that no log of the period has: put a label into the folder of the request's period"
    ]


def test_of_a_sample_of_answers_others_are_not_called_unknown(tmp_path: Path) -> None:
    ids = [f"id-{number}" for number in range(200)]
    tables = log_table(ids[:120]), log_table(ids[120:], {"request_time": pa.array([START] * 80, INSTANT)})
    answers = keep(tmp_path, *tables, max_rows=50)
    assert answers[1] is False
    assert pq.read_metadata(answers[0]).num_rows == 50
    first = answers[0].read_bytes()
    assert keep(tmp_path, *tables[::-1], max_rows=50)[0].read_bytes() == first, "whatever the order of files"
    labels, rows = read(tmp_path, post(ids, [0] * 200), answers=answers)
    assert (labels.unknown, labels.labelled, len(rows)) == (0, 50, 50)
    labels, _ = read(tmp_path, post([f"no-{number}" for number in range(400)], [0] * 400), answers=answers)
    assert 50 < labels.unknown < 160, "a quarter of all ids have a hash in the range of the sample"
    assert keep(tmp_path, *tables, max_rows=200)[1] is True


def test_answers_are_those_of_all_models_that_a_label_may_be_of(tmp_path: Path) -> None:
    other = log_table(["d", "e"], {"prediction": None, "pond": None, "levels__level": None}, content="b" * 64)
    late = log_table(["f"], {"request_time": pa.array([END], INSTANT)})
    answers, has_all = keep(tmp_path, log_table(["a", "b", "a", None, "x" * 201]), other, late)
    table = pq.read_table(answers)
    assert (has_all, table["prediction_id"].to_pylist()) == (True, ["a", "b", "d", "e"])
    assert table["prediction"].to_pylist() == [0.25, 0.25, None, None]
    assert table["key__pond"].to_pylist() == ["a", "a", None, None]
    assert answer_columns(answers) == ({"pond": "key__pond"}, ["prediction"])
    labels, rows = read(tmp_path, post(["a", "d"], [1, 1]), answers=(answers, has_all))
    assert (labels.unknown, labels.unanswered, list(rows)) == (0, 1, ["a"])


def test_predictions_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    values = pa.array([float("nan"), float("-inf"), 0.5])
    answers = keep(tmp_path, log_table(["a", "b", "c"], {"prediction": values}))
    labels, rows = read(tmp_path, post(["a", "b", "c"], [1, 0, 1]), answers=answers)
    assert (labels.unanswered, list(rows)) == (2, ["c"])
    assert list(iter_label_problems(labels)) == [
        "2 labelled predictions are NaN, infinite or absent: they are left out"
    ]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (post(["a", None, "", "x" * 201], [1, 1, 1, 1]), "3 labels have no prediction id, too long a one, or no time"),
        (post(["a", "b"], [1, 1], hours=[0, None]), "1 labels have no prediction id, too long a one, or no time"),
        (post(["a", "b"], [1, 0], hours=[0, 60]), "1 labels have a label_known_at after their file was written"),
        (post(["a", "b", "c"], [1, None, None]), "2 labels are none that the metrics take"),
        (post(["a", "b", "c"], [1.0, float("nan"), float("inf")]), "2 labels are none that the metrics take"),
        (post(["a", "b", "c"], [1.0, 0.5, 2]), "2 labels are none that the metrics take"),
    ],
)
def test_rows_that_are_wrong_are_named_and_the_others_count(table: pa.Table, problem: str, tmp_path: Path) -> None:
    labels, rows = read(tmp_path, table)
    assert rows == {"a": (1, 1)}
    (named,) = iter_label_problems(labels)
    assert named.startswith(problem)


def test_a_long_text_in_many_rows_costs_no_memory(tmp_path: Path) -> None:
    rows = 300
    long = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2_000_000]))
    table = post(["a"] * rows, [1] * rows).set_column(0, "prediction_id", long)
    labels, found = read(tmp_path, table, post(["b"], [0]))
    assert (labels.unidentified, labels.foreign, found) == (rows, (), {"b": (0, 0)})


def test_files_of_another_schema_are_named_and_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = post(["a"], [1])
    local = good.set_column(1, "label_known_at", pa.array([POSTED.replace(tzinfo=None)], pa.timestamp("us")))
    labels, rows = read(tmp_path, good, post(["b"], ["yes"]), good.drop_columns("full"), local)
    assert list(rows) == ["a"]
    assert labels.foreign == (
        "1.parquet: full: string is found, a number or a boolean is expected → write 0 or 1 as int64, or a bool",
        "2.parquet: full: no such column is found, a number or a boolean is expected → write 0 or 1 as int64, or a "
        "bool",
        "3.parquet: label_known_at: timestamp[us] without a time zone is found, a timestamp with a time zone is "
        "expected → write it as timestamp[us, tz=UTC]",
    )
    monkeypatch.setattr(posted_labels, "MAX_LABEL_ROWS", 1)
    labels, rows = read(tmp_path, good, post(["b", "c"], [1, 1]))
    assert labels.foreign == ("1.parquet: 2 rows are found, and at most 1 are read → write several files",)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    answers = keep(tmp_path, log_table(["a", "b"]))
    good = write_log(tmp_path / "good.parquet", post(["a"], [1]))
    files = {"good": PostedFile(good, POSTED.timestamp())}
    data = good.read_bytes()
    for name, content in (
        ("text", b"no Parquet"),
        ("short", data[: len(data) // 2]),
        ("holed", b"PAR1" + bytes(80) + data[84:]),
    ):
        (tmp_path / name).write_bytes(content)
        files[name] = PostedFile(tmp_path / name, POSTED.timestamp())
    with open_database() as database:
        labels = read_posted_labels(database, files, spec(), spec().gates, answers[0], None, has_all_answers=True)  # type: ignore[arg-type]
    assert labels.labelled == 1
    assert [text.partition(":")[0] for text in labels.foreign] == ["text", "short", "holed"]


def test_labels_of_the_spine_are_compared_and_do_not_count(tmp_path: Path) -> None:
    times = [START, START + timedelta(minutes=1), START + timedelta(minutes=2)]
    spine = write_log(
        tmp_path / "spine.parquet",
        pa.table({"event_timestamp": pa.array(times, INSTANT), "pond": ["a", "a", "z"], "full": [0, 1, 0]}),
    )
    labels, rows = read(tmp_path, post(["a", "b", "c"], [1, 1, 1]), spine=spine)
    assert (labels.of_spine, labels.of_spine_ids, len(rows)) == (1, ("a",), 3)
    assert rows["a"] == (1, 1), "what was posted is what is shown"
    (named,) = iter_label_problems(labels)
    assert named == (
        "1 labels are not those of the spine for the same keys and time: ids a; training and gates use those of the "
        "spine"
    )


def test_a_label_that_the_spine_has_of_any_horizon_is_its_own(tmp_path: Path) -> None:
    """Rows of a forecast have the same keys and time, and labels of their own."""
    times, actual = [START] * 3 + [START + timedelta(minutes=1)] * 2, [0, 1, None, 0, None]
    spine = write_log(
        tmp_path / "spine.parquet",
        pa.table({"event_timestamp": pa.array(times, INSTANT), "pond": ["a"] * 5, "full": actual}),
    )
    labels, _ = read(tmp_path, post(["a", "b"], [1, 1]), spine=spine)
    assert labels.of_spine_ids == ("b",)


def test_weights_of_one_time_that_differ_are_a_contradiction(tmp_path: Path) -> None:
    table = post(["a", "a", "b", "b"], [1, 1, 0, 0], amount=[1.0, 2.0, 3.0, 3.0])
    labels, rows = read(tmp_path, table, model=spec(weight="amount"))
    assert (labels.contradictory, rows) == (1, {"b": (0, 0)})


def test_classes_weights_and_numbers_have_their_own_columns(tmp_path: Path) -> None:
    classes = spec("log_loss", kind="multiclass", classes=("low", "high"))
    labels, rows = read(tmp_path, post(["a", "b"], ["low", "LOW"]), model=classes)
    assert (labels.invalid, rows) == (1, {"a": ("low", "low")})
    weighted = spec("rmse", kind="regression", weight="amount")
    good = post(["a", "b", "c"], [7.5, -1.0, 2.0], amount=pa.array([2.0, -1.0, None]))
    labels, rows = read(tmp_path, good, post(["b"], [1.0]), model=weighted)
    assert (labels.invalid, rows) == (2, {"a": (7.5, 7.5)})
    assert labels.foreign[0].startswith("1.parquet: amount: no such column is found, a number is expected")
    with pytest.raises(ScoringError, match="label_known_at: files of labels have a column of that name"):
        label_columns(spec(label="label_known_at"), spec().gates)  # type: ignore[arg-type]


def test_a_log_with_a_damaged_key_costs_its_own_answers_only(tmp_path: Path) -> None:
    """A page that the sample does not need may be the one that is damaged."""
    damaged = write_log(tmp_path / "damaged.parquet", log_table([f"x-{number}" for number in range(500)]))
    metadata = pq.read_metadata(damaged).row_group(0)
    chunks = [metadata.column(number) for number in range(metadata.num_columns)]
    (chunk,) = (chunk for chunk in chunks if chunk.path_in_schema == "pond")
    data = bytearray(damaged.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    damaged.write_bytes(data)
    files = {"damaged": damaged, "good": write_log(tmp_path / "good.parquet", log_table(["a", "b"]))}
    target = tmp_path / "answers.parquet"
    with open_database() as database:
        has_all, (problem,) = write_answers(database, files, SCHEMA, (START, END), target)
    assert (has_all, pq.read_table(target)["prediction_id"].to_pylist()) == (True, ["a", "b"])
    assert problem.startswith("damaged: its answers cannot be read: ")


def test_what_the_documented_example_posts_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/reference/serving-logs.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def post_labels" in block)
    names: dict[str, Any] = {}
    exec(example, names)
    outcomes = [("a", START, 1), ("b", START + timedelta(minutes=1), 0), ("x", START + timedelta(days=2), 1)]
    names["post_labels"](tmp_path / "labels", outcomes, label="full", timezone="America/New_York")
    written = sorted((tmp_path / "labels").rglob("*.parquet"))
    assert [file.parent.name for file in written] == ["day=2013-01-07", "day=2013-01-09"]
    answers, has_all = keep(tmp_path, log_table(["a", "b", "c"]))
    files = {"posted": PostedFile(written[0], written[0].stat().st_mtime)}
    with open_database() as database:
        labels = read_posted_labels(database, files, spec(), spec().gates, answers, None, has_all_answers=has_all)  # type: ignore[arg-type]
    assert (labels.labelled, labels.foreign, list(iter_label_problems(labels))) == (2, (), [])
