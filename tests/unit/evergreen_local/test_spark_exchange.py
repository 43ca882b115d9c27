"""Which files tasks of a local stack and its Spark server exchange, where the lake is in an object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evergreen.settings import Settings, settings
from evergreen_local.services import spark_exchange_environment

pytestmark = pytest.mark.unit


def test_a_local_server_reads_the_cache_of_its_machine(
    use_home: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_home(tmp_path)
    assert spark_exchange_environment() == {}
    monkeypatch.setenv("EVERGREEN_LAKE", "s3://bucket/lake")
    use_home(tmp_path)
    assert spark_exchange_environment() == {"EVERGREEN_SPARK_EXCHANGE": str(settings().cache)}
    for name, value in {"EVERGREEN_SPARK": "sc://localhost:15002", **spark_exchange_environment()}.items():
        monkeypatch.setenv(name, value)
    assert Settings().spark_exchange == settings().cache
    monkeypatch.setenv("EVERGREEN_SPARK_EXCHANGE", "s3://bucket/exchange")
    use_home(tmp_path)
    assert spark_exchange_environment() == {}
