"""Fetches a training set by its hash, and pins it for DVC, for as long as maintenance keeps it.

A pin is a small file that DVC reads, for a repository, and objects in a DVC remote, which this module writes as DVC
does. DVC itself is not needed for it, and Evergreen never imports it::

    data/flight_delay.dvc                   hash and size of a folder `flight_delay`, and which training set it is
    <remote>/files/md5/ab/cdef….dir         the names and hashes of its files, as JSON
    <remote>/files/md5/ab/cdef…             a file

The `.dvc` file is written last, so whatever a pin names is there. What is copied or linked has the hash that the
manifest names. A pin has bytes of its own, or names of its own for them, so maintenance does not have to spare them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from evergreen import ledger, storage
from evergreen.errors import DataVersionError, LedgerError
from evergreen.lake.datasets import Dataset, Manifest, check_published_hash, open_dataset
from evergreen.settings import redact_url, settings, variable_name
from evergreen.storage import LAKE_SCHEMES, UPath

_HASH_PATTERN = re.compile(r"[0-9a-f]{8,64}")
_SHOWN_DIGITS = 12
_LISTED = 20
_CHUNK_BYTES = 1 << 20
_META_KEY = "evergreen"


class FileHashes(NamedTuple):
    """The hashes of one file: what DVC names it by, and what its manifest does."""

    md5: str
    sha256: str


@dataclass(frozen=True)
class DataPin:
    """A training set as it is pinned by a `.dvc` file; `size` is in bytes, of all its files."""

    file: Path
    manifest: Manifest
    size: int


def fetch_training_set(model: str, fingerprint: str) -> dict[str, Path]:
    """Return local paths of the files of a training set, such as `train` and `holdout`, by name. Do not change them.

    `fingerprint` is that of the training set, or the hash of its content, which gate report, ledger and the tag
    `evergreen.data` in MLflow show; or at least the first 8 digits. Maintenance counts the age of the training set anew
    from now on.

    Raises:
        DataVersionError: there is none, or none any more; says which there are, and what is known of this one.
        DatasetError: files are not what was published.
    """
    dataset = _training_sets(model)
    manifest = _find_training_set(dataset, model, fingerprint)
    files = {name: _published_file(dataset, manifest, name) for name in manifest.files}
    for name, file in files.items():
        check_published_hash(file, storage.file_sha256(file), manifest.files[name].sha256)
    return files


def pin_training_set(model: str, fingerprint: str, folder: Path, remote: str) -> DataPin:
    """Write `<model>.dvc` into `folder`, and what it names into the DVC remote at `remote`, a folder or a URI.

    Another training set that this file has pinned before stays in the remote: the history of the repository names it.
    To pin what is pinned changes nothing. `fingerprint` and errors are as those of `fetch_training_set`.

    Raises:
        DataVersionError: also, if the `.dvc` file is somebody else's, or the remote is none that can be written to.
    """
    dataset = _training_sets(model)
    manifest = _find_training_set(dataset, model, fingerprint)
    file = folder / f"{model}.dvc"
    pinned = _read_pin_file(file)
    objects = _open_remote(remote) / "files" / "md5"
    entries, size = [], 0
    for name in manifest.files:
        published = _published_file(dataset, manifest, name)
        md5 = _store_object(published, objects, manifest.files[name].sha256)
        suffix = PurePosixPath(manifest.files[name].path).suffix
        entries.append({"md5": md5, "relpath": f"{name}{suffix}"})
        size += manifest.files[name].size
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
    md5 = f"{_md5(listing)}.dir"
    _put_if_changed(objects / md5[:2] / md5[2:], listing)
    folder_entry = {"md5": md5, "size": size, "nfiles": len(entries), "hash": "md5", "path": model}
    source = {
        "model": model,
        "as_of": manifest.inputs["as_of"],
        "fingerprint": manifest.fingerprint,
        "content": manifest.content_hash,
    }
    content = {  # what a person has added, such as the name of the remote, stays
        **pinned,
        "outs": [{**pinned["outs"][0], **folder_entry} if pinned else folder_entry],
        "meta": {**pinned.get("meta", {}), _META_KEY: source},
    }
    _ignore_in_git(folder, model)
    if content != pinned:
        storage.put(file, yaml.safe_dump(content, sort_keys=False).encode())
    return DataPin(file, manifest, size)


def _training_sets(model: str) -> Dataset:
    try:
        return open_dataset(f"training_sets/{storage.check_file_name(model)}")
    except ValueError as error:
        raise DataVersionError(f"no model: {error}") from None


def _find_training_set(dataset: Dataset, model: str, fingerprint: str) -> Manifest:
    if not _HASH_PATTERN.fullmatch(fingerprint):
        raise DataVersionError(
            f"{fingerprint[:80]!a} is no fingerprint of a training set: write its first 8 to 64 digits, of 0-9 and a-f"
        )
    published = dataset.manifests()
    matches = [
        manifest
        for manifest in published
        if manifest.fingerprint.startswith(fingerprint) or manifest.content_hash.startswith(fingerprint)
    ]
    if len({manifest.content_hash for manifest in matches}) > 1:
        raise DataVersionError(f"{fingerprint} begins several hashes: write more digits of one of{_listed(matches)}")
    # Of equal content the newest. To find it says that it is in use.
    if not matches or not dataset.find(matches[-1].partition, matches[-1].fingerprint):
        raise DataVersionError(_missing_message(model, fingerprint, published))
    return matches[-1]


def _missing_message(model: str, fingerprint: str, published: Sequence[Manifest]) -> str:
    missing = f"{model} has no training set {fingerprint[:_SHOWN_DIGITS]}"
    if as_of := _judged_as_of(model, fingerprint):
        is_replaced = any(manifest.inputs["as_of"] == as_of for manifest in published)
        reason = (
            f"that as of {as_of} was replaced by one of other inputs"
            if is_replaced
            else f"that as of {as_of} has expired"
        )
        missing += f" any more: {reason}; a pin of it in a DVC remote still has it"
    if not published:
        return f"{missing}; none is in {settings().lake}: check {variable_name('lake')} and the name"
    return f"{missing}; there are{_listed(published)}"


def _judged_as_of(model: str, content_hash: str) -> str | None:
    """Return the period of the training set with this content by the ledger, if that is readable and knows it."""
    with suppress(LedgerError, OSError):
        for entry in reversed(ledger.read_state(model).entries):
            event = entry.event
            if not isinstance(event, ledger.VerdictRecorded):
                continue
            if event.fingerprints.get("training_set", "").startswith(content_hash):
                return event.as_of
    return None


def _listed(manifests: Sequence[Manifest]) -> str:
    newest = list(reversed(manifests))
    lines = [
        f"\n  as of {manifest.inputs['as_of']}: fingerprint {manifest.fingerprint[:_SHOWN_DIGITS]}, "
        f"content {manifest.content_hash[:_SHOWN_DIGITS]}"
        for manifest in newest[:_LISTED]
    ]
    left_out = len(newest) - _LISTED
    return "".join(lines) + (f"\n  and {left_out} older ones" if left_out > 0 else "")


def _published_file(dataset: Dataset, manifest: Manifest, name: str) -> Path:
    try:
        file = dataset.file_path(manifest, name)
        file.stat()
    except FileNotFoundError:
        raise DataVersionError(
            f"{dataset.root.name}: {name} of the training set as of {manifest.inputs['as_of']} is gone: somebody has "
            "removed it, or replaced it at this moment; ask for it again, or retrain as of then"
        ) from None
    return file


def _store_object(source: Path, objects: UPath | Path, sha256: str) -> str:
    """Store `source` in a DVC remote, and return its MD5."""
    if isinstance(objects, Path):
        return _link_object(source, objects, sha256)
    hashes = _hash_file(source)
    check_published_hash(source, hashes.sha256, sha256)
    target = objects / hashes.md5[:2] / hashes.md5[2:]
    if not _holds(target, sha256):
        storage.upload(source, target)
    return hashes.md5


def _link_object(source: Path, objects: Path, sha256: str) -> str:
    scratch = objects / f".{uuid.uuid4().hex}"
    objects.mkdir(parents=True, exist_ok=True)
    try:
        try:
            os.link(source, scratch)
        except OSError:  # another file system, or a file of another user
            hashes = _hash_file(source, copy=scratch)
        else:
            hashes = _hash_file(scratch)
        check_published_hash(source, hashes.sha256, sha256)
        target = objects / hashes.md5[:2] / hashes.md5[2:]
        if not _holds(target, sha256, scratch):
            storage.fsync_path(scratch)
            target.parent.mkdir(exist_ok=True)
            os.replace(scratch, target)
            storage.fsync_path(target.parent)
            storage.fsync_path(objects)
    finally:
        scratch.unlink(missing_ok=True)
    return hashes.md5


def _hash_file(file: Path, copy: Path | None = None) -> FileHashes:
    """Return the hashes of `file`, which is read once; write what was read to the new file `copy`."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with file.open("rb") as source, copy.open("xb") if copy else nullcontext() as sink:
        while chunk := source.read(_CHUNK_BYTES):
            md5.update(chunk)
            sha256.update(chunk)
            if sink:
                sink.write(chunk)
    return FileHashes(md5.hexdigest(), sha256.hexdigest())


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _holds(target: UPath | Path, sha256: str, source: Path | None = None) -> bool:
    """Return whether a remote has the object already: whole, and with the right bytes."""
    try:
        if isinstance(target, Path):
            return (source is not None and target.samefile(source)) or storage.file_sha256(target) == sha256
        settings().cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=settings().cache) as folder:  # in flat memory
            return storage.download(target, Path(folder, target.name), target.parent) == sha256
    except FileNotFoundError:
        return False


