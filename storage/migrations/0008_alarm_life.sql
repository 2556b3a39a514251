-- What people do to alarms, and how far an alarm has escalated.

ALTER TABLE alarms
    ADD COLUMN acknowledged_at timestamptz,
    ADD COLUMN acknowledged_by text,
    ADD COLUMN assignee        text,
    ADD COLUMN shelved_until   timestamptz,
    ADD COLUMN escalated       integer NOT NULL DEFAULT 0,
    ADD COLUMN changed_at      timestamptz;

CREATE INDEX alarms_assignee ON alarms (assignee, start_at DESC, alarm_id DESC) WHERE assignee IS NOT NULL;
