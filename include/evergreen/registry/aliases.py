"""The aliases `champion`, `previous` and `challenger`, which follow the ledger.

An alias is set only to a version with the files that the ledger says, which are downloaded and hashed. One without such
a version is deleted. A damaged ledger raises LedgerError; a champion without its files, RegistryError or ScoringError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import mlflow
from mlflow.exceptions import MlflowException

from evergreen import ledger
from evergreen.errors import EvergreenError, RegistryError, ScoringError, SignatureError
from evergreen.registry import anchors
from evergreen.registry.versions import NOT_FOUND_CODES, open_model, registry_client

_CHAMPION = "champion"
_LEDGER_ALIASES: Mapping[str, Callable[[ledger.LedgerState], str | None]] = {
    _CHAMPION: lambda state: state.champion,
    "previous": lambda state: state.previous_champion,
    "challenger": lambda state: state.challenger,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AliasStatus:
    """How one alias compared with the ledger, before it was repaired.

    `stale` is a version that was correct earlier, after a crash or a manual move; `missing` is an alias that should
    exist, and was not set because of a crash or was deleted by hand; `unavailable` is one that cannot be set, because
    MLflow has no version with the files that the ledger says.
    """

    alias: str
    actual_version: str | None
    expected_version: str | None  # by the ledger
    status: Literal["consistent", "stale", "moved_by_hand", "missing", "unavailable"]
    message: str


def sync_aliases(model_name: str) -> ledger.LedgerState:
    """Set the aliases to the versions that the ledger names, and its anchor; return the ledger's state.

    MLflow sets aliases unconditionally: the last writer wins, even one that read the ledger long ago. So every writer
    reads the ledger again afterwards, and repeats until it has not changed. Every last write is followed by a check;
    only a writer that is killed in between leaves a stale alias, for `repair_aliases`.

    Until the first promotion no alias is deleted: it was set before the ledger existed.

    Raises:
        RegistryError, ScoringError: MLflow has no version with the champion's files. The other aliases are set.
    """
    state, problems = _sync(model_name, verify_all=False)
    for alias, problem in problems.items():
        if alias != _CHAMPION:
            log.warning("alias %s is deleted: %s", alias, problem)
    if _CHAMPION in problems:
        raise problems[_CHAMPION]
    return state


def repair_aliases(model_name: str) -> tuple[AliasStatus, ...]:
    """Set the aliases as the ledger requires, and report what was wrong. Safe at any time, also during promotions.

    The files of every version with an alias are verified, also where the alias is correct.

    Raises:
        RegistryError, ScoringError: as `sync_aliases`.
    """
    client = registry_client()
    while True:
        state = ledger.read_state(model_name)
        versions = _read_aliases(client, model_name)
        # Otherwise the aliases belong to a later state.
        if ledger.read_state(model_name).head_number == state.head_number:
            break
    _, problems = _sync(model_name, verify_all=True)
    if _CHAMPION in problems:
        raise problems[_CHAMPION]
    return tuple(_alias_status(alias, versions.get(alias), state, problems.get(alias)) for alias in _LEDGER_ALIASES)


def _sync(model_name: str, *, verify_all: bool) -> tuple[ledger.LedgerState, dict[str, EvergreenError]]:
    """Set the aliases; return the ledger's state, and by alias why it cannot be set."""
    client = registry_client()
    state = ledger.read_state(model_name)
    while True:
        problems = _try_set_aliases(client, model_name, state, verify_all=verify_all)
        latest = ledger.read_state(model_name)
        if problems is not None and latest.head_number == state.head_number:
            anchors.update_anchor(model_name)
            return state, problems
        state = latest


def _read_aliases(client: mlflow.MlflowClient, model_name: str) -> dict[str, str]:
    """Return alias → version. Over HTTP versions are strings, from a database they are numbers."""
    try:
        versions = client.get_registered_model(model_name).aliases
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            return {}
        raise
    return {alias: str(version) for alias, version in versions.items()}


def _try_set_aliases(
    client: mlflow.MlflowClient, model_name: str, state: ledger.LedgerState, *, verify_all: bool
) -> dict[str, EvergreenError] | None:
    """Return by alias why it cannot be set; None if another writer interfered.

    MLflow refuses one of two that create an alias at the same time.
    """
    current = _read_aliases(client, model_name)
    contents = _alias_contents(state)
    problems: dict[str, EvergreenError] = {}
    for alias, ledger_version in _LEDGER_ALIASES.items():
        version, content = ledger_version(state), contents[alias]
        if content and (verify_all or version != current.get(alias)):
            try:
                with open_model(model_name, content):
                    pass
            except (RegistryError, SignatureError) as error:
                problems[alias], version = error, None
            except ScoringError as error:
                # The files may be there again in a moment, so an alias that is correct stays.
                problems[alias] = ScoringError(f"alias {alias} of {model_name}: {error}")
                version = version if version == current.get(alias) else None
        if version == current.get(alias) or (version is None and not state.tenures):
            continue
        try:
            if version is None:
                client.delete_registered_model_alias(model_name, alias)
            else:
                client.set_registered_model_alias(model_name, alias, version)
        except MlflowException:
            if _read_aliases(client, model_name).get(alias) == current.get(alias) and not (
                version and _is_gone(client, model_name, version)
            ):
                raise
            return None
    return problems


def _alias_contents(state: ledger.LedgerState) -> Mapping[str, str | None]:
    previous = state.previous_tenure
    return {
        _CHAMPION: state.champion_content,
        "previous": previous.content if previous else None,
        "challenger": state.challenger_content,
    }


def _is_gone(client: mlflow.MlflowClient, model_name: str, version: str) -> bool:
    """Return whether somebody has deleted the version, such as after it was verified."""
    try:
        client.get_model_version(model_name, version)
    except MlflowException as error:
        if error.error_code in NOT_FOUND_CODES:
            return True
        raise
    return False


def _alias_status(
    alias: str, actual: str | None, state: ledger.LedgerState, problem: EvergreenError | None
) -> AliasStatus:
    if problem is None and actual == _LEDGER_ALIASES[alias](state):
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
    status: Literal["stale", "moved_by_hand", "missing", "unavailable"] = "moved_by_hand"
    message = f"{alias} was {actual_label}, moved by hand outside the ledger: {repair}"
    if problem:
        status, message = "unavailable", f"{alias} was {actual_label}, and cannot be set: {problem}"
    elif not state.tenures and expected is None:
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
