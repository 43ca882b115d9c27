"""A server that puts and gets objects as Google Cloud Storage does, with conditions on generations."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class GcsObject(NamedTuple):
    data: bytes
    generation: int
    metadata: dict[str, str]


@contextmanager
def running() -> Iterator[str]:
    """Yield the credentials of an account, as JSON, by which clients find the server."""
    objects: dict[str, GcsObject] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            condition = self.headers.get("x-goog-if-generation-match")
            with lock:
                generation = objects[self.path].generation if self.path in objects else 0
                if condition is not None and int(condition) != generation:
                    return self.respond(412)
                metadata = {name: value for name, value in self.headers.items() if name.startswith("x-goog-meta-")}
                objects[self.path] = stored = GcsObject(data, generation + 100, metadata)
            return self.respond(200, ETag='"equal"', x_goog_generation=str(stored.generation))

        def do_GET(self) -> None:
            if (stored := objects.get(self.path)) is None:
                return self.respond(404)
            date = "Sun, 29 Nov 2026 09:00:00 GMT"
            headers = {"ETag": '"equal"', "x-goog-generation": str(stored.generation), "Last-Modified": date}
            return self.respond(200, stored.data, **headers, **stored.metadata)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    try:
        yield json.dumps({**account, "gcs_base_url": f"http://127.0.0.1:{server.server_port}"})
    finally:
        server.shutdown()
        server.server_close()
