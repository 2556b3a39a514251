-- Commands to devices. What a device is told next is read by `ready`, what it has still to answer by `open`.

CREATE TABLE commands (
    command_id text COLLATE "C" PRIMARY KEY,
    device     bigint NOT NULL,
    device_id  text COLLATE "C" NOT NULL,
    number     bigint NOT NULL,
    command    text NOT NULL,
    state      text NOT NULL,
    open       boolean NOT NULL,
    ready      boolean NOT NULL,
    job_id     text COLLATE "C",
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    body       jsonb NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX commands_open ON commands (device) WHERE open;
CREATE INDEX commands_ready ON commands (number) WHERE ready;
CREATE INDEX commands_device ON commands (device, number);
CREATE INDEX commands_newest ON commands (created_at, command_id);
CREATE INDEX commands_job ON commands (job_id, state) WHERE job_id IS NOT NULL;

-- Whether a device says that it is there; who never said anything has no row.
CREATE TABLE presences (
    device   bigint PRIMARY KEY,
    online   boolean NOT NULL,
    since_at timestamptz NOT NULL
) WITH (fillfactor = 70);
