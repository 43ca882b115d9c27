"""A small S3 server with atomic conditional puts, in this process.

It supports the requests that Evergreen and MLflow send: put, conditional put, get, list, delete, create a bucket. Tests
set its faults while it runs.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep, time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

if TYPE_CHECKING:
    import pytest


_LATE_S = 0.2  # long enough for others to come in between, on a busy machine too


@dataclass
class S3:
    """The contents of the server, and its faults."""

    url: str = ""
    buckets: dict[str, Any] = field(default_factory=dict)
    """Bucket → key → content."""
    refuses: set[str] = field(default_factory=set)
    """HTTP methods that are refused with AccessDenied."""
    full: bool = False
    conditions: str = "kept"
    """How conditions are handled: "kept"; "ignored"; or "late", which checks first and writes a moment later."""
    delete_conditions: str = "kept"
    """How those of deletions are: also as one of these, or "refused"."""
    words: str = "condition not named"
    """How it reports an existing object: "condition not named", as MinIO; "condition named", as S3; or "conflict"."""
    page_length: int = 1000
    """Maximum number of objects in a page of a listing."""
    lost_answers: int = 0
    """So many puts succeed and report an error."""
    ahead: float = 0.0
    """Seconds that its clock is ahead."""
    clock: Callable[[], float] = time
    """What objects get as the time of their last change."""
    times: dict[str, float] = field(default_factory=dict)
    """Time of the last change of objects, by bucket and key."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    attempts: dict[str, str] = field(default_factory=dict)
    """Metadata `attempt` of objects, by bucket and key."""
    classes: dict[str, str] = field(default_factory=dict)
    """Storage class of objects that were copied to one, by bucket and key."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method, and bucket with key (of a LIST: with its prefix), of every request so far."""

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Configure the clients of this process to use this server, and none that ran before."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", self.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()


@contextmanager
def running(*buckets: str) -> Iterator[S3]:
    s3 = S3(buckets={name: {} for name in buckets})
    server = _server(s3, "127.0.0.1", 0)
    s3.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        server.server_close()


def _server(s3: S3, host: str, port: int) -> ThreadingHTTPServer:
    class Handler(_Handler):
        store = s3

    return ThreadingHTTPServer((host, port), Handler)


