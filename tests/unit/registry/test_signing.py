"""Files of a model are those in the signed manifest, or are refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import xgboost
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from onnx import helper, numpy_helper
from pydantic import ValidationError

from evergreen.errors import ScoringError, SignatureError
from evergreen.registry import signing
from evergreen.registry.signing import MANIFEST_FILE, SIGNATURE_FILE, ModelIdentity, SigningKey
from evergreen.scoring import formats
from evergreen.settings import Settings
from support.onnx_models import network

pytestmark = pytest.mark.unit

SUBJECT = ModelIdentity("flight_delay", "f" * 64)


class Calls:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.getcwd, ()


def key_pair(folder: Path, passphrase: str | None = None, private: object = None) -> tuple[SigningKey, Path]:
    """Return a private key and the file of its public key, as by the openssl commands of docs/guides/signing.md."""
    folder.mkdir()
    private = private or ec.generate_private_key(ec.SECP256R1())
    locked = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    (folder / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    if passphrase:
        (folder / "passphrase").write_text(passphrase + "\n")
    return SigningKey(folder / "key.pem", folder / "passphrase" if passphrase else None), folder / "public.pem"


@pytest.fixture(scope="module")
def booster() -> bytes:
    """The bytes of a small model in XGBoost's own format."""
    data = xgboost.DMatrix(np.arange(40.0).reshape(20, 2), label=np.arange(20) % 2)
    return bytes(xgboost.train({"max_depth": 2}, data, 3).save_raw("ubj"))


