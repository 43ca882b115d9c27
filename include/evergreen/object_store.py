"""Objects of S3, Google Cloud Storage and Azure, written on conditions. One client for all of them: obstore.

The lake stands on two conditions that a store must keep: an object is created only if there is none, and replaced only
if it is still the one that was read. `prove_conditions` shows whether it does. A write whose answer was lost is read
back before it counts as lost or won.

obstore is imported where it is used: without a lake in an object store nobody needs it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import chain, compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from evergreen.errors import StoreError, first_line
from evergreen.storage import StoredFile, UPath, remove_version

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

_S3_SCHEMES = ("s3", "s3a")
_PROBE_FOLDER = "_doctor"
_WRITERS, _ROUNDS = 16, 2
_DELETE_PROOF, _DELETE_ROUNDS = "_store/deletes.json", 5
_NO_VERSION = f'"{"0" * 32}"'  # an ETag that no object has
_ATTEMPT = "attempt"  # metadata of an object; Azure allows no hyphen in its names
_CHUNK_BYTES = 8 << 20
# Of racing writers some stores turn many away for seconds: the client's own ten tries may be over by then.
_RETRIES: RetryConfig = {"max_retries": 30, "retry_timeout": timedelta(minutes=3)}
_DELETED_AT_ONCE = 1000
_NUMBERED = ("gs",)  # their conditions name the number of a version, those of others an ETag
_FIX = (
    "use a store that keeps conditions of puts, such as S3, GCS, Azure, or a recent MinIO, SeaweedFS or Ceph: here one "
    "of two publications at once would be lost"
)


class ListedObject(NamedTuple):
    """An object of a listing; `path` is relative to the folder."""

    path: str
    size: int
    version: str
    changed_at: float


class PendingUpload(NamedTuple):
    """An upload to S3 in parts that nobody has completed; `path` is relative to the folder."""

    path: str
    number: str
    size: int
    started_at: float


@cache
def open_bucket(scheme: str, bucket: str) -> ObjectStore:
    """Return the client of a bucket, configured by the variables of its cloud, such as `AWS_ENDPOINT_URL`.

    Raises:
        StoreError: its client is not installed, or its configuration is invalid.
    """
    return _new_client(scheme, bucket)


def _new_client(scheme: str, bucket: str) -> ObjectStore:
    try:
        from obstore.store import MemoryStore, from_url
    except ModuleNotFoundError:
        raise StoreError(f"{scheme}://{bucket}: obstore is not installed: pip install 'evergreen[s3]'") from None
    if scheme == "memory":
        return MemoryStore()
    options: dict[str, Any] = {}
    if scheme in _S3_SCHEMES:
        scheme, options = "s3", _s3_options()
    try:
        return from_url(f"{scheme}://{bucket}", retry_config=_RETRIES, **options)
    except Exception as error:
        raise StoreError(f"{scheme}://{bucket} cannot be opened: {first_line(error)}") from None


def _s3_options() -> dict[str, Any]:
    # boto3's own names and files, so that all clients of S3 in a process are configured alike.
    endpoint = _s3_endpoint()
    options: dict[str, Any] = {"client_options": {"allow_http": urlsplit(endpoint or "").scheme == "http"}}
    if endpoint:
        options["endpoint"] = endpoint
    if region := _s3_region():
        options["region"] = region
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        with suppress(ModuleNotFoundError, ValueError):  # no profile or role of boto3: obstore looks for others
            from obstore.auth.boto3 import Boto3CredentialProvider

            options["credential_provider"] = Boto3CredentialProvider()
    return options


def client_variables(scheme: str) -> dict[str, str]:
    """Return the variables that another client of the same store needs besides those of the environment."""
    if scheme not in _S3_SCHEMES:
        return {}
    endpoint = _s3_endpoint()
    variables = {"AWS_ENDPOINT_URL": endpoint or "", "AWS_REGION": _s3_region() or ""}
    if urlsplit(endpoint or "").scheme == "http":
        variables["AWS_ALLOW_HTTP"] = "true"
    return {name: value for name, value in variables.items() if value}


def s3a_settings() -> dict[str, str]:
    """Return the settings of Hadoop's client of S3 (`fs.s3a.…`) that the variables of this process stand for.

    Without the keys: they would be seen where settings are shown. The client reads the same variables.
    """
    options = {}
    if endpoint := _s3_endpoint():
        is_virtual = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() == "true"
        options = {"fs.s3a.endpoint": endpoint, "fs.s3a.path.style.access": str(not is_virtual).lower()}
    if region := _s3_region() or (endpoint and "us-east-1"):
        options["fs.s3a.endpoint.region"] = region
    return options


def s3a_keys() -> dict[str, str]:
    """Return the keys of this process, as settings of Hadoop's client of S3; none if a profile or a role has them."""
    names = {
        "fs.s3a.access.key": "AWS_ACCESS_KEY_ID",
        "fs.s3a.secret.key": "AWS_SECRET_ACCESS_KEY",
        "fs.s3a.session.token": "AWS_SESSION_TOKEN",
    }
    return {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _s3_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def read(file: UPath, max_bytes: int | None = None) -> StoredFile | None:
    """Return an object with its version, and without what exceeds `max_bytes`; None if there is none."""
    import obstore

    store, key = _locate(file)
    try:
        with _translate_errors(file):
            result = obstore.get(store, key)
            is_whole = max_bytes is None or result.meta["size"] <= max_bytes
            data = bytes(result.bytes() if is_whole else obstore.get_range(store, key, start=0, length=max_bytes or 0))
    except FileNotFoundError:
        return None
    version = result.meta["version" if file.protocol in _NUMBERED else "e_tag"]
    return StoredFile(data, version or "", result.meta["last_modified"].timestamp())


def get_range(file: UPath, start: int, stop: int) -> bytes:
    """Return the bytes of an object from `start` to `stop`.

    Raises:
        FileNotFoundError: there is no such object.
    """
    import obstore

    store, key = _locate(file)
    with _translate_errors(file):
        return bytes(obstore.get_range(store, key, start=start, end=stop))


def exists(file: UPath) -> bool:
    """Return whether there is an object at `file`."""
    import obstore

    store, key = _locate(file)
    try:
        with _translate_errors(file):
            obstore.head(store, key)
    except FileNotFoundError:
        return False
    return True


def find(file: UPath) -> ListedObject | None:
    """Return what a listing of its folder says of `file`; None if there is no such object."""
    import obstore

    store, key = _locate(file)
    try:
        with _translate_errors(file):
            meta = obstore.head(store, key)
    except FileNotFoundError:
        return None
    return ListedObject(file.name, meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())


def write(file: UPath, data: bytes, version: str | None) -> bool:
    """Replace `file` if it is still `version`, or create it if that is None; return whether this call did."""
    store, attempt = _locate(file)[0], uuid.uuid4().hex
    try:
        # Of a request that succeeded, and was repeated because its answer was lost, the store says the same.
        return _put_on_condition(store, file, data, version, attempt) or _find_attempt(store, file) == attempt
    except OSError:
        with suppress(OSError):
            if _find_attempt(store, file) == attempt:
                return True
        raise


def _put_on_condition(store: ObjectStore, file: UPath, data: bytes, version: str | None, attempt: str) -> bool:
    """Send a conditional put, and return what the store says: whether the condition held."""
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    mode: Any = {"version" if file.protocol in _NUMBERED else "e_tag": version} if version else "create"
    try:
        with _translate_errors(file, AlreadyExistsError, PreconditionError):
            obstore.put(store, _locate(file)[1], data, mode=mode, attributes={_ATTEMPT: attempt}, use_multipart=False)
    except (AlreadyExistsError, PreconditionError):
        return False
    return True


def _find_attempt(store: ObjectStore, file: UPath) -> str | None:
    """Return which attempt has written the object."""
    import obstore

    try:
        with _translate_errors(file):
            attempt = obstore.get(store, _locate(file)[1]).attributes.get(_ATTEMPT)
    except FileNotFoundError:
        return None
    return None if attempt is None else str(attempt)


def put_file(source: Path, file: UPath) -> None:
    """Write the local file `source`, of any size, to `file`, whatever is there."""
    import obstore

    store, key = _locate(file)
    with _translate_errors(file):
        obstore.put(store, key, source)


def put_chunks(chunks: Iterable[bytes], file: UPath) -> None:
    """Write `chunks`, in flat memory, to `file`, whatever is there. If they raise an error, nothing is written."""
    import obstore

    store, key = _locate(file)
    iterator = iter(chunks)
    first = list(islice(iterator, 2))
    with _translate_errors(file):
        if len(first) < 2:  # in one request, which every store has
            obstore.put(store, key, b"".join(first))
        else:
            obstore.put(store, key, chain(first, iterator))


def copy_object(file: UPath, target: Path) -> None:
    """Copy `file` to the new local file `target`, in flat memory.

    Raises:
        FileNotFoundError: there is no such object.
    """
    import obstore

    store, key = _locate(file)
    with _translate_errors(file), target.open("xb") as copy:
        for chunk in obstore.get(store, key).stream(min_chunk_size=_CHUNK_BYTES):
            copy.write(chunk)


def list_objects(folder: UPath, start: str = "") -> Iterator[ListedObject]:
    """Yield the objects below `folder`, from the path `start` in it on, in the order of the store."""
    import obstore

    store, prefix = _locate(folder)
    with _translate_errors(folder):
        # A store lists what is after the offset, and so what is from `start` on: `~` is the last letter of ASCII.
        offset = f"{prefix}/{start[:-1]}{chr(ord(start[-1]) - 1)}~" if start else None
        for batch in obstore.list(store, f"{prefix}/" if prefix else None, offset=offset):
            for meta in batch:
                path = meta["path"].removeprefix(f"{prefix}/")
                if path < start:
                    continue
                yield ListedObject(path, meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())


def list_children(folder: UPath) -> list[str]:
    """Return the names of objects and folders in `folder`, sorted."""
    import obstore

    store, prefix = _locate(folder)
    with _translate_errors(folder):
        listing = obstore.list_with_delimiter(store, f"{prefix}/" if prefix else None)
    paths = [*listing["common_prefixes"], *(meta["path"] for meta in listing["objects"])]
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)


