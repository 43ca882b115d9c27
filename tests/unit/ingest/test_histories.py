"""Registers with history: each fault is named with its count, and a hash is equal exactly if what it covers is."""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evergreen.ingest.databases import open_database
from evergreen.ingest.histories import find_history_faults, hash_visible
from evergreen.spec.model import RawSource
from support.histories import STEPS, Version, moment, tariff_source, valid_histories, valid_version, write_versions

pytestmark = pytest.mark.unit

FORMS = ("to", "from")
SPANS = [(start, end) for start in range(-1, STEPS + 1, 3) for end in range(start + 1, STEPS + 2, 2)]
OVERLAP = "rows begin before an earlier row of their keys has ended"
OPEN = "rows are open, and so is an earlier row of their keys"
REVERSED = "rows end before they begin"
SAME = "rows begin when another row of their keys does"
RIGHT = {
    "no rows": ("to", []),
    "one row": ("to", [(1, 0, 5)]),
    "one that follows the other": ("to", [(1, 0, 5), (1, 5, None)]),
    "a gap": ("to", [(1, 7, 9), (1, 0, 5)]),
    "open rows of two keys": ("to", [(1, 0, None), (2, 0, None)]),
    "a row that is never valid": ("to", [(1, 0, 5), (1, 3, 3), (1, 5, 5), (1, 5, None), (1, 7, 7)]),
    "the same times of two keys": ("to", [(1, 0, 5), (2, 0, 5)]),
    "beginnings": ("from", [(1, 5, None), (1, 0, None), (2, 0, None)]),
}
WRONG = {
    "reversed": ("to", [(1, 5, 0)], {REVERSED: 1}),
    "reversed among right ones": ("to", [(1, 0, 2), (1, 5, 2), (1, 2, None), (2, 9, 8)], {REVERSED: 2}),
    "overlapping by one": ("to", [(1, 0, 5), (1, 4, 8)], {OVERLAP: 1}),
    "in another order": ("to", [(1, 4, 8), (1, 0, 5)], {OVERLAP: 1}),
    "one inside another": ("to", [(1, 0, 9), (1, 2, 3), (1, 4, 5), (1, 9, None)], {OVERLAP: 2}),
    "twice the same": ("to", [(1, 0, 5), (1, 0, 5)], {OVERLAP: 1}),
    "open before one that ended": ("to", [(1, 0, None), (1, 4, 8)], {OVERLAP: 1}),
    "open in one that ended": ("to", [(1, 0, 5), (1, 4, None)], {OVERLAP: 1}),
    "open twice": ("to", [(1, 0, None), (1, 4, None), (2, 0, 4), (2, 4, None)], {OPEN: 1}),
    "open three times, in two ways": (
        "to",
        [(1, 0, None), (1, 4, None), (1, 5, 6), (1, 7, None)],
        {OPEN: 2, OVERLAP: 1},
    ),
    "all at once": (
        "to",
        [(1, 5, 0), (2, 0, None), (2, 1, None), (3, 0, 5), (3, 1, 2)],
        {REVERSED: 1, OPEN: 1, OVERLAP: 1},
    ),
    "the same beginning": ("from", [(1, 0, None), (1, 0, None), (1, 3, None), (2, 0, None)], {SAME: 1}),
}


def faults(source: RawSource, file: Path) -> list[str]:
    with open_database() as database:
        return [str(fault) for fault in find_history_faults(database, source, file, "raw.parquet")]


@pytest.mark.parametrize("dates", [True, False])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_history_has_no_faults(name: str, dates: bool, tmp_path: Path) -> None:
    form, rows = RIGHT[name]
    source = tariff_source(form, dates)
    assert not faults(source, write_versions(source, [Version(*row, "a") for row in rows], tmp_path / "x.parquet"))


