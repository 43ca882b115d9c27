"""Versions in a real MLflow, on SQLite and on a server: signed when registered, verified before each use."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightgbm
import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
import requests
import xgboost

from evergreen import evaluation, ledger, storage
from evergreen.errors import InputsChangedError, RegistryError, ScoringError, SignatureError
from evergreen.gates import GateResult, decide_verdict
from evergreen.lake import datasets, fingerprints
from evergreen.registry import aliases, anchors, signing, versions
from evergreen.scoring import predictions
from evergreen.settings import settings
from evergreen.spec.model import ModelSpec
from evergreen.training.job import TrainingResult
from evergreen.window import RunReason
from evergreen_local import services
from support import onnx_models
from support.documents import DOCS, table_below
from support.ledger_events import promotion

pytestmark = pytest.mark.integration

MODEL = ModelSpec(
    name="sealed",
    owner="tests",
    features="flight_delay",
    feature_service="flight_delay",
    label="late",
    schedule="0 0 * * 1",
    train="10d",
    holdout="3d",
    parameters=dict(rounds=3),
    gates=[dict(kind="threshold", metric="auc", at_least=0.6)],
)
FEATURES = ("distance", "temperature")
RNG = np.random.default_rng(7)
ROWS = RNG.normal(size=(200, 2))
LABELS = (ROWS[:, 0] + RNG.normal(size=200) > 0).astype(int)
TABLE = pa.table({name: ROWS[:, n] for n, name in enumerate(FEATURES)})


def candidate(day: str, rounds: int) -> tuple[datasets.Manifest, datasets.Manifest]:
    """Return the manifests of a training set and of a published candidate trained for `rounds`."""
    libraries = {"xgboost-cpu": xgboost.__version__}
    return published(lambda folder: trees(folder, rounds), FEATURES, libraries, day, rounds)


def trees(folder: Path, rounds: int = 3) -> None:
    data = xgboost.DMatrix(ROWS, label=LABELS, feature_names=list(FEATURES))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, rounds)
    booster.save_model(folder / "model.ubj")


def leaves(folder: Path) -> None:
    data = lightgbm.Dataset(ROWS, LABELS, feature_name=list(FEATURES))
    lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 5).save_model(folder / "model.lgb")


def as_categories(table: pa.Table) -> pd.DataFrame:
    """Text as the libraries of trees take it."""
    return table.to_pandas().astype({"carrier": pd.CategoricalDtype(["ZZ", "AA", "UA"])})


def trees_with_carriers(folder: Path) -> None:
    table = onnx_models.rows(200)
    data = xgboost.DMatrix(as_categories(table), LABELS, enable_categorical=True)
    xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 5).save_model(folder / "model.ubj")


def leaves_with_carriers(folder: Path) -> None:
    data = lightgbm.Dataset(as_categories(onnx_models.rows(200)), LABELS)
    parameters = {"objective": "binary", "min_data_per_group": 1, "verbose": -1, "num_threads": 1}
    lightgbm.train(parameters, data, 5).save_model(folder / "model.lgb")


def network(folder: Path) -> None:
    onnx_models.save(onnx_models.network(), folder)


def published(
    write: Callable[[Path], None],
    features: tuple[str, ...],
    libraries: Mapping[str, str],
    day: str = "2013-01-11",
    rounds: int = 3,
) -> tuple[datasets.Manifest, datasets.Manifest]:
    """Return a training set and a candidate, as `candidate` does, with the model that `write` creates."""
    target = datasets.open_dataset(f"models/{MODEL.name}")
    inputs = {"features": features, "code": {"train": "1"}, "rounds": rounds}
    fingerprint = fingerprints.compute_fingerprint(inputs)
    folder = target.stage(f"until={day}", fingerprint)
    write(folder)
    (file,) = folder.iterdir()
    TrainingResult(
        fingerprint=fingerprint,
        files={file.name: storage.file_sha256(file)},
        metrics={"train_auc": 0.7},
        environment={"python": "3.11.9", **libraries},
    ).write(folder / "result.json")
    files = {file.name: file, "result.json": folder / "result.json"}
    inputs_ = {"as_of": day, "holdout": "2013-01-04", "feature_model": "flight_delay", "definitions": {}}
    train = datasets.PublishedFile("train", "0" * 64, 0, schema=dict.fromkeys(features, "double"))
    training_set = datasets.Manifest(f"until={day}", "5e7" + fingerprint, inputs_, {"train": train})
    return training_set, target.publish(f"until={day}", fingerprint, files, inputs)


def judge(candidate_: datasets.Manifest, **changes: Any) -> int:
    """Record a verdict on a candidate, and return its entry."""
    record = GateResult(gate="auc", outcome="passed", candidate=0.7, threshold=0.6, rows=200, reason="auc 0.7")
    files, inputs = predictions.model_identity(candidate_)
    event = ledger.VerdictRecorded(
        run="sealed.retrain by hand",
        run_reason=RunReason.MANUAL,
        as_of="2013-01-18",
        holdout=("2013-01-15", "2013-01-18"),
        days=("2013-01-15", "2013-01-18"),
        candidate_fingerprint=candidate_.fingerprint,
        candidate_files=files,
        candidate_inputs=inputs,
        champion_version=None,
        champion_content=None,
        verdict=decide_verdict([record]),
    ).model_copy(update=changes)
    return ledger.append_decision(MODEL.name, "tests", lambda _: event).number


def register_judged(
    home: Path, training_set: datasets.Manifest, candidate_: datasets.Manifest, verdict_entry: int | None = None
) -> str:
    report = home / "report.html"
    report.write_text("<p>all there is to say</p>")
    entry = verdict_entry or judge(candidate_)
    return versions.register_candidate(MODEL, training_set, candidate_, entry, report)


def register(home: Path, day: str = "2013-01-11", rounds: int = 3) -> str:
    return register_judged(home, *candidate(day, rounds))


def stored(home: Path, name: str, number: int = 0) -> Path:
    """Return the stored file `name` of the version with this position in the order of registration, from 0."""
    files = sorted(home.glob(f"mlflow-artifacts/**/{name}"), key=lambda path: path.stat().st_mtime_ns)
    return files[number]


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that creates key pairs by the commands in docs/guides/signing.md."""

    def make(name: str) -> tuple[Path, Path]:
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        lines = (Path(__file__).parents[3] / "docs/guides/signing.md").read_text().splitlines()
        for line in (line.removeprefix("$ ") for line in lines if line.startswith("$ openssl ")):
            command = line.replace("evergreen-key.pem", str(private)).replace("evergreen-key.pub.pem", str(public))
            subprocess.run(command.split(), check=True, capture_output=True)
        return private, public

    return make


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[..., None]:
    def use(private: Path | None = None, public: Path | None = None, **settings_: str) -> None:
        values = {"SIGNING_KEY": private, "SIGNING_PUBLIC_KEY": public, **settings_}
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
        deadline = time.monotonic() + 180
        while not service.is_ready():
            assert process.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.5)
        configure(MLFLOW=service.url)
        yield service.url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_register_candidate_then_verify_and_score(home: Path) -> None:
    version = register(home)
    assert version == "1"
    versions.verify_version(MODEL.name, version)
    with versions.open_artifact(MODEL.name, version) as (folder, _):
        assert {file.name for file in folder.iterdir()} == {
            "MLmodel", "model.ubj", "conda.yaml", "python_env.yaml", "requirements.txt", signing.MANIFEST_FILE,
        }  # fmt: skip
        assert versions.read_model_inputs(folder).column_names == FEATURES
        scores = evaluation.score_table(folder, TABLE, FEATURES)
    _, manifest = candidate("2013-01-11", 3)
    assert scores == pytest.approx(evaluation.score_candidate(MODEL, manifest, TABLE), abs=0)


