"""What the coordinator launches and keeps running: processes by name, replaced when they are lost."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from sensorium.actors.placement import Node, choose_node
from sensorium.actors.profile import ProcessNeeds
from sensorium.actors.router import HostGone

_log = logging.getLogger(__name__)

PING_EVERY_S: Final = 0.5
PING_TIMEOUT_S: Final = 3.0
"""What does not answer for so long is taken for hung and replaced."""

PING_AGAIN_S: Final = 0.25
"""After a call that failed, of which a process that lives need not know."""

NODE_LOOK_EVERY_S: Final = 0.5
"""While something starts, its machine may go: Ray would wait for that until it has given the machine up."""

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 1.0


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

    def launch(
        self, name: str, node: str, make: Callable[..., Any], *args: Any, needs: ProcessNeeds | None = None
    ) -> Process:
        """Make `make(*args)` in a new process, on that node if it is not "". Does not wait for it.

        With `needs` it waits for a node that has them; then let `node` be "".
        """
        ...

    def living(self) -> Mapping[str, Process]:
        """By name what any coordinator of this runtime has launched and has not been found dead."""
        ...

    def nodes(self) -> Sequence[Node]:
        """The machines to launch on, those that answer now; none where there is no choice."""
        ...


class Kept:
    """A service that is kept running; `run` is its life, `up` says whether it serves.

    Args:
        launch: starts a new process of it.
        there: whether the machine that it was launched on answers.
        process: one that runs already, to go on with.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], Awaitable[Process]],
        there: Callable[[], bool],
        process: Process | None = None,
    ) -> None:
        self.name = name
        self.process = process
        self.replaced = 0
        self.up = asyncio.Event()
        self._launch = launch
        self._there = there

    async def run(self) -> None:
        """Keep it up until cancelled."""
        while True:
            if self.process is None:
                began_s = asyncio.get_running_loop().time()
                self.process = await brought_up(self.name, self._launch, self._there)
                if self.replaced:
                    took_s = asyncio.get_running_loop().time() - began_s
                    _log.warning("%s is up again after %.1f s", self.name, took_s)
            self.up.set()
            error = await watched(self.process)
            _log.warning("%s is lost (%s); replacing it", self.name, error)
            self.up.clear()
            self.process.kill()
            self.process = None
            self.replaced += 1


class Spare:
    """A process of a service on another machine than the one that serves, launched but not started.

    To take it over when that machine is lost costs no start of a process, which is seconds of a core.

    Args:
        launch: makes one on that node.
    """

    def __init__(self, launch: Callable[[str], Process]) -> None:
        self._launch = launch
        self._node = ""
        self._process: Process | None = None

    def fit(self, nodes: Sequence[Node]) -> None:
        """Have one on one of these nodes, where there are some."""
        if self._process is not None and any(node.node_id == self._node for node in nodes):
            return
        self.end()
        if nodes:
            self._node = choose_node(nodes, {})
            self._process = self._launch(self._node)

    def take(self, nodes: Collection[str]) -> tuple[str, Process] | None:
        """Its node and the process, to be started, if the node is one of these; it is the taker's then."""
        if self._process is None or self._node not in nodes:
            return None
        taken, self._process = self._process, None
        return self._node, taken

    def end(self) -> None:
        """End it if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process = None


async def brought_up(
    name: str, launch: Callable[[], Awaitable[Process]], there: Callable[[], bool]
) -> Process:
    """A process that has started, however often it takes. `there`: see `Kept`."""
    while True:
        process = None
        try:
            process = await launch()
            await _unless_gone(process.call("start", timeout_s=START_TIMEOUT_S), there)
        except Exception as error:  # whatever its start raises: a supervisor outlives what it keeps
            _log.warning("%s does not start yet: %s", name, error)
            if process is not None:
                process.kill()
            await asyncio.sleep(RETRY_S)
        else:
            return process


async def _unless_gone(starting: Awaitable[None], there: Callable[[], bool]) -> None:
    started = asyncio.ensure_future(starting)
    try:
        while not started.done():
            await asyncio.wait({started}, timeout=NODE_LOOK_EVERY_S)
            if not started.done() and not there():
                raise HostGone("its node does not answer")
        await started
    finally:
        started.cancel()


async def watched(process: Process, look: Callable[[Any], Awaitable[None]] | None = None) -> Exception:
    """Ping until it is dead, silent for `PING_TIMEOUT_S` or broken, or `look` at an answer raises; why."""
    clock_s = asyncio.get_running_loop().time
    heard_s = clock_s()
    while True:
        try:
            asked_s = clock_s()
            answer = await process.call("ping", timeout_s=PING_TIMEOUT_S)
            heard_s = asked_s
            if look is not None:
                await look(answer)
        except HostGone as error:
            if error.dead or clock_s() - heard_s >= PING_TIMEOUT_S:
                return error
            await asyncio.sleep(PING_AGAIN_S)
            continue
        except Exception as error:  # a fault of ours that broke it comes as any error
            return error
        await asyncio.sleep(PING_EVERY_S)


async def others_noticed() -> None:
    """Return when whatever was lost at the same moment has been found to be lost as well."""
    await asyncio.sleep(2 * PING_EVERY_S)


async def stopped(name: str, process: Process) -> None:
    """Stop it cleanly if that works in time, and end it."""
    try:
        await process.call("stop", timeout_s=STOP_TIMEOUT_S)
    except Exception as error:  # the others must be stopped all the same
        _log.warning("%s did not stop cleanly: %s", name, error)
    process.kill()
