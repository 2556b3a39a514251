-- A snapshot of each device for each day on which it was saved: what its state at a past time is rebuilt from. One is
-- kept when the first of a later day replaces it. Dropped with the days of the log.

CREATE TABLE kept_snapshots (
    device      bigint NOT NULL,
    shard       smallint NOT NULL,
    log_offset  bigint NOT NULL,
    replay_from timestamptz,
    saved_at    timestamptz NOT NULL,
    kept_at     timestamptz NOT NULL DEFAULT now(),
    state       bytea NOT NULL
) PARTITION BY RANGE (kept_at);
ALTER TABLE kept_snapshots ALTER COLUMN state SET STORAGE EXTERNAL;
CREATE INDEX kept_snapshots_device ON kept_snapshots (device, saved_at);
