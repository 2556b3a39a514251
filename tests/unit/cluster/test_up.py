"""`up` around a platform that only pretends: what is printed, signals, and what a failure leaves behind."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sensorium.actors.errors import LogUnavailable, SensoriumError
from sensorium.cluster import up as module
from sensorium.cluster.config import Config, load
from sensorium.cluster.errors import AlreadyRunning, DeliveryFailed, PlatformFailed, StartFailed
from sensorium.cluster.platform import Platform
from sensorium.cluster.run_directory import RunDirectory, is_running, read_state
from sensorium.cluster.simulator.fleet import Simulation
from sensorium.cluster.up import UpOptions, up
from sensorium.ingest.broker import free_port


class Pretended:
    """Records what happens to a platform; `gate` holds its start, `error` breaks it."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.error: Exception | None = None
        self.failure: asyncio.Future[SensoriumError] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def __call__(self, config: Config) -> AsyncIterator[Any]:
        self.happened.append("starting")
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.happened.append("abandoned")
            raise
        if self.error:
            raise self.error
        try:
            yield SimpleNamespace(
                http_url="http://127.0.0.1:8000",
                mqtt_url="mqtt://127.0.0.1:1883",
                database_dsn_redacted="postgresql://u:***@h/d",
                ray_address="127.0.0.1:6379",
                failed=self._failed,
            )
        finally:
            self.happened.append("stopped")

    async def _failed(self) -> SensoriumError:
        return await self.failure


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(flags={"--data-dir": ("storage.data_dir", tmp_path)})


def run(config: Config, platform: Pretended, options: UpOptions | None = None) -> "asyncio.Task[None]":
    return asyncio.create_task(up(config, options or UpOptions(), platform, Console()))


async def until_ready(tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        while not is_running(tmp_path) or read_state(tmp_path).phase != "ready":  # a file's content
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_ready_once_and_ends_on_a_signal(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    platform = Pretended()
    running = run(config, platform)
    await until_ready(tmp_path)
    state = read_state(tmp_path)
    assert (state.http_url, state.database) == ("http://127.0.0.1:8000", "postgresql://u:***@h/d")
    assert state.ray_address == "127.0.0.1:6379"
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        await running
    assert platform.happened == ["starting", "stopped"]
    assert not is_running(tmp_path)
    captured = capsys.readouterr()
    assert captured.out == "ready http://127.0.0.1:8000\n"


async def test_a_signal_during_the_start_abandons_it(config: Config, tmp_path: Path) -> None:
    platform = Pretended()
    platform.gate.clear()
    running = run(config, platform)
    async with asyncio.timeout(5):
        await platform.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    assert platform.happened == ["starting", "abandoned"]
    assert not is_running(tmp_path)


async def test_a_start_that_fails_is_one_line(config: Config, tmp_path: Path) -> None:
    platform = Pretended()
    platform.error = LogUnavailable("the database at h does not answer")
    with pytest.raises(StartFailed, match="could not start: the database at h does not answer"):
        await run(config, platform)
    assert not is_running(tmp_path)


@pytest.mark.parametrize("url", ["postgresql://u:hunter2@127.0.0.1:9/d", "postgresql:///d?host=/nowhere"])
async def test_without_its_database_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    def join_ray(_: Platform) -> None:
        pytest.fail("Ray is started before the database is there")

    monkeypatch.setattr(Platform, "_join_ray", join_ray)
    ports = {f"--{name}-port": (f"{name}.port", free_port()) for name in ("http", "mqtt", "coap")}
    flags = {"--data-dir": ("storage.data_dir", tmp_path / "data"), **ports}
    config = load(environment={"DEVICE_DB_URL": url}, flags=flags)
    with pytest.raises(StartFailed) as caught:
        await up(config, UpOptions(), Platform, Console())
    assert "could not start: the database cannot be reached: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not is_running(tmp_path / "data")


async def test_a_platform_that_cannot_go_on_ends_with_one_line(config: Config, tmp_path: Path) -> None:
    platform = Pretended()
    running = run(config, platform)
    await until_ready(tmp_path)
    platform.failure.set_result(LogUnavailable("the database is in use by another"))
    with pytest.raises(PlatformFailed, match="cannot go on: the database is in use by another"):
        await running
    assert platform.happened == ["starting", "stopped"]
    assert not is_running(tmp_path)


async def test_it_ends_by_itself_after_its_duration(config: Config) -> None:
    platform = Pretended()
    async with asyncio.timeout(5):
        await run(config, platform, UpOptions(duration_s=0.01))
    assert platform.happened == ["starting", "stopped"]


async def test_a_simulation_that_fails_ends_the_platform_cleanly(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DeliveryFailed("devices/x/telemetry: not acknowledged within 60 s")

    monkeypatch.setattr(module, "_simulate", fail)
    platform = Pretended()
    with pytest.raises(DeliveryFailed):
        await run(config, platform, UpOptions(simulation=Simulation(devices=1)))
    assert platform.happened == ["starting", "stopped"]


async def test_with_the_live_table_the_log_goes_to_a_file(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def show(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(module, "show", show)
    await run(config, Pretended(), UpOptions(live=True, duration_s=0.01))
    assert "setting http.port = 8000" in (tmp_path / module.LOG_FILE).read_text()
    assert capsys.readouterr().err == ""
    assert logging.getLogger("sensorium").level == logging.NOTSET


async def test_two_on_one_directory_are_refused(config: Config, tmp_path: Path) -> None:
    platform = Pretended()
    with RunDirectory(tmp_path), pytest.raises(AlreadyRunning):
        await run(config, platform)
    assert platform.happened == []
