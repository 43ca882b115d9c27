"""The services of the local stack, by the record that `evergreen up` writes."""

from __future__ import annotations

import json
import socket

from evergreen.errors import EvergreenError
from evergreen.settings import parse_host_and_port, settings

STACK_FILE = "stack.json"
"""File in the home folder in which `evergreen up` records the services that it has started."""


def local_service_urls() -> dict[str, str]:
    """Return name and URL of each service of the local stack that accepts connections."""
    file = settings().home / STACK_FILE
    try:
        urls = {name: service["url"] for name, service in json.loads(file.read_text())["services"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EvergreenError(f"{file} is not readable: delete it, then run `evergreen down`") from None
    return {name: url for name, url in urls.items() if accepts_connections(*parse_host_and_port(url), timeout=1)}


def accepts_connections(host: str, port: int, timeout: float) -> bool:
    """Return whether a server accepts TCP connections within `timeout` seconds."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True
