"""A training set by a Spark that has no disk in common with the task: published features are read where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen import object_store
from evergreen.feature_store import training_sets
from evergreen.lake import datasets
from evergreen.settings import settings
from evergreen.storage import storage_path
from support import servers as running
from support.loans import window, write_loans
from support.small_models import UseModels
from support.spark_stores import COMMITTER, needs_s3a, s3_folder, s3a_conf

pytestmark = [pytest.mark.integration, *needs_s3a]

GATES = 'dict(kind="threshold", metric="rmse", at_most=9.0)'
AS_OF = "2024-03-18"


def identity(manifest: datasets.Manifest) -> tuple[str, object, dict[str, tuple[str, int | None]]]:
    """Return what two manifests have in common: in a store, the path of a file names its attempt too."""
    return manifest.fingerprint, manifest.inputs, {k: (f.sha256, f.rows) for k, f in manifest.files.items()}


def test_a_cluster_reads_features_where_they_are_published(
    tmp_path: Path,
    use_home: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    use_models: UseModels,
) -> None:
    with s3_folder(monkeypatch) as uri:
        monkeypatch.setenv("EVERGREEN_LAKE", f"{uri}/lake")
        monkeypatch.setenv("EVERGREEN_SPARK_CONF", s3a_conf(without=COMMITTER))
        home = use_home(tmp_path / "home")
        model = write_loans(tmp_path, monkeypatch, use_models, GATES, label_delay=2)
        by_duckdb = training_sets.build_training_set(model, window(model, AS_OF))
        dataset = training_sets.training_set_dataset(model)
        object_store.delete([storage_path(str(dataset.manifest_path(by_duckdb.partition)))])
        with running.spark(tmp_path / "spark") as (url, token):
            monkeypatch.setenv("EVERGREEN_SPARK", url)
            monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", token)
            monkeypatch.setenv("EVERGREEN_TRAINING_SET_ENGINE", "spark")
            monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "another machine"))
            use_home(home)
            by_spark = training_sets.build_training_set(model, window(model, AS_OF))
        assert identity(by_spark) == identity(by_duckdb)
        assert by_spark.files["train"].path != by_duckdb.files["train"].path
        assert by_spark.files["train"].rows
        cached = [file for file in (settings().cache / "objects").rglob("*.parquet") if "/features/" in str(file)]
        assert cached == []
        exchange = settings().spark_exchange
        assert str(exchange) == f"{uri}/lake/_spark"
        assert list(object_store.list_objects(storage_path(str(exchange)))) == []  # neither copies nor results
