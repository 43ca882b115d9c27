"""A training set is fetched and pinned by its hash: with the bytes that were published, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from evergreen import ledger, object_store
from evergreen.cli import app
from evergreen.errors import DatasetError, DataVersionError
from evergreen.lake import retention
from evergreen.lake.datasets import Dataset, Manifest, open_dataset
from evergreen.lake.retention import RetentionRule
from evergreen.pins import fetch_training_set, pin_training_set
from evergreen.settings import settings
from evergreen.storage import storage_path
from support.interleaving import killed_before_change
from support.ledger_events import verdict_event
from support.object_stores import STORES, open_store
from support.training_set_pins import MODEL, NAMES, publish_training_set, read_pin

pytestmark = pytest.mark.unit

MEMORY_DISK = Path("/dev/shm")


@pytest.fixture(params=["folder", "own"])
def store(
    request: pytest.FixtureRequest, home: Path, use_home: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str | None]:
    """Keep the lake in a folder, or in a store; yield the URI of a DVC remote in that store."""
    if request.param == "folder":
        yield None
        return
    with open_store(request.param, monkeypatch) as (uri, _):
        monkeypatch.setenv("EVERGREEN_LAKE", uri)
        use_home(home)
        yield f"{uri}-dvc"


def training_sets() -> Dataset:
    return open_dataset(f"training_sets/{MODEL}")


def published_bytes(manifest: Manifest) -> dict[str, bytes]:
    return {f"{name}.parquet": training_sets().file_path(manifest, name).read_bytes() for name in manifest.files}


def object_files(remote: Path) -> list[Path]:
    return sorted(remote.glob("files/md5/??/[!.]*"))


def footprint(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of change of all files."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def expire_all() -> None:
    """Let maintenance remove all that is published, and then its files."""
    rule = RetentionRule(leftovers_after=0, expires_after=0, is_needed=lambda _: False)
    for _ in range(2):
        later = time.time() + 1000
        plan = retention.plan_removals(retention.take_inventory(training_sets()), rule, later)
        assert list(retention.apply_removals(training_sets(), plan, rule, later))


def judge(as_of: int, manifest: Manifest) -> None:
    """Record a verdict on a candidate that has learned from a training set."""
    event = verdict_event(as_of).model_copy(update={"fingerprints": {"training_set": manifest.content_hash}})
    ledger.append_decision(MODEL, "ada", lambda _: event)


@pytest.mark.usefixtures("store")
def test_files_are_fetched_by_fingerprint_or_content() -> None:
    first, second = publish_training_set("2013-01-10", "a", 1), publish_training_set("2013-01-17", "b", 2)
    for text in ("a" * 8, "a" * 64, first.content_hash[:8], first.content_hash):
        files = fetch_training_set(MODEL, text)
        assert tuple(files) == NAMES
        assert pq.read_table(files["train"])["train"].to_pylist() == [1, 1, 1]
    assert pq.read_table(fetch_training_set(MODEL, "b" * 12)["train"])["train"].to_pylist() == [2, 2, 2]
    assert second.content_hash != first.content_hash


@pytest.mark.usefixtures("home")
def test_of_equal_content_the_newest_is_fetched() -> None:
    first, second = publish_training_set("2013-01-10", "a", 1), publish_training_set("2013-01-17", "b", 1)
    assert first.content_hash == second.content_hash
    assert "as_of=2013-01-17" in str(fetch_training_set(MODEL, first.content_hash)["train"])
    assert "as_of=2013-01-10" in str(fetch_training_set(MODEL, "a" * 8)["train"])


@pytest.mark.usefixtures("store")
def test_unknown_hashes_are_answered_with_those_there_are() -> None:
    with pytest.raises(DataVersionError, match=r"none is in .*lake: check EVERGREEN_LAKE and the name"):
        fetch_training_set(MODEL, "a" * 8)
    manifest = publish_training_set("2013-01-10", "a", 1)
    with pytest.raises(DataVersionError) as error:
        fetch_training_set(MODEL, "f" * 64)
    assert str(error.value) == (
        f"shop has no training set ffffffffffff; there are\n"
        f"  as of 2013-01-10: fingerprint aaaaaaaaaaaa, content {manifest.content_hash[:12]}"
    )


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("text", ["a" * 7, "a" * 65, "A" * 8, "as_of=2013", "", "../../lake", "aaaaaaaa\n"])
def test_what_is_no_hash_is_refused(text: str) -> None:
    publish_training_set("2013-01-10", "a", 1)
    with pytest.raises(DataVersionError, match="is no fingerprint of a training set"):
        fetch_training_set(MODEL, text)


@pytest.mark.usefixtures("home")
def test_ambiguous_digits_are_refused() -> None:
    publish_training_set("2013-01-10", "a", 1)
    dataset, partition = training_sets(), "as_of=2013-01-17"
    file = dataset.stage(partition, "c" * 64) / "train.parquet"
    file.write_bytes(fetch_training_set(MODEL, "a" * 8)["train"].read_bytes())
    dataset.publish(partition, "a" * 63 + "b", {"train": file}, {"as_of": "2013-01-17"})
    with pytest.raises(DataVersionError, match=r"(?s)begins several hashes.*2013-01-17.*2013-01-10"):
        fetch_training_set(MODEL, "a" * 63)
    assert list(fetch_training_set(MODEL, "a" * 63 + "b")) == ["train"]


@pytest.mark.usefixtures("home")
def test_a_model_outside_of_the_lake_is_refused() -> None:
    with pytest.raises(DataVersionError, match="no model"):
        fetch_training_set("../../features/shop", "a" * 8)


@pytest.mark.usefixtures("home")
def test_errors_tell_expired_from_replaced() -> None:
    first = publish_training_set("2013-01-11", "a", 1)
    judge(10, first)
    second = publish_training_set("2013-01-11", "b", 2)
    with pytest.raises(DataVersionError, match=r"(?s)that as of 2013-01-11 was replaced.*bbbbbbbbbbbb"):
        fetch_training_set(MODEL, first.content_hash[:10])
    judge(10, second)
    expire_all()
    with pytest.raises(DataVersionError, match=r"any more: that as of 2013-01-11 has expired"):
        fetch_training_set(MODEL, second.content_hash)
    with pytest.raises(DataVersionError, match=r"has no training set bbbbbbbbbbbb; none is in"):
        fetch_training_set(MODEL, "b" * 64)


@pytest.mark.usefixtures("home")
def test_what_is_fetched_is_in_use() -> None:
    publish_training_set("2013-01-10", "a", 1)
    file = training_sets().manifest_path("as_of=2013-01-10")
    os.utime(file, (0, 0))
    fetch_training_set(MODEL, "a" * 8)
    assert file.stat().st_mtime > 0


@pytest.mark.parametrize("store", ["folder", *STORES], indirect=True)
def test_a_pin_is_what_dvc_reads(store: str | None, tmp_path: Path) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    for remote in filter(None, (str(tmp_path / "remote"), store, store)):
        pin = pin_training_set(MODEL, "a" * 8, tmp_path / "data", remote)
        assert read_pin(tmp_path / "data/shop.dvc", remote) == published_bytes(manifest)
        assert yaml.safe_load(pin.file.read_text())["meta"] == {
            "evergreen": {
                "model": "shop",
                "as_of": "2013-01-10",
                "fingerprint": "a" * 64,
                "content": manifest.content_hash,
            }
        }
        assert os.listdir(tmp_path / "data") == ["shop.dvc"]


def test_a_pin_in_the_same_file_system_takes_no_space(home: Path, tmp_path: Path) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    pin_training_set(MODEL, "a" * 8, tmp_path, str(tmp_path / "remote"))
    published = {training_sets().file_path(manifest, name).stat().st_ino for name in NAMES}
    assert {file.stat().st_ino for file in object_files(tmp_path / "remote")} > published


@pytest.mark.usefixtures("home")
def test_another_file_system_gets_copies(tmp_path: Path) -> None:
    if not MEMORY_DISK.is_dir() or MEMORY_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{MEMORY_DISK} is not another file system")
    manifest = publish_training_set("2013-01-10", "a", 1)
    with TemporaryDirectory(dir=MEMORY_DISK) as remote:
        pin_training_set(MODEL, "a" * 8, tmp_path, remote)
        assert read_pin(tmp_path / "shop.dvc", remote) == published_bytes(manifest)
        assert len(list(Path(remote, "files/md5").iterdir())) == len(NAMES) + 1
        before = footprint(Path(remote))
        pin_training_set(MODEL, "a" * 8, tmp_path, remote)
        assert footprint(Path(remote)) == before


def test_to_pin_twice_changes_nothing(store: str | None, tmp_path: Path) -> None:
    publish_training_set("2013-01-10", "a", 1)
    remote = store or str(tmp_path / "remote")

    def stored() -> object:
        places = list(object_store.list_objects(storage_path(store))) if store else [footprint(tmp_path / "remote")]
        return footprint(tmp_path / "data"), places

    pin_training_set(MODEL, "a" * 8, tmp_path / "data", remote)
    before = stored()
    pin_training_set(MODEL, "a" * 8, tmp_path / "data", remote)
    assert stored() == before
    assert not list(settings().cache.glob("tmp*"))


@pytest.mark.usefixtures("home")
def test_a_pin_is_replaced_and_earlier_objects_stay(tmp_path: Path) -> None:
    first = publish_training_set("2013-01-10", "a", 1)
    second = publish_training_set("2013-01-17", "b", 2)
    file, remote = tmp_path / "shop.dvc", str(tmp_path / "remote")
    pin_training_set(MODEL, "a" * 8, tmp_path, remote)
    committed = tmp_path / "committed.dvc"
    committed.write_text(file.read_text())
    pin_training_set(MODEL, "b" * 8, tmp_path, remote)
    assert read_pin(file, remote) == published_bytes(second)
    assert read_pin(committed, remote) == published_bytes(first)


@pytest.mark.usefixtures("home")
def test_a_pin_outlives_its_training_set(tmp_path: Path) -> None:
    content = published_bytes(publish_training_set("2013-01-10", "a", 1))
    remote = str(tmp_path / "remote")
    pin_training_set(MODEL, "a" * 8, tmp_path, remote)
    expire_all()
    assert not list(training_sets().root.rglob("*.parquet"))
    assert read_pin(tmp_path / "shop.dvc", remote) == content


@pytest.mark.usefixtures("home")
def test_to_empty_a_remote_leaves_the_lake_alone(tmp_path: Path) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    pin_training_set(MODEL, "a" * 8, tmp_path, str(tmp_path / "remote"))
    before = published_bytes(manifest)
    for file in object_files(tmp_path / "remote"):
        file.unlink()
    assert published_bytes(manifest) == before


@pytest.mark.usefixtures("home")
def test_a_kill_at_any_moment_leaves_nothing_half(tmp_path: Path) -> None:
    contents = [published_bytes(publish_training_set(f"2013-01-1{n}", "ab"[n], n)) for n in range(2)]
    (tmp_path / ".git").mkdir()
    file, remote = tmp_path / "shop.dvc", str(tmp_path / "remote")
    for number, expected in enumerate(contents):
        kills = 0
        while killed_before_change(
            kills, lambda digit="ab"[number]: pin_training_set(MODEL, digit * 8, tmp_path, remote)
        ):
            kills += 1
            if file.exists():
                assert read_pin(file, remote) in contents[: number + 1]
            for kept in object_files(Path(remote)):
                assert hashlib.md5(kept.read_bytes()).hexdigest() == kept.parent.name + kept.name.removesuffix(".dir")
        assert kills > len(NAMES)
        assert read_pin(file, remote) == expected


def test_changed_bytes_are_never_pinned(store: str | None, tmp_path: Path) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    if store:
        object_store.put_file(Path(__file__), training_sets().root / manifest.files["train"].path)
        for copy in (settings().cache / "objects").rglob("*.parquet"):
            copy.unlink()
    else:
        training_sets().file_path(manifest, "train").write_bytes(b"forged")
    with pytest.raises(DatasetError, match="is not what its manifest names"):
        fetch_training_set(MODEL, "a" * 8)
    with pytest.raises(DatasetError, match="is not what its manifest names"):
        pin_training_set(MODEL, "a" * 8, tmp_path / "data", str(tmp_path / "remote"))
    assert not (tmp_path / "data").exists()
    assert len(object_files(tmp_path / "remote")) == len(NAMES) - 1
    assert not list((tmp_path / "remote/files/md5").glob(".*"))


@pytest.mark.usefixtures("home")
def test_changed_bytes_are_never_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    training_sets().file_path(manifest, "train").write_bytes(b"forged")
    with open_store("own", monkeypatch) as (remote, _):
        with pytest.raises(DatasetError, match="is not what its manifest names"):
            pin_training_set(MODEL, "a" * 8, tmp_path, remote)
        assert len(list(object_store.list_objects(storage_path(remote)))) == len(NAMES) - 1


def test_damaged_objects_are_written_again(store: str | None, tmp_path: Path) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    remote = store or str(tmp_path / "remote")
    pin_training_set(MODEL, "a" * 8, tmp_path / "data", remote)
    objects = [file for file in (storage_path(remote) / "files/md5").rglob("*") if file.is_file()]
    assert len(objects) == len(NAMES) + 1
    for file in objects:
        file.unlink()
        file.write_bytes(b"half")
    pin_training_set(MODEL, "a" * 8, tmp_path / "data", remote)
    assert read_pin(tmp_path / "data/shop.dvc", remote) == published_bytes(manifest)


@pytest.mark.usefixtures("home")
def test_removed_files_are_named(tmp_path: Path) -> None:
    manifest = publish_training_set("2013-01-10", "a", 1)
    training_sets().file_path(manifest, "recent").unlink()
    for action in (
        lambda: fetch_training_set(MODEL, "a" * 8),
        lambda: pin_training_set(MODEL, "a" * 8, tmp_path, str(tmp_path / "remote")),
    ):
        with pytest.raises(DataVersionError, match="shop: recent of the training set as of 2013-01-10 is gone"):
            action()
    assert not (tmp_path / "shop.dvc").exists()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    "text",
    ["outs:\n- {md5: abcd, path: shop}\n", "", "[", "meta: evergreen", "meta: {evergreen: {model: shop}}", "\x00"],
)
def test_a_dvc_file_of_somebody_else_stays(tmp_path: Path, text: str) -> None:
    publish_training_set("2013-01-10", "a", 1)
    (tmp_path / "shop.dvc").write_text(text)
    with pytest.raises(DataVersionError, match=r"shop\.dvc is no pin of Evergreen's: name another folder"):
        pin_training_set(MODEL, "a" * 8, tmp_path, str(tmp_path / "remote"))
    assert (tmp_path / "shop.dvc").read_text() == text
    assert not (tmp_path / "remote").exists()


@pytest.mark.usefixtures("home")
def test_what_people_add_to_a_pin_stays(tmp_path: Path) -> None:
    publish_training_set("2013-01-10", "a", 1)
    second = publish_training_set("2013-01-17", "b", 2)
    file, remote = tmp_path / "shop.dvc", str(tmp_path / "remote")
    pin_training_set(MODEL, "a" * 8, tmp_path, remote)
    content = yaml.safe_load(file.read_text())
    content["outs"][0]["remote"] = "lake"
    content["meta"]["ticket"] = 7
    file.write_text(yaml.safe_dump(content))
    pin_training_set(MODEL, "b" * 8, tmp_path, remote)
    content = yaml.safe_load(file.read_text())
    assert (content["outs"][0]["remote"], content["meta"]["ticket"]) == ("lake", 7)
    assert content["meta"]["evergreen"]["as_of"] == "2013-01-17"
    assert read_pin(file, remote) == published_bytes(second)


@pytest.mark.usefixtures("home")
def test_git_ignores_what_dvc_pulls(tmp_path: Path) -> None:
    publish_training_set("2013-01-10", "a", 1)
    (tmp_path / ".git").mkdir()
    ignored = tmp_path / "data/.gitignore"
    ignored.parent.mkdir()
    ignored.write_text("*.tmp")
    for _ in range(2):
        pin_training_set(MODEL, "a" * 8, tmp_path / "data", str(tmp_path / "remote"))
        assert ignored.read_text() == "*.tmp\n/shop\n"


@pytest.mark.usefixtures("home")
def test_a_remote_without_atomic_puts_is_refused(tmp_path: Path) -> None:
    publish_training_set("2013-01-10", "a", 1)
    with pytest.raises(DataVersionError, match=r"ssh://host/dvc cannot be written to: .* pin into a folder"):
        pin_training_set(MODEL, "a" * 8, tmp_path, "ssh://ada:secret@host/dvc")
    assert not (tmp_path / "shop.dvc").exists()


@pytest.mark.usefixtures("home")
def test_the_command_says_what_it_has_pinned(tmp_path: Path) -> None:
    publish_training_set("2013-01-10", "a", 1)
    remote = str(tmp_path / "remote")
    options = ["--to", str(tmp_path), "--remote", remote]
    result = CliRunner().invoke(app, ["pin", MODEL, "a" * 8, *options])
    assert result.exit_code == 0
    assert result.stdout == (
        f"{tmp_path}/shop.dvc: shop as of 2013-01-10, 4 files, 0.0 MB\n"
        f"fingerprint {'a' * 64}\n"
        f"`dvc pull {tmp_path}/shop.dvc` gets it from {remote}\n"
    )
    result = CliRunner().invoke(app, ["pin", MODEL, "f" * 8, *options])
    assert result.exit_code == 1
    assert "evergreen: shop has no training set ffffffff; there are\n  as of 2013-01-10" in result.stderr
