"""Calls to the coordinator that do not get through, or whose answer is lost, on a virtual clock."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from sensorium.actors.runtime import STEER_TIMEOUT_S, steer_coordinator
from tests.unit.actors.virtual import run_virtually


def coordinator(*calls_s: float, fails: int) -> Any:
    """One whose calls take so long, in turn; the first `fails` of them fail then."""
    taken = iter(enumerate(calls_s))

    async def remote(method: str) -> str:
        number, takes_s = next(taken)
        await asyncio.sleep(takes_s)
        if number < fails:
            raise ActorUnavailableError("its answer was lost", b"0" * 16)
        return method

    return SimpleNamespace(call=SimpleNamespace(remote=remote))


@pytest.mark.parametrize("slow_s", [0.0, STEER_TIMEOUT_S + 5.0], ids=["at once", "late"])
def test_a_call_that_failed_is_made_again(slow_s: float) -> None:
    """A start takes as long as its hosts do; that its answer was lost then is no reason to give up."""

    async def run() -> None:
        clock_s = asyncio.get_running_loop().time
        steered = coordinator(slow_s, slow_s, 0.0, fails=2)
        assert await steer_coordinator(steered, "start", clock_s) == "start"

    run_virtually(run, 0)


def test_one_that_never_gets_through_is_told() -> None:
    async def run() -> None:
        clock_s = asyncio.get_running_loop().time
        began_s = clock_s()
        with pytest.raises(ActorUnavailableError):
            await steer_coordinator(coordinator(*[0.0] * 100, fails=100), "start", clock_s)
        assert STEER_TIMEOUT_S <= clock_s() - began_s <= STEER_TIMEOUT_S + 1.0

    run_virtually(run, 0)
