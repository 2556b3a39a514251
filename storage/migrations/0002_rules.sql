-- Alerting rules; hosts listen for their changes.

CREATE TABLE rules (
    rule_id    text COLLATE "C" PRIMARY KEY,
    version    integer NOT NULL,
    spec       jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE FUNCTION sensorium_rules_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('sensorium_rules', '');
    RETURN NULL;
END $$;

CREATE TRIGGER rules_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON rules
    FOR EACH STATEMENT EXECUTE FUNCTION sensorium_rules_changed();
