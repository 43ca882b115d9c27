SELECT "origin",
    "late_rate",
    CAST("event_timestamp" AS TIMESTAMPTZ) AS "event_timestamp",
    CAST("made" AS TIMESTAMPTZ) AS "made"
FROM read_parquet('delays.parquet')
WHERE CAST("event_timestamp" AS TIMESTAMPTZ) >= TIMESTAMPTZ '2013-01-01T00:00:00+00:00' AND
    CAST("event_timestamp" AS TIMESTAMPTZ) <= TIMESTAMPTZ '2013-01-08T00:00:00+00:00'
QUALIFY row_number() OVER (PARTITION BY "origin" ORDER BY "event_timestamp" DESC NULLS LAST, "made" DESC NULLS LAST, file_index DESC, file_row_number DESC) = 1
