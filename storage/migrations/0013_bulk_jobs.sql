-- One wish to many devices, given out little by little. Of a log over several databases these are in the first.

CREATE TABLE bulk_jobs (
    job_id     text COLLATE "C" PRIMARY KEY,
    kind       text NOT NULL,
    state      text NOT NULL,
    created_at timestamptz NOT NULL,
    total      integer NOT NULL,
    per_second double precision NOT NULL,
    spec       json NOT NULL
);
CREATE INDEX bulk_jobs_open ON bulk_jobs (created_at, job_id) WHERE state IN ('RUNNING', 'CANCELLING');
CREATE INDEX bulk_jobs_newest ON bulk_jobs (kind, created_at, job_id);

CREATE TABLE bulk_items (
    job_id    text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    state     text NOT NULL DEFAULT 'pending',
    reason    text,
    PRIMARY KEY (job_id, device_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX bulk_items_pending ON bulk_items (job_id, device_id) WHERE state = 'pending';