@pytest.fixture
def make(booster: bytes, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that creates folders with the files that MLflow writes for a model."""

    def build(name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.ubj").write_bytes(booster)
        (folder / "MLmodel").write_text("flavors:\n  xgboost:\n    data: model.ubj\n")
        (folder / "conda.yaml").write_text("channels:\n- conda-forge\ndependencies:\n- python=3.11.9\n")
        (folder / "python_env.yaml").write_text("python: 3.11.9\n")
        (folder / "requirements.txt").write_text("mlflow==3.17.2\nxgboost==3.2.0\n")
        return folder

    return build


@pytest.fixture
def signed(make: Callable[..., Path], tmp_path: Path) -> tuple[Path, str, Path]:
    """A signed folder, the hash of its manifest, the public key."""
    folder = make()
    key, public = key_pair(tmp_path / "keys")
    return folder, signing.write_model_manifest(folder, SUBJECT, key), public


def refusal(folder: Path, manifest: str | None, trusted: Path | None, subject: ModelIdentity = SUBJECT) -> str:
    with pytest.raises(SignatureError) as error:
        signing.verify_files(folder, subject, manifest, trusted)
    return str(error.value)


def test_verify_files_accepts_signed_folder(signed: tuple[Path, str, Path]) -> None:
    folder, manifest, public = signed
    signing.verify_files(folder, SUBJECT, manifest, public)
    signing.verify_files(folder, SUBJECT, manifest, None)
    listed = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    assert set(listed) == {"model.ubj", "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}


def test_verify_files_checks_manifest_without_keys(make: Callable[..., Path]) -> None:
    folder = make()
    manifest = signing.write_model_manifest(folder, SUBJECT, None)
    assert signing.claimed_key_hash(folder) is None
    signing.verify_files(folder, SUBJECT, manifest, None)
    (folder / "conda.yaml").write_text("dependencies: [evil]\n")
    assert "conda.yaml: was changed after registration" in refusal(folder, manifest, None)


def test_write_model_manifest_twice_is_equal(signed: tuple[Path, str, Path], tmp_path: Path) -> None:
    folder, manifest, _ = signed
    newer_key, public = key_pair(tmp_path / "newer")
    assert signing.write_model_manifest(folder, SUBJECT, newer_key) == manifest
    signing.verify_files(folder, SUBJECT, manifest, public)


def replace_by_link(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


def name_in_manifest(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][name] = "0" * 64
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.ubj").read_bytes())
    content[content.index(b"base_weights") + 40] ^= 1  # still a model
    (folder / "model.ubj").write_bytes(content)


@pytest.mark.parametrize("trusts", [True, False], ids=["signed", "manifest only"])
@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (flip_a_bit, "model.ubj: was changed"),
        (lambda folder: (folder / "more.json").write_text("{}"), "more.json: was added"),
        (lambda folder: (folder / ".hidden.json").write_text("{}"), ".hidden.json: was added"),
        (lambda folder: (folder / "conda.yaml").unlink(), "conda.yaml: is missing"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), f"{MANIFEST_FILE}: is missing"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("[]"), f"{MANIFEST_FILE}: cannot be read"),
        (lambda folder: (folder / "start.py").write_text("pass"), "start.py: is of no known format"),
        (
            lambda folder: (folder / ".git").mkdir() or (folder / ".git" / "x").write_text(""),
            ".git/x: is of no",
        ),
        (lambda folder: (folder / "m.json").symlink_to("/etc/hostname"), "m.json: is a link"),
        (lambda folder: os.mkfifo(folder / "m.json"), "m.json: is a link or a device"),
        (lambda folder: os.link(folder / "model.ubj", folder / "m.ubj"), "model.ubj: has a second name"),
        (lambda folder: (folder / "a\n\x1b[2J.json").write_text("{}"), r"'a\n\x1b[2J.json': has a name that no file"),
        (lambda folder: (folder / "m.json").write_bytes(b" " * 2**25), "m.json: has more than 16,777,216 bytes"),
        (lambda folder: (folder / "MLmodel").write_bytes(b"#" * 2**21), "MLmodel: has more than 1,048,576 bytes"),
        (lambda folder: [(folder / f"{n}.json").write_text("{}") for n in range(200)], "the folder: has 20"),
        (lambda folder: (folder / MANIFEST_FILE).write_bytes(b" " * 2**21), f"{MANIFEST_FILE}: is no file of its own"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("[" * 2**19), f"{MANIFEST_FILE}: cannot be read"),
        (
            lambda folder: replace_by_link(folder / MANIFEST_FILE, "/dev/zero"),
            f"{MANIFEST_FILE}: is no file of its own",
        ),
        (lambda folder: name_in_manifest(folder, "../../x"), f"{MANIFEST_FILE}: cannot be read"),
        (lambda folder: name_in_manifest(folder, "/etc/passwd"), f"{MANIFEST_FILE}: cannot be read"),
    ],
)
def test_verify_files_names_each_tampered_file(
    signed: tuple[Path, str, Path], tamper: Callable[[Path], None], named: str, trusts: bool
) -> None:
    folder, manifest, public = signed
    tamper(folder)
    assert named in refusal(folder, manifest, public if trusts else None)


def test_verify_files_reports_all_faults_in_one_line(signed: tuple[Path, str, Path]) -> None:
    folder, manifest, public = signed
    flip_a_bit(folder)
    (folder / "conda.yaml").unlink()
    problem = refusal(folder, manifest, public)
    assert "\n" not in problem
    for named in ("model.ubj: was changed", "conda.yaml: is missing", f"{SIGNATURE_FILE}: does not hold"):
        assert named in problem


def test_verify_files_refuses_forged_manifest(signed: tuple[Path, str, Path]) -> None:
    folder, manifest, public = signed
    signature = (folder / SIGNATURE_FILE).read_bytes()
    flip_a_bit(folder)
    forged = signing.write_model_manifest(folder, SUBJECT, None)
    (folder / SIGNATURE_FILE).write_bytes(signature)
    # By a person who can write to the artifact store only.
    assert f"{MANIFEST_FILE}: is not the one that was registered" in refusal(folder, manifest, None)
    # By a person who can also write to the registry.
    signing.verify_files(folder, SUBJECT, forged, None)
    problem = refusal(folder, forged, public)
    assert f"{SIGNATURE_FILE}: does not hold" in problem
    assert "model.ubj" in problem


def test_verify_files_refuses_files_of_another_version(make: Callable[..., Path], tmp_path: Path) -> None:
    key, public = key_pair(tmp_path / "keys")
    folder, other_folder = make("one"), make("other")
    (other_folder / "requirements.txt").write_text("mlflow==3.17.2\nxgboost==3.1.0\n")
    other_identity = ModelIdentity(SUBJECT.model, "e" * 64)
    manifest, other_manifest = (
        signing.write_model_manifest(folder, SUBJECT, key),
        signing.write_model_manifest(other_folder, other_identity, key),
    )
    signing.verify_files(other_folder, other_identity, other_manifest, public)
    # All of them, signature too.
    assert f"{MANIFEST_FILE}: is that of flight_delay eeeeeeeeeeee" in refusal(other_folder, other_manifest, public)
    assert "is not the one that was registered" in refusal(other_folder, manifest, public)
    # The signature alone.
    shutil.copy(other_folder / SIGNATURE_FILE, folder / SIGNATURE_FILE)
    assert f"{SIGNATURE_FILE}: does not hold" in refusal(folder, manifest, public)


def test_verify_files_refuses_untrusted_key(signed: tuple[Path, str, Path], tmp_path: Path) -> None:
    folder, manifest, _ = signed
    _, stranger = key_pair(tmp_path / "stranger")
    assert f"{SIGNATURE_FILE}: is by the key" in refusal(folder, manifest, stranger)
    # A signature that only claims to be by the trusted key.
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    hint = next(iter(signing._public_keys(stranger)))
    bundle["verificationMaterial"]["publicKey"]["hint"] = hint
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    assert f"{SIGNATURE_FILE}: does not hold: InvalidSignature" in refusal(folder, manifest, stranger)


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"verificationMaterial": 1}'])
def test_verify_files_refuses_malformed_signature(signed: tuple[Path, str, Path], content: str) -> None:
    folder, manifest, public = signed
    (folder / SIGNATURE_FILE).write_text(content)
    assert f"{SIGNATURE_FILE}: is by the key (none named)" in refusal(folder, manifest, public)


def test_verify_files_refuses_empty_list_of_signatures(signed: tuple[Path, str, Path]) -> None:
    folder, manifest, public = signed
    bundle = json.loads((folder / SIGNATURE_FILE).read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))
    assert f"{SIGNATURE_FILE}: does not hold" in refusal(folder, manifest, public)


def test_verify_files_refuses_unsigned_if_signing_is_on(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    manifest = signing.write_model_manifest(folder, SUBJECT, None)
    _, public = key_pair(tmp_path / "keys")
    assert f"{SIGNATURE_FILE}: is missing: the version is not signed" in refusal(folder, manifest, public)


def test_verify_files_trusts_every_key_in_the_file(signed: tuple[Path, str, Path], tmp_path: Path) -> None:
    folder, manifest, old = signed
    _, new = key_pair(tmp_path / "new")
    trusted_keys = tmp_path / "both.pem"
    trusted_keys.write_bytes(new.read_bytes() + old.read_bytes())
    signing.verify_files(folder, SUBJECT, manifest, trusted_keys)
    assert "is by the key" in refusal(folder, manifest, new)


def test_signing_key_reads_passphrase_from_file(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    key, public = key_pair(tmp_path / "keys", passphrase="open sesame")
    signing.verify_files(folder, SUBJECT, signing.write_model_manifest(folder, SUBJECT, key), public)
    assert key.passphrase
    key.passphrase.write_text("wrong")
    for bad in (key, SigningKey(key.private_key)):
        with pytest.raises(SignatureError, match=r"key\.pem: cannot sign"):
            signing.write_model_manifest(folder, SUBJECT, bad)


def test_invalid_keys_are_named(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    manifest = signing.write_model_manifest(folder, SUBJECT, SigningKey(key_pair(tmp_path / "keys")[0].private_key))
    key, public = key_pair(tmp_path / "rsa", private=rsa.generate_private_key(65537, 2048))
    assert "public.pem: a key in it is not of an elliptic curve" in refusal(folder, manifest, public)
    assert "nothing.pem" in refusal(folder, manifest, tmp_path / "nothing.pem")
    assert "there is no public key in it" in refusal(folder, manifest, folder / "MLmodel")
    for bad in (key, SigningKey(tmp_path / "nothing.pem"), SigningKey(folder / "MLmodel")):
        with pytest.raises(SignatureError, match="cannot sign"):
            signing.write_model_manifest(folder, SUBJECT, bad)


def torch_archive(path: Path) -> None:
    """As torch.save writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Calls()))
        archive.writestr("archive/version", "3\n")


