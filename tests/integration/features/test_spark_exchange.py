"""Features by a Spark that has no disk in common with the task: the same bytes, and nothing of a killed job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from evergreen import object_store
from evergreen.cli.doctor import servers
from evergreen.cli.doctor.outcomes import CheckFailedError
from evergreen.lake import datasets
from evergreen.lake.exchange import remove_leftovers
from evergreen.settings import SecretUrl, settings
from evergreen.storage import storage_path
from integration.features.conftest import KnownFeatures
from support import servers as running
from support.feature_builds import build_features, start_build
from support.spark_stores import COMMITTER, needs_s3a, s3_folder, s3a_conf

pytestmark = [pytest.mark.integration, *needs_s3a]

UseHome = Callable[[Path], Path]


def _command_lines(pid: int) -> list[str]:
    """Return the command lines of the children of a process."""
    lines = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # or a zombie
            lines.append(" ".join(child.cmdline()))
    return lines


def test_a_killed_job_leaves_nothing_visible(
    known_features: KnownFeatures, use_home: UseHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark in the task's process; files appear as their uploads are completed."""
    monkeypatch.setenv("EVERGREEN_RAW", str(known_features.raw))
    monkeypatch.setenv("EVERGREEN_SPARK_CONF", s3a_conf())
    with s3_folder(monkeypatch) as uri:
        monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", f"{uri}/exchange")
        use_home(tmp_path / "home")
        jobs = storage_path(f"{uri}/exchange/jobs")
        process = start_build(known_features.periods)
        try:
            while not any(object_store.list_uploads(jobs)):  # between the commit of a task and that of the job
                assert process.poll() is None, process.communicate()[0][-3000:]
                time.sleep(0.02)
            lines = _command_lines(process.pid)
            assert any("java" in line for line in lines)
            assert not any(os.environ["AWS_SECRET_ACCESS_KEY"] in line for line in lines)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        assert any(object_store.list_uploads(jobs))
        assert all(not datasets.open_dataset(f"features/{model}").partitions() for model in known_features.periods)
        assert build_features(known_features.periods) == known_features.hashes
        left = {removal.path.partition("/")[0] for removal in remove_leftovers(time.time() + 3600, is_dry_run=False)}
        assert left == {"inputs", "jobs"}
        assert not list(object_store.list_objects(storage_path(uri)))
        assert not list(object_store.list_uploads(storage_path(uri)))


def test_a_server_exchanges_files_through_the_store_of_the_lake(
    known_features: KnownFeatures, use_home: UseHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the committer's classes, files appear by renaming."""
    monkeypatch.setenv("EVERGREEN_RAW", str(known_features.raw))
    with s3_folder(monkeypatch) as uri, ExitStack() as stack:
        monkeypatch.setenv("EVERGREEN_LAKE", f"{uri}/lake")
        monkeypatch.setenv("EVERGREEN_SPARK_CONF", s3a_conf(without=COMMITTER))
        use_home(tmp_path / "home")
        url, token = stack.enter_context(running.spark(tmp_path / "spark"))
        monkeypatch.setenv("EVERGREEN_SPARK", url)
        monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", token)
        use_home(tmp_path / "home")
        place = settings().spark_exchange
        assert str(place) == f"{uri}/lake/_spark"
        assert place is not None
        message = servers.check_spark_connect(SecretUrl(url), place).message
        assert message.endswith("exchanges files with tasks")
        assert not list(object_store.list_objects(place))
        assert build_features(known_features.periods) == known_features.hashes
        assert {item.path.partition("/")[0] for item in object_store.list_objects(place)} == {"inputs"}


def test_doctor_names_the_packages_that_a_server_lacks(
    use_home: UseHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_folder(monkeypatch) as uri:
        monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", uri)
        use_home(tmp_path / "home")
        with running.spark(tmp_path / "spark") as (url, token):
            monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", token)
            with pytest.raises(CheckFailedError) as caught:
                servers.check_spark_connect(SecretUrl(url), storage_path(uri))
        assert "S3AFileSystem is missing" in caught.value.problem
        assert "org.apache.hadoop:hadoop-aws" in caught.value.fix
