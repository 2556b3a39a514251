"""A network and a database that misbehave by chance: what lies between the parts of a runtime in one loop."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.host import DeviceHost
from sensorium.actors.placement import Node
from sensorium.actors.ports import HostPorts, Membership
from sensorium.actors.router import HostGone, Table
from sensorium.actors.testing import MemoryStore

DELIVER_TIMEOUT_S = 30.0
START_NOTICED_S = 5.0
NEVER_TWICE = {"start", "stop"}
"""The others a network may bring twice."""


class Weather:
    """How bad it is at present; `rng` makes every choice.

    Attributes:
        lost: probability that a request or a reply does not arrive.
        late_s: they arrive up to so much later, each by itself, so they overtake each other.
        twice: probability that a request arrives a second time.
        broken: probability that a call to the database fails, before its effect or after.
        cut_off: incarnations that do not reach the database, or with its position, one of several.
        cut: incarnations whose callers do not reach them.
        gates: by incarnation; while one is not set, the process is paused.
        jumps_ms: by incarnation, how far its clock of the day is off.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cut_off: set[int | tuple[int, int]] = set()
        self.cut: set[int] = set()
        self.gates: dict[int, asyncio.Event] = defaultdict(_open)
        self.jumps_ms: dict[int, int] = defaultdict(int)
        self.counts: dict[str, int] = defaultdict(int)
        self.calm()

    def calm(self) -> None:
        """Nothing more goes wrong; who was killed stays dead."""
        self.lost = self.late_s = self.twice = self.broken = 0.0
        self.cut_off.clear()
        self.cut.clear()
        for gate in self.gates.values():
            gate.set()

    def happens(self, what: str, probability: float) -> bool:
        """Whether it happens this time."""
        if probability and self.rng.random() < probability:
            self.counts[what] += 1
            return True
        return False

    async def travel(self) -> None:
        """Take as long as a message takes."""
        if self.late_s:
            await asyncio.sleep(self.rng.random() ** 4 * self.late_s)


class StormyProcess:
    """An object behind this network, which can be killed, paused and cut off."""

    def __init__(self, thing: Any, weather: Weather) -> None:
        self.address = self
        self.thing = thing
        self._weather = weather
        self._dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls: dict[asyncio.Task[Any], None] = {}  # in order, so that a seed replays

    @property
    def dead(self) -> bool:
        """Whether its process has ended."""
        return self._dead.done()

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """As `supervision.Process` says."""
        weather = self._weather
        if self.dead:
            raise HostGone("dead", dead=True)
        if self._away() or weather.happens("request lost", weather.lost):
            await self._silence(timeout_s)
            raise HostGone("the request was lost", dead=self.dead)
        answer = self._arrives(method, args)
        if method not in NEVER_TWICE and weather.happens("twice", weather.twice):
            self._arrives(method, args)
        ends = {answer, self._dead}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        if self.dead or not answer.done() or answer.cancelled():
            raise HostGone("no answer", dead=self.dead)
        if self._away() or weather.happens("reply lost", weather.lost):
            await self._silence(timeout_s)
            raise HostGone("the reply was lost", dead=self.dead)
        await weather.travel()
        return answer.result()

    async def deliver(self, data: bytes) -> bytes:
        """A router's way to it."""
        reply: bytes = await self.call("deliver", data, timeout_s=DELIVER_TIMEOUT_S)
        return reply

    def kill(self) -> None:
        """End it, unless nobody reaches it."""
        if not self._away():
            self.end()

    def end(self) -> None:
        """End its process: what it was doing stops where it is."""
        if not self.dead:
            self._dead.set_result(None)
            for task in [*self._calls, *getattr(self.thing, "_tasks", [])]:
                task.cancel()

    @property
    def incarnation(self) -> int:
        """The host's."""
        found: int = self.thing.incarnation
        return found

    async def _silence(self, timeout_s: float) -> None:
        """A connection that breaks is noticed at once, one that is silent after the time-out or, at a start,
        when the machine is found to be gone."""
        longest_s = min(timeout_s, START_NOTICED_S) if timeout_s > DELIVER_TIMEOUT_S else timeout_s
        await asyncio.wait({self._dead}, timeout=self._weather.rng.choice((0.01, longest_s)))

    def _away(self) -> bool:
        return self.incarnation in self._weather.cut

    def _arrives(self, method: str, args: tuple[Any, ...]) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(self._run(method, args))
        self._calls[task] = None
        task.add_done_callback(self._calls.pop)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _run(self, method: str, args: tuple[Any, ...]) -> Any:
        await self._weather.travel()
        await self._weather.gates[self.incarnation].wait()
        result = getattr(self.thing, method)(*args)
        result = await result if asyncio.iscoroutine(result) else result
        await self._weather.gates[self.incarnation].wait()
        return result


