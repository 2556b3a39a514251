-- Of a device that has readings in chunks: the first and the last compacted day of them. What is not between both and
-- is compacted has none of it. It may say too much, never too little.
CREATE TABLE compacted_devices (
    device    bigint PRIMARY KEY,
    first_day date NOT NULL,
    last_day  date NOT NULL
) WITH (fillfactor = 70);
INSERT INTO compacted_devices
SELECT device, min((committed_at AT TIME ZONE 'UTC')::date), max((committed_at AT TIME ZONE 'UTC')::date)
FROM reading_chunks GROUP BY device;
