"""The projection into InfluxDB: against a server that fails on demand, and against VictoriaMetrics."""

import asyncio
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from faulty_influx import FaultyInflux, status
from storage_rows import NOON_MS, event, reading, registration

from sensorium.actors.placement import shard_of
from sensorium.actors.records import Commit
from sensorium.ingest.broker import free_port
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.database import Pool
from sensorium.storage.dead_letters import DeadLetters
from sensorium.storage.influx_client import retry_after_s
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.influx_sink import InfluxSink
from sensorium.storage.projection import ProjectionSettings
from sensorium.storage.projection_runner import ProjectionRunner

pytestmark = pytest.mark.database
DEADLINE_S = 30.0
VICTORIA = shutil.which("victoria-metrics")


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


@pytest.fixture
async def influx() -> AsyncIterator[FaultyInflux]:
    async with FaultyInflux() as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.storage.projection_runner.FIRST_RETRY_S", 0.02)
    monkeypatch.setattr("sensorium.storage.projection_runner.LONGEST_RETRY_S", 0.1)


def runner(dsn: str, settings: InfluxSettings, page: int = 100) -> ProjectionRunner:
    return ProjectionRunner(dsn, ProjectionSettings("influxdb", page, poll_s=0.02), InfluxSink(settings))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def committed(log: PgLog, readings: int, first: int = 1) -> None:
    await log.commit(
        Commit(
            registrations=[registration("d")],
            readings=[
                reading("d", n, NOON_MS + n, key=n, t=float(n)) for n in range(first, first + readings)
            ],
        )
    )