@dataclass(frozen=True)
class Format:
    """A model of one format, and the metadata expected in the registry."""

    write: Callable[[Path], None]
    table: pa.Table
    libraries: Mapping[str, str]
    requirement: str
    types: tuple[str, ...]


FORMATS = {
    "model.ubj": Format(trees, TABLE, {"xgboost-cpu": "3.1.4"}, "xgboost==3.1.4", ("double", "double")),
    "model.lgb": Format(leaves, TABLE, {"lightgbm": "4.6.0"}, "lightgbm==4.6.0", ("double", "double")),
    "model.onnx": Format(
        network,
        onnx_models.rows(200),
        {"torch": "2.9.1"},
        f"onnxruntime=={onnxruntime.__version__}",
        ("double", "double", "string", "long"),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_register_candidate_every_format_is_served(home: Path, keys, configure, name: str) -> None:
    configure(*keys("one"))
    format_ = FORMATS[name]
    features = tuple(format_.table.column_names)
    training_set, manifest = published(format_.write, features, format_.libraries)
    version = register_judged(home, training_set, manifest)
    with versions.open_artifact(MODEL.name, version) as (folder, _):
        assert {file.name for file in folder.iterdir()} == {
            "MLmodel", name, "conda.yaml", "python_env.yaml", "requirements.txt", signing.MANIFEST_FILE,
            signing.SIGNATURE_FILE,
        }  # fmt: skip
        assert storage.file_sha256(folder / name) == manifest.files[name].sha256
        assert versions.read_model_inputs(folder).column_names == features
        assert format_.requirement in (folder / "requirements.txt").read_text().splitlines()
        scores = evaluation.score_table(folder, format_.table, features)
    assert np.array_equal(scores, evaluation.score_candidate(MODEL, manifest, format_.table))
    served = mlflow.pyfunc.load_model(f"models:/{MODEL.name}/{version}")
    schema = served.metadata.signature.inputs
    assert tuple(schema.input_names()) == features
    assert tuple(str(type_).removeprefix("DataType.") for type_ in schema.input_types()) == format_.types
    answered = np.ravel(served.predict(format_.table.to_pandas()))
    assert answered == pytest.approx(scores, abs=1e-7)


@pytest.mark.parametrize("write", [trees_with_carriers, leaves_with_carriers])
def test_registered_categories_are_those_of_the_library(home: Path, write: Callable[[Path], None]) -> None:
    table = onnx_models.rows(200)
    features = tuple(table.column_names)
    libraries = {"xgboost-cpu": xgboost.__version__, "lightgbm": lightgbm.__version__}
    version = register_judged(home, *published(write, features, libraries))
    with versions.open_artifact(MODEL.name, version) as (folder, _):
        scores = evaluation.score_table(folder, table, features)
    uri, frame = f"models:/{MODEL.name}/{version}", as_categories(table)
    if write is trees_with_carriers:
        own = mlflow.xgboost.load_model(uri).predict(xgboost.DMatrix(frame, enable_categorical=True))
    else:
        own = mlflow.lightgbm.load_model(uri).predict(frame)
    assert np.array_equal(own, scores)
    served = mlflow.pyfunc.load_model(uri)
    assert [str(type_) for type_ in served.metadata.signature.inputs.input_types()][2] == "DataType.string"
    # MLflow's own function hands on text as text, which the libraries refuse: it never guesses.
    with pytest.raises(ValueError, match="must be int, float, bool or category|categorical_feature do not match"):
        served.predict(table.to_pandas().astype({"hour": float}))


def test_register_candidate_refuses_other_columns(home: Path) -> None:
    manifest = published(network, FEATURES, {"torch": "2.9.1"})
    with pytest.raises(
        ScoringError, match="model.onnx takes distance, temperature, carrier, hour, not distance, temperature"
    ):
        register_judged(home, *manifest)
    assert not versions.registry_client().search_model_versions(f"name = '{MODEL.name}'")


def test_registry_imports_no_model_format() -> None:
    look = "import sys, evergreen.registry.versions; print([name for name in %r if name in sys.modules])"
    formats = ["xgboost", "mlflow.xgboost", "lightgbm", "mlflow.lightgbm", "onnx", "onnxruntime", "mlflow.onnx"]
    process = subprocess.run([sys.executable, "-c", look % formats], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_register_candidate_tags_version_with_inputs(home: Path) -> None:
    version = register(home)
    tags = versions.registry_client().get_model_version(MODEL.name, version).tags
    training_set, manifest = candidate("2013-01-11", 3)
    assert tags["evergreen.fingerprint"] == manifest.fingerprint
    assert tags["evergreen.data"] == training_set.content_hash
    assert tags["evergreen.as_of"] == "2013-01-11"
    assert tags["evergreen.holdout"] == "2013-01-04"
    assert tags["evergreen.manifest"] == storage.file_sha256(stored(home, signing.MANIFEST_FILE))
    assert "evergreen.signed_by" not in tags
    for tag in ("code", "environment", "verdict", "run"):
        assert tags[f"evergreen.{tag}"]
    assert tags["evergreen.run_reason"] == "manual"
    assert "evergreen.cause" not in tags


def test_registered_candidate_knows_what_asked_for_it(home: Path) -> None:
    training_set, manifest = candidate("2013-01-11", 3)
    cause = "drift since 2013-01-05: " + "t.\u00e4\n<b> level " * 100
    entry = judge(manifest, run_reason=RunReason.ALARM, cause=cause)
    version = register_judged(home, training_set, manifest, entry)
    client = versions.registry_client()
    tags = client.get_model_version(MODEL.name, version).tags
    run_tags = client.get_run(tags["evergreen.run"]).data.tags
    for place in (tags, run_tags):
        assert (place["evergreen.run_reason"], place["evergreen.cause"]) == ("alarm", cause)


def test_register_candidate_twice_keeps_version(home: Path) -> None:
    assert register(home) == register(home) == "1"
    assert register(home, "2013-01-18", 4) == "2"
    assert register(home) == "1"


def test_register_candidate_again_after_a_deletion_or_a_change(home: Path) -> None:
    training_set, manifest = candidate("2013-01-11", 3)
    entry = judge(manifest)
    client = versions.registry_client()
    assert register_judged(home, training_set, manifest, entry) == "1"
    client.set_model_version_tag(MODEL.name, "1", "evergreen.fingerprint", "another")
    assert register_judged(home, training_set, manifest, entry) == "1", "tags are not read"
    stored(home, "conda.yaml").write_text("dependencies: [evil]")
    assert register_judged(home, training_set, manifest, entry) == "2"
    client.delete_model_version(MODEL.name, "2")
    assert register_judged(home, training_set, manifest, entry) == "3"
    shutil.rmtree(stored(home, "MLmodel", -1).parent)
    assert register_judged(home, training_set, manifest, entry) == "4"
    client.delete_registered_model(MODEL.name)
    assert register_judged(home, training_set, manifest, entry) == "1"
    state = ledger.read_state(MODEL.name)
    assert [e.event.version for e in state.entries if e.event.kind == "registered"] == ["1", "2", "3", "4", "1"]
    versions.verify_version(MODEL.name, "1", state.find_verdict_event(entry).candidate_content)


def test_register_candidate_at_once_gives_one_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run registers the same candidate after this one has looked, and before the ledger knows of it."""
    training_set, manifest = candidate("2013-01-11", 3)
    entry = judge(manifest)
    original = versions._training_cost

    def overtake(*arguments: Any) -> Any:
        monkeypatch.setattr(versions, "_training_cost", original)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(register_judged, home, training_set, manifest, entry).result() == "1"
        return original(*arguments)

    monkeypatch.setattr(versions, "_training_cost", overtake)
    assert register_judged(home, training_set, manifest, entry) == "1"
    assert len(ledger.read_state(MODEL.name).entries) == 2
    assert [item.version for item in ledger.read_state(MODEL.name).registrations] == ["1"]


def test_register_candidate_killed_before_the_ledger_knows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training_set, manifest = candidate("2013-01-11", 3)
    entry = judge(manifest)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "append_decision", die)
        with pytest.raises(KeyboardInterrupt):
            register_judged(home, training_set, manifest, entry)
    with pytest.raises(RegistryError, match="version 1 of sealed is not in its ledger"):
        versions.verify_version(MODEL.name, "1")
    assert register_judged(home, training_set, manifest, entry) == "2"
    versions.verify_version(MODEL.name, "2")


def test_register_candidate_refuses_what_was_not_judged(home: Path) -> None:
    entry = judge(candidate("2013-01-11", 3)[1])
    with pytest.raises(InputsChangedError, match=f"is not the one that entry {entry} of the ledger judged"):
        register_judged(home, *candidate("2013-01-18", 4), entry)


def test_register_candidate_refuses_changed_file(home: Path) -> None:
    training_set, manifest = candidate("2013-01-11", 3)
    file = datasets.open_dataset(f"models/{MODEL.name}").file_path(manifest, "model.ubj")
    file.chmod(0o644)
    booster = xgboost.Booster(model_file=file)
    booster.set_attr(changed="afterwards")
    booster.save_model(file)
    with pytest.raises(ScoringError, match="was changed after it was published"):
        register_judged(home, training_set, manifest)
    assert not versions.registry_client().search_model_versions(f"name = '{MODEL.name}'")


@pytest.mark.parametrize("file", ["model.ubj", "MLmodel", "conda.yaml", signing.MANIFEST_FILE])
def test_verify_version_refuses_changed_file(home: Path, file: str) -> None:
    version = register(home)
    place = stored(home, file)
    content = bytearray(place.read_bytes())
    content[-2] ^= 1
    place.write_bytes(content)
    with pytest.raises(SignatureError, match=file):
        versions.verify_version(MODEL.name, version)


def test_open_artifact_refuses_removed_and_added_files(home: Path) -> None:
    version = register(home)
    stored(home, "requirements.txt").rename(stored(home, "MLmodel").with_name("more.yaml"))
    with pytest.raises(SignatureError) as error, versions.open_artifact(MODEL.name, version):
        pass
    assert [fault.location for fault in error.value.faults] == ["more.yaml", "requirements.txt"]


def test_verify_version_refuses_files_of_another_version(home: Path, keys, configure) -> None:
    configure(*keys("one"))
    register(home)
    version = register(home, "2013-01-18", 4)
    older = stored(home, "MLmodel", 0).parent
    newer = stored(home, "MLmodel", 1).parent
    for file in older.iterdir():
        (newer / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SignatureError, match=f"{signing.MANIFEST_FILE}: is not the one that was registered"):
        versions.verify_version(MODEL.name, version)


def test_verify_version_names_pickle(home: Path) -> None:
    version = register(home)
    stored(home, "model.ubj").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(SignatureError, match=r"model\.ubj: is a pickle named \.ubj"):
        versions.verify_version(MODEL.name, version)


def test_verify_version_refuses_registered_pickle(home: Path) -> None:
    register(home)
    with mlflow.start_run(experiment_id=versions.registry_client().get_experiment_by_name(MODEL.name).experiment_id):
        mlflow.pyfunc.log_model(
            name="own", python_model=lambda model_input: model_input, pip_requirements=["cloudpickle"],
            registered_model_name=MODEL.name,
        )  # fmt: skip
    with pytest.raises(RegistryError, match="version 2 of sealed is not in its ledger"):
        versions.verify_version(MODEL.name, "2")


def test_verify_version_requires_trusted_signature(home: Path, keys, configure) -> None:
    key_pair, other_key_pair = keys("one"), keys("other")
    unsigned = register(home)
    configure(*key_pair)
    with pytest.raises(SignatureError, match=rf"{signing.SIGNATURE_FILE}: is missing: the version is not signed"):
        versions.verify_version(MODEL.name, unsigned)
    signed = register(home, "2013-01-18", 4)
    versions.verify_version(MODEL.name, signed)
    tags = versions.registry_client().get_model_version(MODEL.name, signed).tags
    assert tags["evergreen.signed_by"] == next(iter(signing._public_keys(key_pair[1])))
    configure(None, other_key_pair[1])
    with pytest.raises(SignatureError, match=rf"{signing.SIGNATURE_FILE}: is by the key"):
        versions.verify_version(MODEL.name, signed)


def test_register_candidate_refuses_untrusted_key(home: Path, keys, configure) -> None:
    configure(keys("one")[0], keys("other")[1])
    with pytest.raises(SignatureError, match="is by the key"):
        register(home)
    assert not versions.registry_client().search_model_versions(f"name = '{MODEL.name}'")


def test_sign_version_signs_existing_version(home: Path, keys, configure) -> None:
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


def test_sign_version_refuses_what_nobody_has_judged(home: Path, keys, configure) -> None:
    register(home)
    with mlflow.start_run(experiment_id=versions.registry_client().get_experiment_by_name(MODEL.name).experiment_id):
        data = xgboost.DMatrix(ROWS, label=LABELS)
        mlflow.xgboost.log_model(
            xgboost.train({}, data, 2), name="model", model_format="ubj", pip_requirements=["xgboost"],
            registered_model_name=MODEL.name,
        )  # fmt: skip
    configure(*keys("one"))
    for use in (versions.verify_version, versions.sign_version):
        with pytest.raises(RegistryError, match="version 2 of sealed is not in its ledger"):
            use(MODEL.name, "2")


def test_verify_version_reports_missing_artifact(home: Path) -> None:
    with pytest.raises(RegistryError, match="version 1 of sealed is not in its ledger"):
        versions.verify_version(MODEL.name, "1")
    version = register(home)
    for place in stored(home, "MLmodel").parent.iterdir():
        place.unlink()
    with pytest.raises(ScoringError, match="its artifact cannot be loaded"):
        versions.verify_version(MODEL.name, version)


def test_register_candidate_on_mlflow_server(server: str, home: Path, keys, configure) -> None:
    private, public = keys("one")
    configure(private, public, MLFLOW=server)
    version = register(home)
    versions.verify_version(MODEL.name, version)
    client = versions.registry_client()
    model_version = client.get_model_version(MODEL.name, version)
    model_id = model_version.source.removeprefix("models:/")
    assert {signing.SIGNATURE_FILE, signing.MANIFEST_FILE} <= {
        file.path for file in client.list_logged_model_artifacts(model_id)
    }  # what the UI lists
    logged = client.get_logged_model(model_id)
    assert str(logged.status) == "READY"
    assert [output.model_id for output in client.get_run(model_version.run_id).outputs.model_outputs] == [model_id]
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


def test_signature_is_valid_for_openssf_command(home: Path, keys, configure) -> None:
    private, public = keys("one")
    configure(private, public)
    register(home)
    folder = stored(home, "MLmodel").parent
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / signing.SIGNATURE_FILE), "--public_key", str(public)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    manifest = json.loads((folder / signing.MANIFEST_FILE).read_text())
    (folder / signing.MANIFEST_FILE).write_text(json.dumps(manifest))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_each_task_sends_the_requests_of_the_page(server: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/trust.md lists the rights in MLflow that each task needs."""
    sent: set[tuple[str, str]] = set()
    send = requests.Session.send

    def record(self: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        path = re.sub(r"^/api/\d\.0/(mlflow/|mlflow-artifacts/)", "", urlsplit(request.url or "").path)
        path = re.sub(r"^(logged-models|artifacts)/.*", r"\1", path)
        if path != "server-info":  # once in a process
            sent.add(("reads" if request.method == "GET" else "writes", path))
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", record)

    def requests_of(act: Callable[[], Any]) -> dict[str, set[str]]:
        sent.clear()
        act()
        return {kind: {path for found, path in sent if found == kind} for kind in ("reads", "writes")}

    listed = {
        task: {"reads": set(re.findall(r"`([\w/-]+)`", reads)), "writes": set(re.findall(r"`([\w/-]+)`", writes))}
        for task, reads, writes in table_below(DOCS / "trust.md", "### In MLflow")
    }
    register_requests = requests_of(lambda: (register(home), anchors.update_anchor(MODEL.name)))
    assert register_requests["writes"] == listed["`register`"]["writes"]
    assert register_requests["reads"] == listed["`register`"]["reads"]
    ledger.append_decision(MODEL.name, "ada", lambda _: promotion("1", 17, 1))
    assert (
        requests_of(lambda: (anchors.check_anchor(MODEL.name), versions.get_champion_version(MODEL)))
        == listed["`plan`"]
    )
    assert requests_of(lambda: versions.verify_version(MODEL.name, "1")) == listed["`evaluate`"]
    promoting = requests_of(lambda: aliases.sync_aliases(MODEL.name))
    assert promoting["reads"] <= listed["`evaluate`"]["reads"]
    assert promoting["writes"] == listed["`promote`, `rollback`"]["writes"]