def _put_if_changed(file: UPath | Path, data: bytes) -> None:
    with suppress(FileNotFoundError):
        if file.read_bytes() == data:
            return
    storage.put(file, data)


def _ignore_in_git(folder: Path, model: str) -> None:
    """Let git ignore what DVC will put beside the `.dvc` file, as `dvc add` does."""
    if any((parent / ".git").exists() for parent in (folder.absolute(), *folder.absolute().parents)):
        file, line = folder / ".gitignore", f"/{model}"
        lines = file.read_text().splitlines() if file.exists() else []
        if line not in lines:
            storage.put(file, "\n".join([*lines, line, ""]).encode())


def _open_remote(remote: str) -> UPath | Path:
    scheme, separator, _ = remote.partition("://")
    if separator and scheme not in (*LAKE_SCHEMES, "file"):
        raise DataVersionError(
            f"{redact_url(remote)} cannot be written to: {scheme}:// is none of {', '.join(LAKE_SCHEMES)}: pin into a "
            "folder, make that a remote of DVC, and push from there"
        )
    return storage.storage_path(remote)


def _read_pin_file(file: Path) -> dict[str, Any]:
    """Return what a `.dvc` file of an earlier pin says; nothing if there is none.

    Raises:
        DataVersionError: it is not one that `pin_training_set` has written.
    """
    try:
        content = yaml.safe_load(file.read_bytes())
        if content["meta"][_META_KEY] and len(content["outs"]) == 1:
            return {**content, "outs": [dict(content["outs"][0])]}
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeError, TypeError, KeyError, ValueError):
        pass
    raise DataVersionError(f"{file} is no pin of Evergreen's: name another folder, or remove it")
