-- By which protocol a command is told. Each dispatcher looks for its own, and thousands that wait for devices which
-- sleep must cost the others nothing.

ALTER TABLE commands ADD COLUMN downlink text COLLATE "C" NOT NULL DEFAULT 'mqtt';
UPDATE commands SET downlink = body ->> 'downlink' WHERE ready AND body ->> 'downlink' <> 'mqtt';
DROP INDEX commands_ready;
CREATE INDEX commands_ready ON commands (downlink, number) WHERE ready;