def behind_something_harmless(path: Path) -> None:
    harmless = path.read_bytes()
    torch_archive(path)
    path.write_bytes(harmless + path.read_bytes())


def compressed(path: Path) -> None:
    import joblib

    joblib.dump(Calls(), path, compress=3)


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("model.pkl", lambda path: path.write_bytes(b""), "can run code"),
        ("model.JOBLIB", lambda path: path.write_bytes(b""), "can run code"),
        ("model.pt", torch_archive, "can run code"),
        *(
            (
                "model.ubj",
                lambda path, p=p: path.write_bytes(pickle.dumps(Calls(), p)),
                "is a pickle named .ubj",
            )
            for p in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
        ("conda.yaml", lambda path: path.write_bytes(pickle.dumps(Calls(), 0)), "is a pickle named .yaml"),
        ("MLmodel", lambda path: path.write_bytes(pickle.dumps(Calls())), "is a pickle named MLmodel"),
        ("model.ubj", torch_archive, "a zip archive that holds archive/data.pkl, named .ubj"),
        ("model.ubj", behind_something_harmless, "a zip archive that holds archive/data.pkl, named .ubj"),
        ("model.ubj", compressed, "may hold a pickle"),
        ("model.ubj", lambda path: path.write_bytes(b""), "is no UBJSON"),
        ("model.onnx", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "may hold a pickle"),
        ("model.onnx", lambda path: path.write_bytes(b"onnx?"), "is no ONNX"),
        ("model.onnx", lambda path: path.write_bytes(b"\x08\x0aORTM"), "is no ONNX"),
        ("data.json", lambda path: path.write_text("{"), "is no JSON"),
        ("conda.yaml", lambda path: path.write_bytes(b"\xff\xfe"), "is no text"),
        ("loader.so", lambda path: path.write_bytes(b"\x7fELF"), "is of no known format"),
        ("notes.txt", lambda path: path.write_text("hello"), "is of no known format"),
    ],
)
def test_format_faults_refuses_code_and_unknown_formats(
    make: Callable[..., Path], name: str, write: Callable[[Path], object], problem: str
) -> None:
    folder = make()
    write(folder / name)
    faults = formats.format_faults(folder)
    assert [fault.location for fault in faults] == [name]
    assert problem in faults[0].problem
    with pytest.raises(ScoringError, match=name):
        signing.write_model_manifest(folder, SUBJECT, None)
    assert not (folder / MANIFEST_FILE).exists()


