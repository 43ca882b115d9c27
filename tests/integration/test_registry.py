"""Versions in a real MLflow, on SQLite and behind a server: sealed when registered, verified before each use."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
import xgboost

from evergreen import evaluation, lake, registry, signing
from evergreen.cli import services
from evergreen.errors import EvergreenError, ScoringError, SignatureError
from evergreen.gates import Record, Verdict, decide
from evergreen.model import Model
from evergreen.settings import settings
from evergreen.training.job import Result

pytestmark = pytest.mark.integration

MODEL = Model(
    name="sealed",
    owner="tests",
    features="flight_delay",
    feature_service="flight_delay",
    label="late",
    schedule="0 0 * * 1",
    train_days=10,
    holdout_days=3,
    parameters=dict(rounds=3),
    gates=[dict(kind="threshold", metric="auc", at_least=0.6)],
)
FEATURES = ("distance", "temperature")
RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(200, 2))
LABELS = (ROWS[:, 0] + RNG.normal(size=200) > 0).astype(int)


def candidate(day: str, rounds: int) -> tuple[lake.Manifest, lake.Manifest]:
    """A training set (its manifest only) and a published candidate that has learned for `rounds`."""
    target = lake.dataset(f"models/{MODEL.name}")
    inputs = {"features": FEATURES, "code": {"train": "1"}, "rounds": rounds}
    mark = lake.fingerprint(inputs)
    folder = target.stage(f"until={day}", mark)
    data = xgboost.DMatrix(ROWS, label=LABELS, feature_names=list(FEATURES))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, rounds)
    booster.save_model(folder / "model.ubj")
    Result(
        fingerprint=mark,
        files={"model.ubj": lake.sha256(folder / "model.ubj")},
        metrics={"train_auc": 0.7},
        environment={"xgboost": xgboost.__version__},
    ).write(folder / "result.json")
    files = {name: folder / name for name in ("model.ubj", "result.json")}
    known = {"as_of": day, "holdout": "2013-01-04"}
    training_set = lake.Manifest(f"until={day}", "5e7" + mark, known, {})
    return training_set, target.publish(f"until={day}", mark, files, inputs)


def verdict(home: Path) -> tuple[Verdict, Path]:
    record = Record(gate="auc", outcome="passed", candidate=0.7, threshold=0.6, rows=200, reason="auc 0.7")
    result = decide([record])
    (home / "verdict.json").write_text(result.model_dump_json())
    return result, home / "verdict.json"


def register(home: Path, day: str = "2013-01-11", rounds: int = 3) -> str:
    return registry.register(MODEL, *candidate(day, rounds), *verdict(home))


def stored(home: Path, name: str, number: int = 0) -> Path:
    """Where MLflow keeps a file of the version that was registered as the `number`-th, from 0."""
    found = sorted(home.glob(f"mlflow-artifacts/**/{name}"), key=lambda path: path.stat().st_mtime_ns)
    return found[number]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, whose making takes most of a test's time."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def home(home: Path, empty_database: Path) -> Path:
    home.mkdir()
    shutil.copy(empty_database, home)
    return home


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Key pairs, made by the two lines of docs/operating.md."""

    def make(name: str) -> tuple[Path, Path]:
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        lines = (Path(__file__).parents[2] / "docs/operating.md").read_text().splitlines()
        for line in (line for line in lines if line.startswith("openssl ")):
            command = line.replace("evergreen-key.pem", str(private)).replace(
                "evergreen-key.pub.pem", str(public)
            )
            subprocess.run(command.split(), check=True, capture_output=True)
        return private, public

    return make


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[..., None]:
    def use(private: Path | None = None, public: Path | None = None, **more: str) -> None:
        values = {"SIGNING_KEY": private, "SIGNING_PUBLIC_KEY": public, **more}
        for name, value in values.items():
            if value is None:
                monkeypatch.delenv(f"EVERGREEN_{name}", raising=False)
            else:
                monkeypatch.setenv(f"EVERGREEN_{name}", str(value))
        settings.cache_clear()

    return use


