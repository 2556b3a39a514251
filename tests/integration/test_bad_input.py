"""Bad input over real MQTT and HTTP: a dead letter with its reason and counter, nobody else harmed."""

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest
from conftest import Eventually
from prometheus_client.parser import text_string_to_metric_families
from test_main_path import dead_letters, latest, publish, register

from sensorium.actors.fleet import Fleet
from sensorium.ingest.mqtt_client import MqttClient

pytestmark = pytest.mark.ray

BAD: list[tuple[str, str, bytes]] = [
    ("cut off", "malformed_json", b'{"temperature": 23.5'),
    ("no JSON at all", "malformed_json", b"temperature=23.5"),
    ("invalid UTF-8 in a name", "malformed_json", b'{"temp\xff\xfe": 1}'),
    ("invalid UTF-8 in a text", "malformed_json", b'{"state": "\xc3\x28"}'),
    ("invalid UTF-8 alone", "malformed_json", b"\xff\xfe\xfd"),
    ("a lone surrogate in a text", "malformed_json", b'{"state": "\\ud800"}'),
    ("a lone surrogate in a name", "malformed_json", b'{"\\ud800": 1}'),
    ("deep arrays", "malformed_json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ("deep objects", "malformed_json", b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    ("deep, and an array", "malformed_json", b"[" * 100_000),
    ("nothing", "empty", b" "),
    ("an empty object", "empty", b"{}"),
    ("only a timestamp", "empty", b'{"timestamp": "2024-01-01T12:00:00Z"}'),
    ("a number alone", "not_an_object", b"23.5"),
    ("a text alone", "not_an_object", b'"warm"'),
    ("an array of numbers", "not_an_object", b"[1, 2]"),
    ("null as a value", "wrong_type", b'{"temperature": null}'),
    ("an object as a value", "wrong_type", b'{"temperature": {"value": 1}}'),
    ("an array as a value", "wrong_type", b'{"temperature": [1]}'),
    ("NaN", "not_finite", b'{"temperature": NaN}'),
    ("Infinity", "not_finite", b'{"temperature": Infinity}'),
    ("minus Infinity", "not_finite", b'{"temperature": -Infinity}'),
    ("a number that no float holds", "not_finite", b'{"temperature": 1e400}'),
    ("a time that is none", "bad_timestamp", b'{"t": 1, "timestamp": "yesterday"}'),
    ("a time that is true", "bad_timestamp", b'{"t": 1, "timestamp": true}'),
    ("the 13th month", "bad_timestamp", b'{"t": 1, "timestamp": "2024-13-01T00:00:00Z"}'),
    ("the year 9999", "timestamp_too_far_in_future", b'{"t": 1, "timestamp": "9999-12-31T23:59:59Z"}'),
    ("a time beyond all calendars", "timestamp_too_far_in_future", b'{"t": 1, "timestamp": 1e300}'),
    ("the year 1", "timestamp_too_old", b'{"t": 1, "timestamp": "0001-01-01T00:00:00Z"}'),
    ("seconds for milliseconds", "timestamp_too_old", b'{"t": 1, "timestamp": 1704110400}'),
    ("a time before all calendars", "timestamp_too_old", b'{"t": 1, "timestamp": -1e300}'),
    ("a key twice", "duplicate_key", b'{"temperature": 1, "temperature": 2}'),
    ("a key twice, once escaped", "duplicate_key", b'{"a": 1, "\\u0061": 2}'),
    ("one megabyte", "too_large", b'{"t": "' + b"x" * 1_000_000 + b'"}'),
    ("a name without letters", "bad_metric_name", b'{"": 1}'),
    ("a name with a control character", "bad_metric_name", b'{"a\\u0000b": 1}'),
    ("a long name", "bad_metric_name", json.dumps({"n" * 200: 1}).encode()),
    ("a long text", "text_too_long", json.dumps({"t": "x" * 5000}).encode()),
    ("NUL in a text", "bad_text", b'{"t": "a\\u0000b"}'),
    ("10,000 metrics at once", "too_many_metrics", json.dumps({f"m{n}": n for n in range(10_000)}).encode()),
    ("a long array", "batch_too_long", json.dumps([{"t": n} for n in range(1001)]).encode()),
]
ODD_IDS = {
    "": "bad_device_id",
    "x" * 200: "bad_device_id",
    "-- '; DROP TABLE readings; --": "unregistered",
    "../../etc/passwd".replace("/", "\\"): "unregistered",
    "gerät-7 ü €": "unregistered",
    "🛰️": "unregistered",
    " ": "unregistered",
    "$SYS": "unregistered",
    "%00%2F": "unregistered",
}


async def counted(api: httpx.AsyncClient) -> dict[str, float]:
    """Dead letters by reason, as the metrics page counts them."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await api.get("/metrics")).text):
        if family.name == "sensorium_dead_letters":
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    reason = sample.labels["reason"]
                    found[reason] = found.get(reason, 0) + sample.value
    return found


def ingestor(fleet: Fleet) -> dict[str, Any]:
    """What the MQTT ingestor says of itself."""
    found: dict[str, Any] = next(s for s in fleet.statistics()["services"] if s["name"] == "mqtt-0")
    return found


async def test_bad_payloads_over_mqtt(
    api: httpx.AsyncClient, device_client: MqttClient, fleet: Fleet, eventually: Eventually
) -> None:
    await register(api, "bad-1")
    await register(api, "neighbour-1")
    before, process = await counted(api), ingestor(fleet)
    connects = device_client.statistics()["connects"]
    for n, (_, _, payload) in enumerate(BAD):
        await device_client.publish("devices/bad-1/telemetry", payload, 1)
        await publish(device_client, "neighbour-1", {"n": n})
    await eventually(lambda: latest(api, "neighbour-1"), lambda values: values.get("n") == len(BAD) - 1)

    letters = await eventually(lambda: dead_letters(api, "bad-1"), lambda found: len(found) >= len(BAD))
    for (name, reason, payload), letter in zip(BAD, reversed(letters), strict=True):
        assert (name, letter["reason"], letter["size_bytes"]) == (name, reason, len(payload))
        assert letter["detail"], name
        assert (letter["source"], letter["address"]) == ("mqtt", "devices/bad-1/telemetry")
    stored = (await api.get("/api/devices/neighbour-1/data", params={"order": "asc"})).json()["items"]
    assert [item["values"]["n"] for item in stored] == list(range(len(BAD)))
    assert (await api.get("/api/devices/bad-1/data")).json()["items"] == []

    expected = Counter(reason for _, reason, _ in BAD)

    async def counted_since() -> dict[str, float]:
        now = await counted(api)
        return {reason: now.get(reason, 0.0) - before.get(reason, 0.0) for reason in expected}

    await eventually(counted_since, lambda found: found == expected)
    assert device_client.statistics()["connects"] == connects
    assert ingestor(fleet)["client"]["connects"] == process["client"]["connects"]
    assert "mqtt-0" not in fleet.statistics()["replaced"]


async def test_bad_payloads_over_http(api: httpx.AsyncClient) -> None:
    await register(api, "bad-2")
    await register(api, "neighbour-2")
    json_type = {"content-type": "application/json"}
    for n, (name, reason, payload) in enumerate(BAD):
        response = await api.post("/api/devices/bad-2/data", content=payload, headers=json_type)
        problem = response.json()
        assert response.status_code in (413, 422), (name, response.text)
        assert response.headers["content-type"] == "application/problem+json", name
        assert problem["code"] == reason, (name, problem)
        good = await api.post("/api/devices/neighbour-2/data", json={"n": n})
        assert good.status_code == 201, name
    letters = await dead_letters(api, "bad-2")
    assert [letter["reason"] for letter in reversed(letters)] == [reason for _, reason, _ in BAD]
    assert {letter["source"] for letter in letters} == {"http"}
    assert (await api.get("/api/devices/bad-2/data")).json()["items"] == []

    huge = b'{"t": "' + b"x" * (2 << 20) + b'"}'
    response = await api.post("/api/devices/bad-2/data", content=huge, headers=json_type)
    assert response.status_code == 413


async def test_metadata_however_deep(api: httpx.AsyncClient) -> None:
    """Taken or refused, by an answer; what lies behind goes on."""
    await register(api, "deep-0")
    for depth in (10, 100, 300, 490, 500, 700, 900, 950, 980, 990, 1000, 3000, 100_000):
        body = f'{{"device_id": "deep-{depth}", "device_type": "t", "metadata": '
        content = body + '{"a":' * depth + "1" + "}" * depth + "}"
        response = await api.post(
            "/api/devices", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code in (201, 413, 422), (depth, response.status_code, response.text)
        response = await api.patch("/api/devices/deep-0", json={"metadata": {"depth": depth}})
        assert response.json()["metadata"] == {"depth": depth}, depth


async def test_odd_device_ids(
    api: httpx.AsyncClient, device_client: MqttClient, eventually: Eventually
) -> None:
    await register(api, "neighbour-3")
    for n, odd in enumerate(ODD_IDS):
        await device_client.publish(f"devices/{odd}/telemetry", b'{"t": 1}', 1)
        await publish(device_client, "neighbour-3", {"n": n})
    await eventually(lambda: latest(api, "neighbour-3"), lambda values: values.get("n") == len(ODD_IDS) - 1)

    async def letters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await api.get("/api/dead-letters", params={"limit": 100})).json()[
            "items"
        ]
        return found

    expected = {("" if reason == "bad_device_id" else odd, reason) for odd, reason in ODD_IDS.items()}
    await eventually(
        letters, lambda items: expected <= {(letter["device_id"], letter["reason"]) for letter in items}
    )

    # Whoever may be named so is a device like any other, once registered.
    await register(api, "🛰️")
    await publish(device_client, "🛰️", {"t": 2})
    assert await eventually(lambda: latest(api, "🛰️")) == {"t": 2}
    for bad in ("a/b", "a+b", "a#b", "a\u0000b", "x" * 129, ""):
        response = await api.post("/api/devices", json={"device_id": bad, "device_type": "t"})
        assert response.status_code == 422, bad


async def test_a_value_that_changes_its_type(
    api: httpx.AsyncClient, device_client: MqttClient, eventually: Eventually
) -> None:
    await register(api, "fickle-1")
    for value in (1.5, "warm", True, 2.5):
        await publish(device_client, "fickle-1", {"t": value})
    await eventually(lambda: latest(api, "fickle-1"), lambda values: values.get("t") == 2.5)
    assert [letter["reason"] for letter in await dead_letters(api, "fickle-1")] == ["wrong_type"] * 2


async def test_ten_thousand_metric_names_from_one_device(
    api: httpx.AsyncClient, device_client: MqttClient, eventually: Eventually
) -> None:
    """The device keeps what its profile allows; each further name is a dead letter, and it goes on."""
    names, allowed = 10_000, 256
    await register(api, "chatty-1")
    await register(api, "neighbour-4")
    before = (await counted(api)).get("too_many_metrics", 0.0)
    window = asyncio.Semaphore(1000)

    async def send(n: int) -> None:
        async with window:
            await publish(device_client, "chatty-1", {f"name-{n}": n})

    await asyncio.gather(*(send(n) for n in range(names)))
    await publish(device_client, "neighbour-4", {"t": 1})
    await publish(device_client, "chatty-1", {"name-0": -1})
    assert await eventually(lambda: latest(api, "neighbour-4")) == {"t": 1}
    known = await eventually(lambda: latest(api, "chatty-1"), lambda values: values.get("name-0") == -1)
    assert len(known) == allowed
    counts = await eventually(
        lambda: counted(api), lambda found: found["too_many_metrics"] - before >= names - allowed
    )
    assert counts["too_many_metrics"] - before == names - allowed
