"""Dead letters: looked at, tried again once their cause is mended, deleted."""

import json
from typing import Any

import cbor2
import pytest

from sensorium.actors.messages import DeadLetter
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import Metric, Payload
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World


async def letters(platform: World) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await platform.http.get("/api/dead-letters")).json()["items"]
    return items


async def replayed(platform: World, letter_id: int) -> Any:
    return await platform.http.post(f"/api/dead-letters/{letter_id}/replay")


async def test_a_device_that_was_not_registered(platform: World) -> None:
    for n in range(3):
        sent = await platform.send({"temperature": n, "timestamp": AT_MS + n}, "late")
        assert sent.status_code == 404
    newest, *others = await letters(platform)
    assert newest["reason"] == "unregistered"
    one = (await platform.http.get(f"/api/dead-letters/{newest['id']}")).json()
    assert one == newest
    assert_problem(await replayed(platform, newest["id"]), 409, "unregistered")
    assert len(await letters(platform)) == 3
    await platform.registered("late")
    again = await replayed(platform, newest["id"])
    assert (again.status_code, again.json()) == (200, {"id": newest["id"], "status": "accepted"})
    assert_problem(await replayed(platform, newest["id"]), 404, "not_found")
    all_others = await platform.http.post("/api/dead-letters/replay?device_id=late")
    assert all_others.json() == {"replayed": 2, "stay": {}}
    assert await letters(platform) == []
    assert sorted(row.time_ms for row in platform.store.readings) == [AT_MS, AT_MS + 1, AT_MS + 2]
    assert len(others) == 2


async def test_without_a_time_of_its_own_it_is_stored_once(platform: World) -> None:
    await platform.send({"temperature": 1}, "late")
    (letter,) = await letters(platform)
    await platform.registered("late")
    sides = platform.letters.gone
    assert (await replayed(platform, letter["id"])).json()["status"] == "accepted"
    # As when the process ended between the commit and the deletion.
    sides.clear()
    assert (await replayed(platform, letter["id"])).json()["status"] == "duplicate"
    assert len(platform.store.readings) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payload": b"{not json", "size_bytes": 9}, "malformed_json"),
        ({"size_bytes": 5000}, "not_whole"),
        ({"source": "coap"}, "not_replayable"),
        ({"address": "devices/d/commands/c/response"}, "not_replayable"),
        ({"content": "other"}, "not_replayable"),
        ({"content": "of the future"}, "not_replayable"),
        ({"source": "coap", "content": "cbor"}, "malformed_cbor"),
        ({"reason": "projection:kafka"}, "not_replayable"),
        ({"payload": b'{"temperature": "warm"}', "size_bytes": 23}, "wrong_type"),
    ],
)
async def test_what_still_cannot_be_used_stays(platform: World, changes: dict[str, Any], code: str) -> None:
    await platform.registered("d")
    await platform.send({"temperature": 20.5, "timestamp": AT_MS}, "d")
    fields = {
        "device_id": "d",
        "source": "mqtt",
        "address": "devices/d/telemetry",
        "reason": "unregistered",
        "detail": "",
        "payload": b'{"temperature": 1}',
        "size_bytes": 18,
        "received_ms": AT_MS,
        **changes,
    }
    platform.store.dead_letters.append(DeadLetter(**fields))
    (letter,) = await letters(platform)
    problem = assert_problem(await replayed(platform, letter["id"]), 409, code)
    assert f"dead letter {letter['id']} stays" in problem["detail"]
    assert len(await letters(platform)) == 1
    many = (await platform.http.post("/api/dead-letters/replay")).json()
    assert many["replayed"] == 0
    assert [why.partition(":")[0] for why in many["stay"].values()] == [code]


async def test_deleted_is_gone(platform: World) -> None:
    await platform.send({"temperature": 1}, "nobody")
    (letter,) = await letters(platform)
    assert (await platform.http.delete(f"/api/dead-letters/{letter['id']}")).status_code == 204
    assert_problem(await platform.http.delete(f"/api/dead-letters/{letter['id']}"), 404, "not_found")
    assert_problem(await platform.http.get(f"/api/dead-letters/{letter['id']}"), 404, "not_found")
    assert_problem(await platform.http.get("/api/dead-letters/0"), 422, "invalid")


