"""Features computed by a standalone cluster: a master and two workers, whose user cannot read what the task has."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pyspark
import pytest

from evergreen.local_services import accepts_connections
from evergreen.settings import LOOPBACK_HOST
from integration.features.conftest import KnownFeatures
from support.feature_builds import build_features
from support.servers import free_port
from support.spark_stores import needs_s3a, s3_folder, s3a_conf

pytestmark = [pytest.mark.integration, *needs_s3a]

_DEPLOY = "org.apache.spark.deploy"
_SPARK = Path(pyspark.__file__).parent
_READY_TIMEOUT_S = 120
_OTHER_USER = "nobody"
_SMALL = {"SPARK_DAEMON_MEMORY": "128m", "SPARK_LOCAL_IP": LOOPBACK_HOST}


@contextmanager
def _daemon(command: Sequence[str], folder: Path, user: str | None, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a process of a cluster, whose log is in `folder`."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, user=user)
    try:
        yield
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.wait()


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[Path]]]:
    """The URL of a master, and the work folders of its two workers, which have no keys of the store."""
    user = _OTHER_USER if os.geteuid() == 0 else None
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "EVERGREEN_"))}
    environment |= {"SPARK_HOME": str(_SPARK), **_SMALL}
    port = free_port()
    url = f"spark://{LOOPBACK_HOST}:{port}"
    with tempfile.TemporaryDirectory(prefix="spark-cluster-") as root, ExitStack() as stack:
        Path(root).chmod(0o711)
        for name in ("master", "worker-1", "worker-2"):
            folder = Path(root, name)
            folder.mkdir()
            if user:
                shutil.chown(folder, user)
            options = ("--host", LOOPBACK_HOST, "--webui-port", "0")
            command = [str(_SPARK / "bin" / "spark-class"), f"{_DEPLOY}.master.Master", *options, "--port", str(port)]
            if name != "master":
                resources = ("--cores", "1", "--memory", "600m", "--work-dir", str(folder))
                command = [command[0], f"{_DEPLOY}.worker.Worker", *options, *resources, url]
            stack.enter_context(_daemon(command, folder, user, environment))
            deadline = time.monotonic() + _READY_TIMEOUT_S
            while not (accepts_connections(LOOPBACK_HOST, port, 1) if name == "master" else _is_registered(folder)):
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield url, [Path(root, "worker-1"), Path(root, "worker-2")]


def _is_registered(folder: Path) -> bool:
    return "Successfully registered with master" in (folder / "log").read_text()


def test_features_of_a_cluster_without_a_shared_disk(
    cluster: tuple[str, list[Path]],
    known_features: KnownFeatures,
    use_home: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, workers = cluster
    monkeypatch.setenv("EVERGREEN_SPARK", url)
    small = {"spark.executor.memory": "512m", "spark.driver.memory": "512m", "spark.sql.shuffle.partitions": "2"}
    monkeypatch.setenv("EVERGREEN_SPARK_CONF", s3a_conf(**small))
    monkeypatch.setenv("SPARK_LOCAL_IP", LOOPBACK_HOST)
    monkeypatch.setenv("EVERGREEN_RAW", str(known_features.raw))
    with s3_folder(monkeypatch) as uri:
        monkeypatch.setenv("EVERGREEN_LAKE", f"{uri}/lake")
        use_home(tmp_path / "home")
        assert build_features(known_features.periods) == known_features.hashes
    for worker in workers:
        [executor] = worker.glob("app-*/*")
        assert "Finished task" in (executor / "stderr").read_text()
