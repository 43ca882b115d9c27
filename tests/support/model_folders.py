"""Folders with the files of a registered model, as small as they may be."""

from __future__ import annotations

import tempfile
from pathlib import Path

from evergreen.registry import signing
from evergreen.settings import settings
from support.ledger_events import model_bytes


def write_model_folder(folder: Path, model: str, fingerprint: str, number: int | str) -> str:
    """Write the model of a day, with its manifest, signed if there is a key; return the manifest's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.ubj").write_bytes(model_bytes(number))
    key = settings().signing_key
    identity = signing.ModelIdentity(model, fingerprint)
    return signing.write_model_manifest(folder, identity, signing.SigningKey(key) if key else None)


def model_manifest_sha256(model: str, fingerprint: str, number: int | str) -> str:
    """Return what `write_model_folder` returns."""
    with tempfile.TemporaryDirectory() as scratch:
        return write_model_folder(Path(scratch), model, fingerprint, number)