@pytest.mark.parametrize("dates", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_faults_are_named_with_their_count(name: str, dates: bool, tmp_path: Path) -> None:
    form, rows, expected = WRONG[name]
    source = tariff_source(form, dates)
    messages = faults(source, write_versions(source, [Version(*row, "a") for row in rows], tmp_path / "x.parquet"))
    assert len(messages) == len(expected)
    for message, (words, count) in zip(messages, expected.items(), strict=True):
        assert message.startswith(f"raw.parquet: since{', until' if form == 'to' else ''}: {count} {words}, such as ")


def test_a_fault_has_the_keys_and_times_of_an_example(tmp_path: Path) -> None:
    """Names and values are hostile: they are quoted, and no column of the file hides one of the query."""
    columns = {
        "it's": dict(type="string", nullable=False),
        "keys": dict(type="int64", nullable=False),
        "begins": dict(type="date32", nullable=False),
        'the "end"': "date32",
        "text": "string",
    }
    history = dict(keys=["it's", "keys"], valid_from="begins", valid_to='the "end"')
    source = RawSource(name="x", is_register=True, columns=columns, history=history)
    days = [moment(tariff_source(), step) for step in (0, 3)]
    values = [["o'clock"] * 2, [7] * 2, days, pa.nulls(2, pa.date32()), ["", None]]
    file = tmp_path / "a[1]'.parquet"
    pq.write_table(pa.table(values, names=list(columns)), file)
    (message,) = faults(source, file)
    words = f"1 {OPEN}, such as it's o'clock, keys 7, begins 2024-03-27, the \"end\" null → give all but the last row"
    assert message == f'raw.parquet: begins, the "end": {words} of its keys a the "end"'
    assert hash_visible(source, file, [(days[0], days[1])])


def hash_spans(source: RawSource, file: Path, spans: list[tuple[date, date]]) -> list[str]:
    hashes = hash_visible(source, file, spans)
    assert hashes
    return hashes


def hashes(source: RawSource, versions: list[Version], folder: Path) -> list[str]:
    spans = [(moment(source, start), moment(source, end)) for start, end in SPANS]
    return hash_spans(source, write_versions(source, versions, folder / "x.parquet"), spans)


def visible(versions: list[Version], form: str, start: int, end: int) -> list[object]:
    """Return the values of all keys at all steps of a span, one by one."""
    rows = [valid_version(versions, form, key, step) for step in range(start, end) for key in range(2)]
    return [row and (row.value,) for row in rows]


@st.composite
def similar_histories(draw: st.DrawFn) -> tuple[str, list[Version], list[Version]]:
    form = draw(st.sampled_from(FORMS))
    before = draw(valid_histories(form))
    if not before or draw(st.booleans()):
        return form, before, draw(valid_histories(form))
    changed = draw(st.sampled_from(before))
    others = [row for row in before if row is not changed]
    value = changed._replace(value=draw(st.sampled_from(["a", "b", None])))
    halves = [value, value]
    if form == "to" and (changed.ends or STEPS) - changed.begins > 1:
        middle = draw(st.integers(changed.begins + 1, (changed.ends or STEPS) - 1))
        halves = [changed._replace(ends=middle), value._replace(begins=middle)]
    return form, before, draw(st.sampled_from([others, [*others, value], [*others, *dict.fromkeys(halves)]]))


@settings(max_examples=30)
@example(("to", [Version(0, 0, None, "a")], [Version(0, 0, 6, "a"), Version(0, 6, None, "a")]), True)
@example(("to", [Version(0, 0, 5, "a")], [Version(0, 0, 5, "a"), Version(1, 7, 9, None)]), False)
@given(similar_histories(), st.booleans())
def test_hashes_are_equal_exactly_if_what_is_seen_is(
    histories: tuple[str, list[Version], list[Version]], dates: bool
) -> None:
    form, before, after = histories
    source = tariff_source(form, dates)
    with tempfile.TemporaryDirectory() as folder:
        pairs = zip(hashes(source, before, Path(folder)), hashes(source, after, Path(folder)), strict=True)
        for (start, end), (one, other) in zip(SPANS, pairs, strict=True):
            is_same = visible(before, form, start, end) == visible(after, form, start, end)
            assert (one == other) == is_same, (start, end)


def test_hashes_do_not_depend_on_the_other_spans(tmp_path: Path) -> None:
    source = tariff_source()
    versions = [Version(0, 1, 4, "a"), Version(0, 4, None, "b"), Version(1, 3, 9, None)]
    file = write_versions(source, versions, tmp_path / "x.parquet")
    spans = [(moment(source, start), moment(source, end)) for start, end in SPANS]
    assert hash_spans(source, file, spans) == [hash_spans(source, file, [span])[0] for span in spans]


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (pa.float64(), 0.0, -0.0),
        (pa.float64(), float("nan"), None),
        (pa.string(), "", None),
        (pa.string(), "NULL", None),
        (pa.list_(pa.string()), ["a, b"], ["a", "b"]),
        (pa.list_(pa.string()), ["NULL"], [None]),
        (pa.list_(pa.string()), [], [None]),
        (pa.binary(), b"\\x00", b"\x00"),
        (pa.int64(), 2**62, 2**62 + 1),
    ],
)
def test_values_that_differ_have_other_hashes(kind: pa.DataType, one: object, other: object, tmp_path: Path) -> None:
    name = {"double": "float64", "list<item: string>": "list<string>", "list<element: string>": "list<string>"}
    columns = {"k": dict(type="int64", nullable=False), "d": dict(type="date32", nullable=False)}
    columns["x"] = dict(type=name.get(str(kind), str(kind)))
    source = RawSource(name="x", is_register=True, columns=columns, history=dict(keys=["k"], valid_from="d"))
    days = (moment(tariff_source(), 0), moment(tariff_source(), 1))
    results = set()
    for value in (one, other):
        table = pa.table({"k": [1], "d": [days[0]], "x": pa.array([value], kind)})
        pq.write_table(table, tmp_path / "x.parquet")
        results.update(hash_spans(source, tmp_path / "x.parquet", [days]))
    assert len(results) == 2


def test_columns_with_each_others_values_have_other_hashes(tmp_path: Path) -> None:
    columns = {"k": dict(type="string", nullable=False), "d": dict(type="date32", nullable=False), "x": "string"}
    source = RawSource(name="x", is_register=True, columns=columns, history=dict(keys=["k"], valid_from="d"))
    days = (moment(tariff_source(), 0), moment(tariff_source(), 1))
    results = set()
    for key, value in (("ab", "c"), ("a", "bc"), ("a", "2:bc"), ("1:a2", "bc")):
        pq.write_table(pa.table({"k": [key], "d": [days[0]], "x": [value]}), tmp_path / "x.parquet")
        results.update(hash_spans(source, tmp_path / "x.parquet", [days]))
    assert len(results) == 4
