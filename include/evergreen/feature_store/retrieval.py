"""Tables into and out of Feast's offline stores, whose interface is pandas: no value changes on the way.

pandas makes a float of every integer of a column in which one is missing. So integers and booleans go in as pandas'
own nullable types, and results come out as Arrow tables.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView
from feast.infra.offline_stores.offline_store import RetrievalJob

from evergreen.errors import Fault, FeatureError, first_line
from evergreen.features.definitions import request_types
from evergreen.features.types import SUPPORTED_TYPES, cast_columns
from evergreen.ingest.frames import text_as_objects, text_as_strings
from evergreen.lake import datasets
from evergreen.settings import settings

_NULLABLE_DTYPES = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}

_BATCH_ROWS = 65_536  # of an on-demand view, whose code gets Python lists


def entity_frame(entities: pa.Table) -> pd.DataFrame:
    """Return the frame of keys and timestamps that Feast asks for."""
    return text_as_objects(entities.to_pandas(date_as_object=True, types_mapper=_NULLABLE_DTYPES.get))


def read_table(job: RetrievalJob) -> pa.Table:
    """Return the result of a retrieval. Feast's Spark store would return it through pandas.

    Features of on-demand views are added, named `view__feature`, computed from the columns that the view declares.

    Raises:
        FeatureError: the code of an on-demand view fails, or returns something else than it declares.
    """
    is_spark = settings().offline_store == "spark"
    table = text_as_strings(job.to_spark_df().toArrow() if is_spark else job.retrieve())  # type: ignore[attr-defined]
    for view in job.on_demand_feature_views or ():
        table = _add_on_demand_features(table, view)
    return table


def _add_on_demand_features(table: pa.Table, view: OnDemandFeatureView) -> pa.Table:
    sources = view.source_feature_view_projections.values()
    request = {name: SUPPORTED_TYPES[feast_type].arrow for name, feast_type in request_types(view).items()}
    columns = [*(f"{source.name}__{feature.name}" for source in sources for feature in source.features), *request]
    inputs, problems = cast_columns(table.select(columns), request)
    types = {f"{view.name}__{feature.name}": SUPPORTED_TYPES[str(feature.dtype)].arrow for feature in view.features}
    schema = pa.schema({name: pa.type_for_alias(arrow) for name, arrow in types.items()})
    parts = [schema.empty_table()]
    for batch in inputs.to_batches(_BATCH_ROWS):
        try:
            result = view.transform_arrow(pa.Table.from_batches([batch]), full_feature_names=True)
            part, part_problems = cast_columns(result.select(list(types)), types)
        except Exception as error:  # of any class: it is the user's code
            part_problems = {"code": f"fails: {type(error).__name__}: {first_line(error)}"}
        else:
            if part.num_rows != batch.num_rows:
                part_problems = {"code": f"returns {part.num_rows} values for {batch.num_rows} rows"}
        if problems := problems | part_problems:
            fix = "correct its code, which gets lists, with None for null; or declare other types"
            faults = [Fault(f"{view.name}.{column}", problem, fix) for column, problem in problems.items()]
            raise FeatureError(f"on-demand view {view.name}", faults)
        parts.append(part)
    for name, column in zip(schema.names, pa.concat_tables(parts).columns, strict=True):
        table = table.append_column(name, column)
    return table


def register_spark_views(feature_model: str, views: Iterable[FeatureView]) -> None:
    """Register the published tables of `views` in this process's Spark session, if Feast reads through Spark."""
    if settings().offline_store != "spark":
        return
    from pyspark.sql import SparkSession

    # Without Arrow, Spark takes no nullable integers of pandas.
    builder = SparkSession.builder.config("spark.sql.execution.arrow.pyspark.enabled", "true")
    session = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    root = datasets.open_dataset(f"features/{feature_model}").root
    for table in sorted({view.batch_source.name for view in views if view.batch_source}):
        files = datasets.published_files(str(root / table)) or {}
        session.read.parquet(*files).createOrReplaceTempView(table)
