SELECT row_number,
    CASE WHEN entity_ts <= event_ts + to_microseconds(3600000000) THEN feature_0 END AS feature_0
FROM entities
ASOF LEFT JOIN (
    SELECT *, greatest(event_ts, served_ts) AS known_at
    FROM (
        SELECT "origin" AS key_0,
            "late_rate" AS feature_0,
            CAST("event_timestamp" AS TIMESTAMPTZ) AS event_ts,
            CAST(NULL AS TIMESTAMPTZ) AS created_ts,
            file_index, file_row_number,
            CASE WHEN CAST("event_timestamp" AS TIMESTAMPTZ) < "served.end" THEN "served.at" ELSE "served.later_at" END AS served_ts
        FROM read_parquet('delays.parquet')
        JOIN serving_instants_of_files ON "served.file" = file_index
        WHERE CAST("event_timestamp" AS TIMESTAMPTZ) <= TIMESTAMPTZ '2013-01-08T00:00:00+00:00' AND
            CAST("event_timestamp" AS TIMESTAMPTZ) >= TIMESTAMPTZ '2013-01-01T00:00:00+00:00' - to_microseconds(3600000000)
    )
    WHERE served_ts IS NOT NULL
    QUALIFY row(event_ts, coalesce(created_ts, '-infinity'), file_index, file_row_number) >= max(row(event_ts, coalesce(created_ts, '-infinity'), file_index, file_row_number)) OVER (PARTITION BY key_0 ORDER BY known_at)
) AS feature_rows
ON entities.key_0 = feature_rows.key_0 AND
    entity_ts >= known_at
ORDER BY row_number
