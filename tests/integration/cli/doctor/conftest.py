"""Small servers in this process that say what a test wants them to say."""

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

Answer = tuple[int, Any] | Callable[[bytes], tuple[int, Any]]


@dataclass
class Told:
    """A server: `answers` by method and path, JSON or text; what is not among them is 404."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    ahead: float = 0.0
    asked: list[str] = field(default_factory=list)

    def answer(self, name: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(name)
        found = self.answers.get(name, (404, {"detail": f"nothing at {name}"}))
        return found(body) if callable(found) else found


@pytest.fixture
def server() -> Iterator[Told]:
    told = Told()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate((timestamp or time()) + told.ahead, usegmt=True)

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.headers = dict(self.headers)
            status, content = told.answer(f"{self.command} {self.path.partition('?')[0]}", body)
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_one

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{running.server_address[1]}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield told
    running.shutdown()
    running.server_close()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server.running("evergreen") as running:
        running.use(monkeypatch)
        yield running
