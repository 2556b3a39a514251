"""Good payloads of every format: what fuzzing damages."""

import json
import struct
from typing import Any

import cbor2
from fuzzing import NOW_MS

from sensorium.ingest.sparkplug import wire
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import Metric, Payload

JSON = (
    b'{"temperature": 23.5, "on": true, "n": 7, "mode": "eco", "timestamp": "2026-11-23T18:00:00.123Z"}',
    b'[{"a":1,"timestamp":1795459094000},{"b":"x\\u00e9\\n"},{"a":-2.5e3}]',
    b'{"message_id":"m-1","a":1}',
    b'[{"message_id":1,"a":1},{"message_id":2,"a":1}]',
)
PACK: list[dict[str, Any]] = [
    {"bn": "dev:", "bt": 1_795_459_000, "bv": 20, "bs": 1, "bver": 10, "n": "t", "v": 3.5, "u": "Cel"},
    {"n": "m", "vs": "eco", "t": -5},
    {"n": "o", "vb": True},
    {"n": "e", "s": 4, "ut": 5},
]
LABELS = {"bn": -2, "bt": -3, "bv": -5, "bs": -6, "bver": -1, "n": 0, "v": 2, "u": 1, "vs": 3, "vb": 4}
LABELS |= {"s": 5, "t": 6, "ut": 7, "vd": 8}
# A map of tagged values: times, big numbers, fractions, patterns, addresses, references.
TAGGED = (
    b"\xab\x69timestamp\xc1\x1a\x6b\x04\x87\x80\x61a\xc2\x43\xff\xff\xff"
    b"\x61b\xc4\x82\x01\x02\x61c\xc5\x82\x01\x02\x61d\xd8\x1e\x82\x01\x02\x61e\xd8\x23\x61a"
    b"\x61f\xd8\x24\x61a\x61g\xd9\x01\x04\x44\x01\x02\x03\x04\x61h\xd8\x1c\x81\x01"
    b"\x61i\xd8\x25\x50" + bytes(16) + b"\x61j\xc0\x742026-11-23T18:00:00Z"
)
CBOR = tuple(cbor2.dumps(json.loads(seed)) for seed in JSON)
SENML = json.dumps(PACK).encode()
SENML_CBOR = (
    cbor2.dumps([{LABELS[key]: value for key, value in record.items()} for record in PACK]),
    cbor2.dumps(PACK),
)
EUI = "a8404137b182428e"
UP = {
    "deduplicationId": "d-1",
    "time": "2026-11-23T18:00:00.123Z",
    "deviceInfo": {"devEui": EUI, "deviceProfileName": "lpp", "applicationId": "a-1"},
    "fPort": 2,
    "fCnt": 7,
    "data": "A2cBEAVnAP8=",
    "object": {"t": {"deep": [1, None, True]}},
    "rxInfo": [{"gatewayId": "far", "rssi": -110, "snr": -3.5}],
}
ITEM = "00000000-0000-0000-0000-000000000001"
SAID = {
    "deviceInfo": UP["deviceInfo"],
    "time": UP["time"],
    "queueItemId": ITEM,
    "acknowledged": True,
    "level": "ERROR",
    "code": "C",
    "description": "D",
    "context": {"queue_item_id": ITEM},
    "devAddr": "00189440",
    "margin": 3,
    "batteryLevel": 20.5,
    "gatewayId": "g",
    "fCntDown": 3,
    "location": {"latitude": 1.5, "longitude": 2, "altitude": 3},
}
CHIRPSTACK = json.dumps(UP).encode(), json.dumps(SAID).encode()
IDS = {
    "device_id": "x",
    "application_ids": {"application_id": "app"},
    "dev_eui": EUI,
    "dev_addr": "00189440",
}
TTS_UP = {
    "session_key_id": "s",
    "f_port": 2,
    "f_cnt": 7,
    "frm_payload": "A2cBEAVnAP8=",
    "decoded_payload": {"t": 1},
    "rx_metadata": [{"gateway_ids": {"gateway_id": "g"}, "rssi": -70, "snr": 5.5}],
    "received_at": "2026-11-23T18:00:00.123456789Z",
}
DOWN = {"correlation_ids": ["sensorium:command:abc"], "confirmed": True}
TTS = tuple(
    json.dumps({"end_device_ids": IDS, "received_at": UP["time"], kind: body}).encode()
    for kind, body in (
        ("uplink_message", TTS_UP),
        ("join_accept", {"session_key_id": "s"}),
        ("location_solved", {"location": {"latitude": 1}}),
        ("downlink_ack", DOWN),
        ("downlink_sent", {**DOWN, "confirmed": False}),
        ("downlink_failed", {"downlink": DOWN, "error": {"name": "n", "message_format": "f"}}),
    )
)
METRICS = tuple(
    Metric(name, alias, datatype, NOW_MS, raw, properties={"engUnit": "Cel", "Quality": 192, "x": 1.5})
    for alias, (name, datatype, raw) in enumerate(
        (
            ("a", DataType.INT8, -5),
            ("b", DataType.DOUBLE, 20.5),
            ("c", DataType.FLOAT, 1.5),
            ("d", DataType.BOOLEAN, True),
            ("e", DataType.STRING, "text"),
            ("bdSeq", DataType.UINT64, 3),
        )
    )
)
put = wire.put
ROW = put(2, "a") + put(3, 3) + put(4, put(1, put(1, 5))) + put(4, put(1, b""))
PARTS = put(2, put(1, "x") + put(4, 3) + put(10, 7)) + put(3, put(1, "p") + put(2, 3) + put(3, 9))
# Values that are not written by us: arrays, a data set, a template.
COMPOUND = b"".join(
    put(2, put(1, "m") + put(4, datatype) + said)
    for datatype, said in (
        (DataType.INT32_ARRAY, put(16, struct.pack("<3i", 1, -2, 3))),
        (DataType.BOOLEAN_ARRAY, put(16, b"\x03\0\0\0\xa0")),
        (DataType.STRING_ARRAY, put(16, b"a\0b\0")),
        (DataType.DATASET, put(17, ROW)),
        (DataType.TEMPLATE, put(18, PARTS)),
    )
)
SPARKPLUG = (
    encode(Payload(NOW_MS, METRICS, 3)),
    encode(Payload(NOW_MS, (Metric(None, 1, None, None, 21.5), Metric("n", 2, DataType.TEXT)), 255)),
    COMPOUND,
)


