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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import xgboost

from evergreen import evaluation, storage
from evergreen.errors import EvergreenError, ScoringError, SignatureError
from evergreen.gates import GateResult, Verdict, decide_verdict
from evergreen.lake import datasets, fingerprints
from evergreen.registry import signing, versions
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.training.job import TrainingResult
from evergreen_local import services
from support import onnx_models

pytestmark = pytest.mark.integration

MODEL = ModelSpec(
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
TABLE = pa.table({name: ROWS[:, n] for n, name in enumerate(FEATURES)})


def candidate(day: str, rounds: int) -> tuple[datasets.Manifest, datasets.Manifest]:
    """A training set (its manifest only) and a published candidate that has learned for `rounds`."""
    libraries = {"xgboost-cpu": xgboost.__version__}
    return published(lambda folder: trees(folder, rounds), FEATURES, libraries, day, rounds)


def trees(folder: Path, rounds: int = 3) -> None:
    data = xgboost.DMatrix(ROWS, label=LABELS, feature_names=list(FEATURES))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, rounds)
    booster.save_model(folder / "model.ubj")


def network(folder: Path) -> None:
    onnx_models.save(onnx_models.network(), folder)


def published(
    write: Callable[[Path], None],
    features: tuple[str, ...],
    libraries: Mapping[str, str],
    day: str = "2013-01-11",
    rounds: int = 3,
) -> tuple[datasets.Manifest, datasets.Manifest]:
    """As `candidate`, with the model that `write` leaves in a folder, trained with these libraries."""
    target = datasets.open_dataset(f"models/{MODEL.name}")
    inputs = {"features": features, "code": {"train": "1"}, "rounds": rounds}
    mark = fingerprints.compute_fingerprint(inputs)
    folder = target.stage(f"until={day}", mark)
    write(folder)
    (file,) = folder.iterdir()
    TrainingResult(
        fingerprint=mark,
        files={file.name: storage.file_sha256(file)},
        metrics={"train_auc": 0.7},
        environment={"python": "3.11.9", **libraries},
    ).write(folder / "result.json")
    files = {file.name: file, "result.json": folder / "result.json"}
    known = {"as_of": day, "holdout": "2013-01-04"}
    training_set = datasets.Manifest(f"until={day}", "5e7" + mark, known, {})
    return training_set, target.publish(f"until={day}", mark, files, inputs)


def verdict(home: Path) -> tuple[Verdict, Path]:
    record = GateResult(gate="auc", outcome="passed", candidate=0.7, threshold=0.6, rows=200, reason="auc 0.7")
    result = decide_verdict([record])
    (home / "verdict.json").write_text(result.model_dump_json())
    return result, home / "verdict.json"


