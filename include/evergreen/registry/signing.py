"""Manifest and signature of a registered model's files: written once, checked before each use.

In the folder of a model lie, beside its files:

- `evergreen-manifest.json`: whose files these are (model and fingerprint) and the SHA-256 of each;
- `model.sig`, if a key is configured: a signature of all of them, manifest included, in the format of OpenSSF
  Model Signing 1.0 (a Sigstore bundle with an in-toto statement; github.com/sigstore/model-transparency), so
  that anybody can check it with that project's tools.

The manifest alone finds what was damaged or replaced in the artifact store, as long as its own hash is kept
elsewhere: the registry has it as a tag. The signature also holds against whoever can write to both.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evergreen import storage
from evergreen.errors import Fault, SignatureError
from evergreen.scoring import formats

MANIFEST_FILE = "evergreen-manifest.json"
SIGNATURE_FILE = "model.sig"

_FIX_RETRAIN = "retrain, which registers a new version from the lake; find out who can write to the artifact store"
_FIX_SIGN = "sign it, if you know where it comes from (docs/operating.md, Signing), or retrain"


@dataclass(frozen=True)
class ModelIdentity:
    """Whose files they are. Signed along, so that one version's files cannot stand in for another's."""

    model: str
    fingerprint: str
    """of the candidate"""


@dataclass(frozen=True)
class SigningKey:
    """A private key (PEM, elliptic curve P-256, P-384 or P-521) and what unlocks it: paths, read when used."""

    private_key: Path
    passphrase: Path | None = None


def write_model_manifest(folder: Path, identity: ModelIdentity, key: SigningKey | None) -> str:
    """Write the manifest of the files in `folder`, and sign them all if there is a `key`.

    Gives the SHA-256 of the manifest. What an earlier seal left is replaced.

    Raises:
        SignatureError: a file that may not be in a model, or a key that cannot be used.
    """
    for old in (MANIFEST_FILE, SIGNATURE_FILE):
        (folder / old).unlink(missing_ok=True)
    if wrong := formats.format_faults(folder):
        raise SignatureError(f"the files of {identity.model}", wrong)
    about = {"model": identity.model, "fingerprint": identity.fingerprint, "files": _file_hashes(folder)}
    (folder / MANIFEST_FILE).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    if key:
        _write_signature(folder, key)
    return storage.file_sha256(folder / MANIFEST_FILE)


def verify_files(folder: Path, identity: ModelIdentity, manifest_sha256: str | None, trusted_keys: Path | None) -> None:
    """Refuse the files in `folder` unless they are exactly those that were sealed for `subject`.

    `manifest` is the SHA-256 that `seal` gave. If `trusted` is given, a PEM file with one public key or several,
    one of these must have signed.

    Raises:
        SignatureError: with all faults, each with the file's name.
    """
    wrong = formats.format_faults(folder) + _manifest_faults(folder, identity, manifest_sha256)
    if trusted_keys:
        wrong += _signature_faults(folder, trusted_keys)
    if wrong:
        raise SignatureError(f"the files of {identity.model}", wrong)


def claimed_key_hash(folder: Path) -> str | None:
    """SHA-256 of the public key (as PEM) that the signature in `folder` says it is by; None if there is none.

    Only says: whether it is true, `verify` tells.
    """
    try:
        bundle = json.loads((folder / SIGNATURE_FILE).read_text())
        return str(bundle["verificationMaterial"]["publicKey"]["hint"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""


def _file_hashes(folder: Path) -> dict[str, str]:
    return {
        name: storage.file_sha256(path)
        for name, path in formats.iter_files(folder)
        if name not in (MANIFEST_FILE, SIGNATURE_FILE) and path.is_file()
    }


def _manifest_faults(folder: Path, identity: ModelIdentity, manifest_sha256: str | None) -> list[Fault]:
    """What is missing, changed or added, by the manifest."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return [Fault(MANIFEST_FILE, "is missing: nothing says what the files must be", _FIX_SIGN)]
    wrong = []
    if storage.file_sha256(file) != manifest_sha256:
        wrong.append(Fault(MANIFEST_FILE, "is not the one that was registered", _FIX_RETRAIN))
    try:
        about = json.loads(file.read_bytes())
        claimed, listed = ModelIdentity(about["model"], about["fingerprint"]), dict(about["files"])
    except (ValueError, KeyError, TypeError):
        return [*wrong, Fault(MANIFEST_FILE, "cannot be read", _FIX_RETRAIN)]
    if claimed != identity:
        what = f"is that of {claimed.model} {str(claimed.fingerprint)[:12]}, not of {identity.fingerprint[:12]}"
        wrong.append(Fault(MANIFEST_FILE, what, _FIX_RETRAIN))
    found = _file_hashes(folder)
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            wrong.append(Fault(name, "is missing", _FIX_RETRAIN))
        elif name not in listed:
            wrong.append(Fault(name, "was added after registration", _FIX_RETRAIN))
        elif found[name] != listed[name]:
            wrong.append(Fault(name, "was changed after registration", _FIX_RETRAIN))
    return wrong


