"""Deletion of a device's data over HTTP."""

from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import World

BY = {"X-Sensorium-By": "ada"}


async def test_data_go_and_the_device_stays(platform: World) -> None:
    await platform.registered("d")
    await platform.send({"t": 1}, "d")
    answer = await platform.http.delete("/api/devices/d/data", headers=BY)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["device_id"], job["registration"]) == ("d", False)
    assert (await platform.http.get(answer.headers["Location"])).json() == job
    assert (await platform.http.get("/api/erasures", params={"device_id": "d"})).json()["items"] == [job]
    assert (await platform.http.get("/api/devices/d/data")).json()["items"] == []
    assert (await platform.http.get("/api/devices/d/data/latest")).json()["metrics"] == {}
    assert (await platform.http.get("/api/devices/d")).json()["connectivity"] == "never_seen"
    [entry] = (await platform.http.get("/api/audit", params={"what": "device.erase"})).json()["items"]
    assert (entry["by"], entry["note"]) == ("ada", {"job_id": job["job_id"]})
    assert (await platform.send({"t": "on"}, "d")).status_code == 201


async def test_a_device_is_purged_and_may_come_again(platform: World) -> None:
    await platform.registered("d")
    answer = await platform.http.delete("/api/devices/d", params={"purge": "true"})
    assert (answer.status_code, answer.json()["registration"]) == (202, True)
    assert_problem(await platform.http.get("/api/devices/d"), 404, "not_found")
    await platform.registered("d")


async def test_who_is_not_there_is_not_found(platform: World) -> None:
    for path in ("/api/devices/none/data", "/api/devices/none?purge=true"):
        assert_problem(await platform.http.delete(path), 404, "not_found")
    assert_problem(await platform.http.get("/api/erasures/none"), 404, "not_found")
