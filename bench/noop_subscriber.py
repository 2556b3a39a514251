"""Figure (c): the broker alone. Subscribes with the platform's MQTT client, acknowledges, does nothing else.

Prints a JSON line on SIGTERM: messages received, seconds between the first and the last, CPU seconds.
"""

import argparse
import asyncio
import json
import signal
import time
from pathlib import Path

import uvloop
from done_count import DoneCount

from sensorium.ingest.mqtt import TELEMETRY
from sensorium.ingest.mqtt_address import broker_address
from sensorium.ingest.mqtt_client import MqttClient
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet


async def main(url: str, qos: int, done: DoneCount | None) -> None:
    received = 0
    first = last = 0.0

    def take(connection: Connection, packets: list[Packet]) -> None:
        nonlocal received, first, last
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])
        last = time.perf_counter()
        first = first or last
        received += len(packets)
        if done is not None:
            done.set(received)

    stop = asyncio.Event()
    topic = f"$share/bench/{TELEMETRY}"
    async with MqttClient(
        broker_address(url), "bench-noop", subscriptions=((topic, qos),), on_packets=take
    ) as client:
        await client.connected()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print("ready", flush=True)
        cpu = time.process_time()
        await stop.wait()
        result = {"received": received, "seconds": round(last - first, 3), "cpu_s": time.process_time() - cpu}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--qos", type=int, default=1)
    parser.add_argument("--done-file", type=Path, help="a DoneCount to keep")
    options = parser.parse_args()
    counter = DoneCount(options.done_file) if options.done_file else None
    uvloop.run(main(options.url, options.qos, counter))
