SELECT row_number,
    CASE WHEN entity_ts <= event_ts + to_microseconds(3600000000) THEN feature_0 END AS feature_0
FROM entities
ASOF LEFT JOIN (
    SELECT "origin" AS key_0,
        "dest" AS key_1,
        "late_rate" AS feature_0,
        CAST("event_timestamp" AS TIMESTAMPTZ) AS event_ts,
        CAST(NULL AS TIMESTAMPTZ) AS created_ts,
        file_index, file_row_number
    FROM read_parquet('delays.parquet')
    WHERE CAST("event_timestamp" AS TIMESTAMPTZ) <= TIMESTAMPTZ '2013-01-08T00:00:00+00:00' AND
        CAST("event_timestamp" AS TIMESTAMPTZ) >= TIMESTAMPTZ '2013-01-01T00:00:00+00:00' - to_microseconds(3600000000)
) AS feature_rows
ON entities.key_0 = feature_rows.key_0 AND
    entities.key_1 = feature_rows.key_1 AND
    entity_ts >= event_ts
ORDER BY row_number
