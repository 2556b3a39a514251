"""What devices say besides telemetry: any bytes are a value or a documented error."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.ingest.errors import Undecodable
from sensorium.ingest.replies import MAX_REPLY_BYTES, Reply, check_plain, decode_presence, decode_reply


@pytest.mark.parametrize(
    ("payload", "reply"),
    [
        (b'{"status": "accepted"}', Reply("delivered", None, None)),
        (b'{"status":"delivered","extra":1}', Reply("delivered", None, None)),
        (b'{"status":"succeeded","result":{"a":[1,null]}}', Reply("succeeded", {"a": [1, None]}, None)),
        (b'{"status":"failed","reason":"stuck"}', Reply("failed", None, "stuck")),
    ],
)
def test_replies(payload: bytes, reply: Reply) -> None:
    assert decode_reply(payload) == reply


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b"\xff", "malformed_json"),
        (b'{"status": "succeeded", "result": ' + b"[" * 50_000, "malformed_json"),
        (b"{}", "wrong_type"),
        (b'"succeeded"', "wrong_type"),
        (b'{"status": "perhaps"}', "wrong_type"),
        (b'{"status": "failed", "reason": 3}', "wrong_type"),
        (b'{"status": "succeeded", "result": 100000000000000000000}', "wrong_type"),
        (b'{"status": "succeeded", "result": "a\\u0000b"}', "bad_text"),
        (b'{"status": "succeeded", "result": {"\\u0000": 1}}', "bad_text"),
        (b" " * (MAX_REPLY_BYTES + 1), "too_large"),
    ],
)
def test_what_is_no_reply(payload: bytes, code: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode_reply(payload)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("payload", "online"),
    [
        (b"", None),
        (b"online", True),
        (b'"Offline"', False),
        (b"disconnected\n", False),
        (b'{"status": "online", "since": 1}', True),
        (b'{"online": false}', False),
    ],
)
def test_presence(payload: bytes, online: bool | None) -> None:
    assert decode_presence(payload) is online


_LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
_INNER = _LEAF | st.lists(_LEAF, max_size=3)
_JSON = _INNER | st.lists(_INNER, max_size=3) | st.dictionaries(st.text(), _INNER, max_size=3)


@given(st.binary() | _JSON.map(lambda v: msgspec.json.encode({"status": "succeeded", "result": v})))
def test_any_bytes_are_a_value_or_a_documented_error(payload: bytes) -> None:
    for decode in (decode_reply, decode_presence):
        with suppress(Undecodable):
            decode(payload)


@given(_JSON)
def test_what_is_plain_travels_and_can_be_stored(value: object) -> None:
    try:
        check_plain(value)
    except Undecodable:
        return
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
    assert b"\0" not in msgspec.json.encode(value)
