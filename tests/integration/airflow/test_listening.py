"""Nothing of the stack of one machine listens where another machine could connect."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil
import pytest

from evergreen.settings import STACK_VARIABLE
from evergreen_local.stack import StackRecord
from integration.airflow.conftest import FEATURES, Chain

pytestmark = pytest.mark.integration


def stack_processes(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(STACK_VARIABLE) == str(home):
                found.append(process)
    return found


def open_sockets(home: Path) -> dict[tuple[str, int], str]:
    """Return address and port of each socket that waits for others, with the command of its process."""
    found = {}
    for process in stack_processes(home):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())[:200]
            for connection in process.net_connections("inet"):
                is_server = connection.status == psutil.CONN_LISTEN
                is_unconnected = connection.type == socket.SOCK_DGRAM and not connection.raddr
                if (is_server or is_unconnected) and connection.laddr:
                    found[connection.laddr.ip, connection.laddr.port] = command
    return found


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_nothing_listens_beyond_the_loopback(chain: Chain) -> None:
    day = "2013-01-09"
    chain.forget(day)
    found = open_sockets(chain.home)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            found.update(open_sockets(chain.home))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        chain.airflow.trigger_dag_run(FEATURES, "listening", {"start": str(day)})
        assert chain.wait(FEATURES, run_id="listening") == ["success"]
    finally:
        done.set()
        watcher.join()
    ports = {port for _, port in found}
    for service in StackRecord.read(chain.home).services.values():
        assert httpx.URL(service.url).port in ports, f"{service.url} was not seen, so others may be missing"
    assert {name: command for name, command in found.items() if not is_loopback(name[0])} == {}
    [[_, log_port]] = [name for name, command in found.items() if "serve_logs" in command]
    response = httpx.get(f"http://127.0.0.1:{log_port}/log/x", trust_env=False)
    assert response.status_code == 403, "it has the logs, for those who have the key"
