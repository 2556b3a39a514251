-- Who reads the log onwards, how far each has come, and what the first of them, the rollups, makes of it.

-- Every entry of the log that is not behind `cursors[shard + 1]` was committed at `read_from` or later.
CREATE TABLE projections (
    name       text PRIMARY KEY,
    state      text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused')),
    revision   bigint NOT NULL DEFAULT 0,
    read_from  timestamptz NOT NULL,
    cursors    bigint[] NOT NULL,
    rewind_to  timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What retention has removed: of the log by commit time, of rollups by the time of their buckets.
CREATE TABLE retention (
    kind      text PRIMARY KEY,
    kept_from timestamptz NOT NULL
);

CREATE TABLE rollup_metrics (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    kind "char" NOT NULL,
    UNIQUE (name, kind)
);

-- One row a device, metric and bucket. Numbers and bools (as 0 and 1) have figures and a sketch, texts have
-- first_text and last_text. Wide columns first: no padding.
CREATE TABLE rollups_1m (
    device     bigint NOT NULL,
    bucket     timestamptz NOT NULL,
    first_at   timestamptz NOT NULL,
    last_at    timestamptz NOT NULL,
    total      float8,
    squares    float8,
    least      float8,
    most       float8,
    first      float8,
    last       float8,
    metric     integer NOT NULL,
    n          integer NOT NULL,
    sketch     bytea,
    first_text text,
    last_text  text,
    PRIMARY KEY (device, metric, bucket)
) PARTITION BY RANGE (bucket);
ALTER TABLE rollups_1m ALTER COLUMN sketch SET STORAGE MAIN;

CREATE TABLE rollups_1h (LIKE rollups_1m INCLUDING ALL) PARTITION BY RANGE (bucket);
CREATE TABLE rollups_1d (LIKE rollups_1m INCLUDING ALL) PARTITION BY RANGE (bucket);
