-- Devices with a process of their own. Each has a dedicated shard for as long as it is isolated, with a log of
-- its own; numbers from 1024 on, which one device after the other may use.

ALTER TABLE devices ADD COLUMN isolation text CHECK (isolation IN ('process', 'shared'));
CREATE INDEX devices_isolation ON devices (isolation, device_id) WHERE isolation IS NOT NULL;

-- Whose dedicated shard it is. While it is nobody's, `head` is its newest offset.
ALTER TABLE assignments ADD COLUMN device_id text COLLATE "C" UNIQUE;
INSERT INTO assignments (shard, head) SELECT generate_series(1024, 1279), 0;

-- When the erasure's own row of the log was committed: rows of the device in other shards are older or newer.
ALTER TABLE erasures ADD COLUMN committed_at timestamptz NOT NULL DEFAULT now();

UPDATE projections SET cursors = cursors || array_fill(0::bigint, ARRAY[1280 - cardinality(cursors)])
WHERE cardinality(cursors) < 1280;
