"""When a launched process is taken for lost, on a virtual clock."""

import asyncio
from collections import defaultdict
from typing import Any, ClassVar

from sensorium.actors.coordinator import HEAD_START_S, Coordinator, RuntimeSpec, ServiceSpec
from sensorium.actors.host import HostSettings
from sensorium.actors.placement import Node
from sensorium.actors.router import HostGone
from sensorium.actors.supervision import PING_TIMEOUT_S, brought_up, watched
from sensorium.actors.testing import MemoryStore
from tests.unit.actors.local import LocalLauncher, LocalProcess
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


class Service:
    """One that takes a second to start; notes when each of its name began to."""

    began_s: ClassVar[dict[str, list[float]]] = defaultdict(list)

    def __init__(self, name: str) -> None:
        self._name = name
        self._serves = False

    async def start(self) -> None:
        self.began_s[self._name].append(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        self._serves = True

    async def ping(self) -> None:
        if not self._serves:
            raise RuntimeError("not started")

    def statistics(self) -> dict[str, Any]:
        return {"name": self._name}

    async def stop(self) -> None: ...


def test_of_services_lost_together_the_first_comes_first() -> None:
    """What the devices' messages come in by is up again before the others take its processor."""

    async def run() -> None:
        Service.began_s.clear()
        store, launcher = MemoryStore(), LocalLauncher()
        services = [ServiceSpec(name, Service, (name,)) for name in ("messages", "other", "another")]
        coordinator = Coordinator(
            RuntimeSpec(1, store.ports, store.membership, HostSettings(), services), launcher
        )
        await coordinator.start()
        first_start = {name: times[0] for name, times in Service.began_s.items()}
        assert len(set(first_start.values())) == 1
        for name in ("another", "other", "messages"):
            launcher.current[name].kill()
        async with asyncio.timeout(HEAD_START_S):
            while not all(len(times) == 2 for times in Service.began_s.values()):
                await asyncio.sleep(0.01)
        again = {name: times[1] for name, times in Service.began_s.items()}
        assert min(again["other"], again["another"]) >= again["messages"] + 0.99
        await coordinator.stop()

    run_virtually(run, 0)


def test_a_spare_takes_over_where_there_are_machines() -> None:
    async def run() -> None:
        store, launcher = MemoryStore(), LocalLauncher()
        launcher.machines = [Node("a"), Node("b")]
        services = [
            ServiceSpec("messages", Service, ("messages",)),
            ServiceSpec("other", Service, ("other",)),
        ]
        spec = RuntimeSpec(1, store.ports, store.membership, HostSettings(), services)

        async def spare_besides(*known: LocalProcess) -> LocalProcess:
            async with asyncio.timeout(10):
                while (spare := launcher.current.get("spare-messages")) is None or spare in known:
                    await asyncio.sleep(0.1)
            return spare

        def serves(process: LocalProcess) -> bool:
            return process.thing._serves

        coordinator = Coordinator(spec, launcher)
        await coordinator.start()
        spare = await spare_besides()
        assert not serves(spare)
        launched = len(launcher.launched)
        launcher.current["messages"].kill()
        async with asyncio.timeout(PING_TIMEOUT_S):
            while not serves(spare):
                await asyncio.sleep(0.1)
        assert launched == len(launcher.launched), "nothing had to be launched for it"
        next_spare = await spare_besides(spare)

        # A coordinator that is made anew goes on with the one that serves, and ends the one that does not.
        for task in coordinator._tasks:
            task.cancel()
        again = Coordinator(spec, launcher)
        await again.start()
        assert not spare.dead
        assert next_spare.dead
        await again.stop()
        assert not launcher.living()

    run_virtually(run, 0)