def publish(head: int, topic: bytes, rest: bytes) -> bytes:
    body = struct.pack("!H", len(topic)) + topic + rest
    return bytes([head, len(body)]) + body


PROPERTIES = b"\x26\0\x01k\0\x01v\x23\0\x07\x08\0\x01r\x09\0\x02cd\x01\x01\x02\0\0\0\x0a\x0b\x07"
STREAM = (
    publish(0x30, b"devices/a/telemetry", b'\0{"t":1}') + publish(0x32, b"t", b"\0\x05\0x"),
    publish(0x34, b"t", b"\0\x07" + bytes([len(PROPERTIES)]) + PROPERTIES + b"body") + b"\x40\x02\0\x01",
    publish(0x32, b"", b"\0\x09\x03\x23\0\x07y") + publish(0x3A, b"t", b"\0\x0a\0z") + b"\xd0\0",
    b"\x30\x80\x01\0\x01t\0" + bytes(124),
)
CONNECT = b"\x10\x0c\0\x04MQTT\x05\x02\0\x3c\0\0"
LPP = (b"\x03\x67\x01\x10\x05\x67\0\xff", bytes.fromhex("018806765ff2960a0003e8067104d2fb2e0000"))
PROPERTY_BLOCK = bytes([len(PROPERTIES)]) + PROPERTIES + b"rest"
STATUSES = (b"online", b'"offline"', b'{"status":"online"}', b'{"online":true}')
REQUESTS = (
    b'{"command":"open","parameters":{"by":3},"timeout_s":5,"expires_at":"2023-12-01T00:00:00Z"}',
    b'{"command_id":"c","command":"open","parameters":{},"timeout_ms":5,"expires_ms":1701388800000,"retries":1}',
)
REPLY = b'{"status":"succeeded","result":{"a":[1,"x"]},"reason":"r"}'
REPORT = b'{"a":{"b":[1,2.5,null]},"c":"x"}'
FRAMES = (bytes(range(1, 19)), b"\xff" * 16, b"\x7f\xf0" * 8)
