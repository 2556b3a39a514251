-- Deletions of devices' data on request. What belongs to the device's state goes in the turn's transaction; the rows
-- of the log before `log_offset` are emptied little by little after it, and keep their places without a device.

CREATE TABLE erasures (
    job_id       text COLLATE "C" PRIMARY KEY,
    device       bigint NOT NULL,
    device_id    text COLLATE "C" NOT NULL,
    shard        smallint NOT NULL,
    log_offset   bigint NOT NULL,
    registration boolean NOT NULL,
    requested_at timestamptz NOT NULL,
    state        text NOT NULL DEFAULT 'ERASING' CHECK (state IN ('ERASING', 'PROJECTING', 'DONE')),
    finished_at  timestamptz,
    counts       jsonb NOT NULL,
    origin       jsonb
) WITH (fillfactor = 50);
CREATE INDEX erasures_open ON erasures (requested_at) WHERE state <> 'DONE';
CREATE INDEX erasures_device ON erasures (device_id, requested_at);