def _signature_faults(folder: Path, trusted_keys: Path) -> list[Fault]:
    by = claimed_key_hash(folder)
    if by is None:
        return [Fault(SIGNATURE_FILE, "is missing: the version is not signed, and signing is on", _FIX_SIGN)]
    keys = _public_keys(trusted_keys)
    if by not in keys:
        what = f"is by the key {by[:12] or '(none named)'}, not by one in {trusted_keys}"
        return [
            Fault(
                SIGNATURE_FILE,
                what,
                f"add that key's public half to the file if you trust it, or {_FIX_SIGN}",
            )
        ]
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as scratch:
        public = Path(scratch, "public.pem")
        public.write_bytes(keys[by])
        try:
            config = verifying.Config().use_elliptic_key_verifier(public_key=public)
            with contextlib.redirect_stdout(io.StringIO()):  # it prints advice to those who sign
                config.verify(folder, folder / SIGNATURE_FILE)
        except Exception as error:  # whatever it stumbles over: what cannot be verified is refused
            said = " ".join(str(error).split()) or type(error).__name__
            return [Fault(SIGNATURE_FILE, f"does not hold: {said}", _FIX_RETRAIN)]
    return []


def _write_signature(folder: Path, key: SigningKey) -> None:
    from model_signing import hashing, signing

    try:
        # Bytes, whatever its types say: they go to cryptography as they are.
        passphrase = key.passphrase.read_bytes().rstrip(b"\r\n") if key.passphrase else None
        config = signing.Config().use_elliptic_key_signer(
            private_key=key.private_key,
            password=passphrase,  # type: ignore[arg-type]
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        what = f"cannot sign: {' '.join(str(error).split()) or type(error).__name__}"
        way_out = "EVERGREEN_SIGNING_KEY must name a private key, PEM, EC P-256 (docs/operating.md, Signing)"
        raise SignatureError("the signing key", [Fault(str(key.private_key), what, way_out)]) from None
    everything = hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
    config.set_hashing_config(everything).sign(folder, folder / SIGNATURE_FILE)


def _public_keys(file: Path) -> Mapping[str, bytes]:
    """The public keys in a PEM file, by the hash that signatures name them by.

    Raises:
        SignatureError: none, or not elliptic-curve keys.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    found = {}
    try:
        for block in re.findall(
            rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", file.read_bytes(), re.DOTALL
        ):
            key = load_pem_public_key(block)
            if not isinstance(key, EllipticCurvePublicKey):
                raise ValueError("a key in it is not of an elliptic curve")
            pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            found[hashlib.sha256(pem).hexdigest()] = pem
        if not found:
            raise ValueError("there is no public key in it")
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        way_out = "EVERGREEN_SIGNING_PUBLIC_KEY must name a PEM file (docs/operating.md, Signing)"
        raise SignatureError("the trusted keys", [Fault(str(file), str(error), way_out)]) from None
    return found
