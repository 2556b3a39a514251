"""`sensorium replay`: sends a recording through MQTT as the device would have."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import BadRecording
from sensorium.cluster.publisher import Outlet, Publisher, publishers
from sensorium.cluster.recording import Columns, Recording, Row
from sensorium.ingest.mqtt_address import BrokerAddress

WINDOW = 100
"""Unacknowledged messages under way."""


@dataclass(frozen=True, slots=True)
class Replay:
    """How to replay.

    Attributes:
        device_id: who sends it.
        speed: recorded seconds in one real second; 0 sends as fast as it is acknowledged.
        limit: rows at most; None for all.
        qos: of the publishes.
    """

    device_id: str
    speed: float = 0.0
    limit: int | None = None
    qos: int = 1


@dataclass(frozen=True, slots=True)
class Summary:
    """What a replay did. Times in ms since 1970, of the first and last row sent; None without rows."""

    sent: int
    acked: int
    elapsed_s: float
    first_ms: int | None
    last_ms: int | None
    skipped: int = 0

    def told(self) -> str:
        """In one line."""
        rate = self.acked / self.elapsed_s if self.elapsed_s > 0 else 0.0
        line = f"{self.sent:,} sent, {self.acked:,} acknowledged in {self.elapsed_s:.1f} s ({rate:,.0f}/s)"
        if self.first_ms is not None and self.last_ms is not None:
            line += f", recorded {_utc(self.first_ms)} to {_utc(self.last_ms)}"
        return line + (f", {self.skipped:,} bad rows passed over" if self.skipped else "")


def _utc(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def run(
    file: Path,
    wanted: Columns,
    how: Replay,
    broker: BrokerAddress,
    http_url: str,
    register: str | None,
    *,
    skip_bad: bool,
    console: Console,
) -> Summary:
    """The command: reads the file, registers the device as type `register` if given, and shows progress.

    Raises:
        BadRecording, PlatformUnreachable, DeliveryFailed: see `recording` and `replay`.
    """
    with Recording(file, wanted, skip_bad) as recording:
        if register is not None:
            async with PlatformApi(http_url) as api:
                await api.register({"device_id": how.device_id, "device_type": register})
        async with publishers(broker, "sensorium-replay", 1) as (client,):
            # Bytes read tell how far it is; counting the rows first would read the file twice.
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task(file.name, total=recording.size_bytes)

                def progress(sent: int, acked: int) -> None:
                    bar.update(task, completed=recording.bytes_read, description=f"{acked:,} acknowledged")

                summary = await replay(recording, client, how, progress)
        return replace(summary, skipped=recording.skipped)


async def replay(
    rows: Iterable[Row],
    publisher: Publisher,
    how: Replay,
    progress: Callable[[int, int], None] = lambda sent, acked: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Summary:
    """Send the rows in order, each with its recorded time, and wait until all are acknowledged.

    Raises:
        BadRecording: at a bad row; the rows before it were sent and acknowledged.
        DeliveryFailed: the broker stayed away or refused.
    """
    topic = f"devices/{how.device_id}/telemetry"
    started_s = clock()
    first_ms = last_ms = None
    outlet = Outlet(publisher, how.qos, WINDOW)
    failure: BadRecording | None = None
    async with outlet:
        source = islice(rows, how.limit)
        while True:
            try:
                row = next(source, None)
            except BadRecording as error:
                # Told only after what was sent is acknowledged.
                failure = error
                break
            if row is None:
                break
            if first_ms is None:
                first_ms = row.time_ms
            if how.speed > 0:
                due_s = (row.time_ms - first_ms) / 1000 / how.speed
                await sleep(max(0.0, started_s + due_s - clock()))
            await outlet.send(topic, msgspec.json.encode({"timestamp": row.time_ms, **row.values}))
            last_ms = row.time_ms
            progress(outlet.sent, outlet.acked)
    if failure is not None:
        raise failure
    progress(outlet.sent, outlet.acked)
    return Summary(outlet.sent, outlet.acked, clock() - started_s, first_ms, last_ms)
