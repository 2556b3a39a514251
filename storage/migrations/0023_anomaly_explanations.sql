-- What spoke most for an anomaly that a model found.

ALTER TABLE anomalies ADD COLUMN explanation jsonb;
