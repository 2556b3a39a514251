-- The log and what is committed with it.

CREATE TABLE hosts (
    incarnation bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host        text NOT NULL,
    state       text NOT NULL DEFAULT 'alive' CHECK (state IN ('alive', 'fenced')),
    joined_at   timestamptz NOT NULL DEFAULT now(),
    fenced_at   timestamptz
) WITH (fillfactor = 70);
CREATE INDEX hosts_alive ON hosts (host) WHERE state = 'alive';

-- Raises SQLSTATE SF001 unless the incarnation is alive, and keeps it alive until the transaction ends:
-- whoever fences waits for the exclusive form of the same lock. An advisory lock queues fairly and writes
-- nothing; a shared row lock would write the row at every commit and could starve the one who fences.
-- 1397051987 is "SENS", the name space of our advisory locks.
CREATE FUNCTION sensorium_check_fence(of_incarnation bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1397051987, of_incarnation::int);
    PERFORM 1 FROM hosts WHERE incarnation = of_incarnation AND state = 'alive';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'incarnation % is fenced', of_incarnation USING ERRCODE = 'SF001';
    END IF;
END $$;

-- Returns after the last transaction that passed the check has ended.
CREATE FUNCTION sensorium_fence(of_incarnation bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1397051987, of_incarnation::int);
    UPDATE hosts SET state = 'fenced', fenced_at = clock_timestamp()
        WHERE incarnation = of_incarnation AND state = 'alive';
END $$;

-- Returns when no transaction of the incarnation that passed the check is under way.
CREATE FUNCTION sensorium_await_commits(of_incarnation bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1397051987, of_incarnation::int);
END $$;

-- Every row of the shard with an offset above `head` was committed after `saved_at` less the slack of heads.
CREATE TABLE shards (
    shard    smallint PRIMARY KEY,
    head     bigint NOT NULL,
    saved_at timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE metric_sets (
    id    bigint PRIMARY KEY,
    names text[] NOT NULL,
    kinds text NOT NULL
);

-- By position in the metric set: `numbers` has a slot for each number or bool, `texts` one for each text.
-- One btree only, by measurement: each further index costs the server as much as the row itself.
CREATE TABLE readings (
    shard        smallint NOT NULL,
    log_offset   bigint NOT NULL,
    device       bigint NOT NULL,
    time         timestamptz NOT NULL,
    key          bigint NOT NULL,
    flags        smallint NOT NULL,
    metric_set   bigint NOT NULL,
    numbers      float8[],
    texts        text[],
    committed_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (committed_at);
CREATE INDEX readings_device_time ON readings (device, time);
CREATE INDEX readings_committed_at ON readings USING brin (committed_at) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE events (
    shard        smallint NOT NULL,
    log_offset   bigint NOT NULL,
    device       bigint NOT NULL,
    time         timestamptz NOT NULL,
    kind         text NOT NULL,
    body         jsonb NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (committed_at);
CREATE INDEX events_device_time ON events (device, time);
CREATE INDEX events_committed_at ON events USING brin (committed_at) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE snapshots (
    device      bigint PRIMARY KEY,
    shard       smallint NOT NULL,
    log_offset  bigint NOT NULL,
    replay_from timestamptz,
    saved_at    timestamptz NOT NULL,
    state       bytea NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
-- States are packed already, or small: compressing them again costs more than it saves.
ALTER TABLE snapshots ALTER COLUMN state SET STORAGE EXTERNAL;

CREATE TABLE devices (
    device        bigint PRIMARY KEY,
    device_id     text COLLATE "C" NOT NULL UNIQUE,
    device_type   text NOT NULL,
    status        text NOT NULL,
    location      jsonb,
    metadata      jsonb NOT NULL,
    registered_at timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL
);
CREATE INDEX devices_type ON devices (device_type, status, device_id);
CREATE INDEX devices_status ON devices (status, device_id);
CREATE INDEX devices_metadata ON devices USING gin (metadata jsonb_path_ops);

CREATE TABLE alarms (
    alarm_id     text COLLATE "C" PRIMARY KEY,
    device       bigint NOT NULL,
    device_id    text NOT NULL,
    device_type  text NOT NULL,
    rule_id      text NOT NULL,
    rule_name    text NOT NULL,
    rule_version integer NOT NULL,
    severity     text NOT NULL,
    state        text NOT NULL CHECK (state IN ('ACTIVE', 'CLEARED')),
    acknowledged boolean NOT NULL,
    metric       text NOT NULL,
    value        jsonb NOT NULL,
    detail       text NOT NULL,
    start_at     timestamptz NOT NULL,
    end_at       timestamptz,
    end_value    jsonb,
    end_reason   text
);
CREATE INDEX alarms_active ON alarms (device) WHERE state = 'ACTIVE';
CREATE INDEX alarms_newest ON alarms (start_at DESC, alarm_id DESC);
CREATE INDEX alarms_state ON alarms (state, start_at DESC, alarm_id DESC);
CREATE INDEX alarms_severity ON alarms (severity, start_at DESC, alarm_id DESC);
CREATE INDEX alarms_device ON alarms (device, start_at DESC, alarm_id DESC);
CREATE INDEX alarms_type ON alarms (device_type, start_at DESC, alarm_id DESC);
CREATE INDEX alarms_rule ON alarms (rule_id, start_at DESC, alarm_id DESC);

CREATE TABLE dead_letters (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at  timestamptz NOT NULL,
    device_id    text NOT NULL,
    source       text NOT NULL,
    address      text NOT NULL,
    reason       text NOT NULL,
    detail       text NOT NULL,
    payload      bytea NOT NULL,
    size_bytes   bigint NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_reason ON dead_letters (reason, id);
CREATE INDEX dead_letters_committed_at ON dead_letters USING brin (committed_at);
