"""Projections over HTTP."""

import pytest

from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import World


async def test_they_are_listed_paused_resumed_and_rewound(platform: World) -> None:
    got = await platform.http.get("/api/projections")
    [item] = got.json()["items"]
    assert (item["name"], item["state"], item["lag_entries"]) == ("rollups", "running", 7)
    paused = await platform.http.post("/api/projections/rollups/pause")
    assert (paused.status_code, paused.json()["state"]) == (202, "paused")
    assert (await platform.http.post("/api/projections/rollups/resume")).json()["state"] == "running"
    rewound = await platform.http.post("/api/projections/rollups/rewind?to_ms=5")
    assert rewound.json()["rewinding"]
    assert platform.projections.rewound_to == 5


@pytest.mark.parametrize("verb", ["pause", "resume", "rewind"])
async def test_one_that_never_ran_is_not_found(platform: World, verb: str) -> None:
    assert_problem(await platform.http.post(f"/api/projections/nothing/{verb}"), 404, "not_found")
