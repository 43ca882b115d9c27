"""The anchor of a ledger: number and hash of its newest entry, in a tag of the registered model in MLflow.

Whoever may only write the ledger cannot change it, so a ledger whose last entries were removed or rewritten is noticed
by a reader who has never seen them. With a signing key the anchor is signed: then a writer of MLflow cannot make
another either, only put an older one in its place, which shows less.

A chain that an anchor contradicts raises LedgerError, which blocks every change of the champion, until the ledger is
restored, or a person accepts it as it is (`replace_anchor`).
"""

from __future__ import annotations

import json
import logging

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from evergreen import ledger
from evergreen.errors import LedgerError, RegistryError
from evergreen.ledger.entries import EntryNumber
from evergreen.registry import signing
from evergreen.registry.tracking import tracking_uri
from evergreen.registry.versions import NOT_FOUND_CODES, registry_client
from evergreen.settings import settings
from evergreen.spec import Frozen
from evergreen.storage import Sha256

ANCHOR_TAG = "evergreen.ledger"

log = logging.getLogger(__name__)


class LedgerAnchor(Frozen):
    """An entry that the ledger must have, as a tag of the registered model."""

    number: EntryNumber
    sha256: Sha256
    signature: signing.NoteSignature | None = None

    def signed_text(self, model_name: str) -> bytes:
        content = {"evergreen": "head of a ledger", "model": model_name, "number": self.number, "sha256": self.sha256}
        return json.dumps(content, sort_keys=True).encode()


def check_anchor(model_name: str) -> ledger.LedgerState:
    """Return the ledger's state if it has the entry that its anchor names, or there is no anchor.

    Raises:
        LedgerError: entries were removed or rewritten; or signing is on, and the anchor is missing or not signed.
    """
    tag = _read_tag(registry_client(), model_name)  # before the ledger, which can only be newer
    state = ledger.read_state(model_name)
    check_anchor_tag(model_name, tag, state)
    return state


def update_anchor(model_name: str) -> None:
    """Check the anchor, and write one for the newest entry. Without a registered model there is nothing to write to.

    MLflow sets tags unconditionally, so every writer reads the ledger again afterwards (as `aliases.sync_aliases`). A
    process that may not sign leaves a signed anchor as it is.

    Raises:
        LedgerError: as `check_anchor`.
    """
    client = registry_client()
    while True:
        tag = _read_tag(client, model_name)
        state = ledger.read_state(model_name)
        check_anchor_tag(model_name, tag, state)
        if tag is None or not state.entries or not _can_sign():
            return
        if tag and LedgerAnchor.model_validate_json(tag).number == state.head_number:
            return
        if _try_write(client, model_name, state) and ledger.read_state(model_name).head_number == state.head_number:
            return


def replace_anchor(model_name: str) -> int:
    """Write an anchor for the newest entry, whatever there was: the caller vouches for the ledger. Return its number.

    Raises:
        LedgerError: the ledger has no entry, or its chain is damaged.
        RegistryError: there is no registered model; or signing is on, and this process has no key.
    """
    client, state = registry_client(), ledger.verify_ledger(model_name)
    if not state.entries:
        raise LedgerError(f"the ledger of {model_name} has no entry: there is nothing to anchor")
    if not _can_sign():
        raise RegistryError("the anchor of a ledger must be signed: set EVERGREEN_SIGNING_KEY too")
    if _read_tag(client, model_name) is None:
        raise RegistryError(
            f"{tracking_uri()} has no registered model {model_name}: the next run of {model_name}.retrain registers "
            "one, and anchors the ledger"
        )
    while not _try_write(client, model_name, state):
        pass
    return state.head_number


def check_anchor_tag(model_name: str, tag: str | None, state: ledger.LedgerState) -> None:
    """Compare a ledger with its anchor as it is stored: empty if there is none, None without a registered model.

    Raises:
        LedgerError: as `check_anchor`.
    """
    keys = settings().signing_public_key
    fix = f"if it is right as it is, `evergreen ledger anchor {model_name}` accepts it"
    if not tag:
        if tag is None or not state.tenures:
            return
        missing = f"MLflow has no anchor of the ledger of {model_name}: somebody removed the tag {ANCHOR_TAG}"
        if keys:
            raise LedgerError(f"{missing}, and nothing shows that the ledger is whole; {fix}")
        log.warning("%s; it is written again", missing)
        return
    try:
        anchor = LedgerAnchor.model_validate_json(tag)
    except ValidationError:
        raise LedgerError(f"the tag {ANCHOR_TAG} of {model_name} in MLflow is no anchor of its ledger; {fix}") from None
    if keys and (problem := signing.note_problem(anchor.signed_text(model_name), anchor.signature, keys)):
        raise LedgerError(f"the anchor of the ledger of {model_name} {problem}, and signing is on; {fix}")
    restore = "restore the newest copy of the ledger, and find out who can write to it"
    if anchor.number > state.head_number:
        raise LedgerError(
            f"the ledger of {model_name} ends with entry {state.head_number}, but by its anchor in MLflow it had "
            f"{anchor.number}: the last were removed, or an older copy was restored; {restore}; {fix}"
        )
    if state.entries.records[anchor.number - 1].hash != anchor.sha256:
        raise LedgerError(
            f"entry {anchor.number} of the ledger of {model_name} is not the one that its anchor in MLflow names: it, "
            f"or one before it, was rewritten; {restore}; {fix}"
        )


def _read_tag(client: MlflowClient, model_name: str) -> str | None:
    """Return the anchor as it is stored, empty if there is none; None if no such model is registered."""
    try:
        return str(client.get_registered_model(model_name).tags.get(ANCHOR_TAG, ""))
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            return None
        raise


def _can_sign() -> bool:
    """Return whether an anchor that is written here would be accepted."""
    return bool(settings().signing_key) or not settings().signing_public_key


def _try_write(client: MlflowClient, model_name: str, state: ledger.LedgerState) -> bool:
    """Return False if another writer interfered: MLflow refuses one of two that create a tag at the same time."""
    config, anchor = settings(), LedgerAnchor(number=state.head_number, sha256=state.head_hash)
    if config.signing_key:
        key = signing.SigningKey(config.signing_key, config.signing_passphrase)
        anchor = anchor.model_copy(update={"signature": signing.sign_note(anchor.signed_text(model_name), key)})
    earlier_tag = _read_tag(client, model_name)
    try:
        client.set_registered_model_tag(model_name, ANCHOR_TAG, anchor.model_dump_json())
    except MlflowException:
        if _read_tag(client, model_name) == earlier_tag:
            raise
        return False
    return True
