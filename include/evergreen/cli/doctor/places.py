"""Folders and object stores: whether what Evergreen does there can be done there."""

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

from evergreen import ledger, storage
from evergreen.cli.doctor.seen import CheckFailedError, CheckPassed, ClockProbe, UnreachableError
from evergreen.settings import redact_url
from evergreen.spec import loader

_WRITERS, _ROUNDS = 16, 5
_PAYLOADS = [b"writer %d" % number for number in range(_WRITERS)]
_MIN_FREE_BYTES = 2 << 30  # bytes; a year of the example's features, its training sets and models take half of it


def check_storage(uri: str, append_only: bool = False) -> CheckPassed:
    """`folder` or `bucket`, whichever `uri` is."""
    return check_bucket(uri, append_only) if "://" in uri else check_folder(Path(uri))


def check_folder(root: Path) -> CheckPassed:
    """Files can be published here: written, flushed, linked, renamed and removed; and there is space for some."""
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
                f"its file system makes no hard links: {error.strerror}",
                "use a local disk or NFS: publishing, and the ledger in a folder, are links",
            ) from None
        linked.replace(renamed)
        storage.fsync_path(probe)
    except PermissionError as error:
        raise CheckFailedError(
            f"user id {os.geteuid()} may not write to {error.filename}",
            f"let it: chown -R {os.geteuid()} {root}",
        ) from None
    except OSError as error:
        raise CheckFailedError(
            f"cannot be written to: {error.strerror}", "free or add space, or name another folder"
        ) from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if free < _MIN_FREE_BYTES:
        raise CheckFailedError(
            f"{_gib(free)} free, and it should be {_gib(_MIN_FREE_BYTES)}",
            "add space, or remove datasets that no run needs (docs/operating.md)",
        )
    return CheckPassed(f"can be written to, {_gib(free)} free")


def check_bucket(uri: str, append_only: bool = False) -> CheckPassed:
    """Objects can be put only where there is none, listed, read, put and removed, and the store's clock is right.

    The first of these is what the ledger stands on: a store that ignores the condition, or looks first and writes
    then, lets one of several racing promotions overwrite another, and says nothing. So writers race here, too.

    Args:
        append_only: nothing needs to be overwritten or removed there, and better may not be.
    """
    root = _open_folder(uri)
    files = root.fs
    clock = ClockProbe()
    ahead = None
    with suppress(httpx.HTTPError):
        if endpoint := _s3_endpoint(files):
            ahead = clock.skew_from_header(httpx.get(endpoint, timeout=10, trust_env=False).headers.get("date"))
    folder = root / "_doctor"
    may = "may put where there is none, list, read"
    for _ in range(_ROUNDS):
        file = folder / uuid.uuid4().hex
        probe = file.path
        try:
            with _translate_errors(uri, "put an object where there is none, or read it"):
                kept = _race_writers(file)
                same = files.cat_file(probe) == kept
            with _translate_errors(uri, "list objects"):
                listed = probe in files.ls(folder.path, detail=False)
            if not (same and listed):
                raise CheckFailedError(
                    "an object that was just put is not found, or another one",
                    "use a store with strong consistency",
                )
            if not append_only:
                with _translate_errors(uri, "put an object"):
                    files.pipe_file(probe, b"overwritten")
        finally:
            removed = _try_remove(files, probe)
        if not removed and append_only:
            return CheckPassed(f"{may}; may not remove, which is right for a ledger", ahead)
        if not removed:
            raise CheckFailedError("may not remove an object", "allow it: old checkpoints are removed")
    return CheckPassed(f"{may}, remove" if append_only else f"{may}, put, remove", ahead)


def _try_remove(files: Any, path: str) -> bool:
    try:
        files.rm_file(path)
    except Exception:  # whatever its client calls that
        return False
    return True


def _race_writers(file: storage.UPath) -> bytes:
    """What the one winner has put at `file`, of many who wanted to."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        made = pool.map(lambda data: storage.create_if_absent(file, data), _PAYLOADS)
        won = [data for data, mine in zip(_PAYLOADS, made, strict=True) if mine]
    if len(won) != 1:
        raise CheckFailedError(
            f"{len(won)} of {_WRITERS} writers were told that they had put an object where there was none",
            "use a store whose conditional puts are atomic, such as S3, MinIO of 2024 or newer, GCS or Azure: on this "
            "one, promotions that race would be lost",
        )
    return won[0]


def ensure_bucket(uri: str) -> None:
    """Make the bucket that `uri` lies in, if it is not there.

    Raises:
        Wrong: it is not there, and this user may not make it.
    """
    root = _open_folder(uri)
    files, name = root.fs, root.path.partition("/")[0]
    with _translate_errors(uri, f"make the bucket {name}"):
        if not files.exists(name):
            files.makedirs(name, exist_ok=True)


def check_ledger_entries() -> CheckPassed:
    """The chains of all models' entries are whole."""
    counts = {name: len(ledger.read_entries(name)) for name in loader.model_names()}
    return CheckPassed(f"{sum(counts.values())} entries of {len(counts)} models, each chain whole")


def _open_folder(uri: str) -> storage.UPath:
    try:
        folder = storage.storage_path(uri, fail_fast=True)
        folder.fs  # noqa: B018 - imports the store's client
    except (ValueError, ImportError) as error:
        raise CheckFailedError(str(error), "name a folder, or s3://bucket/folder") from None
    return folder


def _s3_endpoint(files: Any) -> str | None:
    """Where an S3 server is asked; None of other stores."""
    try:
        files.connect()
        return str(files.s3.meta.endpoint_url)
    except Exception:
        return None


@contextmanager
def _translate_errors(uri: str, action: str) -> Iterator[None]:
    """Say in words why a store refuses; its clients have errors of their own, one kind for each."""
    name = redact_url(uri).partition("://")[2].partition("/")[0]
    try:
        yield
    except CheckFailedError:
        raise
    except FileNotFoundError:
        raise CheckFailedError(
            f"there is no bucket {name}", "make it: `evergreen migrate`, or your store's own tool"
        ) from None
    except PermissionError as error:
        raise CheckFailedError(
            f"may not {action}: {_first(error)}",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that this user's policy allows it",
        ) from None
    except Exception as error:
        if "NoCredentialsError" in (type(error).__name__, type(error.__cause__).__name__):
            raise CheckFailedError(
                "no credentials are known", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        raise UnreachableError(
            f"cannot {action}: {type(error).__name__}: {_first(error)}",
            "check AWS_ENDPOINT_URL, and whether the store is up and has space",
        ) from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
