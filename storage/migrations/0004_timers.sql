-- Durable timers: one a device and name while it is set. Hosts read them by windows of due time.

CREATE TABLE timers (
    device    bigint NOT NULL,
    name      text COLLATE "C" NOT NULL,
    shard     smallint NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    due_at    timestamptz NOT NULL,
    since_at  timestamptz NOT NULL,
    PRIMARY KEY (device, name)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX timers_due ON timers (due_at);
