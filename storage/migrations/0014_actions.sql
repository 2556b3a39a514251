-- What rules have done about their alarms, and every version of the rules that said so.

ALTER TABLE rules ADD COLUMN changed_by text NOT NULL DEFAULT '';

CREATE TABLE rule_versions (
    rule_id    text COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    spec       jsonb NOT NULL,
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    PRIMARY KEY (rule_id, version)
);
INSERT INTO rule_versions SELECT rule_id, version, spec, updated_at, changed_by FROM rules;

CREATE FUNCTION sensorium_keep_rule_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO rule_versions VALUES (NEW.rule_id, NEW.version, NEW.spec, NEW.updated_at, NEW.changed_by)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER rule_versions_kept AFTER INSERT OR UPDATE ON rules
    FOR EACH ROW EXECUTE FUNCTION sensorium_keep_rule_version();

CREATE TABLE webhooks (
    name       text COLLATE "C" PRIMARY KEY,
    url        text NOT NULL,
    secret     text,
    spec       jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One row a message to a target. What goes out next is read by `deliveries_due`, in order of `number` for
-- each queue, device and rule.
CREATE TABLE deliveries (
    delivery_id  text COLLATE "C" PRIMARY KEY,
    number       bigint GENERATED ALWAYS AS IDENTITY,
    state        text NOT NULL
        CHECK (state IN ('PENDING', 'SENDING', 'DELIVERED', 'DEAD', 'SUPPRESSED', 'COLLAPSED')),
    queue        text COLLATE "C" NOT NULL,
    kind         text NOT NULL,
    place        text NOT NULL,
    rule_id      text COLLATE "C" NOT NULL,
    rule_version integer NOT NULL,
    alarm_id     text COLLATE "C" NOT NULL,
    device_id    text COLLATE "C" NOT NULL,
    transition   text NOT NULL,
    created_at   timestamptz NOT NULL,
    due_at       timestamptz NOT NULL,
    finished_at  timestamptz,
    attempts     integer NOT NULL DEFAULT 0,
    reason       text,
    summary_id   text COLLATE "C",
    action       jsonb NOT NULL,
    content      jsonb NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX deliveries_due ON deliveries (queue, number) WHERE state IN ('PENDING', 'SENDING');
CREATE INDEX deliveries_order ON deliveries (queue, device_id, rule_id, number) WHERE state IN ('PENDING', 'SENDING');
CREATE INDEX deliveries_newest ON deliveries (created_at, delivery_id);
CREATE INDEX deliveries_rule ON deliveries (rule_id, created_at);
CREATE INDEX deliveries_alarm ON deliveries (alarm_id);
CREATE INDEX deliveries_device ON deliveries (device_id, created_at);
CREATE INDEX deliveries_dead ON deliveries (created_at, delivery_id) WHERE state = 'DEAD';
CREATE INDEX deliveries_summary ON deliveries (summary_id) WHERE summary_id IS NOT NULL;
