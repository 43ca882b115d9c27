"""The local stack: its ports are free, and not chosen by two stacks that start at once; what Airflow inherits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evergreen.settings import LOOPBACK_HOST
from evergreen_local.services import airflow_service, free_port

pytestmark = pytest.mark.unit

RESERVE = "import sys; from evergreen_local.services import free_port; print(free_port(int(sys.argv[1])), flush=True)"


def test_a_used_port_is_not_free() -> None:
    with socket.create_server((LOOPBACK_HOST, 0)) as server:
        port = server.getsockname()[1]
        assert free_port(port) > port


def test_a_port_belongs_to_one_process_until_it_ends() -> None:
    port = 20_000 + os.getpid() % 10_000  # below those that the kernel gives to connections
    command = [sys.executable, "-c", f"{RESERVE}; sys.stdin.read()", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        reserved = int(other.stdout.readline())
        assert free_port(reserved) > reserved
        other.communicate("")
    assert free_port(reserved) == reserved
    assert free_port(reserved) == reserved


def test_airflow_sends_lineage_where_the_shell_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "that of another Airflow")
    assert airflow_service(home, 8080, {}).environment["AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT"] == "0"
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", '{"type": "console"}')
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT", "5")
    environment = airflow_service(home, 8080, {}).environment
    assert environment["AIRFLOW__OPENLINEAGE__TRANSPORT"] == '{"type": "console"}'
    assert environment["AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT"] == "5", "what is set wins"
    assert environment["AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD"] == "True"
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in environment
