"""What pages say to type, typed: a real platform and broker.

Every shell block of a page has its place in `PAGES`, or a test fails. The other pages are run by the tests of
what they are about: actions, twins, the live feed, GraphQL, the broker's rights, LoRaWAN and Sparkplug.
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from platform_process import PlatformProcess
from real_mosquitto import MOSQUITTO, MOSQUITTO_PUB, RealMosquitto

from sensorium.ingest.broker import free_port

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90.0
COAP = ("coap-client-notls", "coap-client-openssl", "coap-client-gnutls")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        MOSQUITTO is None or MOSQUITTO_PUB is None or not all(map(shutil.which, COAP)),
        reason="needs mosquitto, mosquitto-clients and libcoap3-bin",
    ),
]


class Not(NamedTuple):
    """An example that is not run here, and why."""

    why: str


class Beside(NamedTuple):
    """An example that goes on in a second terminal while the `after`th is run, and what it prints there."""

    after: int
    patterns: list[str]


PAGES: dict[str, list[list[str] | Not | Beside]] = {
    "README.md": [
        Not("make: test_main_job and CI run them"),
        ['"device_id":"sensor-001"', '"status":"active"'],
        ['"temperature":{"value":23.5,"time_ms":1704110400000'],
        ['"rule_name":"Too warm"', '"severity":"major"', '"value":31.2'],
        ['"start_ms":', '"temperature":', '"devices":1'],
        ['"reason":"', '"device_id":"sensor-001"'],
        Not("a recording that is not in the repository: test_main_path replays one"),
        Not("up, status, simulate and down: test_main_job"),
    ],
    "docs/protocols.md": [
        [],
        ['"accepted":2', '"refused":0'],
        ['"accepted":2', '"refused":0'],
        ['"accepted":1', '"refused":0'],
        ['"temperature":{"value":23.5', "</sensors/>"],
        ['"temperature":{"value":23.5'],
        ['"replayed"', '"reason":"unregistered"'],
    ],
    "docs/commands.md": [
        ['"command":"set_interval"', '"state":"SUCCEEDED"', '"result":10'],
        ['"job_id":"', '"total":1', '"state":"CANCELL'],
        Not("sensorium commands: test_bulk_commands"),
        Beside(0, ['"command":"set_interval"', "SUCCEEDED"]),
        Not("comes and goes, which takes long: test_behind_other_systems types it"),
        ['"command":"open"', '"state":"SUCCEEDED"'],
        [r"\[\]"],
    ],
    "docs/rules.md": [
        ['"rule_id":"', '"name":"Hot for two minutes"'],
        ['"rule_id":"', '"for_s":120'],
        ['"type":"derive"', '"metric":"efficiency"'],
        Not("jq is no part of the tests' machine: test_main_path works on alarms"),
        Not("goes on from the example before"),
    ],
    "docs/history.md": [
        ['"start_ms":', '"temperature":'],
        ['"group_by":"type"', '"interval_s":3600'],
        ['"points":'],
        ['"kind":"'],
        ['"device_id":"sensor-001"'],
        Not("sensorium export: test_export_platform"),
        ['"items":'],
        ['"name":"rollups"'],
        Not("erases the device: test_audit_platform"),
    ],
    "docs/analytics.md": [['"device_id":"sensor-001"', '"quality":']],
    "docs/backtest.md": [['"draft":'], ['"type":"progress"', '"type":"result"']],
}
"""Patterns that each example's output has, by page, in the order of its examples."""


