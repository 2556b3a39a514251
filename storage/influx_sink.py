"""The projection into InfluxDB v2: a point for each reading. Written twice it is the same (`influx_lines`).

A page is written before the next one is read, outside of any transaction. What fails is not tried again here:
the runner waits, longer each time or as long as the server asks, and begins again behind the cursor.
"""

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

from influxdb_client import WritePrecision
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from sensorium.actors.errors import InvalidMessage
from sensorium.storage._known_sets import KnownSets
from sensorium.storage.database import Connection
from sensorium.storage.influx_client import TooLarge, connected, ensure_bucket, influx_errors
from sensorium.storage.influx_lines import line
from sensorium.storage.influx_settings import MEASUREMENT, NAME, InfluxSettings
from sensorium.storage.known_devices import KnownDevices, named
from sensorium.storage.projection import LogEntry, ProjectionSettings, SinkUnavailable, erased_at

SETTINGS: Final = ProjectionSettings(NAME, page_entries=5_000)
_EVER: Final = ("1677-09-22T00:00:00Z", "2262-04-11T00:00:00Z")
"""All times that InfluxDB knows."""
BATCH_BYTES: Final = 1 << 20
"""Of one request before compression. A server that takes less gets half as much, until it takes that."""


class InfluxSink:
    """A `Sink`. A point that the server refuses has its page refused; the runner finds it by halves."""

    def __init__(self, settings: InfluxSettings) -> None:
        self._settings = settings
        self._devices = KnownDevices()
        self._sets = KnownSets()
        self._batch_bytes = BATCH_BYTES
        self._connection: Connection | None = None
        self._client: InfluxDBClientAsync | None = None
        self._stack = AsyncExitStack()
        self._bucket_is_there = not settings.create_bucket

    async def open(self, connection: Connection) -> None:
        """As the port says. Creates the bucket at the first time."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connected(self._settings))
            if not self._bucket_is_there:
                await ensure_bucket(client, self._settings)
                self._bucket_is_there = True
            self._stack = stack.pop_all()
        self._connection, self._client = connection, client

    async def take(self, entries: Sequence[LogEntry]) -> bool:
        """As the port says: returns when the server has written them. Events leave nothing, but deletions."""
        assert self._connection is not None
        readings = [entry for entry in entries if entry.metric_set is not None]
        devices = await self._devices.of(self._connection, entries)
        sets = await self._sets.find(
            self._connection, {e.metric_set for e in readings if e.metric_set is not None}
        )
        if erased := erased_at(entries):
            gone = {device: entries[index].offset for device, index in erased.items()}
            readings = [e for e in readings if e.device not in gone or e.offset > gone[e.device]]
            for index in erased.values():
                await self._delete(entries[index].body["device_id"])
        lines = [line(e, named(devices, e), sets[e.metric_set]) for e in readings]  # type: ignore[index]
        for batch in _batches(lines, self._batch_bytes):
            await self._write(batch)
        return False

    async def _delete(self, device_id: str) -> None:
        """Delete a device's points, of whatever time; those behind its deletion are written after it."""
        assert self._client is not None
        settings = self._settings
        name = device_id.replace("\\", "\\\\").replace('"', '\\"')
        with influx_errors(f"the deletion of the points of {device_id}"):
            await self._client.delete_api().delete(
                _EVER[0],
                _EVER[1],
                f'_measurement="{MEASUREMENT}" AND device_id="{name}"',
                settings.bucket,
                settings.org,
            )

    async def flush(self, transaction: Connection) -> None:
        """As the port says: what was taken has been written."""

    async def rewind(self, transaction: Connection, to_ms: int) -> None:
        """As the port says. The same points are written over themselves."""

    async def close(self) -> None:
        """As the port says."""
        self._connection = self._client = None
        await self._stack.aclose()

    async def _write(self, lines: Sequence[bytes]) -> None:
        """Write them, in halves where the server takes less at once."""
        assert self._client is not None
        settings = self._settings
        body = b"\n".join(lines)
        try:
            with influx_errors(f"{len(lines)} points"):
                written = await self._client.write_api().write(
                    settings.bucket, settings.org, body, WritePrecision.NS
                )
        except TooLarge:
            if len(lines) == 1:
                raise InvalidMessage(f"a point of {len(body)} bytes is more than InfluxDB takes") from None
            self._batch_bytes = max(len(body) // 2, 1)
            middle = len(lines) // 2
            await self._write(lines[:middle])
            await self._write(lines[middle:])
        else:
            if not written:
                raise SinkUnavailable("InfluxDB answered that it has not written all points")


def _batches(lines: Sequence[bytes], most_bytes: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size_bytes = 0
    for item in lines:
        if batch and size_bytes + len(item) + 1 > most_bytes:
            yield batch
            batch, size_bytes = [], 0
        batch.append(item)
        size_bytes += len(item) + 1
    if batch:
        yield batch
