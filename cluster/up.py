"""`sensorium up`: runs a platform in the foreground until it is told to end."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

import msgspec
from rich.console import Console

from sensorium.actors.errors import SensoriumError
from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.config import Config
from sensorium.cluster.errors import PlatformFailed, StartFailed, ungrouped
from sensorium.cluster.live import LiveSource, show
from sensorium.cluster.publisher import publishers
from sensorium.cluster.run_directory import RunDirectory, RunState
from sensorium.cluster.simulator.fleet import FleetSimulator, Simulation, prepare
from sensorium.cluster.simulator.responder import Responder
from sensorium.storage.embedded import EmbeddedFailed

LOG_FILE: Final = "sensorium.log"
_log = logging.getLogger(__name__)


class RunningPlatform(Protocol):
    """A platform that serves."""

    @property
    def http_url(self) -> str:
        """Where the API is, such as `http://127.0.0.1:8000`."""
        ...

    @property
    def mqtt_url(self) -> str:
        """Where devices publish, without credentials."""
        ...

    @property
    def database_dsn_redacted(self) -> str:
        """Where the log is, without the password."""
        ...

    @property
    def ray_address(self) -> str:
        """What `sensorium.connect` takes."""
        ...

    async def failed(self) -> SensoriumError:
        """Why it cannot go on, once it cannot."""
        ...


Start = Callable[[Config], AbstractAsyncContextManager[RunningPlatform]]
"""Starts a platform; entering returns when all is serving, leaving when all is flushed and ended."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `up` does besides running the platform.

    Attributes:
        simulation: devices to simulate, if any.
        live: show the live table, and log to a file under the data directory.
        duration_s: end after so long; None for never.
    """

    simulation: Simulation | None = None
    live: bool = False
    duration_s: float | None = None


async def up(config: Config, options: UpOptions, start: Start, console: Console) -> None:
    """Run until SIGINT, SIGTERM or the duration's end. Prints `ready URL` when all is serving.

    A signal during the start abandons it. Returns when everything is flushed and ended.

    Raises:
        AlreadyRunning: another platform runs on the data directory.
        StartFailed: a part of the platform could not be started; those before it were ended.
        PlatformFailed: it could not go on, and has ended.
        ClusterError: the simulation could not go on; the platform has ended all the same.
    """
    data_dir = config.storage.data_dir
    with RunDirectory(data_dir) as directory, _logging(data_dir / LOG_FILE if options.live else None):
        state = RunState(os.getpid(), version("sensorium"), int(time.time() * 1000))
        directory.write(state)
        for name, value in config.describe().items():
            _log.info("setting %s = %s", name, value)
        ending = _Ending()
        try:
            ending.listen()
            async with AsyncExitStack() as stack:
                platform = await _started(stack, start(config))
                ending.ready = True
                # Whatever was started may have put signal handlers of its own in place of ours.
                ending.listen()
                state = msgspec.structs.replace(
                    state,
                    phase="ready",
                    http_url=platform.http_url,
                    mqtt_url=platform.mqtt_url,
                    database=platform.database_dsn_redacted,
                    ray_address=platform.ray_address,
                )
                directory.write(state)
                print(f"ready {platform.http_url}", flush=True)
                try:
                    with ungrouped():
                        await _serve(config, options, state, platform, ending, console)
                finally:
                    directory.write(msgspec.structs.replace(state, phase="stopping"))
        except asyncio.CancelledError:
            if not ending.told.is_set():
                raise
            ending.task.uncancel()
        finally:
            ending.deafen()
        _log.info("stopped")


async def _started(
    stack: AsyncExitStack, platform: AbstractAsyncContextManager[RunningPlatform]
) -> RunningPlatform:
    try:
        return await stack.enter_async_context(platform)
    except (SensoriumError, EmbeddedFailed, OSError) as error:
        _log.debug("the start failed", exc_info=error)
        raise StartFailed(f"the platform could not start: {error}") from error


async def _serve(
    config: Config,
    options: UpOptions,
    state: RunState,
    platform: RunningPlatform,
    ending: "_Ending",
    console: Console,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        beside = [tasks.create_task(_fail_with(platform))]
        if options.simulation is not None:
            beside.append(tasks.create_task(_simulate(options.simulation, config, state.http_url)))
        if options.live:
            beside.append(tasks.create_task(_show(state, console)))
        with suppress(TimeoutError):
            async with asyncio.timeout(options.duration_s):
                await ending.told.wait()
        _log.info("stopping")
        for task in beside:
            task.cancel()


async def _fail_with(platform: RunningPlatform) -> None:
    error = await platform.failed()
    raise PlatformFailed(f"the platform cannot go on: {error}") from error


async def _simulate(simulation: Simulation, config: Config, http_url: str) -> None:
    devices = simulation.fleet()
    async with PlatformApi(http_url) as api:
        new = await prepare(api, devices)
    _log.info("simulating %d devices, %d of them new", len(devices), new)
    async with (
        publishers(config.broker, "sensorium-simulator", simulation.connections) as clients,
        Responder(config.broker, [device.device_id for device in devices]),
    ):
        await FleetSimulator(simulation, devices, clients).run()


async def _show(state: RunState, console: Console) -> None:
    addresses = {
        "API": f"{state.http_url}/docs",
        "metrics": f"{state.http_url}/metrics",
        "MQTT": state.mqtt_url,
        "database": state.database,
    }
    async with PlatformApi(state.http_url) as api:
        await show(LiveSource(api), console, addresses)


class _Ending:
    """Whether the process was told to end. Before `ready`, being told cancels the start."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.told = asyncio.Event()
        self.ready = False

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._tell)

    def deafen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _tell(self) -> None:
        if self.told.is_set():
            _log.info("already stopping; what was acknowledged is being flushed")
            return
        self.told.set()
        if not self.ready:
            self.task.cancel()


@contextmanager
def _logging(file: Path | None) -> Iterator[None]:
    """Log to the file, or to stderr."""
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("sensorium")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.setLevel(before)
        root.removeHandler(handler)
        handler.close()
