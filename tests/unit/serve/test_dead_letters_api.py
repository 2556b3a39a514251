"""Dead letters: looked at, tried again once their cause is mended, deleted."""

from typing import Any

import pytest

from sensorium.actors.messages import DeadLetter
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World


async def letters(platform: World) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await platform.http.get("/api/dead-letters")).json()["items"]
    return items


async def replayed(platform: World, letter_id: int) -> Any:
    return await platform.http.post(f"/api/dead-letters/{letter_id}/replay")


async def test_a_device_that_was_not_registered(platform: World) -> None:
    for n in range(3):
        sent = await platform.send({"temperature": n, "timestamp": AT_MS + n}, "late")
        assert sent.status_code == 404
    newest, *others = await letters(platform)
    assert newest["reason"] == "unregistered"
    one = (await platform.http.get(f"/api/dead-letters/{newest['id']}")).json()
    assert one == newest
    assert_problem(await replayed(platform, newest["id"]), 409, "unregistered")
    assert len(await letters(platform)) == 3
    await platform.registered("late")
    again = await replayed(platform, newest["id"])
    assert (again.status_code, again.json()) == (200, {"id": newest["id"], "status": "accepted"})
    assert_problem(await replayed(platform, newest["id"]), 404, "not_found")
    all_others = await platform.http.post("/api/dead-letters/replay?device_id=late")
    assert all_others.json() == {"replayed": 2, "stay": {}}
    assert await letters(platform) == []
    assert sorted(row.time_ms for row in platform.store.readings) == [AT_MS, AT_MS + 1, AT_MS + 2]
    assert len(others) == 2


async def test_without_a_time_of_its_own_it_is_stored_once(platform: World) -> None:
    await platform.send({"temperature": 1}, "late")
    (letter,) = await letters(platform)
    await platform.registered("late")
    sides = platform.letters.gone
    assert (await replayed(platform, letter["id"])).json()["status"] == "accepted"
    # As when the process ended between the commit and the deletion.
    sides.clear()
    assert (await replayed(platform, letter["id"])).json()["status"] == "duplicate"
    assert len(platform.store.readings) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payload": b"{not json", "size_bytes": 9}, "malformed_json"),
        ({"size_bytes": 5000}, "not_whole"),
        ({"source": "lorawan"}, "not_replayable"),
        ({"reason": "projection:kafka"}, "not_replayable"),
        ({"payload": b'{"temperature": "warm"}', "size_bytes": 23}, "wrong_type"),
    ],
)
async def test_what_still_cannot_be_used_stays(platform: World, changes: dict[str, Any], code: str) -> None:
    await platform.registered("d")
    await platform.send({"temperature": 20.5, "timestamp": AT_MS}, "d")
    fields = {
        "device_id": "d",
        "source": "mqtt",
        "address": "devices/d/telemetry",
        "reason": "unregistered",
        "detail": "",
        "payload": b'{"temperature": 1}',
        "size_bytes": 18,
        "received_ms": AT_MS,
        **changes,
    }
    platform.store.dead_letters.append(DeadLetter(**fields))
    (letter,) = await letters(platform)
    problem = assert_problem(await replayed(platform, letter["id"]), 409, code)
    assert f"dead letter {letter['id']} stays" in problem["detail"]
    assert len(await letters(platform)) == 1
    many = (await platform.http.post("/api/dead-letters/replay")).json()
    assert many["replayed"] == 0
    assert [why.partition(":")[0] for why in many["stay"].values()] == [code]


async def test_deleted_is_gone(platform: World) -> None:
    await platform.send({"temperature": 1}, "nobody")
    (letter,) = await letters(platform)
    assert (await platform.http.delete(f"/api/dead-letters/{letter['id']}")).status_code == 204
    assert_problem(await platform.http.delete(f"/api/dead-letters/{letter['id']}"), 404, "not_found")
    assert_problem(await platform.http.get(f"/api/dead-letters/{letter['id']}"), 404, "not_found")
    assert_problem(await platform.http.get("/api/dead-letters/0"), 422, "invalid")
