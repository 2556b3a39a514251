-- Models that are at work, as plain numbers: what every host judges by.

CREATE TABLE active_models (
    name         text COLLATE "C" PRIMARY KEY,
    device_type  text NOT NULL,
    info         jsonb NOT NULL,
    numbers      bytea NOT NULL,
    activated_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION sensorium_models_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('sensorium_models', '');
    RETURN NULL;
END $$;

CREATE TRIGGER active_models_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON active_models
    FOR EACH STATEMENT EXECUTE FUNCTION sensorium_models_changed();
