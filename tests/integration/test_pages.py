"""What pages say to type, typed: a real platform and broker.

Every shell block of a page has its place in `PAGES`, or a test fails. The other pages are run by the tests of
what they are about: actions, twins, the live feed, GraphQL, the broker's rights, LoRaWAN and Sparkplug. That
commands, options and settings exist, on any page, is for `tests/unit/cluster/test_pages_settings.py`.
"""

import asyncio
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
from openapi_fuzzed import SECRET, assert_documented
from platform_process import PlatformProcess
from real_mosquitto import MOSQUITTO, MOSQUITTO_PUB, RealMosquitto
from typer.testing import CliRunner

from sensorium.cluster.cli import app
from sensorium.ingest.broker import free_port
from sensorium.serve.origin import BY_HEADER

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90.0
ARRIVES_S = 30.0
"""In which what an example prints last must have what it says."""
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


class But(NamedTuple):
    """An example of which lines are not run here, and why: by how they begin."""

    patterns: list[str]
    left_out: dict[str, str]


PLATFORM = Not("starts another platform: test_pages_settings reads its variables")
MACHINES = Not("needs machines: test_pages_settings has it, up to there")

PAGES: dict[str, list[list[str] | Not | Beside | But]] = {
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
    "docs/audit.md": [
        [
            '"what":"rule.create"',
            r"ada .*device\.change .*climate-1",
            "entries checked, all as they were written",
        ],
        ['"number":', "entries checked, all as they were written"],
    ],
    "docs/backup.md": [
        But(
            [r"plant: [\d,]+ devices, [\d,]+ readings", "before compression, whole"],
            {
                "sensorium restore /backups/plant --data-dir": "starts a server: test_backup_platform",
                "sensorium up": "starts a platform: test_backup_platform",
            },
        )
    ],
    "docs/databases.md": [PLATFORM] * 4,
    "docs/deploy.md": [*[MACHINES] * 5, ['"items":', '"address":"', '"alive":true']],
    "docs/detectors.md": [
        But([r'"items":\[', r'"anomalies":\{"items":\['], {"curl -N": "goes on: test_live_feed follows"}),
        Not("NAB's series are no part of the repository"),
    ],
    "docs/isolation.md": [['"isolation":"process"', '"isolation_by":"device"', '"isolation_by":"profile"']],
    "docs/profiles.md": [
        But(
            [
                r'"temperature":200.*"quality":"suspect"',
                '"aggregation":"mean".*"temperature":20',
                r"t1,.*,20",
            ],
            {"curl -N": "goes on: test_live_feed follows"},
        )
    ],
    "docs/streams.md": [
        But(
            ["rollups: paused", "rollups: running", "rollups: will be rewound to beginning"],
            {"sensorium projections rewind kafka --to 2026": "rollups begin anew: test_projection_control"},
        ),
        [r'"items":\[\]'],
        *[PLATFORM] * 2,
        *[Not("needs kcat and Kafka: test_kafka has both ways in")] * 2,
    ],
    "docs/ownership.md": [["hosts: host-0", "no hosts|host-", '"balanced":']],
}
"""Patterns that each example's output has, by page, in the order of its examples."""


PROFILES = "docs/profiles.md"
"""The platform's configuration has what this page says."""


def blocks(page: str, language: str = "sh") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


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
            "localhost:8000": f"127.0.0.1:{platform.http_port}",
            "http://10.0.0.10:8000": f"http://127.0.0.1:{platform.http_port}",
            "--data-dir .sensorium": f"--data-dir {platform.data_dir}",
            "/backups/plant": str(cwd / "plant"),
            "pause kafka": "pause rollups",
            "resume kafka": "resume rollups",
            "rewind kafka": "rewind rollups",
        }

    def stands_for(self, typed: str, here: str) -> None:
        """Have this typed instead from now on."""
        self._replaced[typed] = here

    async def run(self, script: str) -> tuple[int, str]:
        """What it prints, with its errors."""
        for typed, here in self._replaced.items():
            script = script.replace(typed, here)
        told = ""
        for ours, lines in groupby(script.splitlines(), lambda line: line.startswith("sensorium ")):
            for part in lines if ours else ["\n".join(lines)]:
                code, said = await (self._sensorium(part) if ours else self._bash(part))
                told += said
                if code:
                    return code, told
        return 0, told

    async def _sensorium(self, line: str) -> tuple[int, str]:
        """In this process: a new interpreter takes seconds."""
        words = shlex.split(line, comments=True)[1:]
        if words[:1] == ["status"]:
            words += ["--data-dir", str(self.platform.data_dir)]
        elif words[0] in ("scale", "drain", "projections") or words[:2] == ["audit", "list"]:
            words += ["--url", f"http://127.0.0.1:{self.platform.http_port}"]
        async with asyncio.timeout(TIMEOUT_S):
            done = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "200"})
        return done.exit_code, f"{done.output}{done.exception or ''}"

    async def _bash(self, script: str) -> tuple[int, str]:
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
        """Have these run in terminals of their own meanwhile, which begins once they have subscribed."""
        topics = [topic for script, _ in others for topic in re.findall(r"mosquitto_sub .*?-t (\S+)", script)]
        before = {topic: self.broker.subscriptions(topic) for topic in topics}
        running = [asyncio.create_task(self.run(script)) for script, _ in others]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while any(self.broker.subscriptions(topic) == count for topic, count in before.items()):
                    await asyncio.sleep(0.02)
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
        clock = asyncio.get_running_loop().time
        ends_s = clock() + ARRIVES_S
        while missing := [pattern for pattern in patterns if not re.search(pattern, out)]:
            assert clock() < ends_s, f"{script}\nprints\n{out}\nwithout {missing}"
            await asyncio.sleep(0.1)
            if again.startswith("curl"):
                out += (await self.run(again))[1]


