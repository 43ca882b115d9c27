"""Checks of folders and object stores, by the operations that Evergreen needs there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from evergreen import ledger, object_store, storage
from evergreen.cli.doctor.outcomes import CheckFailedError, CheckPassed, ClockProbe, UnreachableError
from evergreen.cli.tables import list_challengers
from evergreen.errors import StoreError, first_line
from evergreen.settings import redact_url
from evergreen.spec.loader import model_names

_WRITERS, _ROUNDS = 16, 5
_PAYLOADS = [b"writer %d" % number for number in range(_WRITERS)]
_MIN_FREE_BYTES = 2 << 30  # a year of the example's features, training sets and models takes half of it


def check_storage(uri: str, append_only: bool = False) -> CheckPassed:
    """Check the folder or bucket at `uri`."""
    return check_bucket(uri, append_only) if "://" in uri else check_folder(Path(uri))


def check_lake(root: storage.UPath) -> CheckPassed:
    """Check the folder of a lake, or the bucket: whether it keeps the conditions of writes, too."""
    if isinstance(root, Path):
        return check_folder(root)
    passed = check_bucket(str(root))
    with _translate_errors(str(root), "create and replace objects on conditions"):
        try:
            object_store.prove_conditions(root)
        except StoreError as error:
            raise CheckFailedError(*str(error).rsplit(": ", 1)) from None
    return CheckPassed(f"{passed.message}, can replace on condition", passed.clock_skew)


def check_folder(root: Path) -> CheckPassed:
    """Check that files can be written, flushed, linked, renamed and removed, and that there is free space."""
    probe = root / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        written, linked, renamed = probe / "written", probe / "linked", probe / "renamed"
        written.write_bytes(b"probe")
        storage.fsync_path(written)
        try:
            os.link(written, linked)
        except OSError as error:
            raise CheckFailedError(
                f"its file system has no hard links: {error.strerror}",
                "use a local disk or NFS: datasets, and a ledger in a folder, are published by links",
            ) from None
        linked.replace(renamed)
        storage.fsync_path(probe)
    except PermissionError as error:
        raise CheckFailedError(
            f"permission denied: user ID {os.geteuid()} cannot write to {error.filename}",
            f"chown -R {os.geteuid()} {root}",
        ) from None
    except OSError as error:
        raise CheckFailedError(
            f"is not writable: {error.strerror}", "free or add space, or choose another folder"
        ) from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if free < _MIN_FREE_BYTES:
        raise CheckFailedError(
            f"{_gib(free)} free, at least {_gib(_MIN_FREE_BYTES)} recommended",
            "add space, or remove datasets that no run needs (docs/reference/lake.md)",
        )
    return CheckPassed(f"writable, {_gib(free)} free")


def check_bucket(uri: str, append_only: bool = False) -> CheckPassed:
    """Check that objects can be created if absent, listed, read, overwritten and removed, and the store's clock.

    The ledger relies on the first: in a store that ignores the condition, or checks it before it writes, one of two
    concurrent promotions silently overwrites the other. So this check creates an object by many writers at once.

    Args:
        uri: The folder in the bucket.
        append_only: Permission to overwrite and remove is not needed, and better not granted.
    """
    root = _open_folder(uri)
    files = root.fs
    clock = ClockProbe()
    clock_skew = None
    with suppress(httpx.HTTPError):
        if endpoint := _s3_endpoint(files):
            clock_skew = clock.skew_from_header(httpx.get(endpoint, timeout=10, trust_env=False).headers.get("date"))
    folder = root / "_doctor"
    permissions = "can create if absent, list, read"
    for _ in range(_ROUNDS):
        file = folder / uuid.uuid4().hex
        probe = file.path
        try:
            with _translate_errors(uri, "create an object if absent, or read it"):
                data = _race_writers(file)
                is_consistent = files.cat_file(probe) == data
            with _translate_errors(uri, "list objects"):
                is_consistent &= probe in files.ls(folder.path, detail=False)
            if not is_consistent:
                raise CheckFailedError(
                    "an object that was just written is missing or different", "use a store with strong consistency"
                )
            if not append_only:
                with _translate_errors(uri, "overwrite an object"):
                    files.pipe_file(probe, b"overwritten")
        finally:
            can_remove = _try_remove(files, probe)
        if not can_remove and append_only:
            return CheckPassed(f"{permissions}; cannot remove, as recommended for a ledger", clock_skew)
        if not can_remove:
            raise CheckFailedError("permission denied: remove an object", "allow it: old checkpoints are removed")
    return CheckPassed(f"{permissions}, remove" if append_only else f"{permissions}, overwrite, remove", clock_skew)


def _try_remove(files: Any, path: str) -> bool:
    try:
        files.rm_file(path)
    except Exception:  # each client has its own errors
        return False
    return True


def _race_writers(file: storage.UPath) -> bytes:
    """Create the object `file` by many writers at once, and return the data of the one that succeeded."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        successes = pool.map(lambda data: storage.create_if_absent(file, data), _PAYLOADS)
        winners = [data for data, success in zip(_PAYLOADS, successes, strict=True) if success]
    if len(winners) != 1:
        raise CheckFailedError(
            f"{len(winners)} of {_WRITERS} concurrent writers created the same object",
            "use a store with atomic conditional puts, such as S3, MinIO of 2024 or newer, GCS or Azure: one of two "
            "concurrent promotions would be lost",
        )
    return winners[0]


