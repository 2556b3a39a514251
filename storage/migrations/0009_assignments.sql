-- Who owns which shard. A shard's epoch goes up whenever it changes hands, so an owner that was overtaken
-- carries an old one.

ALTER TABLE hosts
    ADD COLUMN node text NOT NULL DEFAULT '',
    ADD COLUMN weight float8 NOT NULL DEFAULT 1 CHECK (weight > 0),
    -- The host may answer reads until its lease after this is over.
    ADD COLUMN renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Of a fenced host: from when on others may claim its shards.
    ADD COLUMN free_at timestamptz NOT NULL DEFAULT '-infinity';

-- `head` is the newest offset, known where the owner before has handed the shard over.
CREATE TABLE assignments (
    shard       smallint PRIMARY KEY,
    incarnation bigint,
    epoch       bigint NOT NULL DEFAULT 0,
    head        bigint,
    free_at     timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
INSERT INTO assignments (shard) SELECT generate_series(0, 1023);
CREATE INDEX assignments_incarnation ON assignments (incarnation);

-- What people have asked of the runtime; null: what the configuration and the machines say.
CREATE TABLE runtime (
    single       boolean PRIMARY KEY DEFAULT true CHECK (single),
    wanted_hosts integer,
    drained      text[] NOT NULL DEFAULT '{}'
);
INSERT INTO runtime DEFAULT VALUES;

-- Like sensorium_check_fence, and raises SQLSTATE SF002 unless these shards are at the epochs that the host
-- knows. Epochs only rise and the host's were true once, so their sums are equal only if each of them is.
CREATE FUNCTION sensorium_check_shards(of_incarnation bigint, of_shards smallint[], epochs bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM sensorium_check_fence(of_incarnation);
    IF (SELECT sum(epoch) FROM assignments WHERE shard = ANY (of_shards)) IS DISTINCT FROM epochs THEN
        RAISE EXCEPTION 'a shard has left incarnation %', of_incarnation USING ERRCODE = 'SF002';
    END IF;
END $$;
