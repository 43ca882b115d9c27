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
from evergreen.cli.doctor.seen import Clock, Seen, Silent, Wrong
from evergreen.ledger.journal import created
from evergreen.settings import shown
from evergreen.spec import loader

_WRITERS, _ROUNDS = 16, 5
_WRITES = [b"writer %d" % number for number in range(_WRITERS)]
_LEAST = 2 << 30  # bytes; a year of the example's features, its training sets and models take half of it


def place(uri: str, append_only: bool = False) -> Seen:
    """`folder` or `bucket`, whichever `uri` is."""
    return bucket(uri, append_only) if "://" in uri else folder(Path(uri))


def folder(root: Path) -> Seen:
    """Files can be published here: written, flushed, linked, renamed and removed; and there is space for some."""
    probe = root / f".doctor-{uuid.uuid4().hex}"
    try:
        probe.mkdir(parents=True)
        written, linked, renamed = probe / "written", probe / "linked", probe / "renamed"
        written.write_bytes(b"probe")
        storage.sync(written)
        try:
            os.link(written, linked)
        except OSError as error:
            raise Wrong(
                f"its file system makes no hard links: {error.strerror}",
                "use a local disk or NFS: publishing, and the ledger in a folder, are links",
            ) from None
        linked.replace(renamed)
        storage.sync(probe)
    except PermissionError as error:
        raise Wrong(
            f"user id {os.geteuid()} may not write to {error.filename}",
            f"let it: chown -R {os.geteuid()} {root}",
        ) from None
    except OSError as error:
        raise Wrong(
            f"cannot be written to: {error.strerror}", "free or add space, or name another folder"
        ) from None
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if free < _LEAST:
        raise Wrong(
            f"{_gib(free)} free, and it should be {_gib(_LEAST)}",
            "add space, or remove datasets that no run needs (docs/operating.md)",
        )
    return Seen(f"can be written to, {_gib(free)} free")


def bucket(uri: str, append_only: bool = False) -> Seen:
    """Objects can be put only where there is none, listed, read, put and removed, and the store's clock is right.

    The first of these is what the ledger stands on: a store that ignores the condition, or looks first and writes
    then, lets one of several racing promotions overwrite another, and says nothing. So writers race here, too.

    Args:
        append_only: nothing needs to be overwritten or removed there, and better may not be.
    """
    files, root = _opened(uri)
    clock = Clock()
    ahead = None
    with suppress(httpx.HTTPError):
        if endpoint := _endpoint(files):
            ahead = clock.ahead_by_header(
                httpx.get(endpoint, timeout=10, trust_env=False).headers.get("date")
            )
    folder = f"{root}/_doctor"
    may = "may put where there is none, list, read"
    for _ in range(_ROUNDS):
        probe = f"{folder}/{uuid.uuid4().hex}"
        try:
            with _allowed(uri, "put an object where there is none, or read it"):
                kept = _raced(files, probe)
                same = files.cat_file(probe) == kept
            with _allowed(uri, "list objects"):
                listed = probe in files.ls(folder, detail=False)
            if not (same and listed):
                raise Wrong(
                    "an object that was just put is not found, or another one",
                    "use a store with strong consistency",
                )
            if not append_only:
                with _allowed(uri, "put an object"):
                    files.pipe_file(probe, b"overwritten")
        finally:
            removed = _removed(files, probe)
        if not removed and append_only:
            return Seen(f"{may}; may not remove, which is right for a ledger", ahead)
        if not removed:
            raise Wrong("may not remove an object", "allow it: old checkpoints are removed")
    return Seen(f"{may}, remove" if append_only else f"{may}, put, remove", ahead)


def _removed(files: Any, path: str) -> bool:
    try:
        files.rm_file(path)
    except Exception:  # whatever its client calls that
        return False
    return True


def _raced(files: Any, path: str) -> bytes:
    """What the one winner has put at `path`, of many who wanted to."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        made = pool.map(lambda data: created(files, path, data), _WRITES)
        won = [data for data, mine in zip(_WRITES, made, strict=True) if mine]
    if len(won) != 1:
        raise Wrong(
            f"{len(won)} of {_WRITERS} writers were told that they had put an object where there was none",
            "use a store whose conditional puts are atomic, such as S3, MinIO of 2024 or newer, GCS or Azure: on this "
            "one, promotions that race would be lost",
        )
    return won[0]


def make_bucket(uri: str) -> None:
    """Make the bucket that `uri` lies in, if it is not there.

    Raises:
        Wrong: it is not there, and this user may not make it.
    """
    files, root = _opened(uri)
    name = root.partition("/")[0]
    with _allowed(uri, f"make the bucket {name}"):
        if not files.exists(name):
            files.makedirs(name, exist_ok=True)


def entries() -> Seen:
    """The chains of all models' entries are whole."""
    counts = {name: len(ledger.entries(name)) for name in loader.names()}
    return Seen(f"{sum(counts.values())} entries of {len(counts)} models, each chain whole")


def _opened(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith("s3"):  # its client would go on trying for minutes
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
    try:
        return url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise Wrong(str(error), "name a folder, or s3://bucket/folder") from None


def _endpoint(files: Any) -> str | None:
    """Where an S3 server is asked; None of other stores."""
    try:
        files.connect()
        return str(files.s3.meta.endpoint_url)
    except Exception:
        return None


@contextmanager
def _allowed(uri: str, what: str) -> Iterator[None]:
    """Say in words why a store refuses; its clients have errors of their own, one kind for each."""
    name = shown(uri).partition("://")[2].partition("/")[0]
    try:
        yield
    except Wrong:
        raise
    except FileNotFoundError:
        raise Wrong(
            f"there is no bucket {name}", "make it: `evergreen migrate`, or your store's own tool"
        ) from None
    except PermissionError as error:
        raise Wrong(
            f"may not {what}: {_first(error)}",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that this user's policy allows it",
        ) from None
    except Exception as error:
        if type(error).__name__ == "NoCredentialsError":
            raise Wrong(
                "no credentials are known", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        raise Silent(
            f"cannot {what}: {type(error).__name__}: {_first(error)}",
            "check AWS_ENDPOINT_URL, and whether the store is up and has space",
        ) from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