def tensor(place: str | None) -> onnx.TensorProto:
    """Return a tensor with data in the file, or at a place outside of it."""
    proto = numpy_helper.from_array(np.ones(4, np.float32), "numbers")
    if place is not None:
        proto.ClearField("raw_data")
        proto.data_location = onnx.TensorProto.EXTERNAL
        if place:
            proto.external_data.add(key="location", value=place)
    return proto


def as_a_weight(model: onnx.ModelProto, place: str | None) -> None:
    model.graph.initializer.append(tensor(place))


def as_a_sparse_weight(model: onnx.ModelProto, place: str | None) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor(place))


def as_a_constant(model: onnx.ModelProto, place: str | None) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["one"], value=tensor(place)))


def within_a_branch(model: onnx.ModelProto, place: str | None) -> None:
    branch = helper.make_graph([], "branch", [], [], [tensor(place)])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def within_a_function(model: onnx.ModelProto, place: str | None) -> None:
    constant = helper.make_node("Constant", [], ["one"], value=tensor(place))
    model.functions.append(helper.make_function("own", "ones", [], ["one"], [constant], []))


@pytest.mark.parametrize("place", ["weights.onnx", "/etc/passwd", "../../another/model.onnx", "*/_ORT_MEM_ADDR_/*", ""])
@pytest.mark.parametrize("put", [as_a_weight, as_a_sparse_weight, as_a_constant, within_a_branch, within_a_function])
def test_format_faults_refuses_onnx_with_external_data(
    make: Callable[..., Path], put: Callable[[onnx.ModelProto, str | None], None], place: str
) -> None:
    folder = make()
    for location in (None, place):
        model = network()
        put(model, location)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        faults = formats.format_faults(folder)
        assert [fault.location for fault in faults] == ([] if location is None else ["model.onnx"])
    assert f"has numbers of the model outside of it, in {place or 'a place'}" in faults[0].problem
    with pytest.raises(SignatureError, match=r"model\.onnx"):
        signing.write_model_manifest(folder, SUBJECT, None)