def delete(files: Sequence[UPath]) -> None:
    """Remove objects of one bucket. One that is gone already is no error."""
    import obstore

    if not files:
        return
    store, _ = _locate(files[0])
    keys = [_locate(file)[1] for file in files]
    batches = [keys[start : start + _DELETED_AT_ONCE] for start in range(0, len(keys), _DELETED_AT_ONCE)]
    while batches:
        batch = batches.pop()
        try:
            with _translate_errors(files[0]):
                obstore.delete(store, batch)
        except FileNotFoundError:  # of a store that says so; it may have left out the others
            batches += [[key] for key in batch] if len(batch) > 1 else []


@cache
def deletes_on_condition(folder: UPath) -> bool:
    """Return whether the store of `folder` deletes an object only if it is still the one that was read.

    S3 does, and some of the stores with its API. Others ignore the condition, or have no such request.
    """
    if folder.protocol not in _S3_SCHEMES:
        return False
    proof = folder / _DELETE_PROOF
    if exists(proof):
        return True
    probes = (folder / _PROBE_FOLDER / uuid.uuid4().hex for _ in range(_DELETE_ROUNDS))
    try:
        # A store that forgets what it compared shows it only if the replacement arrives while it deletes.
        took_s = _time_deletion(folder / _PROBE_FOLDER / uuid.uuid4().hex)
        is_kept = all(
            _race_to_delete(probe, after_s=took_s * number / _DELETE_ROUNDS) for number, probe in enumerate(probes)
        )
        return is_kept and (write(proof, b'{"conditional_deletes": "kept"}\n', None) or exists(proof))
    except OSError:  # it has no such request, or this process no right to write
        return False


