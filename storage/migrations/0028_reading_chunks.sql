-- Readings of days that are over: a row has up to 1,000 of one device and metric set, an array for each column, in the
-- order of their times. Where all have the same, or there is one reading only, the array is null and the plain column
-- has it: first_time, last_offset, committed_at, flags. `numbers` and `texts` are those of all readings in a row.
-- `committed_at` and `first_time` are the least, `last_time` and `last_offset` the greatest of the chunk.
CREATE TABLE reading_chunks (
    device       bigint NOT NULL,
    first_time   timestamptz NOT NULL,
    last_time    timestamptz NOT NULL,
    committed_at timestamptz NOT NULL,
    last_offset  bigint NOT NULL,
    metric_set   bigint NOT NULL,
    shard        smallint NOT NULL,
    class        smallint NOT NULL,
    count        smallint NOT NULL,
    flags        smallint NOT NULL,
    times        timestamptz[],
    offsets      bigint[],
    commits      timestamptz[],
    keys         bigint[] NOT NULL,
    all_flags    smallint[],
    numbers      float8[],
    texts        text[]
) PARTITION BY RANGE (committed_at);
CREATE INDEX reading_chunks_device ON reading_chunks (device, first_time);
CREATE INDEX reading_chunks_shard ON reading_chunks USING brin (shard) WITH (pages_per_range = 8, autosummarize = on);

-- The day that is being compacted: its shards below `shard` have been copied.
CREATE TABLE compaction (
    day      date PRIMARY KEY,
    shard    integer NOT NULL,
    begun_at timestamptz NOT NULL
);
