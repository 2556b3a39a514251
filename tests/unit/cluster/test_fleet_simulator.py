"""The fleet at work, over a publisher that records and a clock that jumps."""

import asyncio
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import httpx
import pytest

from sensorium.cluster import publisher as publishing
from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import DeliveryFailed, PlatformUnreachable
from sensorium.cluster.publisher import Outlet
from sensorium.cluster.simulator.fleet import FleetSimulator, Simulation, prepare, schedule
from sensorium.cluster.simulator.rules import RULES
from sensorium.ingest.errors import BrokerRefused, Disconnected

NOW_S = 1_790_000_000.0


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        wake_s = self.now_s + seconds
        await asyncio.sleep(0)
        self.now_s = max(self.now_s, wake_s)


class Recorder:
    """A publisher that keeps what it is given, and first raises what it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.published: list[tuple[str, dict[str, float], int]] = []
        self.errors = list(errors)
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.published.append((topic, json.loads(payload), qos))


async def test_every_device_publishes_once_an_interval() -> None:
    simulation = Simulation(devices=12, interval_s=5.0, duration_s=50.0, qos=2)
    clock, recorders = Clock(), [Recorder(), Recorder()]
    simulator = FleetSimulator(simulation, simulation.fleet(), recorders, clock, clock.sleep)
    await simulator.run()
    published = [p for recorder in recorders for p in recorder.published]
    assert set(Counter(topic for topic, _, _ in published).values()) == {10}
    assert len(published) == 120
    assert {qos for _, _, qos in published} == {2}
    assert simulator.statistics() == {"sent": 120, "acked": 120, "behind_s": 0.0}
    own = [body["timestamp"] for topic, body, _ in published if topic == "devices/climate-0001/telemetry"]
    assert {later - earlier for earlier, later in pairwise(own)} == {5000}
    assert NOW_S * 1000 <= own[0] < (NOW_S + 5) * 1000


async def test_faster_than_real_time_it_ends_now_and_never_in_the_future() -> None:
    simulation = Simulation(devices=4, interval_s=60.0, speed=60.0, duration_s=10.0)
    clock, recorder = Clock(), Recorder()
    await FleetSimulator(simulation, simulation.fleet(), [recorder], clock, clock.sleep).run()
    times = [body["timestamp"] / 1000 for _, body, _ in recorder.published]
    assert len(times) == 40
    assert clock.now_s <= NOW_S + 10
    assert min(times) == pytest.approx(NOW_S - 590, abs=60)
    assert NOW_S - 60 < max(times) <= NOW_S + 10


def test_the_schedule_spreads_a_fleet_over_the_interval() -> None:
    fleet = Simulation(devices=100).fleet()
    due = [due_s for due_s, _ in zip_first(schedule(fleet, 5.0), 300)]
    assert due == sorted(due)
    assert max(Counter(int(d * 2) for d in due).values()) < 30


def zip_first(items, count):
    return [item for item, _ in zip(items, range(count), strict=False)]


def test_few_connections_carry_many_devices() -> None:
    assert [Simulation(devices=n).connections for n in (1, 500, 501, 100_000)] == [1, 1, 2, 8]


async def test_an_outlet_keeps_a_bounded_window_and_waits_for_it_at_the_end() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    async with Outlet(recorder, window=3) as outlet:
        for n in range(3):
            await outlet.send("t", b"%d" % n)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await outlet.send("t", b"3")
        assert (outlet.sent, outlet.acked) == (3, 0)
        recorder.gate.set()
        await outlet.send("t", b"3")
    assert [body for _, body, _ in recorder.published] == [0, 1, 2, 3]
    assert outlet.acked == 4


async def test_an_outlet_tries_again_when_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "RETRY_S", 0.0)
    recorder = Recorder(Disconnected("x"), Disconnected("x"))
    async with Outlet(recorder) as outlet:
        await outlet.send("t", b"1")
    assert outlet.acked == 1


async def test_an_outlet_fails_on_refusal_and_on_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeliveryFailed, match="0x87"):
        async with Outlet(Recorder(BrokerRefused(0x87, "a publish"))) as outlet:
            await outlet.send("t", b"1")
    monkeypatch.setattr(publishing, "DELIVERY_TIMEOUT_S", 0.01)
    silent = Recorder()
    silent.gate.clear()
    with pytest.raises(DeliveryFailed, match="not acknowledged within"):
        async with Outlet(silent) as outlet:
            await outlet.send("t", b"1")
    simulation = Simulation(devices=8, duration_s=1000.0)
    clock = Clock()
    with pytest.raises(DeliveryFailed):
        await FleetSimulator(simulation, simulation.fleet(), [silent], clock, clock.sleep).run()


class FakePlatform:
    """The few endpoints that a fleet needs."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        self.rules: list[dict[str, Any]] = []
        self.busy = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.answer(request)
        # The answers to several requests come back at once, as they do from a real one.
        for _ in range(3):
            await asyncio.sleep(0)
        return answer

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.busy:
            self.busy -= 1
            return httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "starting"})
        body = json.loads(request.content or b"null")
        match request.method, request.url.path:
            case "GET", "/api/analytics/rules":
                return httpx.Response(200, json={"items": [{"rule_id": "1", "spec": r} for r in self.rules]})
            case "POST", "/api/analytics/rules":
                self.rules.append(body)
                return httpx.Response(201, json={})
            case "POST", "/api/devices":
                known = body["device_id"] in self.devices
                self.devices.add(body["device_id"])
                return httpx.Response(409 if known else 201, json={})
        return httpx.Response(404, json={"title": "Not Found", "detail": "no such path"})


async def test_preparing_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.cluster.api_client.FIRST_WAIT_S", 0.0)
    platform = FakePlatform()
    platform.busy = 2
    fleet = Simulation(devices=40).fleet()
    async with PlatformApi("http://p", httpx.MockTransport(platform)) as api:
        assert await prepare(api, fleet) == 40
        assert await prepare(api, fleet) == 0
    assert len(platform.devices) == 40
    assert len(platform.rules) == len(RULES)
    kinds = {rule["condition"]["type"] for rule in platform.rules}
    assert kinds == {"threshold", "range", "rate_of_change", "z_score"}


async def test_a_platform_that_stays_busy_or_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.cluster.api_client.FIRST_WAIT_S", 0.0)
    platform = FakePlatform()
    platform.busy = 100
    async with PlatformApi("http://p", httpx.MockTransport(platform)) as api:
        with pytest.raises(PlatformUnreachable, match="503 starting"):
            await prepare(api, Simulation(devices=4).fleet())
        platform.busy = 0
        with pytest.raises(PlatformUnreachable, match="404 no such path"):
            await api.metrics()

    def absent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with PlatformApi("http://p", httpx.MockTransport(absent)) as api:
        with pytest.raises(PlatformUnreachable, match="is the platform up"):
            await api.metrics()
