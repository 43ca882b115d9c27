"""The aliases `champion`, `previous` and `challenger`, which follow the ledger.

A damaged ledger raises LedgerError; a version that is not registered any more, RegistryError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import mlflow
from mlflow.exceptions import MlflowException

from evergreen import ledger
from evergreen.registry import anchors
from evergreen.registry.versions import NOT_FOUND_CODES, missing_version_error, registry_client

_LEDGER_ALIASES: Mapping[str, Callable[[ledger.LedgerState], str | None]] = {
    "champion": lambda state: state.champion,
    "previous": lambda state: state.previous_champion,
    "challenger": lambda state: state.challenger,
}


@dataclass(frozen=True)
class AliasStatus:
    """How one alias compared with the ledger, before it was repaired.

    `stale` is a version that was correct earlier, after a crash or a manual move; `missing` is an alias that should
    exist, and was not set because of a crash or was deleted by hand.
    """

    alias: str
    actual_version: str | None
    expected_version: str | None  # by the ledger
    status: Literal["consistent", "stale", "moved_by_hand", "missing"]
    message: str


def sync_aliases(model_name: str) -> ledger.LedgerState:
    """Set the aliases to the versions that the ledger names, and its anchor; return the ledger's state.

    MLflow sets aliases unconditionally: the last writer wins, even one that read the ledger long ago. So every writer
    reads the ledger again afterwards, and repeats until it has not changed. Every last write is followed by a check;
    only a writer that is killed in between leaves a stale alias, for `repair_aliases`.

    Until the first promotion no alias is deleted: it was set before the ledger existed.
    """
    client = registry_client()
    state = ledger.read_state(model_name)
    while True:
        is_set = _try_set_aliases(client, model_name, state)
        latest = ledger.read_state(model_name)
        if is_set and latest.head_number == state.head_number:
            anchors.update_anchor(model_name)
            return state
        state = latest


def repair_aliases(model_name: str) -> tuple[AliasStatus, ...]:
    """Set the aliases as the ledger requires, and report what was wrong. Safe at any time, also during promotions."""
    client = registry_client()
    while True:
        state = ledger.read_state(model_name)
        versions = _read_aliases(client, model_name)
        # Otherwise the aliases belong to a later state.
        if ledger.read_state(model_name).head_number == state.head_number:
            break
    sync_aliases(model_name)
    return tuple(_alias_status(alias, versions.get(alias), state) for alias in _LEDGER_ALIASES)


def _read_aliases(client: mlflow.MlflowClient, model_name: str) -> dict[str, str]:
    """Return alias → version. Over HTTP versions are strings, from a database they are numbers."""
    try:
        versions = client.get_registered_model(model_name).aliases
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            return {}
        raise
    return {alias: str(version) for alias, version in versions.items()}


def _try_set_aliases(client: mlflow.MlflowClient, model_name: str, state: ledger.LedgerState) -> bool:
    """Return False if another writer interfered: MLflow refuses one of two that create an alias at the same time."""
    current = _read_aliases(client, model_name)
    for alias, ledger_version in _LEDGER_ALIASES.items():
        version = ledger_version(state)
        if version == current.get(alias) or (version is None and not state.tenures):
            continue
        try:
            if version is None:
                client.delete_registered_model_alias(model_name, alias)
            else:
                client.set_registered_model_alias(model_name, alias, version)
        except MlflowException as error:
            if error.error_code in NOT_FOUND_CODES and version is not None:
                raise missing_version_error(model_name, alias, version) from None
            if _read_aliases(client, model_name).get(alias) == current.get(alias):
                raise
            return False
    return True


def _alias_status(alias: str, actual: str | None, state: ledger.LedgerState) -> AliasStatus:
    if actual == _LEDGER_ALIASES[alias](state):
        label = f"version {actual}" if actual else "no version"
        return AliasStatus(alias, actual, actual, "consistent", f"{alias} is {label}, as the ledger says")
    # The versions that had the alias by the ledger, each with the entry since which it had it.
    history: list[tuple[str | None, int]] = [(None, 0)]
    for earlier in ledger.iter_states(state.entries):
        if (version := _LEDGER_ALIASES[alias](earlier)) != history[-1][0]:
            history.append((version, earlier.head_number))
    expected, since = history[-1]
    actual_label = f"version {actual}" if actual else "no version"
    repair = f"set to version {expected} (entry {since})" if expected else "deleted"
    last_entries = {version: end for (version, _), (_, end) in pairwise(history)}
    status: Literal["stale", "moved_by_hand", "missing"] = "moved_by_hand"
    message = f"{alias} was {actual_label}, moved by hand outside the ledger: {repair}"
    if not state.tenures and expected is None:
        message = (
            f"{alias} is {actual_label}, but the ledger has no promotion: left as it is, it was set by hand or before "
            "the ledger existed"
        )
    elif actual is None:
        status, message = "missing", f"{alias} was missing, after an interruption or a manual deletion: {repair}"
    elif actual in last_entries:
        status = "stale"
        message = (
            f"{alias} was {actual_label}, which was correct until entry {last_entries[actual]}; an update was "
            f"interrupted, or the alias was moved by hand: {repair}"
        )
    return AliasStatus(alias, actual, expected, status, message)
