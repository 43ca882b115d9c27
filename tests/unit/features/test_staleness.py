"""Stale days: what was made by other code, parameters or registers, and nothing else, is named with what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evergreen.features import inputs, staleness
from evergreen.features.staleness import StaleFeatures, periods_in_reach
from evergreen.ingest import raw_files
from evergreen.lake import fingerprints
from evergreen.periods import Calendar
from evergreen.spec.loader import feature_spec
from evergreen.spec.model import ModelSpec
from evergreen.window import RunReason, Window
from support import tills

pytestmark = pytest.mark.unit

DAYS = tills.days(4)
FLOORS = 'dict(name="tills", is_register=True'


@pytest.fixture
def folder(home: Path, tmp_path: Path, use_models: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder, with raw files of four days."""
    folder = tills.write_model(tmp_path, monkeypatch, use_models)
    tills.deliver(4)
    return folder


@pytest.fixture
def model(folder: Path) -> ModelSpec:
    """The model, whose four days are published."""
    model = tills.reload_spec()
    tills.publish(model, DAYS)
    return model


def stale(model: ModelSpec) -> StaleFeatures:
    return staleness.find_stale_features(model, inputs.published_manifests(model, DAYS))


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def rewrite_register(path: Path | None = None) -> None:
    pq.write_table(pa.table({"till": [0], "floor": [9]}), path or raw_files.raw_file("tills"))


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda _folder: None, []),
    "a comment in features.py": (lambda folder: append(folder / "features.py", "# A comment.\n"), []),
    "features.py": (lambda folder: append(folder / "features.py", "A = 1\n"), ["tills/features.py has changed"]),
    "a module that features.py imports": (
        lambda folder: (folder / "units.py").write_text("PER_DOLLAR = 100.0\n"),
        ["tills/units.py has changed"],
    ),
    "the package": (
        lambda folder: (folder / "__init__.py").write_text("A = 1\n"),
        ["tills/__init__.py has changed"],
    ),
    "a table beside features.py": (
        lambda folder: (folder / "rates.csv").write_text("1,2\n"),
        ["tills/rates.csv is new"],
    ),
    "a module that nothing imports": (lambda folder: (folder / "notes.py").write_text("A = 1\n"), []),
    "train.py": (lambda folder: (folder / "train.py").write_text("A = 1\n"), []),
    "another import": (
        lambda folder: [
            (folder / "more.py").write_text("A = 1\n"),
            append(folder / "units.py", "from evergreen_models.tills.more import A\n"),
        ],
        ["tills/more.py is new", "tills/units.py has changed"],
    ),
    "the register": (lambda _folder: rewrite_register(), ["the raw file of tills has changed"]),
    "the register, with the same bytes": (lambda _folder: tills.deliver(4), []),
    "the register is gone": (lambda _folder: raw_files.raw_file("tills").unlink(), []),
    "a register that keeps its days": (
        lambda folder: [rewrite_register(), tills.change_spec(folder, FLOORS, f"{FLOORS}, rebuild_on_change=False")],
        [],
    ),
    "a raw file of a day": (lambda _folder: tills.deliver(4, raise_by=1.0), []),
    "the time zone": (
        lambda folder: tills.change_spec(folder, '"UTC"', '"Asia/Tokyo"'),
        ["timezone was 'UTC' and is 'Asia/Tokyo'"],
    ),
    "a view": (
        lambda folder: tills.change_spec(folder, '["takings"]', '["takings", "floors"]'),
        ["tables was ['receipts', 'takings'] and is ['receipts', 'takings', 'floors']"],
    ),
    "how far a source looks back": (
        lambda folder: tills.change_spec(folder, 'trailing="1d"', 'trailing="2d"'),
        ["trailing.sales was '1d' and is '2d'"],
    ),
    "another register": (
        lambda folder: [
            tills.change_spec(
                folder,
                "sources=[",
                'sources=[dict(name="shops", is_register=True, columns=dict(till="int64", floor="int64")), ',
            ),
            raw_files.raw_file("shops").parent.mkdir(),
            rewrite_register(raw_files.raw_file("shops")),
        ],
        ["the raw file of shops is new", "columns.shops is new"],
    ),
    "another format": (
        lambda folder: tills.change_spec(
            folder, 'dict(name="sales",', 'dict(name="sales", files=dict(format="csv", nulls=["NA"]),'
        ),
        ["formats.sales is new"],
    ),
    "the schedule": (lambda folder: tills.change_spec(folder, "0 0 * * 1", "0 0 * * 2"), []),
    "a gate": (lambda folder: tills.change_spec(folder, "100.0", "99.0"), []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named_and_nothing_else(change: str, folder: Path, model: ModelSpec) -> None:
    act, differences = CHANGES[change]
    act(folder)
    result = stale(tills.reload_spec())
    assert list(result.differences) == differences
    assert result.periods == (DAYS if differences else [])


VERSIONS = [(0, "2020-01-01", "2024-01-02", 1), (0, "2024-01-02", None, 2), (1, "2023-05-01", "2024-01-04", 3)]
HISTORIES: dict[str, tuple[list[tills.TillVersion], list[int]]] = {
    "nothing": (VERSIONS, []),
    "another order": (VERSIONS[::-1], []),
    "what begins after the last day": ([*VERSIONS, (1, "2024-01-05", None, 9), (2, "2024-01-05", None, 9)], []),
    "an end after the last day": ([VERSIONS[0], (0, "2024-01-02", "2024-01-05", 2), VERSIONS[2]], []),
    "what was before the first day": (
        [(0, "2021-06-01", "2024-01-02", 1), (1, "2020-01-01", "2023-05-01", 8), *VERSIONS[1:]],
        [],
    ),
    "one row as two": ([*VERSIONS[:2], (1, "2023-05-01", "2024-01-02", 3), (1, "2024-01-02", "2024-01-04", 3)], []),
    "a new key of the last day": ([*VERSIONS, (2, "2024-01-04", None, 9)], [3]),
    "a value until the second day": ([(0, "2020-01-01", "2024-01-02", 7), *VERSIONS[1:]], [0]),
    "a value from the second day on": ([VERSIONS[0], (0, "2024-01-02", None, 7), VERSIONS[2]], [1, 2, 3]),
    "a change two days later": ([(0, "2020-01-01", "2024-01-04", 1), (0, "2024-01-04", None, 2), VERSIONS[2]], [1, 2]),
    "an end a day earlier": ([*VERSIONS[:2], (1, "2023-05-01", "2024-01-03", 3)], [2]),
    "no rows of a key": (VERSIONS[:2], [0, 1, 2]),
}


def publish_with_history(folder: Path, kind: str = "date32", zone: str = "UTC", trailing: str = "0d") -> ModelSpec:
    tills.change_spec(folder, '"UTC"', f'"{zone}"')
    model = tills.declare_history(folder, kind, trailing)
    tills.deliver_history(VERSIONS)
    tills.publish(model, DAYS)
    assert not stale(model).periods
    return model


@pytest.mark.parametrize(("kind", "zone"), [("date32", "UTC"), ("timestamp[us, tz=UTC]", "America/New_York")])
@pytest.mark.parametrize("name", HISTORIES)
def test_a_changed_history_concerns_its_days_only(name: str, kind: str, zone: str, folder: Path) -> None:
    versions, numbers = HISTORIES[name]
    model = publish_with_history(folder, kind, zone)
    tills.deliver_history(versions)
    days = [DAYS[number] for number in numbers]
    assert stale(model).differences == ({"the raw file of tills has changed": days} if days else {})
    mixed = staleness.find_mixed_features(model, inputs.published_manifests(model, DAYS))
    assert mixed.differences == stale(model).differences
    tills.publish(model, stale(model).periods)
    assert not stale(model).periods


def test_what_trails_reaches_back_into_a_history(folder: Path) -> None:
    model = publish_with_history(folder, trailing="1d")
    tills.deliver_history([(0, "2020-01-01", "2024-01-02", 7), *VERSIONS[1:]])
    assert stale(model).periods == DAYS[:2]


def test_a_history_that_is_gone_is_compared_with_none(folder: Path) -> None:
    model = publish_with_history(folder)
    raw_files.raw_file("tills").unlink()
    assert not stale(model).periods
    assert not staleness.find_mixed_features(model, inputs.published_manifests(model, DAYS)).periods


@pytest.mark.parametrize("spoil", ["no parquet", "damaged pages", "null keys"])
def test_all_days_differ_from_a_history_that_is_damaged(spoil: str, folder: Path) -> None:
    model = publish_with_history(folder)
    file = raw_files.raw_file("tills")
    content = file.read_bytes()
    if spoil == "null keys":
        table = pq.read_table(file)
        pq.write_table(table.set_column(0, "till", pa.array([None, 0, 1])), file)
    else:
        file.write_bytes(b"no" if spoil == "no parquet" else content[:4] + b"\xff" * 100 + content[104:])
    assert stale(model).periods == DAYS


def test_a_history_may_keep_its_days(folder: Path) -> None:
    publish_with_history(folder)
    tills.deliver_history(VERSIONS[:1])
    assert not stale(
        tills.change_spec(folder, "'is_register': True", "'is_register': True, 'rebuild_on_change': False")
    ).periods


def test_other_columns_of_validity_make_days_stale(folder: Path) -> None:
    publish_with_history(folder)
    model = tills.change_spec(folder, ", 'valid_to': 'until'", "")
    assert list(stale(model).differences)[1:] == ["histories.tills.valid_to is no longer used"]


def test_libraries_are_named_with_both_versions(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "version", lambda _library: "99.0")
    old = next(iter(inputs.published_manifests(model, DAYS[:1]).values())).inputs["code"]["pyspark"]
    assert f"pyspark was {old} and is 99.0" in stale(model).differences


def test_evergreens_own_modules_are_one_difference(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    code = inputs.feature_code(model)
    changed = {name: "0" * 64 if name.startswith("evergreen.") else value for name, value in code.items()}
    monkeypatch.setattr(inputs, "feature_code", lambda _model: changed)
    assert stale(model).differences == {"Evergreen's own code has changed": DAYS}


def test_each_difference_has_its_days(folder: Path, model: ModelSpec) -> None:
    append(folder / "features.py", "A = 1\n")
    tills.publish(model, DAYS[1:3])
    rewrite_register()
    result = stale(model)
    assert result.differences == {
        "the raw file of tills has changed": DAYS,
        "tills/features.py has changed": [DAYS[0], DAYS[3]],
    }
    assert [str(fault) for fault in result.faults("rebuild")] == [
        "4 days, 2024-01-01 – 2024-01-04: the raw file of tills has changed → rebuild",
        "2 days, 2024-01-01 – 2024-01-04: tills/features.py has changed → rebuild",
    ]
    assert result.summary == (
        "4 of 4 days of features of tills are stale; 4 days, 2024-01-01 – 2024-01-04: the raw file of tills has "
        "changed; 2 days, 2024-01-01 – 2024-01-04: tills/features.py has changed"
    )
    command = "`evergreen backfill tills --from 2024-01-01 --to 2024-01-04`"
    assert result.rebuild_advice == f'run {command}, or set stale_features="rebuild" in the spec'


def test_differences_of_the_same_days_are_one_short_fault(folder: Path, model: ModelSpec) -> None:
    names = [f"part{n}" for n in range(10)]
    for name in names:
        (folder / f"{name}.py").write_text("A = 1\n")
    append(folder / "units.py", "".join(f"import evergreen_models.tills.{name}\n" for name in names))
    (fault,) = stale(model).faults("")
    assert fault.problem == ", ".join(f"tills/part{n}.py is new" for n in range(6)) + ", and 5 more"


def test_a_day_of_unknown_inputs_is_stale(model: ModelSpec) -> None:
    dataset = inputs.features_dataset(model)
    dataset.publish("day=2024-01-02", "another", {}, {})
    assert stale(model).periods == [DAYS[1]]


def test_days_that_differ_from_the_newest_are_mixed(folder: Path, model: ModelSpec) -> None:
    append(folder / "features.py", "A = 1\n")

    def mixed() -> StaleFeatures:
        return staleness.find_mixed_features(model, inputs.published_manifests(model, DAYS))

    assert mixed().periods == [], "all are stale, none is mixed"
    tills.publish(model, DAYS[2:])
    assert mixed().differences == {"tills/features.py has changed": DAYS[:2]}
    assert staleness.find_mixed_features(model, {}).periods == []


def test_nothing_published_is_not_stale(folder: Path) -> None:
    model = tills.reload_spec()
    result = stale(model)
    assert (result.published, result.periods) == ([], [])


@pytest.mark.parametrize(
    ("zone", "start", "ttls", "first"),
    [
        ("UTC", "2024-03-11", [], "2024-03-11"),
        ("UTC", "2024-03-11", [3540.0], "2024-03-09"),
        ("UTC", "2024-03-11", [86_400.0, 60.0], "2024-03-09"),
        ("UTC", "2024-03-11", [86_401.0], "2024-03-08"),
        ("UTC", "2024-03-11", [86_400.0, 0.0], "2024-01-01"),  # a view without a TTL reads all that is before
        # 10 March has 23 hours in New York, and 3 November has 25.
        ("America/New_York", "2024-03-11", [86_400.0], "2024-03-08"),
        ("America/New_York", "2024-03-11", [82_800.0], "2024-03-09"),
        ("America/New_York", "2024-11-04", [90_000.0], "2024-11-02"),
    ],
)
def test_days_before_the_window_count_as_far_as_views_reach(
    zone: str, start: str, ttls: list[float], first: str, folder: Path
) -> None:
    model = tills.change_spec(folder, '"UTC"', f'"{zone}"')
    dataset = inputs.features_dataset(model)
    end = "2024-11-06"
    calendar = Calendar("1d", zone)
    for day in calendar.periods_between("2024-01-01", end):
        dataset.publish(f"day={day}", "any", {}, {})
    window = Window.from_range(start, end, RunReason.MANUAL, calendar)
    assert periods_in_reach(model, window, ttls) == list(calendar.periods_between(first, end))


def test_the_files_of_the_model_are_those_of_its_spec(folder: Path) -> None:
    assert [file.name for file in inputs.register_files(feature_spec(tills.reload_spec()))] == ["tills"]