@pytest.fixture(scope="module")
async def world(short_dir: Path) -> AsyncIterator[World]:
    directory = short_dir / "pages"
    (directory / "broker").mkdir(parents=True)
    dtls_port = free_port()
    (directory / "keys").write_text(f"sensor-003:{b'a key of 16 byte'.hex()}\n")
    config = directory / "platform.yaml"
    config.write_text(
        f"coap: {{dtls_keys: {directory / 'keys'}, dtls_port: {dtls_port}}}\n"
        f"lorawan: {{tts_secret: {SECRET}}}\n"
        f"{blocks(PROFILES, 'yaml')[0]}  valve: {{downlink: coap}}\n"
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
    {"device_id": "press-7", "device_type": "hall"},
    {"device_id": "t1", "device_type": "thermometer"},
)
"""That the pages take for granted."""
READINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("climate-2", {"temperature": 30}),
    ("t1", {"temperature": 20}),
    ("t1", {"temperature": 200}),
)


async def test_the_pages(world: World) -> None:
    """In one go, as somebody would who reads them one after the other."""
    url = f"http://127.0.0.1:{world.platform.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=20) as api:
        for device in DEVICES:
            assert (await api.post("/api/devices", json=device)).status_code == 201
        for device_id, reading in READINGS:
            assert (await api.post(f"/api/devices/{device_id}/data", json=reading)).status_code == 201
        told = {BY_HEADER: "ada"}
        changed = await api.patch("/api/devices/climate-1", json={"metadata": {"row": 2}}, headers=told)
        assert changed.status_code == 200
        [node] = (await api.get("/api/nodes")).json()["items"]
        hosts = len(node["hosts"])
        for typed, here in {"scale 4": f"scale {hosts}", "hosts=4": f"hosts={hosts}"}.items():
            world.stands_for(typed, here)
        world.stands_for("drain 10.0.0.12", f"drain {node['address']}")
        world.stands_for("$NODE_ID", node["node_id"])
        for page, expected in PAGES.items():
            examples = list(zip(blocks(page), expected, strict=True))
            for number, (script, patterns) in enumerate(examples):
                if isinstance(patterns, Not | Beside):
                    continue
                if "dead-letters/4711" in script:
                    script = script.replace("4711", await letter_of(world, api))
                if "--since-hash" in script:
                    script = script.replace("9f86…", (await api.get("/api/audit/head")).json()["hash"])
                if isinstance(patterns, But):
                    script, patterns = without(script, patterns)
                others = [(o, p.patterns) for o, p in examples if isinstance(p, Beside) and p.after == number]
                async with world.beside(others):
                    await world.says(script, patterns)


def without(script: str, but: But) -> tuple[str, list[str]]:
    lines = script.splitlines()
    for beginning in but.left_out:
        kept = [line for line in lines if not line.startswith(beginning)]
        assert len(kept) < len(lines), f"no line begins with {beginning!r}"
        lines = kept
    return "\n".join(lines), but.patterns


async def test_statements_of_the_pages(world: World) -> None:
    """At the platform's own database. Roles and databases are called otherwise here, and taken away again."""
    connection = await asyncpg.connect(world.platform.state.database)
    count = 0
    try:
        for page in sorted(ROOT.glob("docs/*.md")):
            for block in blocks(f"docs/{page.name}", "sql"):
                for statement in filter(str.strip, re.sub(r"--.*", "", block).split(";")):
                    if statement.lstrip().startswith("CREATE"):
                        statement = re.sub(r"\bsensorium\b", "of_a_page", statement)
                    await connection.fetch(statement)
                    count += 1
        assert count > 5
    finally:
        await connection.execute("DROP DATABASE IF EXISTS of_a_page")
        await connection.execute("DROP ROLE IF EXISTS of_a_page")
        await connection.close()


@pytest.mark.timeout(240)
async def test_no_server_error_and_no_undocumented_answer(world: World, tmp_path: Path) -> None:
    """Last of this platform: what is made up would be in the pages' way."""
    await asyncio.to_thread(assert_documented, f"http://127.0.0.1:{world.platform.http_port}", tmp_path)
