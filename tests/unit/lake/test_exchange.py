"""The exchange of files with Spark: in place, in a folder, and in an object store, with what is left there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergreen import maintenance, object_store
from evergreen.errors import SettingsError
from evergreen.lake import exchange
from evergreen.lake.datasets import Dataset, Manifest, dataset_at
from evergreen.lake.exchange import ObjectExchange, SharedFolder, open_exchange, remove_leftovers, spark_uri
from evergreen.settings import Settings, settings
from evergreen.storage import UPath, file_sha256, storage_path
from support.object_stores import STORES, open_store
from support.s3_server import S3

pytestmark = pytest.mark.unit

UseHome = Callable[[Path], Path]
HOUR = "period=2013-03-09T05%3A00Z"  # as Spark names the folder of an hour


@pytest.fixture
def server(use_home: UseHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Our server, with the exchange in it."""
    with open_store("own", monkeypatch) as (uri, server):
        assert server
        monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", f"{uri}/exchange")
        use_home(tmp_path / "home")
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "flights.parquet").write_bytes(b"rows" * 1000)
    return tmp_path / "flights.parquet"


def puts(server: S3) -> list[str]:
    return [path.partition("/exchange/")[2] for method, path in server.requests if method == "PUT"]


def objects(server: S3) -> set[str]:
    return {key.partition("exchange/")[2] for content in server.buckets.values() for key in content}


def test_spark_on_the_same_machine_gets_files_in_place(home: Path, tmp_path: Path) -> None:
    assert Settings(lake="s3://bucket/lake").spark_exchange is None
    assert Settings(spark="k8s://https://cluster").spark_exchange is None
    file = tmp_path / "flights.parquet"
    with open_exchange(tmp_path / "job") as job:
        assert job.provide(file) == str(file)
        assert job.uri("0") == f"{tmp_path}/job/0"
        for path in (f"0/{HOUR}/part-1.parquet", f"0/{HOUR}/part-0.parquet", "0/_temporary/part.parquet", "0/_SUCCESS"):
            (tmp_path / "job" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "job" / path).touch()
        parts = job.list_parts("0")
        assert parts == [f"0/{HOUR}/part-0.parquet", f"0/{HOUR}/part-1.parquet"]
        with job.open_parts(parts) as files:
            assert files == [tmp_path / "job" / part for part in parts]
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("spark", ["sc://spark:15002", "spark://master:7077", "k8s://https://cluster"])
def test_another_spark_finds_files_in_the_lakes_store(home: Path, spark: str) -> None:
    assert str(Settings(lake="s3://bucket/lake", spark=spark).spark_exchange) == "s3://bucket/lake/_spark"


def test_a_file_is_uploaded_once(server: S3, file: Path, tmp_path: Path) -> None:
    name = f"{file_sha256(file)}.parquet"
    shutil.copy(file, tmp_path / "same.parquet")
    server.clock = lambda: time.time() - 7200
    for number, path in enumerate((file, tmp_path / "same.parquet")):
        with open_exchange(tmp_path / f"job{number}") as job:
            assert job.provide(path).startswith("s3a://lake-")
            assert job.provide(path).endswith(f"/lake/exchange/inputs/{name}")
    # Its age, of two hours, begins anew.
    assert puts(server) == [f"inputs/{name}", *[f"inputs/{name}.used"] * 3]


def test_an_upload_that_was_cut_is_repeated(server: S3, file: Path, tmp_path: Path) -> None:
    with open_exchange(tmp_path / "job") as job:
        job.provide(file)
        [bucket] = server.buckets.values()
        [key] = bucket
        bucket[key] = b"ro"
        job.provide(file)
        assert bucket[key] == file.read_bytes()


