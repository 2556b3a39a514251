"""The live feed of a whole platform, by public clients, through its proxy and over a restart."""

import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import websockets
from event_stream import curl, values_of
from platform_process import PlatformProcess

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

PAGE = Path(__file__).parents[2] / "docs" / "live.md"
DEADLINE_S = 15.0
SHUT_DOWN_WITHIN_S = 15.0


@pytest.fixture
def own_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sens-live-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def register(api: httpx.AsyncClient, device_id: str) -> None:
    body = {"device_id": device_id, "device_type": "pump"}
    (await api.post("/api/devices", json=body)).raise_for_status()


async def send(api: httpx.AsyncClient, device_id: str, **values: Any) -> None:
    (await api.post(f"/api/devices/{device_id}/data", json=values)).raise_for_status()


async def test_curl_follows_a_device(api: httpx.AsyncClient, platform: PlatformProcess) -> None:
    await register(api, "live-1")
    await send(api, "live-1", pressure=1.0)
    url = f"{platform.state.http_url}/api/live?device_id=live-1"
    async with curl(url) as stream:
        async with asyncio.timeout(DEADLINE_S):
            snapshot = await anext(stream)
        assert snapshot["event"] == "snapshot"
        (device,) = msgspec.json.decode(snapshot["data"])["devices"]
        assert device["metrics"]["pressure"]["value"] == 1.0
        await send(api, "live-1", pressure=2.0)
        assert await values_of(stream, "pressure", 1) == [2.0]
    # What was there before the snapshot, or came while nobody listened, is told behind its cursor.
    await send(api, "live-1", pressure=3.0)
    async with curl(url, "-H", f"Last-Event-ID: {snapshot['id']}") as stream:
        assert await values_of(stream, "pressure", 2) == [2.0, 3.0]


async def test_a_socket_follows_a_type(api: httpx.AsyncClient, platform: PlatformProcess) -> None:
    await register(api, "live-2")
    await register(api, "live-3")
    url = platform.state.http_url.replace("http://", "ws://")
    query = "topics=readings,devices&device_type=pump&device_id=live-2&snapshot=false"
    async with websockets.connect(f"{url}/ws?{query}") as socket, asyncio.timeout(DEADLINE_S):
        await send(api, "live-3", pressure=1.0)
        await send(api, "live-2", pressure=2.0)
        (await api.delete("/api/devices/live-2")).raise_for_status()
        told: list[dict[str, Any]] = []
        while not any(item.get("event") == "decommissioned" for item in told):
            message = msgspec.json.decode(await socket.recv())
            told += message.get("items", ())
    assert {item["device_id"] for item in told} == {"live-2"}
    assert [item["values"] for item in told if item["topic"] == "readings"] == [{"pressure": 2.0}]


async def test_the_examples_of_the_page(
    api: httpx.AsyncClient, platform: PlatformProcess, own_dir: Path
) -> None:
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "python", "sh"]
    here = platform.state.http_url.removeprefix("http://")
    follow, program, resume = (
        text.replace("127.0.0.1:8000", here).replace("sensor-001", "live-001") for _, text in blocks
    )
    body = {"device_id": "live-001", "device_type": "temperature"}
    (await api.post("/api/devices", json=body)).raise_for_status()
    for block, said in ((follow, "event: snapshot"), (resume, "retry: 2000")):
        shell = await asyncio.create_subprocess_exec(
            *("timeout", "4", "sh", "-c", block), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await shell.communicate()
        assert said in out.decode()
    (own_dir / "follow.py").write_text(program)
    python = await asyncio.create_subprocess_exec(
        sys.executable, str(own_dir / "follow.py"), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        ended = asyncio.create_task(python.wait())
        while not ended.done():
            await send(api, "live-001", temperature=21.5)
            await asyncio.wait({ended}, timeout=0.2)
    assert python.stdout is not None
    assert (await python.stdout.read()).decode().strip() == "live-001 {'temperature': 21.5}"
