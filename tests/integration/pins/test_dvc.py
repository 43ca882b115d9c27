"""DVC itself reads a pin: pull, status, get, push and gc, from a folder and from an S3 server.

DVC is no dependency of Evergreen: EVERGREEN_TEST_DVC names its executable, in an environment of its own with dvc[s3].
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evergreen.lake.datasets import open_dataset
from evergreen.pins import pin_training_set
from support.object_stores import REAL_S3, open_store
from support.training_set_pins import MODEL, publish_training_set

DVC = os.environ.get("EVERGREEN_TEST_DVC", "")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not DVC, reason="EVERGREEN_TEST_DVC names no executable of DVC"),
]


@pytest.fixture(
    params=[
        "folder",
        pytest.param("real", marks=pytest.mark.skipif(not REAL_S3, reason="EVERGREEN_TEST_S3 names no server")),
    ]
)
def remote(
    request: pytest.FixtureRequest, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A DVC remote; the lake is in a folder or store like it."""
    if request.param == "folder":
        yield str(home.parent / "remote")
        return
    with open_store(request.param, monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        yield f"{uri}-dvc"


@pytest.fixture
def dvc(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run DVC in a new project with this remote; return what it prints."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc"))
    project = tmp_path / "project"
    project.mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run([DVC, *arguments], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    run("init", "--quiet")
    run("remote", "add", "--default", "lake", remote)
    if remote.startswith("s3://"):
        run("remote", "modify", "lake", "endpointurl", REAL_S3 or "")
    return run


def test_dvc_reads_and_keeps_what_is_pinned(remote: str, dvc: Callable[..., str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    data = project / "data"

    def pin(digit: str) -> None:
        pin_training_set(MODEL, digit * 8, data, remote)

    contents = []
    for digit in "ab":
        manifest = publish_training_set(f"2013-01-1{'ab'.index(digit)}", digit, ord(digit))
        dataset = open_dataset(f"training_sets/{MODEL}")
        contents.append({f"{n}.parquet": dataset.file_path(manifest, n).read_bytes() for n in manifest.files})
        pin(digit)
        dvc("pull", "data/shop.dvc")
        assert {file.name: file.read_bytes() for file in (data / MODEL).iterdir()} == contents[-1]
        assert "up to date" in dvc("status")
        assert "in sync" in dvc("status", "--cloud")
        assert "up to date" in dvc("push")
    tracked = subprocess.run(
        ["git", "add", "--all", "--verbose"], cwd=project, check=True, capture_output=True, text=True
    )
    assert "shop.dvc" in tracked.stdout
    assert "parquet" not in tracked.stdout
    dvc("get", str(project), "data/shop", "--out", str(tmp_path / "got"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "got").iterdir()} == contents[1]
    # What no pin of the workspace names goes; the rest, and the lake, stays.
    dvc("gc", "--workspace", "--cloud", "--force")
    dvc("fetch")
    pin("a")
    dvc("pull")
    assert {file.name: file.read_bytes() for file in (data / MODEL).iterdir()} == contents[0]