def test_a_file_that_changes_while_it_is_uploaded_is_not_stored(
    server: S3, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file_sha256(file)
    file.write_bytes(b"other rows")
    monkeypatch.setattr(exchange, "file_sha256", lambda _: before)
    with open_exchange(tmp_path / "job") as job, pytest.raises(OSError, match="was written while it was read"):
        job.provide(file)
    assert objects(server) == set()


def test_parts_are_read_from_the_store_and_removed(server: S3, tmp_path: Path) -> None:
    with open_exchange(tmp_path / "job") as job:
        assert isinstance(job, ObjectExchange)
        for path in (
            f"0/{HOUR}/part-1.parquet",
            f"0/{HOUR}/part-0.parquet",
            "0/_temporary/0/part.parquet",
            "00/x.parquet",
        ):
            object_store.put_chunks([path.encode()], job.folder / path)
        parts = job.list_parts("0")
        assert parts == [f"0/{HOUR}/part-0.parquet", f"0/{HOUR}/part-1.parquet"]
        with job.open_parts(parts) as files:
            assert [path.read_bytes().decode() for path in files] == parts
        assert not any(path.exists() for path in files)
        assert job.uri(parts[0]).endswith(f"/{HOUR}/part-0.parquet")
    assert objects(server) == set()
    assert not (tmp_path / "job").exists()


def test_a_folder_gets_what_is_outside_of_it(
    use_home: UseHome, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    (shared / "cache").mkdir(parents=True)
    monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", str(shared))
    use_home(tmp_path / "home")
    inside = Path(shutil.copy(file, shared / "cache" / "flights.parquet"))
    copy = shared / "inputs" / f"{file_sha256(file)}.parquet"
    with open_exchange(tmp_path / "job") as job:
        assert isinstance(job, SharedFolder)
        assert job.provide(inside) == str(inside)
        assert [job.provide(file) for _ in range(2)] == [str(copy)] * 2
        assert copy.read_bytes() == file.read_bytes()
        Path(job.uri("0")).mkdir(parents=True)
        assert Path(job.uri("0")).is_relative_to(shared / "jobs")
    assert not any((shared / "jobs").iterdir())


def test_leftovers_go_by_their_age(use_home: UseHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", str(shared))
    monkeypatch.setenv("EVERGREEN_RETENTION__LEFTOVERS_DAYS", "7")
    use_home(tmp_path / "home")
    old, new = "a" * 32, "b" * 32
    now = datetime.now(UTC)
    ages = {
        f"inputs/{old}.parquet": 8,
        f"inputs/{new}.parquet": 6,
        f"jobs/{old}/0/part.parquet": 9,
        f"jobs/{new}/0/part-0.parquet": 8,
        f"jobs/{new}/0/part-1.parquet": 6,
        "jobs/flight_delay/job.json": 8,  # of training, where somebody has named one folder for both
        "raw/flights.parquet": 8,
    }
    for path, days in ages.items():
        (shared / path).parent.mkdir(parents=True, exist_ok=True)
        (shared / path).write_bytes(b"12345")
        os.utime(shared / path, ((now - timedelta(days)).timestamp(),) * 2)
    dry, real = (maintenance.clean_up(now, is_dry_run=is_dry) for is_dry in (True, False))
    assert dry == real
    [item] = real.items
    assert (item.place, item.count, item.size) == ("exchange with Spark", 2, 10)
    left = {str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()}
    assert left == ages.keys() - {f"inputs/{old}.parquet", f"jobs/{old}/0/part.parquet"}
    assert not (shared / "jobs" / old).exists()
    assert maintenance.clean_up(now, is_dry_run=False).items == ()


def test_an_exchange_that_cannot_be_cleaned_up_is_a_problem(
    server: S3, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_RETENTION__LEFTOVERS_DAYS", "7")
    settings.cache_clear()
    server.clock = lambda: time.time() - 8 * 86400
    with open_exchange(tmp_path / "job") as job:
        job.provide(file)
    server.refuses = {"DELETE", "POST"}
    [problem] = maintenance.clean_up(datetime.now(UTC), is_dry_run=False).problems
    assert "the exchange with Spark, is not cleaned up" in problem
    server.refuses = set()
    report = maintenance.clean_up(datetime.now(UTC), is_dry_run=False)
    assert [(item.count, item.size) for item in report.items] == [(1, file.stat().st_size)]
    assert objects(server) == set()


@pytest.mark.parametrize("kind", [store for store in STORES if store != "own"])
def test_uploads_that_nobody_completes_go_by_their_age(
    kind: str, use_home: UseHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    with open_store(kind, monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", f"{uri}/exchange")
        use_home(tmp_path / "home")
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        client, key = boto3.Session().client("s3"), f"{prefix}/exchange/jobs/{'a' * 32}/0/{HOUR}/part.parquet"
        number = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=number, PartNumber=1, Body=b"12345")
        client.put_object(Bucket=bucket, Key=f"{prefix}/exchange/jobs/{'a' * 32}/0/")  # as Hadoop marks folders
        now = datetime.now(UTC).timestamp()
        assert list(remove_leftovers(now - 3600, is_dry_run=False)) == []
        removed = [
            [(removal.path, removal.size) for removal in remove_leftovers(now + 3600, is_dry_run=is_dry)]
            for is_dry in (True, False, False)
        ]
        assert removed[0] == removed[1]
        assert (f"jobs/{'a' * 32}/0/{HOUR}/part.parquet", 5) in removed[1]
        assert removed[2] == []
        assert not client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/exchange/jobs/{'a' * 32}").get("Contents")


def test_spark_has_names_of_its_own_for_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spark_uri(storage_path("s3://bucket/a/b=1%3A2")) == "s3a://bucket/a/b=1%3A2"
    assert spark_uri(UPath("gs://bucket/a")) == "gs://bucket/a"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(SettingsError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        spark_uri(UPath("az://container/a"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "shop")
    assert spark_uri(UPath("az://container/a")) == "abfss://container@shop.dfs.core.windows.net/a"
    with pytest.raises(SettingsError, match="use s3://, gs://, az://, or a folder"):
        spark_uri(UPath("memory://bucket/a"))


def publish(lake: str) -> tuple[Dataset, Manifest]:
    dataset = dataset_at(storage_path(f"{lake}/features/shop"))
    staged = dataset.stage("day=2013-01-01", "f" * 64) / "days.bin"
    staged.write_bytes(b"rows" * 1000)
    return dataset, dataset.publish("day=2013-01-01", "f" * 64, {"days": staged}, {})


def test_published_files_of_the_same_kind_of_store_are_read_in_place(server: S3, tmp_path: Path) -> None:
    root = f"{settings().spark_exchange}".removesuffix("/exchange")
    dataset, manifest = publish(f"{root}/lake")
    server.requests.clear()
    with open_exchange(tmp_path / "job") as job:
        uri = job.provide_published(dataset, manifest, "days")
    assert uri == f"{root}/lake/features/shop/{manifest.files['days'].path}".replace("s3://", "s3a://")
    assert [(method, path) for method, path in server.requests if method != "LIST"] == []


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_other_published_files_are_copied_once_by_content(server: S3, tmp_path: Path, scheme: str) -> None:
    """Those that Spark could not reach, or not by the client that it has for the exchange."""
    dataset, manifest = publish(f"{scheme or tmp_path}/lake")
    for number in range(2):
        with open_exchange(tmp_path / f"job-{number}") as job:
            uri = job.provide_published(dataset, manifest, "days")
    name = f"inputs/{manifest.files['days'].sha256}.parquet"
    assert uri == f"{settings().spark_exchange}/{name}".replace("s3://", "s3a://")
    assert puts(server) == [name]


def test_a_spark_on_this_machine_gets_local_files(
    server: S3, monkeypatch: pytest.MonkeyPatch, use_home: UseHome, tmp_path: Path
) -> None:
    root = f"{settings().spark_exchange}".removesuffix("/exchange")
    monkeypatch.delenv("EVERGREEN_SPARK_EXCHANGE")
    use_home(tmp_path / "home")
    dataset, manifest = publish(f"{root}/lake")
    with open_exchange(tmp_path / "job") as job:
        assert file_sha256(Path(job.provide_published(dataset, manifest, "days"))) == manifest.files["days"].sha256
