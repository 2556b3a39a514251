"""CBOR telemetry: the same as JSON, and nothing else than a reading or `Undecodable`."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.ingest.cbor import CborDecoder
from sensorium.ingest.decode import Bounds, TelemetryDecoder
from sensorium.ingest.errors import Undecodable

NOW_MS = 1_795_459_094_744
decode = CborDecoder(Bounds(max_array=3, max_metrics=4, max_text_chars=10)).decode


@pytest.mark.parametrize(
    "content",
    [
        {"temperature": 23.5, "on": True, "mode": "eco", "count": 7},
        {"a": 1, "timestamp": 1_704_110_400_000},
        {"a": 1, "timestamp": "2024-01-01T12:00:00Z"},
        [{"a": 1}, {"a": 2, "b": False}],
    ],
)
def test_a_map_reads_as_the_json_object_does(content: Any) -> None:
    assert decode(cbor2.dumps(content), NOW_MS) == TelemetryDecoder().decode(
        json.dumps(content).encode(), NOW_MS
    )


def test_tagged_times_are_taken() -> None:
    at = datetime(2024, 1, 1, 12, tzinfo=UTC)
    for stamp in (cbor2.dumps(at), cbor2.dumps(cbor2.CBORTag(1, 1_704_110_400))):
        payload = b"\xa2" + cbor2.dumps("a") + cbor2.dumps(1) + cbor2.dumps("timestamp") + stamp
        assert decode(payload, NOW_MS) == [(1_704_110_400_000, ("a",), [1.0], True)]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"\xa1", "malformed_cbor"),
        (b"\xff", "malformed_cbor"),
        (b"\x81" * 500, "malformed_cbor"),
        (cbor2.dumps({"a": 1}) + b"\x00", "malformed_cbor"),
        (b"\xa2aa\x01aa\x02", "duplicate_key"),
        (b"\xc0dabcd", "malformed_cbor"),
        (cbor2.dumps(1), "not_an_object"),
        (cbor2.dumps([1]), "not_an_object"),
        (cbor2.dumps([]), "empty"),
        (cbor2.dumps({}), "empty"),
        (cbor2.dumps([{"a": 1}] * 4), "batch_too_long"),
        (cbor2.dumps({str(i): i for i in range(5)}), "too_many_metrics"),
        (cbor2.dumps({1: 1}), "bad_metric_name"),
        (cbor2.dumps({"": 1}), "bad_metric_name"),
        (cbor2.dumps({"a": None}), "wrong_type"),
        (cbor2.dumps({"a": [1]}), "wrong_type"),
        (cbor2.dumps({"a": b"x"}), "wrong_type"),
        (cbor2.dumps({"a": float("nan")}), "not_finite"),
        (cbor2.dumps({"a": 10**400}), "not_finite"),
        (cbor2.dumps({"a": "x" * 11}), "text_too_long"),
        (cbor2.dumps({"a": "\0"}), "bad_text"),
        (cbor2.dumps({"a": 1, "timestamp": True}), "bad_timestamp"),
        (cbor2.dumps({"a": 1, "timestamp": "soon"}), "bad_timestamp"),
        (cbor2.dumps({"a": 1, "timestamp": float("inf")}), "bad_timestamp"),
        (cbor2.dumps({"a": 1, "timestamp": 1e300}), "timestamp_too_far_in_future"),
        (cbor2.dumps({"a": 1, "timestamp": 1_704_110_400}), "timestamp_too_old"),
    ],
)
def test_what_is_wrong_has_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(payload, NOW_MS)
    assert caught.value.code == reason


def test_a_large_payload_is_refused_unread() -> None:
    with pytest.raises(Undecodable, match="too_large"):
        CborDecoder(Bounds(max_payload_bytes=64)).decode(b"\xa1" * 65, NOW_MS)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(
    st.binary()
    | ANYTHING.map(cbor2.dumps)
    | st.builds(lambda a, b: cbor2.dumps(a) + b, ANYTHING, st.binary())
)
def test_any_bytes_are_readings_or_undecodable(payload: bytes) -> None:
    try:
        readings = decode(payload, NOW_MS)
    except Undecodable:
        return
    assert readings
    for _, names, values, _ in readings:
        assert len(names) == len(values) > 0
        assert {type(value) for value in values} <= {float, bool, str}


@given(st.data())
def test_damaged_payloads_are_readings_or_undecodable(data: st.DataObject) -> None:
    payload = bytearray(cbor2.dumps([{"temperature": 23.5, "mode": "eco", "timestamp": NOW_MS}] * 2))
    for at in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=4)):
        payload[at] = data.draw(st.integers(0, 255))
    with suppress(Undecodable):
        assert decode(bytes(payload), NOW_MS)
