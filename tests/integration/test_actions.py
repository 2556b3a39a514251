"""What rules have done, on the shared platform: the examples of docs/actions.md, MQTT and commands."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from commanded import commanded
from conftest import Eventually

from sensorium.ingest.broker import free_port
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.ingest.mqtt_connection import Connection
from sensorium.ingest.mqtt_wire import Packet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

PAGE = (Path(__file__).parents[2] / "docs" / "actions.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def shell(text: str, api: httpx.AsyncClient, port: int) -> str:
    text = text.replace("http://127.0.0.1:8000", str(api.base_url).rstrip("/"))
    text = text.replace("127.0.0.1:9000", f"127.0.0.1:{port}")
    done = subprocess.run(["bash", "-euc", text], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


async def test_the_examples_of_the_page(
    api: httpx.AsyncClient, broker: BrokerAddress, tmp_path: Path, eventually: Eventually
) -> None:
    published: list[tuple[str, dict[str, Any]]] = []

    def take(connection: Connection, packets: list[Packet]) -> None:
        published.extend((topic.decode(), json.loads(payload)) for topic, payload, *_ in packets)
        connection.acknowledge([ack for _, _, ack, _, _ in packets if ack])

    port = free_port()
    (tmp_path / "receiver.py").write_text(blocks("python")[0])
    receiver = await asyncio.create_subprocess_exec(
        *(sys.executable, str(tmp_path / "receiver.py"), str(port)),
        env={**os.environ, "SECRET": "at-least-16-characters"},
        stdout=asyncio.subprocess.PIPE,
    )
    make, look, clean = blocks("sh")
    rule_id = ""
    try:
        answered = await asyncio.to_thread(shell, make, api, port)
        rule_id = json.loads(answered[answered.index('{"rule_id"') :])["rule_id"]
        registered = await api.post("/api/devices", json={"device_id": "told-a", "device_type": "told"})
        assert registered.status_code == 201
        listens = (("alarms/critical/told-a", 1),)
        options = MqttOptions(session_expiry_s=0)
        async with (
            commanded(broker, "told-a-device", "told-a") as device,
            MqttClient(
                broker, "told-a-alarms", subscriptions=listens, on_packets=take, options=options
            ) as mqtt,
        ):
            await mqtt.connected()
            # Hosts hear of a new rule within two seconds: until then nothing comes of a reading.
            await eventually(lambda: _hot(api), lambda alarms: alarms, deadline_s=20)

            async def all_told() -> bool:
                return bool(published) and bool(device.told)

            await eventually(all_told)
            assert receiver.stdout is not None
            async with asyncio.timeout(20):
                line = (await receiver.stdout.readline()).decode()
            await api.post("/api/devices/told-a/data", json={"temperature": 20})
            async with asyncio.timeout(20):
                ended = (await receiver.stdout.readline()).decode()
        delivery_id, _, body = line.partition(" ")
        told = json.loads(body)
        assert (told["id"], told["transition"]) == (delivery_id, "raised")
        assert json.loads(ended.partition(" ")[2])["transition"] == "cleared"
        assert published[0][1]["alarm"] == told["alarm"]
        assert (device.told[0]["command"], device.told[0]["parameters"]) == ("fan", {"speed": "full"})

        async def deliveries() -> list[dict[str, Any]]:
            page = await api.get("/api/actions", params={"device_id": "told-a"})
            return list(page.json()["items"])

        found = await eventually(
            deliveries, lambda items: len(items) == 4 and all(d["state"] == "DELIVERED" for d in items)
        )
        command = next(d for d in found if d["kind"] == "command")
        assert device.ids() == [command["delivery_id"]]
        why = (await api.get(f"/api/alarms/{told['alarm']['alarm_id']}/why")).json()
        assert why["readings"][-1]["values"] == {"temperature": 90.0}
        assert (why["rule"]["version"], why["rule"]["changed_by"]) == (1, "ada")
        assert [d["transition"] for d in why["actions"]].count("raised") == 3
        assert [c["command"] for c in why["commands"]] == ["fan"]
        assert '"retried":0' in await asyncio.to_thread(shell, look, api, port)
        versions = (await api.get(f"/api/analytics/rules/{rule_id}/versions")).json()["items"]
        assert [(v["version"], v["changed_by"]) for v in versions] == [(1, "ada")]
        window = json.loads(await asyncio.to_thread(shell, clean, api, port))
        place = f"/api/maintenance/{window['maintenance_id']}"
        changed = await api.put(place, json={**window["spec"], "enabled": False})
        assert changed.json()["spec"]["enabled"] is False
        assert (await api.get("/api/maintenance")).json()["items"] == [changed.json()]
        assert (await api.delete(place)).status_code == 204
        assert (await api.get(place)).status_code == 404
        webhook = await api.get("/api/webhooks/pager")
        assert webhook.json()["url"] == f"http://127.0.0.1:{port}/***"
        assert "at-least-16-characters" not in webhook.text
        for _ in range(2):
            again = await api.post(f"/api/actions/{delivery_id}/retry")
            assert again.status_code == 409
    finally:
        receiver.kill()
        await receiver.wait()
        if rule_id:
            await api.delete(f"/api/analytics/rules/{rule_id}")
        await api.delete("/api/webhooks/pager")


async def _hot(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    await api.post("/api/devices/told-a/data", json={"temperature": 90})
    items: list[dict[str, Any]] = (await api.get("/api/alarms", params={"device_id": "told-a"})).json()[
        "items"
    ]
    return items


async def test_a_rule_that_names_no_webhook_is_refused(api: httpx.AsyncClient) -> None:
    rule = {
        "name": "x",
        "expression": "t > 1",
        "actions": [{"type": "webhook", "target": "nobody"}],
    }
    response = await api.post("/api/analytics/rules", json=rule)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/actions/0/target"
    for url in ("ftp://a/b", "http://user:secret@a/", "http:///x"):
        refused = await api.put("/api/webhooks/x", json={"url": url})
        assert refused.status_code == 422
        assert "secret" not in refused.text
