"""Components that end are started again; SIGTERM ends all."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from evergreen_local.airflow_components import component_commands
from support.waiting import eventually

pytestmark = pytest.mark.unit

SUPERVISE = """
import json, os, sys
from evergreen_local.airflow_components import supervise
supervise({name: (command, os.environ) for name, command in json.loads(sys.argv[1]).items()})
"""


@pytest.fixture
def supervised(tmp_path):
    """Supervise shell scripts; the lines that were printed are in the file `log`."""
    with (tmp_path / "log").open("w") as log:
        commands = json.dumps(
            {
                "steady": ["sh", "-c", "echo $$ >> steady; exec sleep 60"],
                "weak": ["sh", "-c", "echo $$ >> weak; [ $(wc -l < weak) -gt 2 ] && exec sleep 60; exit 3"],
            }
        )
        process = subprocess.Popen([sys.executable, "-c", SUPERVISE, commands], cwd=tmp_path, stderr=log)
    yield process
    process.kill()
    process.wait()


def started(folder, name):
    file = folder / name
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def test_a_component_that_ends_starts_again_after_growing_pauses(supervised, tmp_path):
    eventually("it starts again", lambda: len(started(tmp_path, "weak")) == 3)
    assert len(started(tmp_path, "steady")) == 1
    assert (tmp_path / "log").read_text().splitlines() == [
        "weak ended with code 3; it starts again in 1 s",
        "weak ended with code 3; it starts again in 2 s",
    ]


def test_a_killed_component_starts_again_and_sigterm_ends_all(supervised, tmp_path):
    eventually("both run", lambda: len(started(tmp_path, "steady")) == 1 and len(started(tmp_path, "weak")) == 3)
    os.kill(started(tmp_path, "steady")[0], signal.SIGKILL)
    eventually("it starts again", lambda: len(started(tmp_path, "steady")) == 2)

    supervised.terminate()
    assert supervised.wait(timeout=30) == 0
    assert not any(psutil.pid_exists(pid) for name in ("steady", "weak") for pid in started(tmp_path, name))


def test_sigterm_ends_all_while_one_waits_for_its_restart(supervised, tmp_path):
    eventually("it starts again", lambda: len(started(tmp_path, "weak")) == 2)
    supervised.terminate()
    assert supervised.wait(timeout=30) == 0
    assert len(started(tmp_path, "weak")) == 2
    assert not psutil.pid_exists(started(tmp_path, "steady")[0])


STARTED = """
import os, subprocess
from evergreen_local.airflow_components import supervise
command = ["sh", "-c", "echo $$ >> steady; exec sleep 60"]
supervise({"steady": (command, os.environ)}, {"steady": subprocess.Popen(command)})
"""


def test_what_is_started_is_not_started_before_it_ends(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STARTED], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        eventually("it runs", lambda: started(tmp_path, "steady"))
        os.kill(started(tmp_path, "steady")[0], signal.SIGKILL)
        assert "steady ended with code -9; it starts again" in process.stderr.readline()
        eventually("it starts again", lambda: len(started(tmp_path, "steady")) == 2)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_all_but_the_api_server_wait_a_minute_for_sqlite():
    environment = {"PATH": "/bin", "AIRFLOW__CORE__EXECUTOR": "LocalExecutor"}
    commands = component_commands(8793, environment)
    waits = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "evergreen_local.database_connections.CONNECT_ARGS"}
    assert {name: own for name, (_, own) in commands.items()} == {
        "scheduler": environment | waits,
        "dag-processor": environment | waits,
        "triggerer": environment | waits,
        "api-server": environment,
        "log server": environment,
    }


SCHEDULER = """
import sys, types
main = types.ModuleType("airflow.__main__")
main.main = lambda: print(sys.argv, "tabnanny" in sys.modules, flush=True)
sys.modules["airflow"], sys.modules["airflow.__main__"] = types.ModuleType("airflow"), main
from evergreen_local.scheduler import start_scheduler
start_scheduler(["--skip-serve-logs"])
"""


@pytest.mark.parametrize(
    ("line", "code", "said"), [("start\n", 0, "['airflow', 'scheduler', '--skip-serve-logs'] True\n"), ("", 1, "")]
)
def test_the_scheduler_waits_for_its_database(line, code, said):
    """Where the upgrade fails, or is killed, its standard input ends."""
    environment = os.environ | {"EVERGREEN_PRELOAD": "no.such, tabnanny,no.such.module,airflow.no.such.module"}
    run = subprocess.run(
        [sys.executable, "-c", SCHEDULER], env=environment, input=line, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (code, said)
    assert ("not ready" in run.stderr) is bool(code)
