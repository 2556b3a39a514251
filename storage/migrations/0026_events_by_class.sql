-- Events bear the retention class of their device. Days that are made from now on have a partition for each class,
-- which is dropped by itself; days that are there keep the rows of all.
ALTER TABLE events ADD COLUMN class smallint NOT NULL DEFAULT 0;

-- When the type first had the class: what it wrote before has the default one.
ALTER TABLE retention_class_types ADD COLUMN since timestamptz NOT NULL DEFAULT now();