def blocks(page: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_every_example_has_its_place(page: str) -> None:
    assert len(blocks(page)) == len(PAGES[page]), f"say in PAGES what the examples of {page} print"


class World:
    def __init__(self, platform: PlatformProcess, broker: RealMosquitto, dtls_port: int, cwd: Path) -> None:
        self.platform = platform
        self.broker = broker
        self._cwd = cwd
        ports = (platform.coap_port, dtls_port)
        self._replaced = {
            "http://127.0.0.1:8000": f"http://127.0.0.1:{platform.http_port}",
            "-p 1883": f"-p {broker.address.port}",
            "coaps://127.0.0.1/": f"coaps://127.0.0.1:{ports[1]}/",
            "coap://127.0.0.1/": f"coap://127.0.0.1:{ports[0]}/",
            "coap-client -": "coap-client-notls -",
            "-s 60": "-s 1",
            '"wait_s": 5': '"wait_s": 50',
            "climate-0001": "sensor-001",
            "device_type=climate": "device_type=temperature",
            "metric=humidity": "metric=temperature",
            "at=2026-01-31T12:00:00": "at='$(date +%s%3N)'",
        }

    async def run(self, script: str) -> tuple[int, str]:
        """What it prints, with its errors."""
        for typed, here in self._replaced.items():
            script = script.replace(typed, here)
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=self._cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    @asynccontextmanager
    async def beside(self, others: list[tuple[str, list[str]]]) -> AsyncIterator[None]:
        """Have these run in terminals of their own meanwhile."""
        running = [asyncio.create_task(self.run(script)) for script, _ in others]
        try:
            yield
            for (script, patterns), (code, out) in zip(others, await asyncio.gather(*running), strict=True):
                missing = [pattern for pattern in patterns if not re.search(pattern, out)]
                assert code == 0, (script, out)
                assert not missing, (script, out, missing)
        finally:
            for task in running:
                task.cancel()

    async def says(self, script: str, patterns: list[str]) -> None:
        """Run it. What is shown last is asked for again while a message is on its way, as people do."""
        code, out = await self.run(script)
        assert code == 0, (script, out)
        again = script[max(script.rfind("\ncurl -s 'http"), script.rfind("\ncurl -s http")) + 1 :]
        for _ in range(200):
            missing = [pattern for pattern in patterns if not re.search(pattern, out)]
            if not missing:
                return
            await asyncio.sleep(0.1)
            if again.startswith("curl"):
                out += (await self.run(again))[1]
        raise AssertionError(f"{script}\nprints\n{out}\nwithout {missing}")


@pytest.fixture(scope="module")
async def world(short_dir: Path) -> AsyncIterator[World]:
    directory = short_dir / "pages"
    (directory / "broker").mkdir(parents=True)
    dtls_port = free_port()
    (directory / "keys").write_text(f"sensor-003:{b'a key of 16 byte'.hex()}\n")
    config = directory / "platform.yaml"
    config.write_text(
        f"coap: {{dtls_keys: {directory / 'keys'}, dtls_port: {dtls_port}}}\n"
        "profiles: {valve: {downlink: coap}}\n"
    )
    broker = RealMosquitto(directory / "broker")
    broker.start()
    platform = PlatformProcess(
        *(directory / "data", free_port(), free_port(), "--config", str(config)),
        environment={"MQTT_BROKER_URL": broker.url},
    )
    try:
        await asyncio.to_thread(platform.start)
        yield World(platform, broker, dtls_port, directory)
        assert await asyncio.to_thread(platform.stop) == 0, platform.errors
    finally:
        platform.close()
        broker.stop()


async def letter_of(world: World, api: httpx.AsyncClient) -> str:
    """The id of a letter of `sensor-009`, which was not known when it spoke and is now."""
    unknown = "mosquitto_pub -p 1883 -q 1 -t devices/sensor-009/telemetry -m '{\"temperature\": 20}'"
    assert (await world.run(unknown))[0] == 0
    async with asyncio.timeout(20):
        while True:
            found = (await api.get("/api/dead-letters", params={"device_id": "sensor-009"})).json()["items"]
            if found:
                await api.post("/api/devices", json={"device_id": "sensor-009", "device_type": "hall"})
                return str(found[0]["id"])
            await asyncio.sleep(0.1)


DEVICES: tuple[dict[str, Any], ...] = (
    {"device_id": "sensor-002", "device_type": "hall"},
    {"device_id": "sensor-003", "device_type": "hall"},
    {"device_id": "valve-1", "device_type": "valve"},
    {"device_id": "climate-1", "device_type": "climate", "metadata": {"site": "a"}},
    {"device_id": "climate-2", "device_type": "climate", "metadata": {"site": "plant-1"}},
)
"""That the pages take for granted."""


async def test_the_pages(world: World) -> None:
    """In one go, as somebody would who reads them one after the other."""
    url = f"http://127.0.0.1:{world.platform.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=20) as api:
        for device in DEVICES:
            assert (await api.post("/api/devices", json=device)).status_code == 201
        assert (await api.post("/api/devices/climate-2/data", json={"temperature": 30})).status_code == 201
        for page, expected in PAGES.items():
            examples = list(zip(blocks(page), expected, strict=True))
            for number, (script, patterns) in enumerate(examples):
                if isinstance(patterns, Not | Beside):
                    continue
                if "dead-letters/4711" in script:
                    script = script.replace("4711", await letter_of(world, api))
                others = [(o, p.patterns) for o, p in examples if isinstance(p, Beside) and p.after == number]
                async with world.beside(others):
                    await world.says(script, patterns)
