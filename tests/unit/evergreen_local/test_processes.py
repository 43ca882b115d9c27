"""Detached processes: found again, ended with all they started, and never mistaken for a stranger."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from evergreen_local import processes
from evergreen_local.processes import STACK_VARIABLE, ProcessIdentity

pytestmark = pytest.mark.unit


@pytest.fixture
def launch(tmp_path):
    """Start a shell script as `evergreen up` starts an engine; nothing of it survives the test."""
    launched = []

    def start(script):
        environment = {"PATH": os.environ["PATH"], STACK_VARIABLE: str(tmp_path)}
        identity = processes.start_process(["sh", "-c", script], environment, tmp_path / "work", tmp_path / "log")
        launched.append(identity)
        return identity

    yield start
    for identity in launched:
        processes.stop_session(identity, tmp_path, timeout=0)


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pids(file, count):
    eventually(lambda: file.exists() and len(file.read_text().split()) == count)
    return [int(pid) for pid in file.read_text().split()]


def test_what_it_prints_goes_to_the_log_and_the_older_log_is_kept(launch, tmp_path):
    for word in ("first", "second"):
        launch(f"echo {word}; echo {word} >&2; exec sleep 60")
        eventually(lambda word=word: (tmp_path / "log").read_text() == f"{word}\n{word}\n")
    assert (tmp_path / "log.previous.log").read_text() == "first\nfirst\n"


def test_lives_until_it_is_stopped_with_all_that_it_started(launch, tmp_path):
    identity = launch("sleep 60 & echo $! >> pids; sleep 60 & echo $! >> pids; wait")
    children = pids(tmp_path / "work" / "pids", 2)
    assert processes.is_alive(identity)
    assert processes.stop_session(identity, tmp_path, timeout=5) == 3
    assert not processes.is_alive(identity)
    assert all(map(gone, children))


def test_one_that_ignores_being_asked_is_forced(launch, tmp_path):
    identity = launch("trap '' TERM; echo $$ > pids; while :; do sleep 0.05; done")
    pids(tmp_path / "work" / "pids", 1)
    began = time.monotonic()
    processes.stop_session(identity, tmp_path, timeout=0.3)
    assert not processes.is_alive(identity)
    assert time.monotonic() - began < 5


def test_one_whose_part_has_died_is_told_from_a_whole_one(launch, tmp_path):
    parts = ["sleep 60", "sleep 61"]
    whole = launch("sleep 60 & sleep 61 & wait")
    maimed = launch("sleep 60 & sleep 61 & echo $! > pids; wait")
    [pid] = pids(tmp_path / "work" / "pids", 1)
    eventually(lambda: not processes.missing_children(whole, parts) and not processes.missing_children(maimed, parts))
    psutil.Process(pid).kill()
    eventually(lambda: processes.missing_children(maimed, parts) == ["sleep 61"])
    assert processes.is_alive(maimed)
    assert processes.missing_children(whole, parts) == []


def test_children_of_a_leader_that_died_are_ended_too(launch, tmp_path):
    identity = launch("sleep 60 & echo $! > pids; exit 0")
    (child,) = pids(tmp_path / "work" / "pids", 1)
    eventually(lambda: not processes.is_alive(identity))
    assert not gone(child)
    processes.stop_session(identity, tmp_path, timeout=5)
    assert gone(child)


def test_a_process_that_has_the_number_of_a_dead_one_is_left_alone(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        recorded = ProcessIdentity(pid=stranger.pid, start_time=psutil.Process(stranger.pid).create_time() - 1000)
        assert not processes.is_alive(recorded)
        assert processes.stop_session(recorded, tmp_path, timeout=0.1) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_strangers_in_a_session_without_its_leader_are_left_alone(tmp_path):
    """The number of a dead engine went to a stranger, which died as well and left a child behind."""
    script = "sleep 60 & echo $! > pids; exit 0"
    leader = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True)
    (child,) = pids(tmp_path / "pids", 1)
    leader.wait()
    try:
        assert processes.stop_session(ProcessIdentity(pid=leader.pid, start_time=1.0), tmp_path, timeout=0.1) == 0
        assert not gone(child)
    finally:
        psutil.Process(child).kill()


def test_what_nobody_recorded_is_found_by_its_mark(launch, tmp_path):
    identity = launch("sleep 60 & wait")
    eventually(lambda: psutil.Process(identity.pid).children())
    assert processes.stop_home_processes(tmp_path / "another home", timeout=0.1) == 0
    assert processes.stop_home_processes(tmp_path, timeout=5) == 2
    assert not processes.is_alive(identity)
