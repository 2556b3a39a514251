"""A device that sends too much by HTTP."""

from sensorium.actors.profile import RateLimit
from sensorium.ingest.rate_limit import RateLimiter
from tests.unit.serve.world import world


async def test_who_sends_too_much_is_told_when_to_come_back() -> None:
    async with world(limiter=RateLimiter(RateLimit(rate_per_s=0.25, burst=2))) as here:
        for device_id in ("sensor-001", "sensor-002"):
            await here.registered(device_id)
        answers = [await here.send({"a": n}) for n in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429]
        assert answers[2].json()["code"] == "rate_limited"
        assert answers[2].headers["Retry-After"] == "4"
        assert (await here.send({"a": 1}, "sensor-002")).status_code == 201
        assert len(here.store.readings) == 3
        assert here.store.dead_letters == []


async def test_reports_of_a_twin_share_the_bucket_and_what_people_desire_does_not() -> None:
    async with world(limiter=RateLimiter(RateLimit(rate_per_s=0.25, burst=2))) as here:
        await here.registered("sensor-001")
        assert (await here.send({"a": 1})).status_code == 201
        path = "/api/devices/sensor-001/twin"
        answers = [await here.http.patch(f"{path}/reported", json={"n": n}) for n in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert answers[1].json()["code"] == "rate_limited"
        desired = [await here.http.patch(f"{path}/desired", json={"n": n}) for n in range(3)]
        assert [answer.status_code for answer in desired] == [200] * 3
