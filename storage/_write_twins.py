"""The statement by which `log` writes twins."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sensorium.actors.placement import device_key
from sensorium.actors.records import TwinState
from sensorium.storage._joined import Change

TWINS: Final = """
INSERT INTO twins (device, device_id, ready, downlink, body)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bool[], $4::text[], $5::json[])
ON CONFLICT (device) DO UPDATE SET ready = excluded.ready, downlink = excluded.downlink, body = excluded.body
"""


def twins(rows: Sequence[TwinState]) -> Change:
    """Insert or replace by device; of several of one device the last counts."""
    latest = {device_key(row.device_id): row for row in rows}
    columns = zip(
        *(
            (device, row.device_id, row.ready, row.downlink, msgspec.json.encode(row).decode())
            for device, row in sorted(latest.items())
        ),
        strict=True,
    )
    return Change(TWINS, [list(column) for column in columns])