@pytest.fixture
def server(home: Path, configure: Callable[..., None]) -> Iterator[str]:
    """The MLflow server that `evergreen up` starts; the settings point at it."""
    service = services.mlflow(home, services.free_port(5200))
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            service.command, env=dict(service.environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 180
        while not service.ready():
            assert process.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.5)
        configure(MLFLOW=service.url)
        yield service.url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_registered_verified_scored(home: Path) -> None:
    version = register(home)
    assert version == "1"
    registry.verify(MODEL.name, version)
    table = pa.table({name: ROWS[:, n] for n, name in enumerate(FEATURES)})
    with registry.artifact(MODEL, version) as folder:
        assert {file.name for file in folder.iterdir()} == {
            "MLmodel", "model.ubj", "conda.yaml", "python_env.yaml", "requirements.txt", signing.MANIFEST,
        }  # fmt: skip
        assert registry.inputs_of(folder) == FEATURES
        scores = evaluation.score(folder, table, FEATURES)
    _, published = candidate("2013-01-11", 3)
    assert scores == pytest.approx(evaluation.score_candidate(MODEL, published, table), abs=0)


def test_a_version_tells_all_that_made_it(home: Path) -> None:
    version = register(home)
    tags = registry._client().get_model_version(MODEL.name, version).tags
    training_set, made = candidate("2013-01-11", 3)
    assert tags["evergreen.fingerprint"] == made.fingerprint
    assert tags["evergreen.data"] == training_set.content
    assert tags["evergreen.as_of"] == "2013-01-11"
    assert tags["evergreen.holdout"] == "2013-01-04"
    assert tags["evergreen.manifest"] == lake.sha256(stored(home, signing.MANIFEST))
    assert "evergreen.signed_by" not in tags
    for tag in ("code", "environment", "verdict", "run"):
        assert tags[f"evergreen.{tag}"]


def test_a_candidate_keeps_its_version(home: Path) -> None:
    assert register(home) == register(home) == "1"
    assert register(home, "2013-01-18", 4) == "2"
    assert register(home) == "1"


def test_a_candidate_that_changed_after_training_is_not_registered(home: Path) -> None:
    training_set, made = candidate("2013-01-11", 3)
    file = lake.dataset(f"models/{MODEL.name}").path(made, "model.ubj")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ScoringError, match="was changed after it was published"):
        registry.register(MODEL, training_set, made, *verdict(home))
    assert not registry._client().search_model_versions(f"name = '{MODEL.name}'")


@pytest.mark.parametrize("file", ["model.ubj", "MLmodel", "conda.yaml", signing.MANIFEST])
def test_what_was_changed_in_the_store_is_refused(home: Path, file: str) -> None:
    version = register(home)
    place = stored(home, file)
    content = bytearray(place.read_bytes())
    content[-2] ^= 1
    place.write_bytes(content)
    with pytest.raises(SignatureError, match=file):
        registry.verify(MODEL.name, version)


def test_what_was_removed_or_added_is_refused(home: Path) -> None:
    version = register(home)
    stored(home, "requirements.txt").rename(stored(home, "MLmodel").with_name("more.yaml"))
    with pytest.raises(SignatureError) as refused, registry.artifact(MODEL, version):
        pass
    assert [fault.where for fault in refused.value.faults] == ["more.yaml", "requirements.txt"]


def test_files_of_one_version_do_not_pass_as_anothers(home: Path, keys, configure) -> None:
    configure(*keys("one"))
    register(home)
    version = register(home, "2013-01-18", 4)
    older = stored(home, "MLmodel", 0).parent
    newer = stored(home, "MLmodel", 1).parent
    for file in older.iterdir():
        (newer / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SignatureError, match=f"{signing.MANIFEST}: is that of"):
        registry.verify(MODEL.name, version)


def test_a_pickle_in_the_place_of_a_model_is_named(home: Path) -> None:
    version = register(home)
    stored(home, "model.ubj").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(SignatureError, match=r"model\.ubj: is a pickle named \.ubj"):
        registry.verify(MODEL.name, version)


def test_a_pickled_model_that_somebody_registered_is_refused(home: Path) -> None:
    register(home)
    with mlflow.start_run(experiment_id=registry._client().get_experiment_by_name(MODEL.name).experiment_id):
        mlflow.pyfunc.log_model(
            name="own", python_model=lambda model_input: model_input, pip_requirements=["cloudpickle"],
            registered_model_name=MODEL.name,
        )  # fmt: skip
    with pytest.raises(SignatureError, match=r"\.pkl: is of a format that can run code"):
        registry.verify(MODEL.name, "2")


