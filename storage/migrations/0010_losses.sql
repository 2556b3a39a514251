-- How often shards have left a host that lives. While it is what the host knows, all of its shards are still
-- its own, so a commit need not look at each.

ALTER TABLE hosts ADD COLUMN losses bigint NOT NULL DEFAULT 0;

-- Like sensorium_check_fence, and raises SQLSTATE SF003 unless the host knows of every loss.
CREATE FUNCTION sensorium_check_losses(of_incarnation bigint, known bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found_losses bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1397051987, of_incarnation::int);
    SELECT losses INTO found_losses FROM hosts WHERE incarnation = of_incarnation AND state = 'alive';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'incarnation % is fenced', of_incarnation USING ERRCODE = 'SF001';
    END IF;
    IF found_losses <> known THEN
        RAISE EXCEPTION 'shards have left incarnation %', of_incarnation USING ERRCODE = 'SF003';
    END IF;
END $$;
