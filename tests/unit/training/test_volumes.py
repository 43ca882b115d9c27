"""Which volume was full when a write failed, and what to do about it: on real volumes, in a mount namespace."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evergreen.training.backends.process import trainer_environment
from evergreen.training.outcome import Outcome
from evergreen.training.volumes import OutOfSpaceError, Volume

pytestmark = pytest.mark.unit

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
HOSTILE = [
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
    """Mounts without being root, which most Linux machines allow."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount in a namespace of their own")


@pytest.fixture
def fails(_namespaces: None, tmp_path: Path) -> Any:
    """Runs `code`, which fails, with volumes of memory at `paths` below `root`; returns outcome and sentence."""

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
def filled(*path):
    try:
        fill(*path)
    except OSError:
        pass
for path in {paths!r}:
    mount(os.path.join(root, path), {size!r})
mount(b"/dev/shm", {shm!r})
from evergreen.training.outcome import Outcome
from evergreen.training.volumes import identify_full_volume
try:
{"".join(f"    {line}{chr(10)}" for line in code.splitlines())}
except Exception as error:
    outcome, sentence = Outcome.from_error(error)
    print(json.dumps([outcome.value, sentence]))
"""
        done = subprocess.run(
            ["unshare", "-rm", sys.executable, "-c", program],
            env=trainer_environment() | (POD if pod else {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        value, sentence = json.loads(done.stdout)
        assert sentence.isprintable(), "a container's last words are one line"
        assert len(sentence) < 500, "which a pod's status still holds"
        return Outcome(value), sentence

    return run


def test_full_shared_memory_is_out_of_memory(fails: Any) -> None:
    outcome, sentence = fails("fill(b'/dev/shm')", b"other")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert sentence == "no space is left on /dev/shm (1 MiB of memory): raise resources.shm_gib"


def test_shared_memory_of_this_machine_may_have_room_later(fails: Any) -> None:
    outcome, sentence = fails("fill(b'/dev/shm')", pod=False)
    assert outcome is Outcome.UNKNOWN
    assert sentence == "no space is left on /dev/shm (1 MiB of memory): make room; nothing is lost"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_full_volume_is_named_whatever_its_name(fails: Any, tmp_path: Path, name: bytes) -> None:
    outcome, sentence = fails(f"fill({name!r})", name, b"other")
    assert outcome is Outcome.OUT_OF_MEMORY
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    shown = path if path.isprintable() else ascii(path)
    assert sentence.startswith("no space is left on ")
    assert f"{shown[-200:]} (64 KiB of memory): give that volume more in EVERGREEN_PODS__TEMPLATE" in sentence


def test_several_full_volumes_are_all_named(fails: Any, tmp_path: Path) -> None:
    outcome, sentence = fails("filled(b'a'); filled(b'c'); fill(b'/dev/shm')", b"a", b"b", b"c")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert sentence == (
        f"no space is left on /dev/shm (1 MiB of memory), {tmp_path}/a (64 KiB of memory), {tmp_path}/c (64 KiB of "
        "memory): raise resources.shm_gib, or give that volume more in EVERGREEN_PODS__TEMPLATE"
    )


def test_one_volume_in_two_places_is_named_once(fails: Any, tmp_path: Path) -> None:
    bind = "subprocess.run(['mount', '--bind', os.path.join(root, b'a'), os.path.join(root, b'b')], check=True)"
    _, sentence = fails(f"{bind}\nfill(b'b')", b"a", b"b")
    assert sentence.startswith(f"no space is left on {tmp_path}/a (64 KiB of memory): ")


def test_a_volume_without_inodes_is_full(fails: Any, tmp_path: Path) -> None:
    remount = "subprocess.run(['mount', '-o', 'remount,nr_inodes=3', os.path.join(root, b'a')], check=True)"
    files = "for i in range(9): tempfile.mkstemp(dir=os.path.join(root, b'a'))"
    _, sentence = fails(f"{remount}\n{files}", b"a")
    assert f"on {tmp_path}/a (64 KiB of memory)" in sentence


def test_a_file_that_is_named_tells_its_volume(fails: Any, tmp_path: Path) -> None:
    """A copy names two files, and fails at the second; the full volume that is not concerned is not named."""
    (tmp_path / "large").write_bytes(b"x" * 2**17)
    copy = "import shutil; shutil.copyfile(os.path.join(root, b'large'), os.path.join(root, b'a/inner/new'))"
    outcome, sentence = fails(f"filled(b'/dev/shm')\n{copy}", b"a", b"a/inner")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert sentence.startswith(f"no space is left for {tmp_path}/a/inner/new on {tmp_path}/a/inner (64 KiB")


def test_what_is_removed_on_the_way_out_was_full(fails: Any, tmp_path: Path) -> None:
    code = """
with tempfile.TemporaryDirectory(dir=os.path.join(root, b'a')) as scratch, identify_full_volume():
    fill(scratch)
"""
    outcome, sentence = fails(code, b"a")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert f"on {tmp_path}/a (64 KiB of memory)" in sentence


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
def test_libraries_with_words_of_their_own_for_it(fails: Any, tmp_path: Path, code: str) -> None:
    outcome, sentence = fails(code, b"a")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert f"on {tmp_path}/a (64 KiB of memory)" in sentence


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)",
    ],
)  # fmt: skip
def test_a_segment_that_does_not_fit_leaves_shared_memory_free(fails: Any, text: str) -> None:
    outcome, sentence = fails(f"filled(b'a'); raise RuntimeError({text!r})", b"a")
    assert outcome is Outcome.OUT_OF_MEMORY
    assert sentence == "no space is left on /dev/shm (1 MiB of memory): raise resources.shm_gib"


def test_words_alone_are_believed_of_no_volume_with_room(fails: Any) -> None:
    """A disk that fails, or the server of an object store, may say them too; what it says is worth reading."""
    outcome, sentence = fails("raise RuntimeError('bucket b: no space left on device')", b"a")
    assert (outcome, sentence) == (Outcome.UNKNOWN, "RuntimeError: bucket b: no space left on device")


def test_a_volume_that_has_room_again_is_not_known(fails: Any) -> None:
    write = """
import pyarrow, pyarrow.parquet  # which removes what it could not finish
table = pyarrow.table({'a': list(range(10**5))})
pyarrow.parquet.write_table(table, os.path.join(root, b'a/x').decode())
"""
    outcome, sentence = fails(write, b"a")
    assert outcome is Outcome.UNKNOWN
    assert sentence == "no space is left for its files: make room; nothing is lost"


def test_a_disk_beside_full_memory_may_have_been_it(monkeypatch: pytest.MonkeyPatch) -> None:
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
    [
        (2**26, 0, True),
        (2**16, 2**12, False),
        (2**40, 2**19, True),
        (2**40, 2**21, False),
        (2**26, 2**19, True),
    ],
)
def test_full_is_next_to_nothing_free(size: int, free: int, is_full: bool) -> None:
    assert Volume("/a", "0:1", in_memory=True, size=size, free=free).is_full is is_full


def test_a_file_is_named_where_no_volume_is_known() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", b"/nowhere/\xff\n")
    outcome, sentence = Outcome.from_error(error)
    assert outcome is Outcome.UNKNOWN
    assert sentence.startswith("no space is left for '/nowhere/\\udcff\\n'")
