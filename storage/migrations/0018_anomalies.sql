-- Episodes of odd readings, one row each: a device's detectors write it when it begins, worsens and ends.

CREATE TABLE anomalies (
    anomaly_id  text COLLATE "C" PRIMARY KEY,
    device      bigint NOT NULL,
    device_id   text COLLATE "C" NOT NULL,
    device_type text NOT NULL,
    metric      text NOT NULL,
    detector    text COLLATE "C" NOT NULL,
    severity    text NOT NULL,
    score       double precision NOT NULL,
    value       double precision NOT NULL,
    expected    double precision NOT NULL,
    readings    integer NOT NULL,
    start_at    timestamptz NOT NULL,
    peak_at     timestamptz NOT NULL,
    end_at      timestamptz,
    end_reason  text,
    peers       integer
) WITH (fillfactor = 80);

CREATE INDEX anomalies_device ON anomalies (device, start_at DESC, anomaly_id DESC);
CREATE INDEX anomalies_newest ON anomalies (start_at DESC, anomaly_id DESC);
CREATE INDEX anomalies_open ON anomalies (detector, device) WHERE end_at IS NULL;
