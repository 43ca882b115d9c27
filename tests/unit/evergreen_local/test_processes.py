"""Detached processes: identified again, stopped with their children, never mistaken for others."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from evergreen.settings import STACK_VARIABLE
from evergreen_local import processes
from evergreen_local.processes import ProcessIdentity
from support.waiting import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
def launch(tmp_path):
    """Start a shell script as `evergreen up` starts a service, and stop it after the test."""
    launched = []

    def start(script):
        environment = {"PATH": os.environ["PATH"], STACK_VARIABLE: str(tmp_path)}
        identity = processes.start_process(["sh", "-c", script], environment, tmp_path / "work", tmp_path / "log")
        launched.append(identity)
        return identity

    yield start
    for identity in launched:
        processes.stop_session(identity, tmp_path, timeout=0)


def has_exited(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pids(file, count):
    eventually("the PIDs are written", lambda: file.exists() and len(file.read_text().split()) == count)
    return [int(pid) for pid in file.read_text().split()]


def test_start_process_logs_output_and_keeps_the_previous_log(launch, tmp_path):
    for word in ("first", "second"):
        launch(f"echo {word}; echo {word} >&2; exec sleep 60")
        eventually("both lines", lambda word=word: (tmp_path / "log").read_text() == f"{word}\n{word}\n")
    assert (tmp_path / "log.previous.log").read_text() == "first\nfirst\n"


def test_stop_session_ends_all_children(launch, tmp_path):
    identity = launch("sleep 60 & echo $! >> pids; sleep 60 & echo $! >> pids; wait")
    children = pids(tmp_path / "work" / "pids", 2)
    assert processes.is_alive(identity)
    assert processes.stop_session(identity, tmp_path, timeout=5) == 3
    assert not processes.is_alive(identity)
    assert all(map(has_exited, children))


def test_stop_session_kills_a_process_that_ignores_sigterm(launch, tmp_path):
    identity = launch("trap '' TERM; echo $$ > pids; while :; do sleep 0.05; done")
    pids(tmp_path / "work" / "pids", 1)
    start = time.monotonic()
    processes.stop_session(identity, tmp_path, timeout=0.3)
    assert not processes.is_alive(identity)
    assert time.monotonic() - start < 5


def test_stop_session_ends_children_of_a_dead_leader(launch, tmp_path):
    identity = launch("sleep 60 & echo $! > pids; exit 0")
    (child,) = pids(tmp_path / "work" / "pids", 1)
    eventually("the leader has died", lambda: not processes.is_alive(identity))
    assert not has_exited(child)
    processes.stop_session(identity, tmp_path, timeout=5)
    assert has_exited(child)


def test_stop_session_spares_a_process_with_a_reused_pid(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        recorded = ProcessIdentity(pid=other.pid, start_time=psutil.Process(other.pid).create_time() - 1000)
        assert not processes.is_alive(recorded)
        assert processes.stop_session(recorded, tmp_path, timeout=0.1) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_stop_session_spares_children_of_a_reused_pid(tmp_path):
    """Another process got the PID of a dead service, died as well, and left a child behind."""
    script = "sleep 60 & echo $! > pids; exit 0"
    leader = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True)
    (child,) = pids(tmp_path / "pids", 1)
    leader.wait()
    try:
        assert processes.stop_session(ProcessIdentity(pid=leader.pid, start_time=1.0), tmp_path, timeout=0.1) == 0
        assert not has_exited(child)
    finally:
        psutil.Process(child).kill()


def test_stop_home_processes_finds_unrecorded_processes(launch, tmp_path):
    identity = launch("sleep 60 & wait")
    eventually("it has a child", lambda: psutil.Process(identity.pid).children())
    assert processes.stop_home_processes(tmp_path / "another home", timeout=0.1) == 0
    assert processes.stop_home_processes(tmp_path, timeout=5) == 2
    assert not processes.is_alive(identity)


@pytest.mark.parametrize(("attempts", "found"), [(1, False), (3, True)])
def test_a_process_that_executes_a_program_has_no_environment_yet(tmp_path, attempts, found):
    environments = [{}, {}, {STACK_VARIABLE: str(tmp_path)}]

    class Executing:
        def environ(self):
            return environments.pop(0)

    assert processes._belongs_to_home(Executing(), tmp_path, attempts) is found
