"""The page of a device's anomalies, over REST and GraphQL, and peers that are compared."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from sensorium.actors.anomalies import Anomaly
from sensorium.actors.errors import LogUnavailable
from sensorium.actors.messages import ReportAnomaly
from sensorium.actors.peer_watch import HOUR_MS, HourMean
from sensorium.serve import peers
from sensorium.serve.peers import PeerWatch
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, NOW_MS, World, world

PAGE = "/api/analytics/devices/sensor-001/anomalies"


def found(number: int, **fields) -> Anomaly:
    start_ms = AT_MS + number * 1000
    plain = Anomaly(
        f"{number:032x}",
        *("sensor-001", "climate", "t", "ensemble", "warning"),
        *(0.6, 31.0, 20.0, 1, start_ms, start_ms),
    )
    return msgspec.structs.replace(plain, **fields)


async def told(platform: World, *anomalies: Anomaly) -> None:
    await platform.registered()
    for anomaly in anomalies:
        await platform.router.ask(ReportAnomaly("sensor-001", anomaly))


async def test_anomalies_are_listed_newest_first_by_filters_and_pages() -> None:
    rows = [
        found(0, end_ms=AT_MS + 500, end_reason="quiet"),
        found(1, metric="u", severity="major", score=0.9),
        found(2, detector="peers", severity="critical", score=0.99, peers=7),
    ]
    async with world() as platform:
        await told(platform, *rows)
        everything = (await platform.http.get(PAGE)).json()
        assert everything["items"] == [msgspec.to_builtins(row) for row in rows[::-1]]
        for asked, numbers in (
            ({"metric": "u"}, [1]),
            ({"detector": "peers"}, [2]),
            ({"min_score": 0.9}, [2, 1]),
            ({"min_severity": "major"}, [2, 1]),
            ({"ongoing": "false"}, [0]),
            ({"start": AT_MS + 900, "end": AT_MS + 1500}, [1]),
        ):
            items = (await platform.http.get(PAGE, params=asked)).json()["items"]
            assert [item["anomaly_id"] for item in items] == [rows[n].anomaly_id for n in numbers], asked
        first = await platform.http.get(PAGE, params={"limit": 2})
        rest = (await platform.http.get(PAGE, params={"limit": 2, "cursor": first.json()["next"]})).json()
        assert first.json()["items"] + rest["items"] == everything["items"]
        assert rest["next"] is None
        for bad in (
            {"min_score": 2},
            {"detector": "magic"},
            {"min_severity": "x"},
            {"cursor": "x"},
            {"sort": 1},
        ):
            assert_problem(await platform.http.get(PAGE, params=bad), 422, "invalid")
        assert_problem(await platform.http.get(PAGE.replace("001", "002")), 404, "not_found")


async def test_a_detector_finds_what_a_rule_asks_for_and_alarms() -> None:
    async with world() as platform:
        await platform.registered()
        condition = {"type": "anomaly", "metric": "t", "score": 0.9, "detector": "zscore"}
        rule = {"name": "odd", "condition": condition}
        made = await platform.http.post("/api/analytics/rules", json=rule)
        assert made.status_code == 201, made.text
        rows = [{"timestamp": AT_MS + n * 1000, "t": 20 + n % 3} for n in range(40)]
        rows.append({"timestamp": AT_MS + 40_000, "t": 99})
        sent = await platform.http.post("/api/devices/sensor-001/data", json=rows)
        assert sent.is_success, sent.text
        (item,) = (await platform.http.get(PAGE)).json()["items"]
        assert (item["detector"], item["value"], item["severity"]) == ("zscore", 99.0, "critical")
        (alarm,) = (await platform.http.get("/api/alarms")).json()["items"]
        assert alarm["detail"] == "t odd by zscore with a score of at least 0.9"


async def test_graphql_has_them_with_their_device() -> None:
    query = """query ($after: String) {
        anomalies(deviceId: "sensor-001", minSeverity: MAJOR, first: 1, after: $after) {
            items { metric score endMs device { deviceType } } next } }"""
    async with world() as platform:
        await told(platform, found(0), found(1, severity="major", score=0.9), found(2, severity="critical"))
        answer = (await platform.http.post("/graphql", json={"query": query})).json()
        page = answer["data"]["anomalies"]
        assert page["items"][0]["device"] == {"deviceType": "temperature"}
        rest = await platform.http.post(
            "/graphql", json={"query": query, "variables": {"after": page["next"]}}
        )
        assert rest.json()["data"]["anomalies"]["items"][0]["score"] == 0.9
        assert rest.json()["data"]["anomalies"]["next"] is None


class Hours:
    """An hour in which `sensor-001` is odd. Fails as often as `failing` says first."""

    def __init__(self, platform: World, failing: int = 0) -> None:
        self.platform = platform
        self.failing = failing
        self.asked: list[int] = []

    async def types(self) -> Sequence[str]:
        return ["climate"]

    async def means(self, device_type: str, hour_ms: int) -> list[HourMean]:
        self.asked.append(hour_ms)
        if len(self.asked) <= self.failing:
            raise LogUnavailable("away")
        means = {f"d{n}": 20.0 + n for n in range(6)} | {"sensor-001": 500.0}
        return [HourMean(d, device_type, None, {}, "t", mean) for d, mean in means.items()]

    async def standing(self, detector: str, device_type: str) -> list[Anomaly]:
        return [a for a in self.platform.store.anomalies.values() if a.end_ms is None]


async def test_peers_are_compared_each_hour_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOOK_EVERY_S", 0.001)
    async with world() as platform:
        await platform.registered()
        hours = Hours(platform, failing=2)
        watch = PeerWatch(platform.router, hours, lambda: NOW_MS)
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(5):
            while not watch.statistics()["told"]:
                await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        hour_ms = (NOW_MS - peers.SETTLED_MS) // HOUR_MS * HOUR_MS - HOUR_MS
        assert hours.asked == [hour_ms] * 3
        await watch.compare(hour_ms)
        assert watch.statistics()["told"] == 1, "what stands already is not told again"
        (item,) = (await platform.http.get(PAGE)).json()["items"]
        assert (item["detector"], item["value"], item["peers"]) == ("peers", 500.0, 6)