def letter_of(source: str, content: str, address: str, payload: bytes, device_id: str = "d") -> DeadLetter:
    return DeadLetter(device_id, source, address, "rate_limited", "", payload, len(payload), AT_MS, content)


def said(name: str | None, alias: int | None = None) -> bytes:
    metric = Metric(name, alias, DataType.DOUBLE if name else None, raw=21.5)
    return encode(Payload(AT_MS, (metric,), 3))


UPLINK: Any = {
    "deduplicationId": "d-1",
    "time": "2024-01-01T11:59:00.123Z",
    "deviceInfo": {"devEui": "A8404137B182428E", "deviceProfileName": "lpp"},
    "fPort": 2,
    "fCnt": 7,
    "data": "AWcA1w==",
    "rxInfo": [],
}
TTS_UPLINK: Any = {
    "end_device_ids": {
        "dev_eui": "A8404137B182428E",
        "device_id": "d1",
        "application_ids": {"application_id": "app"},
    },
    "received_at": "2024-01-01T11:59:00.123Z",
    "uplink_message": {
        "f_port": 2,
        "f_cnt": 7,
        "frm_payload": "AWcA1w==",
        "rx_metadata": [],
        "version_ids": {"model_id": "lpp"},
    },
}
PACK = [{"n": "temperature", "u": "Cel", "v": 21.5, "t": AT_MS / 1000 - 60}]
UP = "application/a/device/x/event/up"
EUI = "a8404137b182428e"


@pytest.mark.parametrize(
    ("letter", "metric"),
    [
        (letter_of("coap", "cbor", "/sensors/d", cbor2.dumps({"temperature": 21.5})), "temperature"),
        (letter_of("coap", "senml+json", "/sensors/d", json.dumps(PACK).encode()), "temperature"),
        (letter_of("coap", "senml+cbor", "/sensors/d", cbor2.dumps(PACK)), "temperature"),
        (letter_of("sparkplug", "sparkplug", "spBv1.0/g/NDATA/n", said("temperature")), "temperature"),
        (letter_of("sparkplug", "", "spBv1.0/g/NBIRTH/n", said("temperature", 4)), "temperature"),
        (
            letter_of(
                "lorawan", "chirpstack", "application/a/device/x/event/up", json.dumps(UPLINK).encode(), EUI
            ),
            "temperature_1",
        ),
        (
            letter_of("lorawan", "tts", "/api/lorawan/tts/app", json.dumps(TTS_UPLINK).encode(), EUI),
            "temperature_1",
        ),
    ],
    ids=["cbor", "senml+json", "senml+cbor", "sparkplug data", "sparkplug birth", "chirpstack", "tts"],
)
async def test_each_way_in_has_its_letters_again_and_once(
    platform: World, letter: DeadLetter, metric: str
) -> None:
    await platform.registered(letter.device_id)
    platform.store.dead_letters.append(letter)
    (item,) = await letters(platform)
    assert item["content"] == letter.content
    assert (await replayed(platform, item["id"])).json() == {"id": item["id"], "status": "accepted"}
    (row,) = platform.store.readings
    assert dict(zip(row.metric_set.names, row.values, strict=True))[metric] == 21.5
    assert row.time_ms <= AT_MS, "it was received when it was, whatever the clock says now"
    platform.letters.gone.clear()
    assert (await replayed(platform, item["id"])).json()["status"] == "duplicate"
    assert len(platform.store.readings) == 1


async def test_what_its_codec_still_does_not_take_stays_and_no_letter_is_added(platform: World) -> None:
    await platform.registered(EUI)
    payload = json.dumps({**UPLINK, "data": "AWcA"}).encode()
    platform.store.dead_letters.append(letter_of("lorawan", "chirpstack", UP, payload, EUI))
    (item,) = await letters(platform)
    assert_problem(await replayed(platform, item["id"]), 409, "bad_frame")
    assert [each["id"] for each in await letters(platform)] == [item["id"]]


async def test_data_by_aliases_alone_says_what_it_lacks(platform: World) -> None:
    await platform.registered("d")
    platform.store.dead_letters.append(
        letter_of("sparkplug", "sparkplug", "spBv1.0/g/NDATA/n", said(None, 4))
    )
    (item,) = await letters(platform)
    problem = assert_problem(await replayed(platform, item["id"]), 409, "unknown_metric")
    assert "birth" in problem["detail"]
