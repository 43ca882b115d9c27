SELECT "origin",
    "late_rate",
    CAST("event_timestamp" AS TIMESTAMPTZ) AS "event_timestamp"
FROM read_parquet('delays.parquet')
