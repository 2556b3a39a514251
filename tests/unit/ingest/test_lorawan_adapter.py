"""Messages of ChirpStack and The Things Stack, to readings."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import (
    ACCEPTED,
    CommandReply,
    DeadLetter,
    Measured,
    Outcome,
    Patch,
    ReadingFlag,
)
from sensorium.actors.profile import RateLimit
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.lorawan import adapter as module
from sensorium.ingest.lorawan import chirpstack, layout, tts
from sensorium.ingest.lorawan.adapter import (
    CayenneCodec,
    LayoutCodec,
    LorawanAdapter,
    LorawanSettings,
    ScriptCodec,
)
from sensorium.ingest.pipeline import Pipeline

NOW_MS = 1_704_110_460_000
AT = "2024-01-01T12:00:00.123Z"
AT_MS = 1_704_110_400_123
EUI = "a8404137b182428e"


def up(**changes: Any) -> dict[str, Any]:
    return {
        "deduplicationId": "d-1",
        "time": AT,
        "deviceInfo": {"devEui": EUI.upper(), "deviceProfileName": "lpp", "tags": {}},
        "fPort": 2,
        "data": "A2cBEAVnAP8=",
        "rxInfo": [
            {"gatewayId": "far", "rssi": -110, "snr": -3.5},
            {"gatewayId": "near", "rssi": -70},
        ],
        **changes,
    }


class Outcomes(list[tuple[Any, Outcome]]):
    def done(self, token: Any, outcome: Outcome) -> None:
        self.append((token, outcome))


class World:
    def __init__(self, settings: LorawanSettings, limit: RateLimit | None = None) -> None:
        self.router = RecordingRouter()
        self.outcomes = Outcomes()
        pipeline = Pipeline(self.router, source="lorawan", limit=limit)
        self.adapter = LorawanAdapter(pipeline, self.router, settings)

    async def chirpstack(self, kind: str, content: Any) -> None:
        topic = f"application/a/device/{EUI}/event/{kind}"
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.adapter.chirpstack(topic, payload, NOW_MS, self.outcomes.done, "token")

    async def tts(self, content: Any, application: str = "app") -> None:
        payload = json.dumps(content).encode()
        await self.adapter.tts(application, payload, NOW_MS, self.outcomes.done, "token")

    def metrics(self) -> dict[str, Any]:
        reading = self.router.readings[-1]
        assert reading.device_id == EUI
        return dict(zip(reading.names, reading.values, strict=True))

    def reason(self) -> str:
        letter = self.router.messages[-1]
        assert isinstance(letter, DeadLetter)
        return letter.reason


@pytest.fixture
async def world() -> AsyncIterator[World]:
    codecs: dict[str, module.Codec] = {
        "lpp": CayenneCodec(),
        "js": ScriptCodec("function decodeUplink(i) { return {data: {n: {a: [i.bytes[0], null, true]}}}; }"),
    }
    world = World(LorawanSettings(codecs=codecs))
    yield world
    await world.adapter.close()


async def test_a_chirpstack_uplink_with_omitted_defaults(world: World) -> None:
    await world.chirpstack("up", up())
    assert world.metrics() == {
        "temperature_3": 27.2,
        "temperature_5": 25.5,
        "lora_fcnt": 0.0,
        "lora_rssi": -70.0,
        "lora_snr": 0.0,
        "lora_gateways": 2.0,
        "lora_gateway": "near",
    }
    assert world.router.readings[0].time_ms == AT_MS
    assert world.outcomes == []
    world.router.commit()
    assert world.outcomes == [("token", ACCEPTED)]


async def test_an_uplink_heard_again_has_the_same_identity(world: World) -> None:
    await world.chirpstack("up", up())
    await world.chirpstack("up", up(rxInfo=[{"gatewayId": "third", "snr": 9}], time="2024-01-01T12:00:01Z"))
    await world.chirpstack("up", up(deduplicationId="d-2"))
    first, again, other = world.router.readings
    assert first.key == again.key != other.key
    assert first.flags == ReadingFlag.REDELIVERED


async def test_scripts_and_servers_decode_too(world: World) -> None:
    info = {"devEui": EUI, "deviceProfileName": "js"}
    await world.chirpstack("up", up(deviceInfo=info, data="BQ=="))
    assert world.metrics().items() >= {"n.a.0": 5.0, "n.a.2": True}.items()
    info = {"devEui": EUI, "deviceProfileName": "unknown"}
    await world.chirpstack("up", up(deviceInfo=info, object={"t": 1, "deep": {"ok": True}}))
    assert world.metrics().items() >= {"t": 1.0, "deep.ok": True}.items()
    await world.chirpstack("up", up(deviceInfo=info))
    assert world.reason() == "no_codec"
    await world.chirpstack("up", up(deviceInfo=info, data=""))
    assert "lora_fcnt" in world.metrics()


async def test_a_codec_is_told_by_name_kind_and_what_it_says(world: World) -> None:
    lpp, js = world.adapter.codec_of("lpp"), world.adapter.codec_of("js")
    assert lpp is not None
    assert js is not None
    assert (lpp[:2], js[:2]) == (("lpp", "cayenne"), ("js", "javascript"))
    assert lpp[2] != js[2]
    other = World(LorawanSettings(codecs={"js": ScriptCodec("function decodeUplink(i) { return {}; }")}))
    changed = other.adapter.codec_of("js")
    assert changed is not None
    assert changed[2] != js[2]
    assert other.adapter.codec_of("unknown") is None
    await other.adapter.close()


async def test_counter_resets_are_noticed(world: World) -> None:
    for counter, reset in ((5, False), (5, False), (6, False), (1, True), (2, False)):
        await world.chirpstack("up", up(fCnt=counter))
        assert ("lora_fcnt_reset" in world.metrics()) is reset
    await world.chirpstack("join", {"deviceInfo": {"devEui": EUI}, "devAddr": "00189440"})
    assert world.metrics() == {"lora_dev_addr": "00189440"}
    await world.chirpstack("up", up(fCnt=0))
    assert "lora_fcnt_reset" not in world.metrics()
    assert world.adapter.statistics()["counter_resets"] == 1


@pytest.mark.parametrize(
    ("kind", "content", "metrics"),
    [
        ("status", {"margin": 10, "batteryLevel": 75.5},
         {"lora_margin": 10.0, "lora_external_power": False, "lora_battery": 75.5}),
        ("status", {"externalPowerSource": True}, {"lora_margin": 0.0, "lora_external_power": True}),
        ("ack", {"acknowledged": True, "fCntDown": 3}, {"lora_ack": True, "lora_fcnt_down": 3.0}),
        ("location", {"location": {"latitude": 1.5, "longitude": -2, "altitude": 3}},
         {"lora_latitude": 1.5, "lora_longitude": -2.0, "lora_altitude": 3.0}),
    ],
)  # fmt: skip
async def test_other_events_are_facts(
    world: World, kind: str, content: dict[str, Any], metrics: dict[str, Any]
) -> None:
    await world.chirpstack(kind, {"deviceInfo": {"devEui": EUI}, "time": AT, **content})
    assert world.metrics() == metrics


async def test_events_without_use_are_done_at_once(world: World) -> None:
    await world.chirpstack("integration", {"anything": 1})
    await world.chirpstack("log", {"deviceInfo": {"devEui": EUI}, "level": "INFO", "code": "UPLINK_CODEC"})
    assert world.outcomes == [("token", ACCEPTED)] * 2
    assert world.router.pending == 0


COMMAND = "019a0000000011112222333344445555"


def replies(world: World) -> list[tuple[str, str, bool]]:
    said = [message for message in world.router.messages if isinstance(message, CommandReply)]
    return [(reply.command_id, reply.status, reply.certain) for reply in said]


@pytest.mark.parametrize(
    ("kind", "content", "confirmed", "unconfirmed"),
    [
        ("txack", {"gatewayId": "0016"}, "delivered", "succeeded"),
        ("ack", {"acknowledged": True}, "succeeded", "succeeded"),
        ("ack", {}, "failed", "failed"),
    ],
)
async def test_chirpstack_says_what_became_of_a_downlink(
    world: World, kind: str, content: dict[str, Any], confirmed: str, unconfirmed: str
) -> None:
    for is_confirmed, status in ((True, confirmed), (False, unconfirmed)):
        item = chirpstack.queue_item_of(COMMAND, confirmed=is_confirmed)
        await world.chirpstack(kind, {"deviceInfo": {"devEui": EUI}, "queueItemId": item, **content})
        assert (COMMAND, status, False) in replies(world)
        world.router.messages.clear()
    assert world.outcomes == []
    world.router.commit()
    assert len(world.outcomes) == 2


async def test_chirpstack_says_why_it_gave_a_downlink_up(world: World) -> None:
    await world.chirpstack(
        "log",
        {
            "deviceInfo": {"devEui": EUI},
            "level": "ERROR",
            "code": "DOWNLINK_PAYLOAD_SIZE",
            "description": "too large",
            "context": {"queue_item_id": chirpstack.queue_item_of(COMMAND, confirmed=True)},
        },
    )
    assert (COMMAND, "failed", False) in replies(world)


async def test_a_queue_item_that_is_no_uuid_is_nobodys(world: World) -> None:
    await world.chirpstack("txack", {"deviceInfo": {"devEui": EUI}, "queueItemId": "x"})
    assert replies(world) == []
    assert world.outcomes == [("token", ACCEPTED)]


@pytest.mark.parametrize(
    ("key", "downlink", "status"),
    [
        ("downlink_sent", {"confirmed": True}, "delivered"),
        ("downlink_sent", {}, "succeeded"),
        ("downlink_ack", {"confirmed": True}, "succeeded"),
        ("downlink_nack", {"confirmed": True}, "failed"),
        ("downlink_failed", {"downlink": {}, "error": {"name": "too_long"}}, "failed"),
        ("downlink_queued", {}, None),
    ],
)
async def test_the_things_stack_says_what_became_of_a_downlink(
    world: World, key: str, downlink: dict[str, Any], status: str | None
) -> None:
    ids = {"correlation_ids": ["as:downlink:x", tts.correlation_of("c-1")]}
    downlink = {**downlink, "downlink": ids} if "error" in downlink else {**downlink, **ids}
    ends = {"dev_eui": EUI.upper(), "application_ids": {"application_id": "app"}}
    await world.tts({"end_device_ids": ends, key: downlink})
    assert replies(world) == ([] if status is None else [("c-1", status, True)])
    world.router.commit()
    assert world.outcomes == [("token", ACCEPTED)]


async def test_where_a_device_is_found_is_told_once(world: World) -> None:
    info = {"devEui": EUI, "deviceProfileName": "lpp", "applicationId": "a-1"}
    for counter in range(2):
        await world.chirpstack("up", up(deviceInfo=info, fCnt=counter))
    told = [message for message in world.router.messages if isinstance(message, Patch)]
    assert told == [Patch(EUI, metadata={"chirpstack": {"application": "a-1", "profile": "lpp"}})]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "malformed_json"),
        ([], "wrong_type"),
        ({}, "wrong_type"),
        (up(fCnt="1"), "wrong_type"),
        (up(data="*"), "wrong_type"),
        (up(data="AQ=="), "bad_frame"),
        (up(time="then"), "bad_timestamp"),
        (up(time="2034-01-01T00:00:00Z"), "timestamp_too_far_in_future"),
        (up(deviceInfo={"devEui": "../x"}), "bad_device_id"),
    ],
)
async def test_what_is_wrong_is_a_dead_letter(world: World, content: Any, reason: str) -> None:
    await world.chirpstack("up", content)
    assert world.reason() == reason
    assert world.outcomes == []
    world.router.commit()
    assert len(world.outcomes) == 1


def ttn(**changes: Any) -> dict[str, Any]:
    return {
        "end_device_ids": {
            "device_id": "dev1",
            "application_ids": {"application_id": "app"},
            "dev_eui": EUI.upper(),
            "dev_addr": "00BCB929",
        },
        "received_at": "2024-01-01T12:00:01.123456789Z",
        **changes,
    }


UPLINK = {
    "session_key_id": "AXA50+aQ",
    "f_port": 1,
    "f_cnt": 42,
    "frm_payload": "A2cBEA==",
    "decoded_payload": {"temperature": 1.5},
    "rx_metadata": [{"gateway_ids": {"gateway_id": "gw"}, "rssi": -35, "channel_rssi": -35, "snr": 5.2}],
    "received_at": AT,
}


async def test_a_tts_uplink(world: World) -> None:
    await world.tts(ttn(uplink_message={**UPLINK, "version_ids": {"model_id": "lpp"}}))
    assert world.metrics() == {
        "temperature_3": 27.2,
        "lora_fcnt": 42.0,
        "lora_rssi": -35.0,
        "lora_snr": 5.2,
        "lora_gateways": 1.0,
        "lora_gateway": "gw",
    }
    assert world.router.readings[0].time_ms == AT_MS
    await world.tts(ttn(uplink_message=UPLINK))
    assert world.metrics()["temperature"] == 1.5
    first, again = world.router.readings
    assert first.key == again.key


async def test_other_tts_messages(world: World) -> None:
    await world.tts(ttn(join_accept={"session_key_id": "x", "received_at": AT}))
    assert world.metrics() == {"lora_dev_addr": "00BCB929"}
    await world.tts(ttn(location_solved={"location": {"latitude": 1.5, "longitude": 2, "source": "GPS"}}))
    assert world.metrics()["lora_latitude"] == 1.5
    await world.tts(ttn(downlink_ack={}))
    assert world.outcomes == [("token", ACCEPTED)]
    await world.tts(ttn(uplink_message=UPLINK), application="other")
    assert world.reason() == "wrong_application"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


FIELDS = [*up(), "object", "location", "margin", "queueItemId", "context", "level"]


@given(st.sampled_from(FIELDS), JSON, st.binary(max_size=40))
def test_any_message_is_an_event_or_undecodable(key: str, value: Any, noise: bytes) -> None:
    content = json.dumps(up(**{key: value})).encode()
    for kind in ("up", "join", "status", "ack", "txack", "log", "location"):
        for payload in (content, noise):
            try:
                chirpstack.decode(kind, payload)
            except Undecodable:
                continue
    uplinks = {**UPLINK, **({key: value} if key in UPLINK else {"decoded_payload": value})}
    failed = ttn(uplink_message=uplinks, downlink_failed=value, downlink_ack={"correlation_ids": value})
    for payload in (json.dumps(ttn(uplink_message=uplinks)).encode(), json.dumps(failed).encode(), noise):
        try:
            tts.decode(payload, "app")
        except Undecodable:
            continue


async def test_uplinks_over_the_devices_limit_are_whole_dead_letters() -> None:
    world = World(LorawanSettings(codecs={"lpp": CayenneCodec()}), RateLimit(0.1, 1))
    for number in range(2):
        await world.chirpstack("up", up(deduplicationId=f"d-{number}", fCnt=number))
    await world.chirpstack("status", {"deviceInfo": {"devEui": EUI}, "margin": 5, "batteryLevel": 99.0})
    (letter,) = world.router.letters
    assert (letter.reason, letter.device_id) == ("rate_limited", EUI)
    assert json.loads(letter.payload) == up(deduplicationId="d-1", fCnt=1)
    assert len(world.router.readings) == 2, "what the network server says by itself is not limited"


async def test_cayenne_and_layouts_tell_their_units() -> None:
    fields = (
        layout.Field(name="level", offset=0, type="u8", unit="cm"),
        layout.Field(name="n", offset=1, type="u8"),
    )
    world = World(LorawanSettings(codecs={"lpp": CayenneCodec(), "raw": LayoutCodec(fields)}))
    await world.chirpstack("up", up())
    info = {**up()["deviceInfo"], "deviceProfileName": "raw"}
    await world.chirpstack("up", up(deduplicationId="d-2", deviceInfo=info, data="AQI="))
    units = []
    for reading in world.router.readings:
        assert isinstance(reading.names, Measured)
        units.append({n: u for n, u in zip(reading.names, reading.names.units, strict=True) if u is not None})
    assert units == [{"temperature_3": "Cel", "temperature_5": "Cel"}, {"level": "cm"}]