def register(home: Path, day: str = "2013-01-11", rounds: int = 3) -> str:
    return versions.register_candidate(MODEL, *candidate(day, rounds), *verdict(home))


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
        lines = (Path(__file__).parents[3] / "docs/operating.md").read_text().splitlines()
        for line in (line for line in lines if line.startswith("openssl ")):
            command = line.replace("evergreen-key.pem", str(private)).replace("evergreen-key.pub.pem", str(public))
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
    service = services.mlflow_service(home, services.free_port(5200))
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            service.command, env=dict(service.environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 180
        while not service.is_ready():
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
    versions.verify_version(MODEL.name, version)
    with versions.open_artifact(MODEL, version) as folder:
        assert {file.name for file in folder.iterdir()} == {
            "MLmodel", "model.ubj", "conda.yaml", "python_env.yaml", "requirements.txt", signing.MANIFEST_FILE,
        }  # fmt: skip
        assert versions.read_input_columns(folder) == FEATURES
        scores = evaluation.score_table(folder, TABLE, FEATURES)
    _, made = candidate("2013-01-11", 3)
    assert scores == pytest.approx(evaluation.score_candidate(MODEL, made, TABLE), abs=0)


@dataclass(frozen=True)
class Format:
    """One model of a format, and what the registry must know of it."""

    write: Callable[[Path], None]
    table: pa.Table
    libraries: Mapping[str, str]
    requirement: str
    types: tuple[str, ...]


FORMATS = {
    "model.ubj": Format(trees, TABLE, {"xgboost-cpu": "3.1.4"}, "xgboost==3.1.4", ("double", "double")),
    "model.onnx": Format(
        network,
        onnx_models.rows(200),
        {"torch": "2.9.1"},
        f"onnxruntime=={onnxruntime.__version__}",
        ("double", "double", "string", "long"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_registered_as_it_was_published_and_served_by_mlflow(
    home: Path, keys, configure, name: str
) -> None:
    configure(*keys("one"))
    format_ = FORMATS[name]
    features = tuple(format_.table.column_names)
    training_set, made = published(format_.write, features, format_.libraries)
    version = versions.register_candidate(MODEL, training_set, made, *verdict(home))
    with versions.open_artifact(MODEL, version) as folder:
        assert {file.name for file in folder.iterdir()} == {
            "MLmodel", name, "conda.yaml", "python_env.yaml", "requirements.txt", signing.MANIFEST_FILE, signing.SIGNATURE_FILE,
        }  # fmt: skip
        assert storage.file_sha256(folder / name) == made.files[name].sha256
        assert versions.read_input_columns(folder) == features
        assert format_.requirement in (folder / "requirements.txt").read_text().splitlines()
        scores = evaluation.score_table(folder, format_.table, features)
    assert np.array_equal(scores, evaluation.score_candidate(MODEL, made, format_.table))
    served = mlflow.pyfunc.load_model(f"models:/{MODEL.name}/{version}")
    schema = served.metadata.signature.inputs
    assert tuple(schema.input_names()) == features
    assert tuple(str(type_).removeprefix("DataType.") for type_ in schema.input_types()) == format_.types
    answered = np.ravel(served.predict(format_.table.to_pandas()))
    assert answered == pytest.approx(scores, abs=1e-7)


def test_a_candidate_whose_file_takes_other_columns_is_not_registered(home: Path) -> None:
    made = published(network, FEATURES, {"torch": "2.9.1"})
    with pytest.raises(ScoringError, match="model.onnx takes distance, temperature, carrier, hour, but"):
        versions.register_candidate(MODEL, *made, *verdict(home))
    assert not versions._client().search_model_versions(f"name = '{MODEL.name}'")


def test_no_format_is_imported_before_a_model_of_it_is_registered() -> None:
    look = "import sys, evergreen.registry.versions; print([name for name in %r if name in sys.modules])"
    formats = ["xgboost", "mlflow.xgboost", "onnx", "onnxruntime", "mlflow.onnx"]
    done = subprocess.run([sys.executable, "-c", look % formats], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_version_tells_all_that_made_it(home: Path) -> None:
    version = register(home)
    tags = versions._client().get_model_version(MODEL.name, version).tags
    training_set, made = candidate("2013-01-11", 3)
    assert tags["evergreen.fingerprint"] == made.fingerprint
    assert tags["evergreen.data"] == training_set.content_hash
    assert tags["evergreen.as_of"] == "2013-01-11"
    assert tags["evergreen.holdout"] == "2013-01-04"
    assert tags["evergreen.manifest"] == storage.file_sha256(stored(home, signing.MANIFEST_FILE))
    assert "evergreen.signed_by" not in tags
    for tag in ("code", "environment", "verdict", "run"):
        assert tags[f"evergreen.{tag}"]


def test_a_candidate_keeps_its_version(home: Path) -> None:
    assert register(home) == register(home) == "1"
    assert register(home, "2013-01-18", 4) == "2"
    assert register(home) == "1"


def test_a_candidate_that_changed_after_training_is_not_registered(home: Path) -> None:
    training_set, made = candidate("2013-01-11", 3)
    file = datasets.open_dataset(f"models/{MODEL.name}").file_path(made, "model.ubj")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ScoringError, match="was changed after it was published"):
        versions.register_candidate(MODEL, training_set, made, *verdict(home))
    assert not versions._client().search_model_versions(f"name = '{MODEL.name}'")


@pytest.mark.parametrize("file", ["model.ubj", "MLmodel", "conda.yaml", signing.MANIFEST_FILE])
def test_what_was_changed_in_the_store_is_refused(home: Path, file: str) -> None:
    version = register(home)
    place = stored(home, file)
    content = bytearray(place.read_bytes())
    content[-2] ^= 1
    place.write_bytes(content)
    with pytest.raises(SignatureError, match=file):
        versions.verify_version(MODEL.name, version)


def test_what_was_removed_or_added_is_refused(home: Path) -> None:
    version = register(home)
    stored(home, "requirements.txt").rename(stored(home, "MLmodel").with_name("more.yaml"))
    with pytest.raises(SignatureError) as refused, versions.open_artifact(MODEL, version):
        pass
    assert [fault.location for fault in refused.value.faults] == ["more.yaml", "requirements.txt"]


def test_files_of_one_version_do_not_pass_as_anothers(home: Path, keys, configure) -> None:
    configure(*keys("one"))
    register(home)
    version = register(home, "2013-01-18", 4)
    older = stored(home, "MLmodel", 0).parent
    newer = stored(home, "MLmodel", 1).parent
    for file in older.iterdir():
        (newer / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SignatureError, match=f"{signing.MANIFEST_FILE}: is that of"):
        versions.verify_version(MODEL.name, version)


def test_a_pickle_in_the_place_of_a_model_is_named(home: Path) -> None:
    version = register(home)
    stored(home, "model.ubj").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(SignatureError, match=r"model\.ubj: is a pickle named \.ubj"):
        versions.verify_version(MODEL.name, version)


def test_a_pickled_model_that_somebody_registered_is_refused(home: Path) -> None:
    register(home)
    with mlflow.start_run(experiment_id=versions._client().get_experiment_by_name(MODEL.name).experiment_id):
        mlflow.pyfunc.log_model(
            name="own", python_model=lambda model_input: model_input, pip_requirements=["cloudpickle"],
            registered_model_name=MODEL.name,
        )  # fmt: skip
    with pytest.raises(SignatureError, match=r"\.pkl: is of a format that can run code"):
        versions.verify_version(MODEL.name, "2")


def test_where_signing_is_on_only_trusted_signatures_pass(home: Path, keys, configure) -> None:
    one, other = keys("one"), keys("other")
    unsigned = register(home)
    configure(*one)
    with pytest.raises(SignatureError, match=rf"{signing.SIGNATURE_FILE}: is missing: the version is not signed"):
        versions.verify_version(MODEL.name, unsigned)
    signed = register(home, "2013-01-18", 4)
    versions.verify_version(MODEL.name, signed)
    tags = versions._client().get_model_version(MODEL.name, signed).tags
    assert tags["evergreen.signed_by"] == next(iter(signing._public_keys(one[1])))
    configure(None, other[1])
    with pytest.raises(SignatureError, match=rf"{signing.SIGNATURE_FILE}: is by the key"):
        versions.verify_version(MODEL.name, signed)


def test_a_key_that_nobody_trusts_registers_nothing(home: Path, keys, configure) -> None:
    configure(keys("one")[0], keys("other")[1])
    with pytest.raises(SignatureError, match="is by the key"):
        register(home)
    assert not versions._client().search_model_versions(f"name = '{MODEL.name}'")


def test_an_older_version_can_be_signed_by_hand(home: Path, keys, configure) -> None:
    version = register(home)
    configure(*keys("one"))
    versions.sign_version(MODEL.name, version)
    versions.verify_version(MODEL.name, version)
    configure(*keys("other"))
    with pytest.raises(SignatureError, match="is by the key"):
        versions.verify_version(MODEL.name, version)
    versions.sign_version(MODEL.name, version)
    versions.verify_version(MODEL.name, version)
    stored(home, "conda.yaml").write_text("dependencies: [evil]\n")
    with pytest.raises(SignatureError, match="conda.yaml: was changed"):
        versions.sign_version(MODEL.name, version)


def test_a_version_from_before_manifests_is_refused_until_somebody_signs_it(home: Path, keys, configure) -> None:
    register(home)
    with mlflow.start_run(experiment_id=versions._client().get_experiment_by_name(MODEL.name).experiment_id):
        data = xgboost.DMatrix(ROWS, label=LABELS)
        mlflow.xgboost.log_model(
            xgboost.train({}, data, 2), name="model", model_format="ubj", pip_requirements=["xgboost"],
            registered_model_name=MODEL.name,
        )  # fmt: skip
    with pytest.raises(SignatureError, match=f"{signing.MANIFEST_FILE}: is missing"):
        versions.verify_version(MODEL.name, "2")
    configure(*keys("one"))
    versions.sign_version(MODEL.name, "2")
    versions.verify_version(MODEL.name, "2")


def test_what_cannot_be_had_is_an_error_of_ours(home: Path) -> None:
    with pytest.raises(ScoringError, match="its artifact cannot be loaded"):
        versions.verify_version(MODEL.name, "1")
    version = register(home)
    for place in stored(home, "MLmodel").parent.iterdir():
        place.unlink()
    with pytest.raises(EvergreenError):
        versions.verify_version(MODEL.name, version)


def test_behind_a_server_it_is_an_ordinary_model_of_mlflows(server: str, home: Path, keys, configure) -> None:
    private, public = keys("one")
    configure(private, public, MLFLOW=server)
    version = register(home)
    versions.verify_version(MODEL.name, version)
    client = versions._client()
    known = client.get_model_version(MODEL.name, version)
    model_id = known.source.removeprefix("models:/")
    assert {signing.SIGNATURE_FILE, signing.MANIFEST_FILE} <= {
        file.path for file in client.list_logged_model_artifacts(model_id)
    }  # what the UI lists
    logged = client.get_logged_model(model_id)
    assert str(logged.status) == "READY"
    assert [output.model_id for output in client.get_run(known.run_id).outputs.model_outputs] == [model_id]
    client.set_registered_model_alias(MODEL.name, "champion", version)
    loaded = mlflow.xgboost.load_model(f"models:/{MODEL.name}@champion")
    assert loaded.num_boosted_rounds() == 3
    assert mlflow.models.get_model_info(f"models:/{MODEL.name}/{version}").signature.inputs.input_names() == [*FEATURES]
    newer = keys("newer")
    configure(*newer, MLFLOW=server)
    versions.sign_version(MODEL.name, version)
    versions.verify_version(MODEL.name, version)
    with stored(home, "model.ubj").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SignatureError, match="model.ubj: was changed"):
        versions.verify_version(MODEL.name, version)


def test_a_stranger_can_check_it_with_openssfs_own_command(home: Path, keys, configure) -> None:
    private, public = keys("one")
    configure(private, public)
    register(home)
    folder = stored(home, "MLmodel").parent
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / signing.SIGNATURE_FILE), "--public_key", str(public)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    about = json.loads((folder / signing.MANIFEST_FILE).read_text())
    (folder / signing.MANIFEST_FILE).write_text(json.dumps(about))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