def _create_probe(file: UPath) -> str:
    """Create an object, and return its version."""
    write(file, b"first", None)
    first = read(file)
    assert first is not None
    return first.version


def _time_deletion(file: UPath) -> float:
    """Return how long the store needs to delete an object on its condition, in seconds."""
    try:
        version = _create_probe(file)
        remove_version(file, _NO_VERSION)  # connects
        began = time.monotonic()
        remove_version(file, version)
        return time.monotonic() - began
    finally:
        delete([file])


def _race_to_delete(file: UPath, after_s: float) -> bool:
    """Return whether a store does one of two things: delete a version, and replace it, asked for `after_s` later."""
    try:
        version = _create_probe(file)
        if remove_version(file, _NO_VERSION):
            return False
        with ThreadPoolExecutor(1) as pool:
            deletion = pool.submit(remove_version, file, version)
            time.sleep(after_s)
            is_replaced = write(file, b"second", version)
            is_deleted = deletion.result()
        stored = read(file)
        if not is_replaced:
            return stored is None
        # A store that can delete nothing would have kept it as well.
        return not is_deleted and stored is not None and remove_version(file, stored.version) and not exists(file)
    finally:
        delete([file])


def delete_folder(folder: UPath) -> None:
    """Remove all objects below `folder`, also the empty ones by which Hadoop's clients mark folders."""
    delete([folder / item.path for item in list_objects(folder)])
    if folder.protocol in _S3_SCHEMES:
        # Their names end with a slash, which obstore leaves out.
        client, bucket, prefix = _open_s3(folder)
        with _translate_errors(folder):
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for item in page.get("Contents", ()):
                    client.delete_object(Bucket=bucket, Key=item["Key"])


