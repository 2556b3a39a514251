-- Who changed what. `audit_outbox` takes entries in the transaction of the change, in whichever database that is;
-- from there they are put, in the main database, to the end of a chain: each row's hash covers the one before.

CREATE TABLE audit_outbox (
    number   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_id text COLLATE "C" NOT NULL,
    body     text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- `entry` is canonical JSON and says all; the columns beside it are there to search by. hash = SHA-256 of the
-- hash before and `entry`.
CREATE TABLE audit (
    number   bigint PRIMARY KEY,
    entry_id text COLLATE "C" NOT NULL UNIQUE,
    at       timestamptz NOT NULL,
    who      text COLLATE "C" NOT NULL,
    what     text COLLATE "C" NOT NULL,
    thing    text COLLATE "C" NOT NULL,
    entry    text NOT NULL,
    hash     bytea NOT NULL
);
CREATE INDEX audit_at ON audit USING brin (at);
CREATE INDEX audit_who ON audit (who, number);
CREATE INDEX audit_what ON audit (what, number);
CREATE INDEX audit_thing ON audit (thing, number);

-- `number` and `hash`: of the newest row. `first_number` and `first_hash`: of the row before the oldest that is kept.
CREATE TABLE audit_head (
    only_one     boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    number       bigint NOT NULL DEFAULT 0,
    hash         bytea NOT NULL DEFAULT '\x',
    first_number bigint NOT NULL DEFAULT 0,
    first_hash   bytea NOT NULL DEFAULT '\x'
) WITH (fillfactor = 50);
INSERT INTO audit_head DEFAULT VALUES;

-- Against mistakes. Who may alter tables gets past it; that is what the hashes are for.
CREATE FUNCTION sensorium_audit_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('sensorium.forgets_audit', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION 'the audit log is only appended to';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION sensorium_audit_stays();