async def test_points_are_written_in_gzip_with_the_token_into_a_new_bucket(
    influx: FaultyInflux, dsn: str, log: PgLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2\n")
    await committed(log, 3)
    await log.commit(Commit(events=[event("d", 4)]))
    settings = InfluxSettings(url=influx.url, token_file=str(token), retention_days=30, bucket="b")
    running = runner(dsn, settings)
    await running.start()
    await until(lambda: len(influx.points) == 3)
    await running.stop()
    assert b"sensor_data,device_id=d,sensor_type=pump quality=0i,t=2.0 1704110400002000002" in influx.points
    assert influx.compressed == len(influx.requests) > 0
    assert influx.tokens == {"Token hunter2"}
    [bucket] = influx.created
    assert (bucket["name"], bucket["orgID"]) == ("b", "00000000000000aa")
    assert bucket["retentionRules"] == [{"type": "expire", "everySeconds": 30 * 86_400}]
    assert "hunter2" not in caplog.text + str(running.statistics())
    again = runner(dsn, settings)
    await again.start()
    await until(lambda: again.statistics()["state"] == "running")
    await again.stop()
    assert len(influx.created) == 1


async def test_everything_arrives_through_failures_of_all_kinds(
    influx: FaultyInflux, dsn: str, log: PgLog
) -> None:
    influx.answers.extend(
        [
            status(503),
            status(429),
            status(500),
            status(401),
            lambda body: web.Response(status=502, text="<html>"),
        ]
    )
    await committed(log, 150)
    running = runner(dsn, InfluxSettings(url=influx.url))
    await running.start()
    await until(lambda: len(influx.points) == 150)
    await until(lambda: running.statistics()["lag_entries"] == 0)
    await running.stop()
    assert running.statistics()["poisoned"] == 0


async def test_a_server_that_hangs_is_given_up_and_asked_again(
    influx: FaultyInflux, dsn: str, log: PgLog
) -> None:
    influx.go_on.clear()
    await committed(log, 5)
    running = runner(dsn, InfluxSettings(url=influx.url, timeout_s=0.2))
    await running.start()
    await until(lambda: running.statistics()["state"] == "failing")
    assert "does not answer" in running.statistics()["trouble"]
    influx.go_on.set()
    await until(lambda: len(influx.points) == 5)
    await running.stop()


@pytest.mark.slow
async def test_it_waits_as_long_as_the_server_asks(influx: FaultyInflux, dsn: str, log: PgLog) -> None:
    influx.answers.append(status(429, **{"Retry-After": "1"}))
    await committed(log, 1)
    running = runner(dsn, InfluxSettings(url=influx.url))
    await running.start()
    await until(lambda: len(influx.requests) == 1)
    began_s = time.monotonic()
    await until(lambda: len(influx.points) == 1)
    assert time.monotonic() - began_s > 0.9
    await running.stop()


async def test_what_is_too_large_is_sent_in_parts(
    influx: FaultyInflux, dsn: str, pool: Pool, log: PgLog
) -> None:
    influx.always = lambda body: web.Response(status=413) if len(body) > 600 else None
    await committed(log, 100)
    await log.commit(Commit(readings=[reading("d", 101, key=101, text="x" * 700)]))
    await committed(log, 5, first=102)
    running = runner(dsn, InfluxSettings(url=influx.url, gzip=False))
    await running.start()
    await until(lambda: len(influx.points) == 105)
    await until(lambda: running.statistics()["poisoned"] == 1)
    await running.stop()
    [letter] = (await DeadLetters(pool).page(reason="projection:influxdb")).items
    assert letter.address == f"shard {shard_of('d')} offset 101"


async def test_points_that_are_refused_are_dead_letters_and_the_rest_goes_on(
    influx: FaultyInflux, dsn: str, pool: Pool, log: PgLog
) -> None:
    bad = {b"t=7.0", b"t=55.0", b"t=56.0"}

    def refuse(body: bytes) -> web.Response | None:
        if not any(field in line for field in bad for line in body.split(b" ")):
            return None
        # What InfluxDB says when it has written all but some.
        influx.points.update(
            line for line in body.split(b"\n") if not any(line.split(b" ")[1].endswith(b) for b in bad)
        )
        told = 'partial write: field type conflict: input field "t" on measurement "sensor_data"'
        return web.json_response({"code": "unprocessable entity", "message": told}, status=422)

    influx.always = refuse
    await committed(log, 100)
    running = runner(dsn, InfluxSettings(url=influx.url))
    await running.start()
    await until(lambda: running.statistics()["poisoned"] == 3)
    await running.stop()
    assert len(influx.points) == 97
    page = await DeadLetters(pool).page(reason="projection:influxdb")
    assert sorted(int(d.address.split()[-1]) for d in page.items) == [7, 55, 56]
    assert "field type conflict" in page.items[0].detail


@pytest.mark.slow
async def test_source_and_sink_are_equal_although_everything_dies(
    influx: FaultyInflux, dsn: str, log: PgLog
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)

    def moody(body: bytes) -> web.Response | None:
        # Sometimes it fails before it writes, sometimes after.
        if rng.random() < 0.2:
            if rng.random() < 0.5:
                influx.points.update(body.split(b"\n"))
            return web.Response(status=503)
        return None

    influx.always = moody
    settings = InfluxSettings(url=influx.url)
    running = runner(dsn, settings, page=20)
    await running.start()
    head = 0
    for _ in range(20):
        n = rng.randrange(1, 80)
        await committed(log, n, first=head + 1)
        head += n
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0, 0.05))
            assert running._task is not None
            running._task.cancel()
            await asyncio.gather(running._task, return_exceptions=True)
            running = runner(dsn, settings, page=rng.choice([15, 50, 500]))
            await running.start()
    await until(lambda: len(influx.points) == head)
    await running.stop()
    assert {int(point.rsplit(b" ", 1)[1]) % 1_000_000 for point in influx.points} == set(range(1, head + 1))


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert retry_after_s({"Retry-After": "17"}) == 17
    assert retry_after_s({"Retry-After": "Sat, 31 Jan 2026 12:00:30 GMT"}, now) == 30
    assert retry_after_s({"Retry-After": "Sat, 31 Jan 2026 11:00:00 GMT"}, now) == 0
    assert retry_after_s({"Retry-After": "soon"}) == retry_after_s({}) == retry_after_s(None) == 0


@pytest.fixture
def victoria(tmp_path: Path) -> Iterator[str]:
    if VICTORIA is None:
        pytest.skip("victoria-metrics is not installed (Debian package victoria-metrics)")
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            VICTORIA,
            *(f"-storageDataPath={tmp_path}/vm", f"-httpListenAddr={address}", "-retentionPeriod=100y"),
            "-search.latencyOffset=0s",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                if httpx.get(f"http://{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                assert time.monotonic() < deadline_s, process.poll()
            time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


async def test_victoria_metrics_has_every_reading(victoria: str, dsn: str, log: PgLog) -> None:
    await committed(log, 1_500)
    running = runner(dsn, InfluxSettings(url=victoria, create_bucket=False), page=400)
    await running.start()
    await until(lambda: running.statistics()["entries"] == 1_500)
    await running.stop()
    async with httpx.AsyncClient(base_url=victoria) as client:
        await client.get("/internal/force_flush")
        answer = await client.get("/api/v1/export", params={"match[]": '{__name__="sensor_data_t"}'})
    [series] = [httpx.Response(200, text=text).json() for text in answer.text.splitlines()]
    assert series["metric"] == {
        "__name__": "sensor_data_t", "device_id": "d", "sensor_type": "pump",
    }  # fmt: skip
    assert dict(zip(series["timestamps"], series["values"], strict=True)) == {
        NOON_MS + n: float(n) for n in range(1, 1_501)
    }
