"""A model with two views of hourly rows, whose features are published without Spark."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from evergreen.feature_store import repository
from evergreen.lake import datasets, fingerprints
from evergreen.periods import Calendar
from evergreen.settings import REPOSITORY
from evergreen.window import RunReason, Window

ZONE = "America/New_York"
SPEC = """
from evergreen.spec.model import ModelSpec
MODEL = ModelSpec(
    name="ponds", feature_service="ponds",
    features=dict(timezone="America/New_York", first_day="2013-01-01", spine="visits", views=["levels", "depths"],
                  sources=[dict(name="gauges", columns=dict(x="int64"))]),
    owner="tests", label="full", schedule="0 0 * * 1", train="3d", holdout="1d",
    gates=[dict(kind="threshold", metric="auc", at_least=0.5)],
)
"""
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType
from evergreen.feature_store.repository import feature_source

pond = Entity(name="pond", join_keys=["pond"], value_type=ValueType.STRING)
def view(name, features, table, ttl, *columns):
    return FeatureView(name=name, entities=[pond], ttl=timedelta(hours=ttl), source=feature_source(features, table),
                       schema=[Field(name=column, dtype=Float64) for column in columns])
levels = view("levels", "ponds", "levels", 72, "level")
depths = view("depths", "ponds", "depths", 24, "depth")
rivers = view("rivers", "rivers", "rivers", 24, "width")
ponds = FeatureService(name="ponds", features=[levels])
depth_only = FeatureService(name="depth_only", features=[depths])
foreign = FeatureService(name="foreign", features=[levels, rivers])
"""


def write_definitions(text: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "feature_repo/feature_store.yaml", folder)
    (folder / "ponds.py").write_text(text)
    repository.open_feature_store.cache_clear()


def publish(*days: int, values: Mapping[tuple[str, int], float | None] | None = None, ponds: str = "ab") -> None:
    """Features of days in January: the level of a pond is its day and hour, as in 9.23, its depth a hundred more.

    Each of the `ponds` is an example of each day.

    `values` replaces levels by pond and hour; None leaves the row out.
    """
    for day in days:
        midnight = datetime(2013, 1, day, tzinfo=ZoneInfo(ZONE))
        levels = {(pond, hour): day + hour / 100 for pond in ponds for hour in range(24)} | dict(values or {})
        rows = {key: level for key, level in levels.items() if level is not None}
        dataset, partition = datasets.open_dataset("features/ponds"), datasets.period_partition(str(midnight.date()))
        fingerprint = fingerprints.compute_fingerprint([ponds, *sorted(map(str, rows.items()))])
        folder = dataset.stage(partition, fingerprint)
        at = pa.array([midnight] * len(ponds), pa.timestamp("us", "UTC"))
        asked = {"event_timestamp": at, "pond": pa.array(list(ponds), pa.string())}
        pq.write_table(pa.table(asked), folder / "visits.parquet")
        for name, column, offset in (("levels", "level", 0), ("depths", "depth", 100)):
            times = [midnight + timedelta(hours=hour) for _, hour in rows]
            table = {
                "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
                "pond": pa.array([pond for pond, _ in rows], pa.string()),
                column: pa.array([level + offset for level in rows.values()], pa.float64()),
                "murk": pa.array([level / 2 for level in rows.values()], pa.float64()),
            }
            pq.write_table(pa.table(table), folder / f"{name}.parquet")
        files = {path.stem: path for path in folder.iterdir()}
        dataset.publish(partition, fingerprint, files, {})


def unpublish(day: int) -> None:
    Path(datasets.open_dataset("features/ponds").root / f"_manifests/day=2013-01-{day:02}.json").unlink()


def window(end: int) -> Window:
    return Window.from_range("2013-01-01", f"2013-01-{end:02d}", RunReason.MANUAL, Calendar("1d", ZONE))
