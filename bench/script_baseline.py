"""Figure (b): the script that a good engineer would write instead: one process, gmqtt, json, COPY.

Takes packets in batches below gmqtt's message callback, whose way to acknowledge after an awaited handler
costs a task a message; stores each batch with one COPY and sends its PUBACKs after the commit. It stores and
no more: no validation beyond JSON, no windows, rules, deduplication or dead letters, and one process is all
it can use.

    python bench/script_baseline.py --url mqtt://127.0.0.1:1883 --dsn postgresql://…
"""

import argparse
import asyncio
import json
import signal
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import uvloop
from done_count import DoneCount
from gmqtt import Client
from gmqtt.mqtt.constants import MQTTCommands

WINDOW = 20_000
SCHEMA = """
DROP TABLE IF EXISTS script_readings;
CREATE TABLE script_readings (device text NOT NULL, time timestamptz NOT NULL, metrics jsonb NOT NULL);
CREATE INDEX ON script_readings (device, time);
"""
Row = tuple[str, datetime, str]


class Script:
    """Collects packets while the batch before is being stored."""

    def __init__(self) -> None:
        self.client = Client(
            "bench-script", clean_session=False, session_expiry_interval=3600, receive_maximum=WINDOW
        )
        self.client._package_handler._handler_cache[MQTTCommands.PUBLISH] = self.take
        self.rows: list[Row] = []
        self.ids: list[int] = []
        self.some = asyncio.Event()
        self.stored = 0

    def take(self, command: int, packet: bytes) -> None:
        """A QoS 1 PUBLISH: topic, packet id, an empty property block (the generator sends none), payload."""
        topic_end = 2 + (packet[0] << 8 | packet[1])
        body = packet[topic_end + 3 + packet[topic_end + 2] :]
        text = body.decode()
        metrics: dict[str, Any] = json.loads(text)
        time = datetime.fromtimestamp(metrics["timestamp"] / 1000, UTC)
        self.rows.append((packet[10 : topic_end - 10].decode(), time, text))
        self.ids.append(packet[topic_end] << 8 | packet[topic_end + 1])
        if len(self.ids) == 1:
            self.some.set()

    async def store(self, connection: "asyncpg.Connection[asyncpg.Record]", done: DoneCount | None) -> None:
        """Store batch after batch; whatever came during one is the next."""
        while True:
            await self.some.wait()
            self.some.clear()
            rows, self.rows = self.rows, []
            ids, self.ids = self.ids, []
            await connection.copy_records_to_table("script_readings", records=rows)
            acks = struct.pack("!" + "BBH" * len(ids), *(part for mid in ids for part in (0x40, 2, mid)))
            self.client._connection.send_package(acks)
            self.stored += len(rows)
            if done is not None:
                done.set(self.stored)


async def main(url: str, dsn: str, done: DoneCount | None) -> None:
    address = urlsplit(url)
    connection = await asyncpg.connect(dsn)
    await connection.execute(SCHEMA)
    stop = asyncio.Event()
    script = Script()
    subscribed = asyncio.Event()
    script.client.on_subscribe = lambda *_: subscribed.set()
    await script.client.connect(address.hostname, address.port or 1883)
    script.client.subscribe("devices/+/telemetry", qos=1)
    await subscribed.wait()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as tasks:
        storing = tasks.create_task(script.store(connection, done))
        print("ready", flush=True)
        await stop.wait()
        storing.cancel()
    await script.client.disconnect()
    await connection.close()
    print(json.dumps({"stored": script.stored}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--done-file", type=Path, help="a DoneCount to keep")
    options = parser.parse_args()
    counter = DoneCount(options.done_file) if options.done_file else None
    uvloop.run(main(options.url, options.dsn, counter))
