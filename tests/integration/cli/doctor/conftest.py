"""HTTP servers in this process with responses set by a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from typing import Any

import pytest

from support import s3_server
from support.s3_server import S3

Response = tuple[int, Any] | Callable[[bytes], tuple[int, Any]]


@dataclass
class FakeServer:
    """A server with `responses` by method and path, JSON or text; all others are 404."""

    url: str = ""
    responses: dict[str, Response] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    clock_skew: float = 0.0
    requests: list[str] = field(default_factory=list)

    def respond(self, name: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(name)
        response = self.responses.get(name, (404, {"detail": f"nothing at {name}"}))
        return response(body) if callable(response) else response


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate((timestamp or time()) + fake.clock_skew, usegmt=True)

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fake.headers = dict(self.headers)
            status, content = fake.respond(f"{self.command} {self.path.partition('?')[0]}", body)
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_one

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield fake
    http_server.shutdown()
    http_server.server_close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running("evergreen") as running:
        running.use(monkeypatch)
        yield running