def ensure_bucket(uri: str) -> None:
    """Create the bucket of `uri` if it does not exist.

    Raises:
        CheckFailedError: This user may not create it.
    """
    root = _open_folder(uri)
    files, name = root.fs, root.path.partition("/")[0]
    with _translate_errors(uri, f"create the bucket {name}"):
        if not files.exists(name):
            files.makedirs(name, exist_ok=True)


def check_ledger_entries() -> CheckPassed:
    """Check the hash chains of the ledgers of all models, and say which challengers wait, and for what."""
    states = {name: ledger.read_state(name) for name in model_names()}
    count = sum(len(state.entries) for state in states.values())
    parts = [f"{count} entries of {len(states)} models, all chains intact", *list_challengers(states)]
    return CheckPassed("; ".join(parts))


def _open_folder(uri: str) -> storage.UPath:
    try:
        folder = storage.storage_path(uri, fail_fast=True)
        folder.fs  # noqa: B018 - imports the store's client
    except (ValueError, ImportError) as error:
        raise CheckFailedError(str(error), "set a folder, or s3://bucket/folder") from None
    return folder


def _s3_endpoint(files: Any) -> str | None:
    """Return the URL of an S3 server; None for other stores."""
    try:
        files.connect()
        return str(files.s3.meta.endpoint_url)
    except Exception:
        return None


@contextmanager
def _translate_errors(uri: str, action: str) -> Iterator[None]:
    """Raise a failed check for the error of a store's client; each client has its own."""
    name = redact_url(uri).partition("://")[2].partition("/")[0]
    try:
        yield
    except CheckFailedError:
        raise
    except FileNotFoundError:
        raise CheckFailedError(
            f"there is no bucket {name}", "create it by `evergreen migrate`, or by your store's own tool"
        ) from None
    except PermissionError as error:
        raise CheckFailedError(
            f"permission denied: {action}: {first_line(error)}",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and this user's policy",
        ) from None
    except Exception as error:
        if "NoCredentialsError" in (type(error).__name__, type(error.__cause__).__name__):
            raise CheckFailedError(
                "no credentials are configured", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        raise UnreachableError(
            f"cannot {action}: {type(error).__name__}: {first_line(error)}",
            "check AWS_ENDPOINT_URL, and whether the store is running and has space",
        ) from None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
