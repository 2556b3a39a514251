-- The twins of devices as they stand; how they came to be so is in `events`. The body is text that PostgreSQL does
-- not take apart: jsonb would write numbers anew. What devices are to be told of is read by `ready`.

CREATE TABLE twins (
    device    bigint PRIMARY KEY,
    device_id text COLLATE "C" NOT NULL,
    ready     boolean NOT NULL,
    downlink  text COLLATE "C" NOT NULL,
    body      json NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX twins_ready ON twins (downlink, device) WHERE ready;
