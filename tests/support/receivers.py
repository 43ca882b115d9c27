"""Receivers of notifications in this process: a web server and a mail server, with faults that tests set."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, ClassVar

from airflow.sdk import BaseNotifier


@dataclass
class Request:
    """What was posted, and how."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class WebReceiver:
    """What a web server has received, and how it responds."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    status: int = 200
    hangs: bool = False
    """It reads the request and does not respond."""
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def web_receiver() -> Iterator[WebReceiver]:
    """Serve on a free port of this machine until the context ends."""
    receiver = WebReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(Request(self.path, dict(self.headers), json.loads(body)))
            if receiver.hangs:
                receiver.released.wait(60)
                return
            self.send_response(receiver.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_port
    with _serving(server):
        try:
            yield receiver
        finally:
            receiver.released.set()


@dataclass
class MailReceiver:
    """What a mail server has received."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)


@contextmanager
def mail_receiver() -> Iterator[MailReceiver]:
    """Serve SMTP on a free port of this machine until the context ends."""
    receiver = MailReceiver()

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                command = line[:4].upper()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    mail = message_from_bytes(b"".join(lines), policy=policy.default)
                    assert isinstance(mail, EmailMessage)
                    receiver.mails.append(mail)
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
                if command == b"QUIT":
                    return

    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_address[1]
    with _serving(server):
        yield receiver


class RecordingNotifier(BaseNotifier):
    """A notifier as users write them, with one template."""

    template_fields = ("text",)
    texts: ClassVar[list[str]] = []

    def __init__(self, text: str, to: list[str]):
        super().__init__()
        self.text, self.to = text, to

    def notify(self, context: Any) -> None:
        self.texts.append(self.text)


class FailingNotifier(BaseNotifier):
    """A notifier of another library, whose error has the address in it."""

    def notify(self, context: Any) -> None:
        raise ConnectionError("https://hooks.example.com/secret-token refused")


@contextmanager
def _serving(server: ThreadingTCPServer) -> Iterator[None]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
