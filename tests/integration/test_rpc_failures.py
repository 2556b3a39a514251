"""Three nodes under load while calls between their processes fail, by Ray's own fault injection."""

import asyncio
from collections.abc import Iterator
from typing import Final

import pytest
from cluster_world import World, loopback_cluster
from real_mosquitto import MOSQUITTO
from rpc_faults import TENTH, failing_calls

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(240),
    pytest.mark.skipif(MOSQUITTO is None, reason="nodes share a real broker; Mosquitto is not installed"),
]

LOAD_S: Final = 15.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Of all that hosts and services on the workers ask of other processes, a tenth fails."""
    with loopback_cluster(**failing_calls(*TENTH)) as started:
        yield started


async def test_calls_that_fail_lose_and_double_nothing(world: World) -> None:
    async with world.load("calls-fail") as load:
        await asyncio.sleep(LOAD_S)
        await world.recovered(load, "while calls fail")
    failed = world.failed_calls()
    print(f"{failed} calls failed by injection")
    assert failed > 0, "the test proves nothing"
