"""Serves the metrics of all models to Prometheus, in Airflow's web server: `GET /evergreen/metrics`.

Prometheus sends a token that does not expire, `Authorization: Bearer …`: Airflow's own expire after a day. It is read
from the file `EVERGREEN_METRICS_TOKEN` at each request, so that it can be replaced without a restart. Without such a
file the page does not exist.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

MIN_TOKEN_LENGTH = 16
_CACHE_S = 10.0
_PATIENCE_S = 5.0  # less than the scrape_timeout of Prometheus, 10 s by default

log = logging.getLogger(__name__)


@dataclass
class CachedPage:
    """The page of metrics, rendered at most every `_CACHE_S` seconds, and by one thread at a time.

    Requests wait for that thread a few seconds only: a store that hangs must not take the threads of the web server.
    """

    render: Callable[[], bytes]
    _lock: Lock = field(default_factory=Lock)
    _page: bytes = b""
    _expiry: float = 0.0

    def read(self) -> bytes | None:
        """Return the page; None if another thread renders it, and takes long."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            return None
        try:
            if time.monotonic() >= self._expiry:
                self._page = self.render()
                self._expiry = time.monotonic() + _CACHE_S
            return self._page
        finally:
            self._lock.release()


def is_authorized(header: str | None, token: str) -> bool:
    """Return whether a header `Authorization` holds the token; how long that takes does not tell how much of it."""
    scheme, _, sent = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), token.encode())


def read_token(file: Path | None) -> str | None:
    """Return the token in a file; None, with a line in the log, if it cannot be read or is too short to be a secret."""
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        log.warning("nobody reads metrics: the file EVERGREEN_METRICS_TOKEN cannot be read: %s", error)
        return None
    if len(token) < MIN_TOKEN_LENGTH:
        log.warning("nobody reads metrics: the token in %s has less than %s characters", file, MIN_TOKEN_LENGTH)
        return None
    return token


def render_metrics() -> bytes:
    """Return the metrics of all models, in the text format of Prometheus."""
    from prometheus_client import generate_latest

    return generate_latest(_registry())


@cache
def _registry() -> Any:
    # At the first scrape: an API server that nobody scrapes loads none of this.
    from prometheus_client import CollectorRegistry

    from evergreen.plugin.model_metrics import ModelCollector

    # One of its own: the default one has metrics of this process, which differ between API servers.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ModelCollector())
    return registry


def add_metrics_route(app: FastAPI) -> None:
    """Add the route to an application."""
    from fastapi import Header, HTTPException, Response

    page = CachedPage(render_metrics)

    @app.get("/metrics")
    def show_metrics(authorization: str | None = Header(None)) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST

        from evergreen.settings import settings

        token = read_token(settings().metrics_token)
        if token is None:
            raise HTTPException(404, "metrics are off: EVERGREEN_METRICS_TOKEN names no file with a token")
        if not is_authorized(authorization, token):
            raise HTTPException(403, "the token is missing or wrong")
        text = page.read()
        if text is None:
            raise HTTPException(503, "an earlier scrape still reads the metrics")
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