class StormyLauncher:
    """Launches behind this network. Only hosts; each by a clock of the day of its own."""

    def __init__(self, weather: Weather, clock_ms: Callable[[], int]) -> None:
        self._weather = weather
        self._clock_ms = clock_ms
        self.launched: dict[str, StormyProcess] = {}

    def launch(
        self, name: str, node: str, make: Callable[..., Any], *args: Any, needs: Any = None
    ) -> StormyProcess:
        """As `supervision.Launcher` says."""
        assert make is DeviceHost
        incarnation, jumps_ms = args[1], self._weather.jumps_ms
        host = DeviceHost(*args, clock_ms=lambda: self._clock_ms() + jumps_ms[incarnation])
        process = StormyProcess(host, self._weather)
        if (
            name in self.launched
        ):  # of one that bears a device's name, and may live on where nobody reaches it
            self.launched[f"{name} before {incarnation}"] = self.launched.pop(name)
        self.launched[name] = process
        return process

    def living(self) -> dict[str, StormyProcess]:
        """As `supervision.Launcher` says."""
        return {name: process for name, process in self.launched.items() if not process.dead}

    def nodes(self) -> list[Node]:
        """As `supervision.Launcher` says."""
        return []


class StormyDatabase:
    """`Log` or `Membership` over a connection that breaks: every call of `inner`, perhaps without answer."""

    def __init__(self, inner: Any, weather: Weather, incarnation: int, position: int = 0) -> None:
        self._inner = inner
        self._names = {incarnation, (incarnation, position)}
        self._weather = weather
        self._incarnation = incarnation

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        weather, gate = self._weather, self._weather.gates[self._incarnation]

        async def call(*args: Any) -> Any:
            if not gate.is_set():
                await gate.wait()
            if self._names & weather.cut_off or weather.happens("database before", weather.broken / 2):
                raise LogUnavailable(f"{name} broke off before")
            if weather.late_s:
                await weather.travel()
            if not gate.is_set():
                await gate.wait()
            result = await method(*args)
            if not gate.is_set():
                await gate.wait()
            if self._names & weather.cut_off or weather.happens("database after", weather.broken / 2):
                raise LogUnavailable(f"{name} broke off after")
            return result

        return call


class StormyPorts:
    """The factories of hosts and coordinators over one store."""

    def __init__(self, store: MemoryStore, weather: Weather) -> None:
        self._store = store
        self._weather = weather

    async def ports(self, incarnation: int) -> HostPorts:
        """A `HostPortsFactory`."""
        inner = await self._store.ports(incarnation)
        logs: list[Any] = [StormyDatabase(log, self._weather, incarnation) for log in inner.logs]
        return inner._replace(logs=logs)

    async def membership(self) -> Membership:
        """A `MembershipFactory`."""
        members: Any = StormyDatabase(self._store, self._weather, 0)
        return members


class StormyTransport:
    """A router's way: to hosts, and to whichever coordinator is `present`."""

    def __init__(self, weather: Weather) -> None:
        self.present: Any = None
        self._weather = weather

    async def table(self, newer_than: int | None = None) -> Table:
        """As `router.Transport` says."""
        weather = self._weather
        while True:
            asked = self.present
            if asked is not None and not weather.happens("table lost", weather.lost):
                await weather.travel()
                answer = asyncio.ensure_future(asked.table(newer_than))
                while self.present is asked:
                    done, _ = await asyncio.wait({answer}, timeout=0.5)
                    if done:
                        await weather.travel()
                        table: Table = answer.result()
                        return table
                answer.cancel()
            await asyncio.sleep(0.5)

    async def close(self) -> None:
        """Nothing is held."""

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        """Nobody waits here."""
        return None

    async def deliver(self, address: StormyProcess, data: bytes) -> bytes:
        """As `router.Transport` says."""
        return await address.deliver(data)


def _open() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