def etag(content: bytes) -> str:
    """Return what identifies the content of an object, in quotes."""
    return f'"{hashlib.md5(content).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: S3

    def log_message(self, *_: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time()) + self.store.ahead, usegmt=True)

    def do_PUT(self) -> None:
        bucket, key = self._bucket_and_key()
        self.store.requests.append(("PUT", f"{bucket}/{key}"))
        data = self._body()
        if not key:
            self.store.buckets.setdefault(bucket, {})
            return self._answer(200)
        if not self._allowed(bucket):
            return None
        if source := unquote(self.headers.get("x-amz-copy-source", "")).lstrip("/"):
            return self._copy(source, bucket, key)
        if self.store.full:
            return self._fault(507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold")
        is_kept = self.store.conditions != "ignored"
        conditional, expected = is_kept and self.headers.get("If-None-Match") == "*", self.headers.get("If-Match")
        with self.store.lock:
            stored = self.store.buckets[bucket].get(key)
            exists = conditional and stored is not None
            if is_kept and expected and stored is None:
                return self._fault(404, "NoSuchKey", "The specified key does not exist.")
            exists |= bool(is_kept and expected and stored is not None and etag(stored) != expected)
            if not exists and self.store.conditions != "late":
                self.store.attempts[f"{bucket}/{key}"] = self.headers.get("x-amz-meta-attempt", "")
                self.store.times[f"{bucket}/{key}"] = self.store.clock()
                self.store.buckets[bucket][key] = data
        if exists and self.store.words == "conflict":
            return self._fault(409, "ConditionalRequestConflict", "A conflicting operation occurred")
        if exists:
            details = "<Condition>If-None-Match</Condition>" if self.store.words == "condition named" else ""
            message = "At least one of the pre-conditions you specified did not hold"
            return self._fault(412, "PreconditionFailed", message, details)
        if self.store.lost_answers:
            self.store.lost_answers -= 1
            return self._fault(500, "InternalError", "It is stored, and nobody hears of it.")
        if self.store.conditions == "late":
            sleep(_LATE_S)
            self.store.buckets[bucket][key] = data
        return self._answer(200, headers={"ETag": etag(data)})

    def do_GET(self) -> None:
        bucket, key = self._bucket_and_key()
        if not bucket:
            return self._fault(403, "AccessDenied", "Access Denied")
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        self.store.requests.append(("GET", f"{bucket}/{key}") if key else ("LIST", f"{bucket}/{prefix}"))
        if not self._allowed(bucket):
            return None
        objects = self.store.buckets[bucket]
        if key:
            if key not in objects:
                return self._fault(404, "NoSuchKey", "The specified key does not exist.")
            return self._give(bucket, key, objects[key])
        query = parse_qs(urlsplit(self.path).query)
        delimiter = query.get("delimiter", [""])[0]
        names = sorted(name for name in objects if name.startswith(prefix))
        folders = {
            prefix + name[len(prefix) :].split(delimiter)[0] + delimiter
            for name in names
            if delimiter and delimiter in name[len(prefix) :]
        }
        files = [name for name in names if not any(name.startswith(folder) for folder in folders)]
        start = max(query.get(name, [""])[0] for name in ("start-after", "continuation-token"))
        page = [name for name in files if name > start][: self.store.page_length]
        is_truncated = bool(page) and page[-1] != files[-1]
        files, next_page = page, f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if page else ""
        body = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(objects[name])}</Size>"
            f"<ETag>{escape(etag(objects[name]))}</ETag>"
            f"<LastModified>{self._changed_at(bucket, name):%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for name in files
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
        return self._answer(
            200,
            f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(files)}</KeyCount>"
            f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>{next_page if is_truncated else ''}"
            f"{body}</ListBucketResult>".encode(),
        )

    def do_HEAD(self) -> None:
        bucket, key = self._bucket_and_key()
        self.store.requests.append(("GET", f"{bucket}/{key}"))
        exists = key in self.store.buckets.get(bucket, {}) if key else bucket in self.store.buckets
        content = self.store.buckets[bucket][key] if exists and key else b""
        self.send_response(200 if exists else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", etag(content))
        self.send_header("Last-Modified", formatdate(self._changed_at(bucket, key).timestamp(), usegmt=True))
        if storage_class := self.store.classes.get(f"{bucket}/{key}"):
            self.send_header("x-amz-storage-class", storage_class)
        self.end_headers()

    def do_DELETE(self) -> None:
        bucket, key = self._bucket_and_key()
        self.store.requests.append(("DELETE", f"{bucket}/{key}"))
        if not self._allowed(bucket):
            return None
        expected, conditions = self.headers.get("If-Match"), self.store.delete_conditions
        if expected and conditions == "refused":
            return self._fault(501, "NotImplemented", "A header implies functionality that is not implemented")
        with self.store.lock:
            stored = self.store.buckets[bucket].get(key)
            if expected and conditions != "ignored" and (stored is None or etag(stored) != expected):
                return self._fault(412, "PreconditionFailed", "At least one of the pre-conditions did not hold")
            if conditions != "late":
                self.store.buckets[bucket].pop(key, None)
        if conditions == "late":
            sleep(_LATE_S)
            self.store.buckets[bucket].pop(key, None)
        return self._answer(204)

    def _copy(self, source: str, bucket: str, key: str) -> None:
        source_bucket, _, source_key = source.partition("/")
        storage_class = self.headers.get("x-amz-storage-class", "STANDARD")
        is_same = source == f"{bucket}/{key}" and storage_class == self.store.classes.get(source, "STANDARD")
        if is_same and self.headers.get("x-amz-metadata-directive") != "REPLACE":
            return self._fault(400, "InvalidRequest", "This copy request would change nothing")
        with self.store.lock:
            content = self.store.buckets[source_bucket].get(source_key)
            if content is None:
                return self._fault(404, "NoSuchKey", "The specified key does not exist.")
            self.store.buckets[bucket][key] = content
            self.store.times[f"{bucket}/{key}"] = self.store.clock()
            self.store.classes[f"{bucket}/{key}"] = storage_class
        return self._answer(200, f"<CopyObjectResult><ETag>{etag(content)}</ETag></CopyObjectResult>".encode())

    def _changed_at(self, bucket: str, key: str) -> datetime:
        return datetime.fromtimestamp(self.store.times.get(f"{bucket}/{key}", 0), UTC)

    def do_POST(self) -> None:
        """Delete several objects at once; no other POST is supported."""
        bucket, _ = self._bucket_and_key()
        keys = [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", self._body().decode())]
        if "delete" not in parse_qs(urlsplit(self.path).query, keep_blank_values=True):
            return self._fault(501, "NotImplemented", "uploads in parts are not implemented")
        self.store.requests += [("DELETE", f"{bucket}/{key}") for key in keys]
        if not self._allowed(bucket):
            return None
        for key in keys:
            self.store.buckets[bucket].pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return self._answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _give(self, bucket: str, key: str, content: bytes) -> None:
        """Respond with the object, or the requested range of it."""
        headers = {
            "ETag": etag(content),
            "Last-Modified": formatdate(self._changed_at(bucket, key).timestamp(), usegmt=True),
            "x-amz-meta-attempt": self.store.attempts.get(f"{bucket}/{key}", ""),
        }
        byte_range = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not byte_range:
            return self._answer(200, content, headers)
        first, last = byte_range.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            return self._fault(416, "InvalidRange", "The requested range is not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return self._answer(206, content[start:end], headers)

    def _bucket_and_key(self) -> tuple[str, str]:
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        return bucket, key

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        plain = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            length = int(size.split(b";")[0], 16)
            if not length:
                break
            plain, data = plain + data[:length], data[length + 2 :]
        return plain

    def _allowed(self, bucket: str) -> bool:
        if self.command in self.store.refuses:
            self._fault(403, "AccessDenied", "Access Denied.")
            return False
        if bucket not in self.store.buckets:
            self._fault(404, "NoSuchBucket", "The specified bucket does not exist")
            return False
        return True

    def _fault(self, status: int, code: str, message: str, details: str = "") -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message>{details}</Error>".encode())

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