def test_verify_files_refuses_signed_pickle(make: Callable[..., Path], tmp_path: Path) -> None:
    from model_signing import signing as openssf

    folder = make()
    manifest = signing.write_model_manifest(folder, SUBJECT, None)
    (folder / "model.ubj").write_bytes(pickle.dumps(Calls()))
    key, public = key_pair(tmp_path / "keys")
    openssf.Config().use_elliptic_key_signer(private_key=key.private_key).sign(folder, folder / SIGNATURE_FILE)
    assert "model.ubj: is a pickle named .ubj" in refusal(folder, manifest, public)


def test_format_faults_accepts_known_formats(make: Callable[..., Path]) -> None:
    folder = make()
    (folder / "model.onnx").write_bytes(network().SerializeToString())
    (folder / "input_example.json").write_text('{"columns": ["a"], "data": [[1.0]]}')
    assert formats.format_faults(folder) == []


def test_settings_require_both_signing_keys(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="set signing_public_key too"):
        Settings(signing_key=tmp_path / "key.pem")
    with pytest.raises(ValidationError, match="without signing_key"):
        Settings(signing_passphrase=tmp_path / "passphrase")
    assert Settings(signing_public_key=tmp_path / "public.pem").signing_key is None


def test_signed_note_holds_for_its_text_and_key_only(tmp_path: Path) -> None:
    (key, public), (other_key, other_public) = key_pair(tmp_path / "a", "pass"), key_pair(tmp_path / "b")
    signature = signing.sign_note(b"entry 7", key)
    assert signing.note_problem(b"entry 7", signature, public) is None
    both = tmp_path / "both.pem"
    both.write_bytes(other_public.read_bytes() + public.read_bytes())
    assert signing.note_problem(b"entry 7", signature, both) is None
    assert signing.note_problem(b"entry 7", None, public) == "is not signed"
    assert signing.note_problem(b"entry 8", signature, public) == "has a signature that does not hold"
    assert str(other_public) in (signing.note_problem(b"entry 7", signature, other_public) or "")
    forged = signature.model_copy(update={"value": signing.sign_note(b"entry 7", other_key).value})
    assert signing.note_problem(b"entry 7", forged, public) == "has a signature that does not hold"
    no_base64 = signature.model_copy(update={"value": "?"})
    assert signing.note_problem(b"entry 7", no_base64, public) == "has a signature that does not hold"


def test_note_is_not_signed_with_an_unusable_key(tmp_path: Path) -> None:
    key, _ = key_pair(tmp_path / "locked", "pass")
    with pytest.raises(SignatureError, match="cannot sign"):
        signing.sign_note(b"entry 7", SigningKey(key.private_key))
    with pytest.raises(SignatureError, match="cannot sign"):
        signing.sign_note(b"entry 7", SigningKey(tmp_path / "none.pem"))
    rsa_key = rsa.generate_private_key(65537, 2048)
    with pytest.raises(SignatureError, match="not of an elliptic curve"):
        signing.sign_note(b"entry 7", key_pair(tmp_path / "rsa", private=rsa_key)[0])
