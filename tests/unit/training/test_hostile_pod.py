"""A hostile pod answers: nothing that it writes into its job's folder reaches a file outside of where it belongs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_length_limit, _validate_metric_name
from pydantic import ValidationError
from tests.unit.training.conftest import Make
from upath import UPath

from evergreen import storage
from evergreen.errors import TrainingError
from evergreen.training import Checkpoints, Job, TrainingResult, runner
from evergreen.training.attempt import read_attempts
from evergreen.training.job import MAX_FILES, check_metric_name
from evergreen.training.outcome import AttemptResult, Outcome, TrainerOutputError

pytestmark = pytest.mark.unit

FINGERPRINT = "f" * 64
CONTENT = b'"model"'
DIGEST = sha256(CONTENT).hexdigest()

HOSTILE_NAMES = [
    *("", ".", "..", "../x", "../../../dags/x.py", "/etc/passwd", "a/b", "a\\b", "..\\x", "a\0b", "a\nb", "\x1b[2Ja"),
    *(
        ".hidden",
        "_manifests",
        "-rf",
        "con",
        "NUL.json",
        "model.",
        "a" * 129,
        "~",
        "C:x",
        "é",
        "a\u202eb",
        "result.json",
    ),
]
names = st.one_of(st.sampled_from(HOSTILE_NAMES), st.text(max_size=300), st.text("./\\a_\0\n", max_size=12))


def result_json(**changes: Any) -> bytes:
    fields = {"fingerprint": FINGERPRINT, "files": {"model.json": DIGEST}, "metrics": {"loss": 0.5}, "environment": {}}
    return json.dumps({**fields, **changes}).encode()


@pytest.fixture(params=["folder", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    return storage.storage_path(str(tmp_path / "jobs") if request.param == "folder" else f"memory://{tmp_path.name}")


@pytest.fixture
def folder(root: UPath) -> UPath:
    """The folder of a job with a complete model."""
    folder = root / "m" / FINGERPRINT
    storage.put(folder / "output" / DIGEST / "model.json", CONTENT)
    storage.put(folder / "output" / "result.json", result_json())
    return folder


@pytest.fixture
def local_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs" / "m" / FINGERPRINT
    (folder / "output" / DIGEST).mkdir(parents=True)
    (folder / "output" / DIGEST / "model.json").write_bytes(CONTENT)
    (folder / "output" / "result.json").write_bytes(result_json())
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """The only folder that may be written to."""
    target = tmp_path / "staged" / "x" / "y"
    target.mkdir(parents=True)
    yield target
    assert [path for path in (tmp_path / "staged").rglob("*") if path.is_file() and path.parent != target] == []


def fetch(folder: UPath | Path, target: Path) -> TrainingResult:
    return runner.fetch_model_files(FINGERPRINT, UPath(folder), target)


def test_an_honest_model_is_fetched(folder: UPath, target: Path) -> None:
    assert fetch(folder, target).files == {"model.json": DIGEST}
    assert (target / "model.json").read_bytes() == CONTENT


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names)
def test_no_name_leads_out_of_the_folder(folder: UPath, target: Path, name: str) -> None:
    storage.put(folder / "output" / "result.json", result_json(files={name: DIGEST}))
    try:
        result = TrainingResult.model_validate_json(result_json(files={name: DIGEST}))
    except ValidationError:
        with pytest.raises(TrainingError, match="no valid result.json") as caught:
            fetch(folder, target)
        assert str(caught.value).isprintable()
        assert list(target.iterdir()) == []
        return
    [accepted] = result.files
    assert (target / accepted).parent == target
    assert (target / accepted).resolve().parent == target.resolve()
    assert accepted.isascii()
    assert accepted.isprintable()


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_name_is_refused(folder: UPath, target: Path, name: str) -> None:
    storage.put(folder / "output" / "result.json", result_json(files={name: DIGEST}))
    with pytest.raises(TrainingError, match="no valid result.json"):
        fetch(folder, target)
    assert list(target.iterdir()) == []


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=400),
        st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_content_does_more_than_be_refused(folder: UPath, target: Path, content: bytes) -> None:
    storage.put(folder / "output" / "result.json", content)
    with pytest.raises(TrainingError, match="no valid result.json"):
        fetch(folder, target)
    assert not runner.is_training_complete(FINGERPRINT, folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 900_000, "recursion|nesting|Invalid JSON"),
        (b" " * 2_000_000, "more than 1,048,576 bytes"),
        (result_json(files={f"f{n}": DIGEST for n in range(MAX_FILES + 1)}), "at most 1000 items"),
        (result_json(files={}), "at least 1 item"),
        (result_json(files={"model.json": "../../x"}), "should match pattern"),
        (result_json(files={"model.json": f"{DIGEST}\n"}), "should match pattern"),
        (result_json(metrics={"loss": float("nan")}), "finite"),
        (result_json(metrics={"loss": float("inf")}), "finite"),
        (result_json(metrics={"recall@10": 1.0}), "MLflow refuses"),
        (result_json(surprise=1), "not permitted"),
    ],
)
def test_hostile_result_is_refused(folder: UPath, target: Path, content: bytes, problem: str) -> None:
    storage.put(folder / "output" / "result.json", content)
    with pytest.raises(TrainingError, match=problem):
        fetch(folder, target)
    assert list(target.iterdir()) == []


def to_symlink(path: Path, other: Path) -> None:
    path.rename(other)
    path.symlink_to(other)


def to_hard_link(path: Path, other: Path) -> None:
    os.link(path, other)


def to_pipe(path: Path, other: Path) -> None:
    path.rename(other)
    os.mkfifo(path)


def to_device(path: Path, other: Path) -> None:
    path.rename(other)
    path.symlink_to("/dev/zero")


def to_folder(path: Path, other: Path) -> None:
    path.rename(other)
    path.mkdir()


@pytest.mark.parametrize("change", [to_symlink, to_hard_link, to_pipe, to_device, to_folder])
@pytest.mark.parametrize("file", ["output/result.json", f"output/{DIGEST}/model.json"])
def test_what_is_no_file_of_its_own_is_refused(
    local_folder: Path, target: Path, tmp_path: Path, change: Callable[[Path, Path], None], file: str
) -> None:
    change(local_folder / file, tmp_path / "other")
    with pytest.raises(TrainingError, match="is refused"):
        fetch(local_folder, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("part", [f"output/{DIGEST}", "output", ".", ".."])
def test_nothing_is_read_through_a_linked_folder(local_folder: Path, target: Path, tmp_path: Path, part: str) -> None:
    to_symlink(Path(os.path.normpath(local_folder / part)), tmp_path / "other")
    with pytest.raises(TrainingError, match="is refused: it is a link"):
        fetch(local_folder, target)
    assert list(target.iterdir()) == []


def test_a_refused_link_does_not_show_what_it_leads_to(local_folder: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (local_folder / "output/result.json").unlink()
    (local_folder / "output/result.json").symlink_to(tmp_path / "secret")
    with pytest.raises(TrainingError) as caught:
        fetch(local_folder, target)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("part", ["checkpoints", ".", ".."])
def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, part: str) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "jobs" / "m" / FINGERPRINT
    elsewhere.mkdir()
    link = Path(os.path.normpath(folder / part))
    link.parent.mkdir(parents=True, exist_ok=True)
    storage.check_no_link(UPath(folder / "checkpoints"), UPath(tmp_path / "jobs"))
    link.symlink_to(elsewhere)
    with pytest.raises(OSError, match=f"{link} is refused: it is a link"):
        storage.check_no_link(UPath(folder / "checkpoints"), UPath(tmp_path / "jobs"))


def test_hostile_attempt_records_do_not_count(make_job: Make, local_folder: Path, caplog: Any) -> None:
    attempts = local_folder / "attempts"
    attempts.mkdir()
    honest = {
        **{"id": "a", "dag_run": "r", "model": "m", "team": "t", "allocation": {"cpu": 1}},
        **{"started_at": "2026-01-01T00:00:00Z", "last_heartbeat": "2026-01-01T00:01:00Z"},
    }
    hostile = [
        {"allocation": {"cpu": -1e9}},
        {"allocation": {"cpu": float("inf")}},
        {"started_at": "2026-01-01T00:00:00"},
        {"surprise": 1},
    ]
    (attempts / "honest.json").write_text(json.dumps(honest))
    for number, change in enumerate(hostile):
        (attempts / f"{number}.json").write_text(json.dumps({**honest, **change}))
    (attempts / "huge.json").write_text(" " * 2_000_000)
    (attempts / "link.json").symlink_to(attempts / "honest.json")
    (attempts / "\x1b[2J").mkdir()
    assert [attempt.id for attempt in read_attempts(UPath(local_folder))] == ["a"]
    assert "\x1b" not in "".join(record.getMessage() for record in caplog.records)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names)
def test_no_checkpoint_names_a_path(folder: UPath, name: str) -> None:
    manifest = {"fingerprint": FINGERPRINT, "step": 1, "files": {name: DIGEST}}
    storage.put(folder / "checkpoints" / "step-000000001.json", json.dumps(manifest).encode())
    assert Checkpoints(folder / "checkpoints", FINGERPRINT, 60).load_latest() is None  # at best its file is missing


def test_a_checkpoint_is_not_read_through_a_link(local_folder: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(UPath(local_folder / "checkpoints"), FINGERPRINT, 0)
    checkpoints.record_step(1, lambda: {"trees": b"state"})
    checkpoints.flush()
    loaded = Checkpoints(UPath(local_folder / "checkpoints"), FINGERPRINT, 0).load_latest()
    assert loaded is not None
    assert loaded.files == {"trees": b"state"}
    to_symlink(local_folder / "checkpoints/step-000000001/trees", tmp_path / "other")
    assert Checkpoints(UPath(local_folder / "checkpoints"), FINGERPRINT, 0).load_latest() is None


def test_a_checkpoint_of_a_hostile_name_is_not_written(local_folder: Path) -> None:
    checkpoints = Checkpoints(UPath(local_folder / "checkpoints"), FINGERPRINT, 0)
    checkpoints.record_step(1, lambda: {"../../x": b""})
    with pytest.raises(ValueError, match="is no file name"):
        checkpoints.flush()


def run(job: Job, folder: UPath) -> None:
    runner.run_training(job, folder, Checkpoints(folder / "checkpoints", job.fingerprint, job.checkpoint_seconds))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("(output / 'vocabulary').mkdir()", "output 'vocabulary': is a folder → write its files beside one another"),
        ("(output / 'a').symlink_to('/etc/passwd')", "output 'a': is a link"),
        ("import os; (output / 'a').write_text(''); os.link(output / 'a', output / 'b')", "output 'a': is a link"),
        ("import os; os.mkfifo(output / 'a')", "output 'a': is a link or a device"),
        ("(output / 'result.json').write_text('')", "result.json is the name of the result itself"),
        ("(output / 'a\\nb').write_text('')", r"'a\nb' is no file name"),
        ("for n in range(1000): (output / f'{n}').write_text('')", "has written 1,001 files"),
    ],
)
def test_output_that_cannot_be_taken_over_is_refused_by_name(
    make_job: Make, folder: UPath, problem: str, message: str
) -> None:
    (folder / "output" / "result.json").unlink()
    with pytest.raises(TrainerOutputError) as caught:
        run(make_job(parameters={"steps": 1, "problem": problem}), folder)
    assert message in str(caught.value)
    assert not (folder / "output" / "result.json").exists()
    result = AttemptResult.from_error(caught.value)
    assert result.outcome is Outcome.BAD_CODE
    assert not result.outcome.is_retryable
    assert result.message.isprintable()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": float("nan")}, "metric 'loss': is nan, no finite number"),
        ({"loss": float("-inf")}, "metric 'loss': is -inf, no finite number"),
        ({"loss": "0.5"}, "metric 'loss': is '0.5', no finite number"),
        ({"loss": 10**400}, "no finite number"),
        ({"recall@10": 0.5}, "metric 'recall@10': has a name that MLflow refuses: use letters"),
        ({"../x": 0.5}, "metric '../x': has a name that MLflow refuses"),
        ({"a" * 251: 0.5}, "has a name of 251 characters, and MLflow takes 250"),
        ({f"m{n}": 0.5 for n in range(501)}, "returns 501 metrics"),
        (None, "returns NoneType, not a dict of metrics"),
        ({"recall@10": float("nan"), "loss": float("inf")}, "recall@10"),
    ],
)
def test_metric_is_refused_by_name(tmp_path: Path, metrics: Any, message: str) -> None:
    (tmp_path / "model.json").write_bytes(CONTENT)
    with pytest.raises(TrainerOutputError) as caught:
        runner._check_output(tmp_path, metrics)
    assert message in str(caught.value)
    assert AttemptResult.from_error(caught.value).outcome is Outcome.BAD_CODE


def test_all_faults_of_an_output_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(TrainerOutputError, match=r"'folder': is a folder.*'recall@10'.*'loss': is nan"):
        runner._check_output(tmp_path, {"recall@10": 1.0, "loss": float("nan")})


@given(st.one_of(st.text(max_size=260), st.text("ab/.:- _@", max_size=12)))
def test_metric_names_are_those_of_mlflow(name: str) -> None:
    try:
        check_metric_name(name)
        accepted = True
    except ValueError:
        accepted = False
    try:
        _validate_metric_name(name)
        _validate_length_limit("Metric name", 250, name)
        by_mlflow = True
    except MlflowException:
        by_mlflow = False
    # MLflow overlooks a line break at the end.
    assert accepted == (by_mlflow and not name.endswith("\n"))
