"""Manifest and signature of a registered model's files: written once, checked before each use.

They are stored beside the files of the model:

- `evergreen-manifest.json`: the model, the candidate's fingerprint, and the SHA-256 of each file;
- `model.sig`, if a key is configured: a signature of all files and the manifest, in the format of OpenSSF Model
  Signing 1.0 (a Sigstore bundle with an in-toto statement; github.com/sigstore/model-transparency), which that
  project's tools can check.

The manifest shows damaged and replaced files as long as its own hash is stored elsewhere: in a tag of the registry. The
signature also protects against a person who can write to both.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evergreen import storage
from evergreen.errors import Fault, SignatureError
from evergreen.scoring import formats
from evergreen.spec import Frozen

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey

MANIFEST_FILE = "evergreen-manifest.json"
SIGNATURE_FILE = "model.sig"
MAX_JSON_BYTES = 2**20
"""Of the manifest, and of the signature."""

_FIX_RETRAIN = "retrain, which registers a new version from the lake; find out who can write to the artifact store"
_FIX_SIGN = "sign it, if you know where it comes from (docs/guides/signing.md), or retrain"
_PUBLIC_KEY_PATTERN = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class ModelIdentity:
    """The model and the candidate that files belong to. Signed too, so one version cannot stand in for another."""

    model: str
    fingerprint: str  # of the candidate


@dataclass(frozen=True)
class SigningKey:
    """Paths of a private key (PEM, elliptic curve P-256, P-384 or P-521) and its passphrase, read when used."""

    private_key: Path
    passphrase: Path | None = None


def write_model_manifest(folder: Path, identity: ModelIdentity, key: SigningKey | None) -> str:
    """Write the manifest of the files in `folder`, sign them if there is a `key`, and return the manifest's SHA-256.

    Replaces an earlier manifest and signature.

    Raises:
        SignatureError: a file may not be in a model, or the key cannot be used.
    """
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        (folder / name).unlink(missing_ok=True)
    if faults := formats.format_faults(folder):
        raise SignatureError(f"the files of {identity.model}", faults)
    manifest = {**asdict(identity), "files": _file_hashes(folder)}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    if key:
        _write_signature(folder, key)
    return storage.file_sha256(folder / MANIFEST_FILE)


def verify_files(folder: Path, identity: ModelIdentity, manifest_sha256: str | None, trusted_keys: Path | None) -> None:
    """Refuse the files in `folder` unless they are exactly those that the manifest was written for.

    `manifest_sha256` is the hash that `write_model_manifest` returned; `trusted_keys` a PEM file with public
    keys, one of which must have signed.

    Raises:
        SignatureError: lists all faults, each with the name of the file.
    """
    faults = formats.format_faults(folder) + _manifest_faults(folder, identity, manifest_sha256)
    if trusted_keys:
        faults += _signature_faults(folder, trusted_keys)
    if faults:
        raise SignatureError(f"the files of {identity.model}", faults)


def claimed_key_hash(folder: Path) -> str | None:
    """Return the SHA-256 of the public key (as PEM) that the signature in `folder` names; None without a signature.

    `verify_files` checks whether the claim is true.
    """
    try:
        bundle = json.loads(storage.read_untrusted(folder / SIGNATURE_FILE, folder, MAX_JSON_BYTES))
        return str(bundle["verificationMaterial"]["publicKey"]["hint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _file_hashes(folder: Path) -> dict[str, str]:
    files = {name: path for name, path in formats.iter_files(folder) if storage.is_plain_file(path)}
    return {n: storage.file_sha256(path) for n, path in files.items() if n not in (MANIFEST_FILE, SIGNATURE_FILE)}


def _manifest_faults(folder: Path, identity: ModelIdentity, manifest_sha256: str | None) -> list[Fault]:
    """Return what is missing, changed or added according to the manifest."""
    file = folder / MANIFEST_FILE
    try:
        content = storage.read_untrusted(file, folder, MAX_JSON_BYTES)
    except FileNotFoundError:
        return [Fault(MANIFEST_FILE, "is missing: nothing says what the files must be", _FIX_SIGN)]
    except OSError:
        return [Fault(MANIFEST_FILE, f"is no file of its own of up to {MAX_JSON_BYTES:,} bytes", _FIX_RETRAIN)]
    faults = []
    if hashlib.sha256(content).hexdigest() != manifest_sha256:
        faults.append(Fault(MANIFEST_FILE, "is not the one that was registered", _FIX_RETRAIN))
    try:
        manifest = json.loads(content)
        claimed, expected = ModelIdentity(manifest["model"], manifest["fingerprint"]), dict(manifest["files"])
        for name in expected:
            storage.check_relative_path(name)
    except (ValueError, KeyError, TypeError, RecursionError):
        return [*faults, Fault(MANIFEST_FILE, "cannot be read", _FIX_RETRAIN)]
    if claimed != identity:
        claim = f"{claimed.model} {str(claimed.fingerprint)[:12]}"[:60]
        problem = f"is that of {ascii(claim)[1:-1]}, not of {identity.fingerprint[:12]}"
        faults.append(Fault(MANIFEST_FILE, problem, _FIX_RETRAIN))
    actual = _file_hashes(folder)
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            faults.append(Fault(name, "is missing", _FIX_RETRAIN))
        elif name not in expected:
            faults.append(Fault(name, "was added after registration", _FIX_RETRAIN))
        elif actual[name] != expected[name]:
            faults.append(Fault(name, "was changed after registration", _FIX_RETRAIN))
    return faults


def _signature_faults(folder: Path, trusted_keys: Path) -> list[Fault]:
    key_hash = claimed_key_hash(folder)
    if key_hash is None:
        return [Fault(SIGNATURE_FILE, "is missing: the version is not signed, and signing is on", _FIX_SIGN)]
    keys = _public_keys(trusted_keys)
    if key_hash not in keys:
        problem = f"is by the key {ascii(key_hash[:12])[1:-1] or '(none named)'}, not by one in {trusted_keys}"
        return [Fault(SIGNATURE_FILE, problem, f"add its public key to that file if you trust it, or {_FIX_SIGN}")]
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as scratch:
        public_key = Path(scratch, "public.pem")
        public_key.write_bytes(keys[key_hash])
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
            with contextlib.redirect_stdout(io.StringIO()):  # it prints advice for signers
                config.verify(folder, folder / SIGNATURE_FILE)
        except Exception as error:  # of any kind: files that cannot be verified are refused
            return [Fault(SIGNATURE_FILE, f"does not hold: {_message(error)}", _FIX_RETRAIN)]
    return []


def _write_signature(folder: Path, key: SigningKey) -> None:
    from model_signing import hashing, signing

    try:
        # Bytes, against its type hints: they are passed to cryptography as they are.
        passphrase = key.passphrase.read_bytes().rstrip(b"\r\n") if key.passphrase else None
        config = signing.Config().use_elliptic_key_signer(
            private_key=key.private_key,
            password=passphrase,  # type: ignore[arg-type]
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unusable_key_error(key, error) from None
    all_files = hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
    config.set_hashing_config(all_files).sign(folder, folder / SIGNATURE_FILE)


def _public_keys(file: Path) -> Mapping[str, bytes]:
    """Return the public keys in a PEM file, by the hash that signatures name.

    Raises:
        SignatureError: there is no key, or one is not of an elliptic curve.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    try:
        for block in _PUBLIC_KEY_PATTERN.findall(file.read_bytes()):
            key = load_pem_public_key(block)
            if not isinstance(key, EllipticCurvePublicKey):
                raise ValueError("a key in it is not of an elliptic curve")
            keys[_key_hash(key)] = _public_pem(key)
        if not keys:
            raise ValueError("there is no public key in it")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        fix = "EVERGREEN_SIGNING_PUBLIC_KEY must name a PEM file (docs/guides/signing.md)"
        raise SignatureError("the trusted keys", [Fault(str(file), str(error), fix)]) from None
    return keys


