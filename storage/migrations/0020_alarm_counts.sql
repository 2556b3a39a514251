-- How often an alarm's condition was met while it was active, and when last.

ALTER TABLE alarms
    ADD COLUMN met             bigint NOT NULL DEFAULT 1,
    ADD COLUMN readings        bigint NOT NULL DEFAULT 1,
    ADD COLUMN last_met_at     timestamptz,
    ADD COLUMN last_reading_at timestamptz;
