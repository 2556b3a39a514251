-- What the payload of a dead letter is, so that it can go its way again; '' where that was not kept.
ALTER TABLE dead_letters ADD COLUMN content text NOT NULL DEFAULT '';
