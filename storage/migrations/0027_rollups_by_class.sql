-- Rollups bear a retention class. Ranges of time that are begun from now on have a partition for each class, which is
-- dropped by itself and has a primary key of its own; ranges that are there keep the rows of all classes and their key.
ALTER TABLE rollups_1m ADD COLUMN class smallint NOT NULL DEFAULT 0;
ALTER TABLE rollups_1h ADD COLUMN class smallint NOT NULL DEFAULT 0;
ALTER TABLE rollups_1d ADD COLUMN class smallint NOT NULL DEFAULT 0;

-- The key of the whole table cannot be that of such partitions, since it lacks the class. A partition that is taken off
-- before it goes keeps its own.
DO $$
DECLARE part record;
BEGIN
    CREATE TEMPORARY TABLE taken_off ON COMMIT DROP AS
        SELECT i.inhparent::regclass AS parent, c.oid::regclass AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('rollups_1m'::regclass, 'rollups_1h'::regclass, 'rollups_1d'::regclass);
    FOR part IN SELECT * FROM taken_off LOOP
        EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', part.parent, part.name);
    END LOOP;
    ALTER TABLE rollups_1m DROP CONSTRAINT rollups_1m_pkey;
    ALTER TABLE rollups_1h DROP CONSTRAINT rollups_1h_pkey;
    ALTER TABLE rollups_1d DROP CONSTRAINT rollups_1d_pkey;
    FOR part IN SELECT * FROM taken_off LOOP
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s %s', part.parent, part.name, part.bound);
    END LOOP;
    DROP TABLE taken_off;
END $$;
