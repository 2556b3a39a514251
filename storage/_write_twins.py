"""The statements by which `log` writes twins, and who hears that a device is to be told of its own."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sensorium.actors.placement import device_key
from sensorium.actors.records import TwinState
from sensorium.actors.twin import TWIN
from sensorium.storage._write_commands import READY_CHANNEL, notify
from sensorium.storage.database import Connection

TWINS: Final = """
INSERT INTO twins (device, device_id, ready, downlink, body)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bool[], $4::text[], $5::json[])
ON CONFLICT (device) DO UPDATE SET ready = excluded.ready, downlink = excluded.downlink, body = excluded.body
"""


async def twins(connection: Connection, rows: Sequence[TwinState]) -> None:
    """Insert or replace by device; of several of one device the last counts. Tells who tells devices."""
    latest = {device_key(row.device_id): row for row in rows}
    ordered = sorted(latest.items())
    await connection.execute(
        TWINS,
        [device for device, _ in ordered],
        [row.device_id for _, row in ordered],
        [row.ready for _, row in ordered],
        [row.downlink for _, row in ordered],
        [msgspec.json.encode(row).decode() for _, row in ordered],
    )
    ready = [(row.device_id, TWIN, 0, row.downlink) for _, row in ordered if row.ready]
    await notify(connection, READY_CHANNEL, ready)
