SELECT row_number,
    CASE WHEN entity_ts >= event_ts THEN feature_0 END AS feature_0
FROM entities
ASOF LEFT JOIN (
    SELECT "late_rate" AS feature_0,
        CAST("event_timestamp" AS TIMESTAMPTZ) AS event_ts,
        CAST(NULL AS TIMESTAMPTZ) AS created_ts,
        file_index, file_row_number
    FROM read_parquet('delays.parquet')
    WHERE CAST("event_timestamp" AS TIMESTAMPTZ) <= TIMESTAMPTZ '2013-01-08T00:00:00+00:00'
) AS feature_rows
ON (epoch_us(entity_ts) + 1) * 18446744073709551616::HUGEINT > epoch_us(event_ts) * 18446744073709551616::HUGEINT + file_index * 1099511627776::HUGEINT + file_row_number
ORDER BY row_number
