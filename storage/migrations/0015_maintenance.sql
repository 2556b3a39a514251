-- Times at which nothing is told of some devices.

CREATE TABLE maintenance (
    maintenance_id text COLLATE "C" PRIMARY KEY,
    spec           jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
