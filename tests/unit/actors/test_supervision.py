"""When a launched process is taken for lost, on a virtual clock."""

import asyncio
from typing import Any

from sensorium.actors.router import HostGone
from sensorium.actors.supervision import PING_TIMEOUT_S, brought_up, watched
from tests.unit.actors.virtual import run_virtually


class Scripted:
    """A process whose answers are told beforehand: an exception, or None for one that is well."""

    address = None

    def __init__(self, *answers: Exception | None, hangs: bool = False) -> None:
        self.answers = list(answers)
        self.hangs = hangs
        self.killed = False

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        if self.hangs:
            await asyncio.sleep(timeout_s)
            raise HostGone("no answer")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer

    def kill(self) -> None:
        self.killed = True


async def lost_after(process: Scripted) -> tuple[Exception, float]:
    """Why it is lost, and after how many seconds."""
    clock_s = asyncio.get_running_loop().time
    began_s = clock_s()
    return await watched(process), clock_s() - began_s


def test_a_call_that_failed_is_no_death() -> None:
    async def run() -> None:
        unreachable, dead = HostGone("unreachable"), HostGone("dead", dead=True)
        error, after_s = await lost_after(Scripted(None, unreachable, unreachable, None, unreachable, dead))
        assert error is dead
        assert after_s < PING_TIMEOUT_S

    run_virtually(run, 0)


def test_what_stays_unreachable_or_silent_is_lost_in_time() -> None:
    async def run() -> None:
        for process in (Scripted(HostGone("unreachable")), Scripted(None, hangs=True)):
            _, after_s = await lost_after(process)
            assert PING_TIMEOUT_S <= after_s <= PING_TIMEOUT_S + 0.5

    run_virtually(run, 0)


def test_what_starts_on_a_node_that_goes_starts_on_another() -> None:
    async def run() -> None:
        clock_s = asyncio.get_running_loop().time
        began_s = clock_s()
        launched = [Scripted(None, hangs=True), Scripted(None)]
        left = list(launched)

        async def launch() -> Scripted:
            return left.pop(0)

        process = await brought_up("a service", launch, lambda: not left)
        assert process is launched[1]
        assert launched[0].killed
        assert clock_s() - began_s < PING_TIMEOUT_S

    run_virtually(run, 0)
