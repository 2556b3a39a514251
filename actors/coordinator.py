"""The coordinator: starts the hosts and services, watches them, replaces what died, says who owns what.

A plain class over a `Launcher`; `runtime` makes a Ray actor of it. It keeps nothing that cannot be found
again: which incarnation may commit stands in the database.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sensorium.actors.errors import SensoriumError, Unavailable
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.placement import place
from sensorium.actors.ports import HostPortsFactory, Membership, MembershipFactory
from sensorium.actors.router import HostGone, Table

_log = logging.getLogger(__name__)

PING_EVERY_S: Final = 0.5
PING_TIMEOUT_S: Final = 5.0
"""A host that does not answer for so long is taken for hung and replaced."""

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 1.0
NEWER_TABLE_WAIT_S: Final = 2.0


class Process(Protocol):
    """A launched object in its own process."""

    address: Any
    """What a `Transport` reaches it with."""

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Call a method. Raises what it raises; `HostGone` when it is dead or silent."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Launcher(Protocol):
    """Starts objects in processes of their own."""

    def launch(self, name: str, make: Callable[..., Any], *args: Any) -> Process:
        """Make `make(*args)` in a new process. Does not wait for it."""
        ...

    def clear(self) -> None:
        """End at once whatever an earlier coordinator of this runtime has launched and left behind."""
        ...


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service to keep running beside the hosts, such as an ingestor.

    `make(*args)` gives an object with `async start()`, `async ping()`, `statistics()` and `async stop()`.
    """

    name: str
    make: Callable[..., Any]
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """What a runtime consists of: its hosts by number, what they are given, and its services."""

    hosts: int
    open_ports: HostPortsFactory
    open_membership: MembershipFactory
    settings: HostSettings
    services: Sequence[ServiceSpec] = ()


@dataclass(slots=True)
class _Kept:
    """Something that is kept running."""

    name: str
    launch: Callable[[], Awaitable[Process]]
    process: Process | None = None
    replaced: int = 0
    task: asyncio.Task[None] | None = None
    up: asyncio.Event = field(default_factory=asyncio.Event)