def list_uploads(folder: UPath) -> Iterator[PendingUpload]:
    """Yield the uploads below `folder` that nobody has completed: S3 keeps their parts, and charges for them.

    None of other stores: they remove such parts after a week. One that is completed or ended meanwhile is left out.
    """
    if folder.protocol not in _S3_SCHEMES:
        return
    client, bucket, prefix = _open_s3(folder)
    with _translate_errors(folder):
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", ()):
                parts = client.get_paginator("list_parts").paginate(
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
                try:
                    size = sum(part["Size"] for parts_page in parts for part in parts_page.get("Parts", ()))
                except client.exceptions.NoSuchUpload:
                    continue
                path = upload["Key"].removeprefix(prefix)
                yield PendingUpload(path, upload["UploadId"], size, upload["Initiated"].timestamp())


def abort_upload(folder: UPath, upload: PendingUpload) -> None:
    """End an upload that `list_uploads` has listed. One that is completed or ended already is no error."""
    client, bucket, prefix = _open_s3(folder)
    with _translate_errors(folder), suppress(client.exceptions.NoSuchUpload):
        client.abort_multipart_upload(Bucket=bucket, Key=prefix + upload.path, UploadId=upload.number)


def prove_conditions(folder: UPath) -> None:
    """Check by racing writers, each with connections of its own, that the store of `folder` keeps conditions.

    Writers look before they race, as publishers do. Connections of their own may reach different endpoints.

    Raises:
        StoreError: several writers won, or an object was replaced by somebody who had read another.
    """
    scheme, bucket = folder.protocol, folder.path.lstrip("/").partition("/")[0]
    shares_memory = scheme == "memory"
    clients = [open_bucket(scheme, bucket) if shares_memory else _new_client(scheme, bucket) for _ in range(_WRITERS)]

    def race(file: UPath, version: str | None) -> list[str]:
        attempts, errors = [uuid.uuid4().hex for _ in clients], list[OSError]()

        def put(client: ObjectStore, attempt: str) -> bool:
            try:
                return _put_on_condition(client, file, attempt.encode(), version, attempt)
            except OSError as error:
                errors.append(error)
                return False

        with ThreadPoolExecutor(_WRITERS) as pool:
            winners = list(compress(attempts, pool.map(put, clients, attempts)))
        if not winners:  # the answer to it was lost
            winner = _find_attempt(clients[0], file)
            winners = [attempt for attempt in attempts if attempt == winner]
        if errors and not winners:
            raise errors[0]
        return winners

    for _ in range(_ROUNDS):
        file = folder / _PROBE_FOLDER / uuid.uuid4().hex
        try:
            if len(winners := race(file, None)) != 1:
                raise StoreError(f"{folder}: {len(winners)} of {_WRITERS} writers created the same object: {_FIX}")
            created = read(file)
            assert created is not None
            if len(winners := race(file, created.version)) != 1:
                raise StoreError(f"{folder}: {len(winners)} of {_WRITERS} writers replaced the same object: {_FIX}")
            if write(file, b"stale", created.version):
                raise StoreError(f"{folder}: an object was replaced that is not the one that was read: {_FIX}")
        finally:
            with suppress(OSError):
                delete([file])


def _open_s3(folder: UPath) -> tuple[Any, str, str]:
    """Return boto3's client, for what obstore cannot ask of S3, with the bucket, and the prefix of the folder."""
    import boto3

    bucket, _, key = folder.path.strip("/").partition("/")
    return boto3.Session().client("s3", region_name=_s3_region()), bucket, f"{key}/" if key else ""


def _locate(path: UPath) -> tuple[ObjectStore, str]:
    bucket, _, key = path.path.lstrip("/").partition("/")
    return open_bucket(path.protocol, bucket), key.rstrip("/")


@contextmanager
def _translate_errors(path: UPath, *expected: type[BaseException]) -> Iterator[None]:
    """Raise errors of the client as OSError, except those that are `expected`."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (OSError, *expected):  # type: ignore[misc]
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(f"{path}: {first_line(error)}") from None
    except Exception as error:
        raise OSError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