def test_where_signing_is_on_only_trusted_signatures_pass(home: Path, keys, configure) -> None:
    one, other = keys("one"), keys("other")
    unsigned = register(home)
    configure(*one)
    with pytest.raises(SignatureError, match=rf"{signing.SIGNATURE}: is missing: the version is not signed"):
        registry.verify(MODEL.name, unsigned)
    signed = register(home, "2013-01-18", 4)
    registry.verify(MODEL.name, signed)
    tags = registry._client().get_model_version(MODEL.name, signed).tags
    assert tags["evergreen.signed_by"] == next(iter(signing._public_keys(one[1])))
    configure(None, other[1])
    with pytest.raises(SignatureError, match=rf"{signing.SIGNATURE}: is by the key"):
        registry.verify(MODEL.name, signed)


def test_a_key_that_nobody_trusts_registers_nothing(home: Path, keys, configure) -> None:
    configure(keys("one")[0], keys("other")[1])
    with pytest.raises(SignatureError, match="is by the key"):
        register(home)
    assert not registry._client().search_model_versions(f"name = '{MODEL.name}'")


def test_an_older_version_can_be_signed_by_hand(home: Path, keys, configure) -> None:
    version = register(home)
    configure(*keys("one"))
    registry.sign(MODEL.name, version)
    registry.verify(MODEL.name, version)
    configure(*keys("other"))
    with pytest.raises(SignatureError, match="is by the key"):
        registry.verify(MODEL.name, version)
    registry.sign(MODEL.name, version)
    registry.verify(MODEL.name, version)
    stored(home, "conda.yaml").write_text("dependencies: [evil]\n")
    with pytest.raises(SignatureError, match="conda.yaml: was changed"):
        registry.sign(MODEL.name, version)


def test_a_version_from_before_manifests_is_refused_until_somebody_signs_it(
    home: Path, keys, configure
) -> None:
    register(home)
    with mlflow.start_run(experiment_id=registry._client().get_experiment_by_name(MODEL.name).experiment_id):
        data = xgboost.DMatrix(ROWS, label=LABELS)
        mlflow.xgboost.log_model(
            xgboost.train({}, data, 2), name="model", model_format="ubj", pip_requirements=["xgboost"],
            registered_model_name=MODEL.name,
        )  # fmt: skip
    with pytest.raises(SignatureError, match=f"{signing.MANIFEST}: is missing"):
        registry.verify(MODEL.name, "2")
    configure(*keys("one"))
    registry.sign(MODEL.name, "2")
    registry.verify(MODEL.name, "2")


def test_what_cannot_be_had_is_an_error_of_ours(home: Path) -> None:
    with pytest.raises(ScoringError, match="its artifact cannot be loaded"):
        registry.verify(MODEL.name, "1")
    version = register(home)
    for place in stored(home, "MLmodel").parent.iterdir():
        place.unlink()
    with pytest.raises(EvergreenError):
        registry.verify(MODEL.name, version)


def test_behind_a_server_it_is_an_ordinary_model_of_mlflows(server: str, home: Path, keys, configure) -> None:
    private, public = keys("one")
    configure(private, public, MLFLOW=server)
    version = register(home)
    registry.verify(MODEL.name, version)
    client = registry._client()
    known = client.get_model_version(MODEL.name, version)
    model_id = known.source.removeprefix("models:/")
    assert {signing.SIGNATURE, signing.MANIFEST} <= {
        file.path for file in client.list_logged_model_artifacts(model_id)
    }  # what the UI lists
    logged = client.get_logged_model(model_id)
    assert str(logged.status) == "READY"
    assert [output.model_id for output in client.get_run(known.run_id).outputs.model_outputs] == [model_id]
    client.set_registered_model_alias(MODEL.name, "champion", version)
    loaded = mlflow.xgboost.load_model(f"models:/{MODEL.name}@champion")
    assert loaded.num_boosted_rounds() == 3
    assert mlflow.models.get_model_info(f"models:/{MODEL.name}/{version}").signature.inputs.input_names() == [
        *FEATURES
    ]
    newer = keys("newer")
    configure(*newer, MLFLOW=server)
    registry.sign(MODEL.name, version)
    registry.verify(MODEL.name, version)
    with stored(home, "model.ubj").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SignatureError, match="model.ubj: was changed"):
        registry.verify(MODEL.name, version)


def test_a_stranger_can_check_it_with_openssfs_own_command(home: Path, keys, configure) -> None:
    private, public = keys("one")
    configure(private, public)
    register(home)
    folder = stored(home, "MLmodel").parent
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / signing.SIGNATURE), "--public_key", str(public)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    about = json.loads((folder / signing.MANIFEST).read_text())
    (folder / signing.MANIFEST).write_text(json.dumps(about))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
