-- How long what is kept, by number: a class for each retention that profiles have (storage/retention_classes.py).
-- Rows of events, rollups and compacted readings bear the class that they were written with.

-- None: for ever. Class 0 is that of all types which are not named in retention_class_types.
CREATE TABLE retention_classes (
    class          smallint PRIMARY KEY CHECK (class BETWEEN 0 AND 63),
    raw_days       integer,
    event_days     integer,
    rollup_1m_days integer,
    rollup_1h_days integer,
    rollup_1d_days integer
);
INSERT INTO retention_classes (class) VALUES (0);

-- `until` None: the type's class at present. Before, it was of the others.
CREATE TABLE retention_class_types (
    device_type text COLLATE "C" NOT NULL,
    class       smallint NOT NULL,
    until       timestamptz,
    PRIMARY KEY (device_type, class)
);
CREATE UNIQUE INDEX retention_class_types_present ON retention_class_types (device_type) WHERE until IS NULL;

-- Types that devices were of: what was written then has the class of those.
CREATE TABLE former_device_types (
    device      bigint NOT NULL,
    device_type text COLLATE "C" NOT NULL,
    until       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device, device_type)
);
CREATE FUNCTION sensorium_note_former_type() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO former_device_types (device, device_type) VALUES (old.device, old.device_type)
        ON CONFLICT (device, device_type) DO UPDATE SET until = excluded.until;
    RETURN NULL;
END $$;
CREATE TRIGGER devices_former_type AFTER UPDATE OF device_type ON devices FOR EACH ROW
    WHEN (old.device_type IS DISTINCT FROM new.device_type) EXECUTE FUNCTION sensorium_note_former_type();
