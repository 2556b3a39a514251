-- Of a day that is compacted: the days (UTC) of the events in its chunks. A question about some time needs not look into
-- the others, but for days that are not in here. Deletions leave it as it is: it may say too much, never too little.
CREATE TABLE compacted_days (
    day       date NOT NULL,
    event_day date NOT NULL,
    PRIMARY KEY (day, event_day)
);
INSERT INTO compacted_days
SELECT DISTINCT (c.committed_at AT TIME ZONE 'UTC')::date, (u.time AT TIME ZONE 'UTC')::date
FROM reading_chunks c CROSS JOIN LATERAL unnest(
    CASE WHEN (c.first_time AT TIME ZONE 'UTC')::date = (c.last_time AT TIME ZONE 'UTC')::date
         THEN ARRAY[c.first_time] ELSE c.times END) AS u (time);
