-- Over how many databases the log is spread, and which of them this is. One row, written at the first start.

CREATE TABLE log_layout (
    only_one  boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    layout_id uuid NOT NULL,
    position  smallint NOT NULL,
    databases smallint NOT NULL
);