class Coordinator:
    """One for a runtime. It may be killed and made anew; `start` then replaces what the one before launched,
    and `table` waits for that. The hosts serve their senders meanwhile.
    """

    def __init__(self, spec: RuntimeSpec, launcher: Launcher) -> None:
        self._spec = spec
        self._launcher = launcher
        self._membership: Membership | None = None
        self._kept: dict[str, _Kept] = {}
        # Above every version of a coordinator before this one.
        self._version = time.time_ns() // 1_000_000
        self._changed = asyncio.Event()
        self._starting = asyncio.Lock()
        self._started = asyncio.Event()
        names = [f"host-{number}" for number in range(spec.hosts)]
        self._placement = place(dict.fromkeys(names, 1.0))

    async def start(self) -> None:
        """Start hosts, then services; returns when all are up. Does nothing when they were started."""
        async with self._starting:
            if self._membership is None:
                self._launcher.clear()
                self._membership = await _until_available(self._spec.open_membership)
                hosts = [self._keep(name, self._host_launch(name)) for name in sorted(set(self._placement))]
                self._started.set()
                await asyncio.gather(*(kept.up.wait() for kept in hosts))
                services = [self._keep(s.name, self._service_launch(s)) for s in self._spec.services]
                await asyncio.gather(*(kept.up.wait() for kept in services))

    async def stop(self) -> None:
        """Stop services, then hosts, each flushing what it has; ends what does not stop in time."""
        async with self._starting:
            self._started.clear()
            for kept in self._kept.values():
                if kept.task is not None:
                    kept.task.cancel()
            hosts = set(self._placement)
            await asyncio.gather(*(self._stop(k) for k in self._kept.values() if k.name not in hosts))
            await asyncio.gather(*(self._stop(k) for k in self._kept.values() if k.name in hosts))
            self._kept.clear()
            if self._membership is not None:
                await self._membership.close()
                self._membership = None

    async def table(self, newer_than: int | None = None) -> Table:
        """See `router.Transport.table`. Waits until hosts have been started."""
        await self._started.wait()
        if newer_than is not None and newer_than >= self._version:
            self._changed.clear()
            try:
                async with asyncio.timeout(NEWER_TABLE_WAIT_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
        hosts = [self._kept[name] for name in sorted(set(self._placement)) if name in self._kept]
        while not all(kept.up.is_set() for kept in hosts):
            await asyncio.gather(*(kept.up.wait() for kept in hosts))
        addresses = {kept.name: kept.process.address for kept in hosts if kept.process is not None}
        return Table(self._version, self._placement, addresses)

    async def statistics(self) -> dict[str, Any]:
        """`{"hosts": [...], "services": [...], "replaced": {name: count}}`; what is down is left out."""
        kept = list(self._kept.values())
        answers = await asyncio.gather(*(self._statistics_of(k) for k in kept))
        hosts = set(self._placement)
        unstarted = sorted((hosts | {s.name for s in self._spec.services}) - self._kept.keys())
        return {
            "version": self._version,
            "hosts": [a for k, a in zip(kept, answers, strict=True) if a is not None and k.name in hosts],
            "services": [
                a for k, a in zip(kept, answers, strict=True) if a is not None and k.name not in hosts
            ],
            "down": [k.name for k, a in zip(kept, answers, strict=True) if a is None] + unstarted,
            "replaced": {k.name: k.replaced for k in kept if k.replaced},
        }

    # --- keeping things up ------------------------------------------------------------------------------

    def _host_launch(self, name: str) -> Callable[[], Awaitable[Process]]:
        shards = [shard for shard, host in enumerate(self._placement) if host == name]

        async def launch() -> Process:
            assert self._membership is not None
            incarnation = await self._membership.join(name)
            return self._launcher.launch(
                f"{name}.{incarnation}",
                DeviceHost,
                name,
                incarnation,
                shards,
                self._spec.open_ports,
                self._spec.settings,
            )

        return launch

    def _service_launch(self, spec: ServiceSpec) -> Callable[[], Awaitable[Process]]:
        async def launch() -> Process:
            return self._launcher.launch(f"{spec.name}.{time.monotonic_ns()}", spec.make, *spec.args)

        return launch

    def _keep(self, name: str, launch: Callable[[], Awaitable[Process]]) -> _Kept:
        kept = self._kept[name] = _Kept(name, launch)
        kept.task = asyncio.create_task(self._keep_up(kept), name=f"keep {name}")
        return kept

    async def _keep_up(self, kept: _Kept) -> None:
        while True:
            process = await self._bring_up(kept)
            kept.process = process
            self._version += 1
            kept.up.set()
            self._changed.set()
            error = await self._watch(process)
            _log.warning("%s is lost (%s); replacing it", kept.name, error)
            kept.up.clear()
            kept.process = None
            kept.replaced += 1
            process.kill()

    async def _bring_up(self, kept: _Kept) -> Process:
        while True:
            process = None
            try:
                process = await kept.launch()
                await process.call("start", timeout_s=START_TIMEOUT_S)
            except Exception as error:  # whatever its start raises: a supervisor outlives what it keeps
                _log.warning("%s does not start yet: %s", kept.name, error)
                if process is not None:
                    process.kill()
                await asyncio.sleep(RETRY_S)
            else:
                return process

    async def _watch(self, process: Process) -> BaseException:
        while True:
            try:
                await process.call("ping", timeout_s=PING_TIMEOUT_S)
            except Exception as error:  # a fault of ours that broke it comes as any error
                return error
            await asyncio.sleep(PING_EVERY_S)

    async def _stop(self, kept: _Kept) -> None:
        if kept.process is None:
            return
        try:
            await kept.process.call("stop", timeout_s=STOP_TIMEOUT_S)
        except Exception as error:  # the others must be stopped all the same
            _log.warning("%s did not stop cleanly: %s", kept.name, error)
        kept.process.kill()

    async def _statistics_of(self, kept: _Kept) -> dict[str, Any] | None:
        if kept.process is None:
            return None
        try:
            answer: dict[str, Any] = await kept.process.call("statistics", timeout_s=PING_TIMEOUT_S)
        except (HostGone, SensoriumError):
            return None
        return answer


async def _until_available(open_membership: MembershipFactory) -> Membership:
    while True:
        try:
            return await open_membership()
        except Unavailable as error:
            _log.warning("the database is not there yet: %s", error)
            await asyncio.sleep(RETRY_S)
