"""The wire between senders and hosts: what is sent arrives, and broken bytes are refused in one way."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.messages import (
    ACCEPTED,
    DUPLICATE,
    Answer,
    Batch,
    BatchReply,
    ChangeTwin,
    ClaimTwin,
    DeadLetter,
    Decommission,
    GetDevice,
    GetLatest,
    GetTwin,
    GetWindow,
    Location,
    Patch,
    Reading,
    RefreshRules,
    Refusal,
    Register,
    TakeTwin,
    TwinTold,
    TwinUntold,
    batch_decoder,
    batch_encoder,
    reply_decoder,
)

BATCH = Batch(
    "ingest-0",
    7,
    [("temperature", "door", "mode"), ("level",)],
    [
        Reading("a", 1_700_000_000_000, 1_700_000_000_001, -(2**63), 0, [21.5, True, "eco"]),
        Reading("b", -1, 0, 2**63 - 1, 1, [0.0], 2),
        Register("c", "tank", Location(52.5, 13.4, "Hall 3"), {"floor": 3, "tags": ["a", {"b": None}]}),
        Register("d", "tank"),
        Patch("c", None, None, {"floor": None}),
        Decommission("c"),
        GetDevice("c"),
        GetLatest("c"),
        GetWindow("c", "level", 900.0),
        RefreshRules("c"),
        ChangeTwin("c", {"a": {"b": [1, None, 2.5, "ü"]}}, None, "alice", True, ["d3", "r7"]),
        ChangeTwin("c", reported={}),
        GetTwin("c"),
        ClaimTwin("c"),
        TwinTold("c", 3),
        TwinUntold("c", 3, True),
        TakeTwin("c"),
        DeadLetter("", "mqtt", "x/y", "malformed_json", "no", b"\xff{", 2, 5),
    ],
)
BYTES = batch_encoder.encode(BATCH)


def test_a_batch_arrives_as_it_was_sent():
    assert batch_decoder.decode(BYTES) == BATCH


def test_a_reply_arrives_as_it_was_sent():
    reply = BatchReply(
        7, {0: DUPLICATE, 2: Refusal("conflict", "no", True), 3: Answer({"a": [1, None]})}, [1]
    )
    assert reply_decoder.decode(batch_encoder.encode(reply)) == reply
    assert reply_decoder.decode(batch_encoder.encode(BatchReply(1, {0: ACCEPTED}))).outcomes == {0: ACCEPTED}


def test_integers_arrive_as_floats():
    raw = msgspec.msgpack.encode(["s", 1, [["m"]], [[0, "a", 0, 0, 0, 0, [1, True]]]])
    (reading,) = batch_decoder.decode(raw).messages
    assert [type(value) for value in reading.values] == [float, bool]


@given(
    st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(0, 255)), max_size=8),
    st.integers(0, len(BYTES)),
    st.binary(max_size=16),
)
def test_broken_bytes_are_a_batch_or_a_decode_error(changes, cut, inserted):
    broken = bytearray(BYTES)
    for position, byte in changes:
        broken[position] = byte
    for data in (bytes(broken), bytes(broken[:cut]), bytes(broken[:cut] + inserted + broken[cut:])):
        try:
            batch = batch_decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        assert isinstance(batch, Batch)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_a_decode_error(data):
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        assert isinstance(batch_decoder.decode(data), Batch)


@pytest.mark.parametrize("data", [b"\xdd\xff\xff\xff\xff", b"\x94\xa1a\x01\x90\xdd\xff\xff\xff\xff"])
def test_a_length_that_is_a_lie_costs_no_memory(data):
    with pytest.raises(msgspec.DecodeError):
        batch_decoder.decode(data)
