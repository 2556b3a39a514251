"""The statement by which `log` writes anomalies."""

from collections.abc import Sequence
from typing import Final

from sensorium.actors.placement import device_key
from sensorium.actors.records import Anomaly
from sensorium.storage._joined import Change

ANOMALIES: Final = """
INSERT INTO anomalies (anomaly_id, device, device_id, device_type, metric, detector, severity, score, value,
                       expected, readings, start_at, peak_at, end_at, end_reason, peers, explanation)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                     $8::float8[], $9::float8[], $10::float8[], $11::int[], $12::timestamptz[],
                     $13::timestamptz[], $14::timestamptz[], $15::text[], $16::int[], $17::jsonb[])
ON CONFLICT (anomaly_id) DO UPDATE SET severity = excluded.severity, score = excluded.score,
    value = excluded.value, expected = excluded.expected, readings = excluded.readings,
    peak_at = excluded.peak_at, end_at = excluded.end_at, end_reason = excluded.end_reason,
    peers = excluded.peers, explanation = excluded.explanation
"""


def anomalies(rows: Sequence[Anomaly]) -> Change:
    """Insert or replace by id; of several of one id the last counts."""
    latest = {row.anomaly_id: row for row in rows}
    columns = zip(
        *(
            (
                *(a.anomaly_id, device_key(a.device_id), a.device_id, a.device_type, a.metric, a.detector),
                *(a.severity, a.score, a.value, a.expected, a.readings, a.start_ms, a.peak_ms, a.end_ms),
                *(a.end_reason, a.peers, a.explanation),
            )
            for a in sorted(latest.values(), key=lambda a: a.anomaly_id)
        ),
        strict=True,
    )
    return Change(ANOMALIES, [list(column) for column in columns])