def _message(error: Exception) -> str:
    """Return the error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


class NoteSignature(Frozen):
    """The signature of a short text: the hash of the public key, and ECDSA with SHA-256, as base64."""

    key: str
    value: str


def sign_note(text: bytes, key: SigningKey) -> NoteSignature:
    """Sign a short text.

    Raises:
        SignatureError: the key cannot be used.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        passphrase = key.passphrase.read_bytes().rstrip(b"\r\n") if key.passphrase else None
        private_key = load_pem_private_key(key.private_key.read_bytes(), passphrase)
        if not isinstance(private_key, EllipticCurvePrivateKey):
            raise ValueError("it is not of an elliptic curve")
    except (OSError, ValueError, TypeError) as error:
        raise _unusable_key_error(key, error) from None
    value = private_key.sign(text, _note_algorithm())
    return NoteSignature(key=_key_hash(private_key.public_key()), value=base64.b64encode(value).decode())


def note_problem(text: bytes, signature: NoteSignature | None, trusted_keys: Path) -> str | None:
    """Return why `signature` is none of `text` by one of `trusted_keys`, a PEM file; None if it is.

    Raises:
        SignatureError: the file holds no usable keys.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if signature is None:
        return "is not signed"
    keys = _public_keys(trusted_keys)
    if signature.key not in keys:
        return f"is signed by the key {ascii(signature.key[:12])[1:-1]}, not by one in {trusted_keys}"
    public_key = load_pem_public_key(keys[signature.key])
    assert isinstance(public_key, EllipticCurvePublicKey)  # _public_keys has checked it
    try:
        public_key.verify(base64.b64decode(signature.value, validate=True), text, _note_algorithm())
    except (InvalidSignature, ValueError):
        return "has a signature that does not hold"
    return None


def _note_algorithm() -> ECDSA:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    return ECDSA(SHA256())


def _key_hash(public_key: EllipticCurvePublicKey) -> str:
    """Return the hash by which signatures name a key."""
    return hashlib.sha256(_public_pem(public_key)).hexdigest()


def _public_pem(public_key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _unusable_key_error(key: SigningKey, error: Exception) -> SignatureError:
    fix = "EVERGREEN_SIGNING_KEY must name a private key, PEM, EC P-256 (docs/guides/signing.md)"
    return SignatureError("the signing key", [Fault(str(key.private_key), f"cannot sign: {_message(error)}", fix)])
