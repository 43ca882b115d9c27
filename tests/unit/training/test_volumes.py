"""Full volumes are named in the error, with a fix. On real volumes, in a mount namespace."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evergreen.training.attempt import trainer_environment
from evergreen.training.outcome import AttemptResult, Outcome
from evergreen.training.volumes import OutOfSpaceError, Volume

pytestmark = pytest.mark.unit

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
UNUSUAL_NAMES = [
    b"two words",
    b"new\nline",
    b"back\\slash \\040",
    b"caf\xc3\xa9",
    b"\xff\xfe",
    b"-",
    b"\xe2\x80\xae",
    b"d" * 250,
]


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Mounting without being root, which most Linux machines allow."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounts in a user namespace")


@pytest.fixture
def fail(_namespaces: None, tmp_path: Path) -> Any:
    """Run failing `code` with volumes in memory at `paths` below `root`; return outcome and message."""

    def run(code: str, *paths: bytes, pod: bool = True, shm: str = "1m", size: str = "64k") -> tuple[Outcome, str]:
        program = f"""
import errno, json, os, subprocess, sys, tempfile
root = {os.fsencode(tmp_path)!r}
def mount(path, size):
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "none", path], check=True)
def fill(*path):
    with open(os.path.join(root, *path, b"full"), "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 2**12)
def try_to_fill(*path):
    try:
        fill(*path)
    except OSError:
        pass
for path in {paths!r}:
    mount(os.path.join(root, path), {size!r})
mount(b"/dev/shm", {shm!r})
from evergreen.training.outcome import AttemptResult
from evergreen.training.volumes import identify_full_volume
try:
{"".join(f"    {line}{chr(10)}" for line in code.splitlines())}
except Exception as error:
    result = AttemptResult.from_error(error)
    print(json.dumps([result.outcome.value, result.message]))
"""
        process = subprocess.run(
            ["unshare", "-rm", sys.executable, "-c", program],
            env=trainer_environment() | (POD if pod else {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        value, message = json.loads(process.stdout)
        assert message.isprintable(), "a container's termination message is one line"
        assert len(message) < 500, "which fits into a pod's status"
        return Outcome(value), message

    return run


def test_full_shared_memory_is_out_of_memory(fail: Any) -> None:
    outcome, message = fail("fill(b'/dev/shm')", b"other")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert message == "no space is left on /dev/shm (1 MiB of memory): raise resources.shm_gib"


def test_full_shared_memory_outside_a_pod_is_retryable(fail: Any) -> None:
    outcome, message = fail("fill(b'/dev/shm')", pod=False)
    assert outcome is Outcome.UNKNOWN
    assert message == "no space is left on /dev/shm (1 MiB of memory): make room; nothing is lost"


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_full_volume_is_named_whatever_its_name(fail: Any, tmp_path: Path, name: bytes) -> None:
    outcome, message = fail(f"fill({name!r})", name, b"other")
    assert outcome is Outcome.OUT_OF_MEMORY
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    shown = path if path.isprintable() else ascii(path)
    assert message.startswith("no space is left on ")
    assert f"{shown[-200:]} (64 KiB of memory): give that volume more in EVERGREEN_PODS__TEMPLATE" in message


def test_all_full_volumes_are_named(fail: Any, tmp_path: Path) -> None:
    outcome, message = fail("try_to_fill(b'a'); try_to_fill(b'c'); fill(b'/dev/shm')", b"a", b"b", b"c")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert message == (
        f"no space is left on /dev/shm (1 MiB of memory), {tmp_path}/a (64 KiB of memory), {tmp_path}/c (64 KiB of "
        "memory): raise resources.shm_gib, or give that volume more in EVERGREEN_PODS__TEMPLATE"
    )


def test_volume_mounted_twice_is_named_once(fail: Any, tmp_path: Path) -> None:
    bind = "subprocess.run(['mount', '--bind', os.path.join(root, b'a'), os.path.join(root, b'b')], check=True)"
    _, message = fail(f"{bind}\nfill(b'b')", b"a", b"b")
    assert message.startswith(f"no space is left on {tmp_path}/a (64 KiB of memory): ")


def test_volume_without_inodes_is_full(fail: Any, tmp_path: Path) -> None:
    remount = "subprocess.run(['mount', '-o', 'remount,nr_inodes=3', os.path.join(root, b'a')], check=True)"
    files = "for i in range(9): tempfile.mkstemp(dir=os.path.join(root, b'a'))"
    _, message = fail(f"{remount}\n{files}", b"a")
    assert f"on {tmp_path}/a (64 KiB of memory)" in message


def test_target_file_determines_the_volume(fail: Any, tmp_path: Path) -> None:
    """A copy names two files and fails at the second; another full volume is not named."""
    (tmp_path / "large").write_bytes(b"x" * 2**17)
    copy = "import shutil; shutil.copyfile(os.path.join(root, b'large'), os.path.join(root, b'a/inner/new'))"
    outcome, message = fail(f"try_to_fill(b'/dev/shm')\n{copy}", b"a", b"a/inner")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert message.startswith(f"no space is left for {tmp_path}/a/inner/new on {tmp_path}/a/inner (64 KiB")


def test_volume_is_located_before_cleanup(fail: Any, tmp_path: Path) -> None:
    code = """
with tempfile.TemporaryDirectory(dir=os.path.join(root, b'a')) as scratch, identify_full_volume():
    fill(scratch)
"""
    outcome, message = fail(code, b"a")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert f"on {tmp_path}/a (64 KiB of memory)" in message


@pytest.mark.parametrize(
    "code",
    [
        "import numpy; numpy.save(os.path.join(root, b'a/x.npy').decode(), numpy.zeros(10**6))",
        "import numpy as np, xgboost as xgb; "
        "model = xgb.train({'max_depth': 6}, xgb.DMatrix(np.random.rand(999, 5), np.random.rand(999)), 50); "
        "model.save_model(os.path.join(root, b'a/x.ubj').decode())",
        "try:\n    fill(b'a')\nexcept OSError as error:\n    raise RuntimeError('nothing is saved') from error",
    ],
    ids=["numpy", "xgboost", "wrapped"],
)  # fmt: skip
def test_messages_of_libraries_are_recognized(fail: Any, tmp_path: Path, code: str) -> None:
    outcome, message = fail(code, b"a")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert f"on {tmp_path}/a (64 KiB of memory)" in message


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)",
    ],
)  # fmt: skip
def test_shared_memory_segment_that_does_not_fit(fail: Any, text: str) -> None:
    outcome, message = fail(f"try_to_fill(b'a'); raise RuntimeError({text!r})", b"a")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert message == "no space is left on /dev/shm (1 MiB of memory): raise resources.shm_gib"


def test_message_without_a_full_volume_is_unknown(fail: Any) -> None:
    """A broken disk, or the server of an object store, may report the same; its message is kept."""
    outcome, message = fail("raise RuntimeError('bucket b: no space left on device')", b"a")
    assert (outcome, message) == (Outcome.UNKNOWN, "RuntimeError: bucket b: no space left on device")


def test_volume_with_room_again_is_not_named(fail: Any) -> None:
    write = """
import pyarrow, pyarrow.parquet  # which removes what it could not finish
table = pyarrow.table({'a': list(range(10**5))})
pyarrow.parquet.write_table(table, os.path.join(root, b'a/x').decode())
"""
    outcome, message = fail(write, b"a")
    assert outcome is Outcome.UNKNOWN
    assert message == "no space is left for its files: make room; nothing is lost"


def test_full_disk_beside_full_memory_is_retryable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in POD.items():
        monkeypatch.setenv(name, value)
    shm = Volume("/dev/shm", "0:1", in_memory=True, size=2**26, free=0)
    disk = Volume("/data", "8:1", in_memory=False, size=3 * 2**29, free=0)
    assert not OutOfSpaceError([shm]).is_retryable
    both = OutOfSpaceError([shm, disk])
    assert both.is_retryable
    assert str(both) == (
        "no space is left on /dev/shm (64 MiB of memory), /data (1.5 GiB): "
        "raise resources.shm_gib, or make room; nothing is lost"
    )


@pytest.mark.parametrize(
    ("size", "free", "is_full"),
    [(2**26, 0, True), (2**16, 2**12, False), (2**40, 2**19, True), (2**40, 2**21, False), (2**26, 2**19, True)],
)
def test_volume_is_full_when_almost_nothing_is_free(size: int, free: int, is_full: bool) -> None:
    assert Volume("/a", "0:1", in_memory=True, size=size, free=free).is_full is is_full


def test_file_is_named_when_no_volume_is_known() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", b"/nowhere/\xff\n")
    result = AttemptResult.from_error(error)
    assert result.outcome is Outcome.UNKNOWN
    assert result.message.startswith("no space is left for '/nowhere/\\udcff\\n'")
