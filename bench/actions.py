"""What actions cost while readings come: deciding what is sent about alarms, and sending it to a webhook.

`make bench-actions` or `sensorium bench actions [--json] [--readings 200000] [--alarms 2000]`. A PostgreSQL
and an HTTP receiver of its own. First the log gets readings and the alarms among them, then the projection
reads on to its end (CPU of this process a log entry), then the dispatcher sends what was decided (deliveries
a second, CPU of each). What hosts do does not change: actions are decided from the log, after the commit.
"""

import argparse
import asyncio
import json
import tempfile
import time
from typing import Any

import msgspec
from surroundings import machine

from sensorium.actors.metrics import metric_set
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Alarm, Commit, EventRow, ReadingRow, Registration
from sensorium.actors.rules import RuleSpec
from sensorium.ingest.actions.dispatch import ActionDispatcher
from sensorium.ingest.actions.webhook import WebhookCarrier
from sensorium.storage import EmbeddedPostgres, PgLog, PgMembershipFactory, PgRules, migrate, open_pool
from sensorium.storage.action_sink import SETTINGS, ActionSink
from sensorium.storage.database import acquired, close_pool
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.webhooks import PgWebhooks, WebhookSpec

METRICS = metric_set(("temperature", "humidity", "pressure"), "nnn")
START_MS = 1_704_067_200_000
DEVICES = 1_000
BATCH = 5_000
DEADLINE_S = 300.0


class Receiver:
    """Answers every POST with 204, as fast as it can, and counts them."""

    def __init__(self) -> None:
        self.received = 0
        self.port = 0

    async def __aenter__(self) -> "Receiver":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.lower().split(b"\r\n")
                length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                self.received += 1
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def write(dsn: str, readings: int, alarms: int) -> None:
    """The log: readings of all devices in turn, and an alarm with each of some of them."""
    pool = await open_pool(dsn)
    spec = {
        "name": "hot",
        "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 90},
        "actions": [{"type": "webhook", "target": "bench", "on": ["raised"]}],
        "limits": {"storm": None},
    }
    rule = await PgRules(pool).create(msgspec.convert(spec, RuleSpec))
    members = await PgMembershipFactory(dsn)()
    log = PgLog(dsn, await members.join("bench"))
    ids = [f"act-{n:04}" for n in range(DEVICES)]
    await log.commit(
        Commit(registrations=[Registration(i, "act", "active", None, {}, START_MS, START_MS) for i in ids])
    )
    heads: dict[int, int] = {}

    def offset(shard: int) -> int:
        heads[shard] = heads.get(shard, 0) + 1
        return heads[shard]

    every = max(1, readings // alarms)
    commit = Commit()
    for n in range(readings):
        device_id = ids[n % DEVICES]
        shard, key = shard_of(device_id), device_key(device_id)
        at_ms = START_MS + n
        commit.readings.append(
            ReadingRow(shard, offset(shard), key, at_ms, n, 0, METRICS, [20.0, 50.0, 1013.0])
        )
        if n % every == 0:
            alarm = Alarm(
                *(f"{n:032x}", device_id, "act", rule.rule_id, "hot", rule.version, "warning", "ACTIVE"),
                *("temperature", 99.0, "temperature > 90", at_ms),
            )
            commit.alarms.append(alarm)
            body = msgspec.json.encode(alarm)
            commit.events.append(EventRow(shard, offset(shard), key, at_ms, "alarm_raised", body))
        if len(commit.readings) >= BATCH:
            await log.commit(commit)
            commit = Commit()
    await log.commit(commit)
    await log.close()
    await members.close()
    await close_pool(pool)


async def measure(dsn: str, readings: int, alarms: int) -> dict[str, Any]:
    """Deciding, then sending."""
    pool = await open_pool(dsn)

    async def states() -> dict[str, int]:
        async with acquired(pool) as connection:
            rows = await connection.fetch("SELECT state, count(*) AS n FROM deliveries GROUP BY 1")
        return {row["state"]: row["n"] for row in rows}

    async def until(wanted: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not await wanted():
                await asyncio.sleep(0.05)

    expected = len(range(0, readings, max(1, readings // alarms)))
    runner = ProjectionRunner(dsn, SETTINGS, ActionSink(dsn))
    began_s, cpu_s = time.perf_counter(), time.process_time()
    await runner.start()

    async def decided() -> bool:
        return runner.statistics()["lag_entries"] == 0 and sum((await states()).values()) == expected

    await until(decided)
    decide_s, decide_cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    await runner.stop()
    async with Receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.port}/alarms"
        await PgWebhooks(pool).put("bench", url, "a-secret-of-the-bench", WebhookSpec())
        dispatcher = ActionDispatcher(dsn, {"webhook": WebhookCarrier(pool)})
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await dispatcher.start()

        async def sent() -> bool:
            return (await states()).get("DELIVERED", 0) == expected

        await until(sent)
        send_s, send_cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        await dispatcher.stop()
        if receiver.received < expected:
            raise SystemExit(f"bench: {receiver.received} of {expected} came")
    await close_pool(pool)
    entries = readings + expected
    return {
        "readings": readings,
        "alarms": expected,
        "decide_entries_a_second": entries / decide_s,
        "decide_cpu_us_an_entry": decide_cpu_s / entries * 1e6,
        "sent_a_second": expected / send_s,
        "send_cpu_us_each": send_cpu_s / expected * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--readings", type=int, default=200_000)
    parser.add_argument("--alarms", type=int, default=2_000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-bench-") as directory,
        EmbeddedPostgres(f"{directory}/pg") as server,
    ):
        asyncio.run(migrate(server.dsn))
        asyncio.run(write(server.dsn, options.readings, options.alarms))
        result = {"machine": machine()} | asyncio.run(measure(server.dsn, options.readings, options.alarms))
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(result["machine"])
    print(
        f"deciding: {result['decide_entries_a_second']:,.0f} log entries/s,"
        f" {result['decide_cpu_us_an_entry']:.2f} CPU-µs each, {result['alarms']:,} of"
        f" {result['readings']:,} readings with an alarm"
    )
    print(
        f"sending to one webhook: {result['sent_a_second']:,.0f}/s, {result['send_cpu_us_each']:,.0f} CPU-µs"
        " each (the receiver's too)"
    )


if __name__ == "__main__":
    main()
