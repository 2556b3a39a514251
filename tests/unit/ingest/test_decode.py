import json
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensorium.ingest.decode import Bounds, TelemetryDecoder
from sensorium.ingest.errors import Reason, Undecodable

NOW_MS = 1_795_459_094_744
decoder = TelemetryDecoder()


def refusal(payload: bytes, bounds: Bounds | None = None) -> Reason:
    with pytest.raises(Undecodable) as caught:
        TelemetryDecoder(bounds).decode(payload, NOW_MS)
    assert caught.value.code == caught.value.reason
    return caught.value.reason


def test_an_object_with_a_time() -> None:
    payload = b'{"temperature": 23.5, "on": true, "n": 7, "mode": "eco", "timestamp": "2024-01-01T12:00:00Z"}'
    [(time_ms, names, values, own_time)] = decoder.decode(payload, NOW_MS)
    assert time_ms == 1_704_110_400_000
    assert names == ("temperature", "on", "n", "mode")
    assert values == [23.5, True, 7.0, "eco"]
    assert [type(v) for v in values] == [float, bool, float, str]
    assert own_time


def test_an_object_without_a_time_is_as_old_as_its_receipt() -> None:
    assert decoder.decode(b'{"a":1}', NOW_MS) == [(NOW_MS, ("a",), [1.0], False)]


def test_an_array_in_order() -> None:
    payload = b' [{"a":1,"timestamp":1704110400001},{"b":"x"},{"a":2,"timestamp":1704110400000.9}]'
    assert decoder.decode(payload, NOW_MS) == [
        (1704110400001, ("a",), [1.0], True),
        (NOW_MS, ("b",), ["x"], False),
        (1704110400000, ("a",), [2.0], True),
    ]


@pytest.mark.parametrize(
    ("stamp", "time_ms"),
    [
        ('"2024-01-01T12:00:00"', 1_704_110_400_000),
        ('"2024-01-01T12:00:00.123Z"', 1_704_110_400_123),
        ('"2024-01-01T13:30:00+01:30"', 1_704_110_400_000),
        ('"2024-01-01 12:00:00.123456+00:00"', 1_704_110_400_123),
        ("1704110400123", 1_704_110_400_123),
        ("1.704110400123e12", 1_704_110_400_123),
    ],
)
def test_timestamps(stamp: str, time_ms: int) -> None:
    [(read_ms, *_)] = decoder.decode(f'{{"a":1,"timestamp":{stamp}}}'.encode(), NOW_MS)
    assert read_ms == time_ms


@given(
    st.datetimes(datetime(2010, 1, 1), datetime(2026, 11, 1)),
    st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_every_iso_timestamp_is_read_to_the_millisecond(moment: datetime, zone: timezone) -> None:
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
    stamp = moment.astimezone(zone).isoformat()
    [(read_ms, *_)] = decoder.decode(json.dumps({"a": 1, "timestamp": stamp}).encode(), NOW_MS)
    assert read_ms == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"  \n", Reason.EMPTY),
        (b"{}", Reason.EMPTY),
        (b"[]", Reason.EMPTY),
        (b'[{"a":1},{}]', Reason.EMPTY),
        (b'{"timestamp":1704110400000}', Reason.EMPTY),
        (b"{", Reason.MALFORMED_JSON),
        (b'{"a":1}x', Reason.MALFORMED_JSON),
        (b'{"a":1,}', Reason.MALFORMED_JSON),
        (b'{"a":01}', Reason.MALFORMED_JSON),
        (b'{"a":"\xff"}', Reason.MALFORMED_JSON),
        (b'{"a":"\\ud800"}', Reason.MALFORMED_JSON),
        (b"\x00\x01\x02", Reason.MALFORMED_JSON),
        (b'{"a":' + b"[" * 100_000, Reason.MALFORMED_JSON),
        (b"[" * 100_000, Reason.MALFORMED_JSON),
        (b"3", Reason.NOT_AN_OBJECT),
        (b'"text"', Reason.NOT_AN_OBJECT),
        (b'[{"a":1},3]', Reason.NOT_AN_OBJECT),
        (b"[[]]", Reason.NOT_AN_OBJECT),
        (b'{"a":null}', Reason.WRONG_TYPE),
        (b'{"a":{"b":1}}', Reason.WRONG_TYPE),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", Reason.WRONG_TYPE),
        (b'[{"a":1},{"a":[1]}]', Reason.WRONG_TYPE),
        (b'{"a":NaN}', Reason.NOT_FINITE),
        (b'{"a":-Infinity}', Reason.NOT_FINITE),
        (b'{"a":1e999}', Reason.NOT_FINITE),
        (b'{"a":' + b"9" * 5000 + b"}", Reason.NOT_FINITE),
        (b'{"a":1,"a":2}', Reason.DUPLICATE_KEY),
        (b'{"a":"x","a":2}', Reason.DUPLICATE_KEY),
        (b'{"a":null,"a":2}', Reason.DUPLICATE_KEY),
        (b'{"a":1,"\\u0061":2}', Reason.DUPLICATE_KEY),
        (b'{"a":"\\"","a":2}', Reason.DUPLICATE_KEY),
        (b'[{"a":1},{"a":1,"a":2}]', Reason.DUPLICATE_KEY),
        (b'{"a":1,"timestamp":1704110400000,"timestamp":1704110400001}', Reason.DUPLICATE_KEY),
        (b'{"a":1,"timestamp":"yesterday"}', Reason.BAD_TIMESTAMP),
        (b'{"a":1,"timestamp":""}', Reason.BAD_TIMESTAMP),
        (b'{"a":1,"timestamp":null}', Reason.BAD_TIMESTAMP),
        (b'{"a":1,"timestamp":true}', Reason.BAD_TIMESTAMP),
        (b'{"a":1,"timestamp":"2024-02-30T00:00:00Z"}', Reason.BAD_TIMESTAMP),
        (b'{"a":1,"timestamp":1704110400}', Reason.TIMESTAMP_TOO_OLD),
        (b'{"a":1,"timestamp":-1e300}', Reason.TIMESTAMP_TOO_OLD),
        (b'{"a":1,"timestamp":"0001-01-01T00:00:00+14:00"}', Reason.TIMESTAMP_TOO_OLD),
        (b'{"a":1,"timestamp":%d}' % (NOW_MS + 600_001), Reason.TIMESTAMP_TOO_FAR_IN_FUTURE),
        (b'{"a":1,"timestamp":1e308}', Reason.TIMESTAMP_TOO_FAR_IN_FUTURE),
        (b'{"":1}', Reason.BAD_METRIC_NAME),
        (b'{"a\\u0000":1}', Reason.BAD_METRIC_NAME),
        (b'{"a\\nb":1}', Reason.BAD_METRIC_NAME),
        (b'{"' + b"n" * 129 + b'":1}', Reason.BAD_METRIC_NAME),
        (b'{"a":"\\u0000"}', Reason.BAD_TEXT),
        (b'{"a":"' + b"x" * 4097 + b'"}', Reason.TEXT_TOO_LONG),
        (b'{"a":"' + b"x" * 262_144 + b'"}', Reason.TOO_LARGE),
        (json.dumps({f"m{i}": i for i in range(257)}).encode(), Reason.TOO_MANY_METRICS),
        (json.dumps([{"a": 1}] * 1001).encode(), Reason.BATCH_TOO_LONG),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_bad_payloads_are_refused_with_their_reason(payload: bytes, reason: Reason) -> None:
    assert refusal(payload) is reason


def test_the_bounds_themselves_are_allowed() -> None:
    payload = json.dumps({f"m{i}": "x" * 4096 for i in range(50)} | {"n" * 128: 1}).encode()
    assert decoder.decode(payload, NOW_MS)
    assert decoder.decode(json.dumps([{"a": 1}] * 1000).encode(), NOW_MS)
    assert decoder.decode(b'{"a":1,"timestamp":%d}' % (NOW_MS + 600_000), NOW_MS)


def test_bounds_can_be_set() -> None:
    assert refusal(b'{"a":1,"b":1}', Bounds(max_metrics=1)) is Reason.TOO_MANY_METRICS
    assert (
        refusal(b'{"a":1,"timestamp":%d}' % (NOW_MS - 2000), Bounds(max_past_s=1)) is Reason.TIMESTAMP_TOO_OLD
    )
    assert refusal(b'{"abc":1}', Bounds(max_payload_bytes=8)) is Reason.TOO_LARGE


def test_escaped_quotes_are_not_taken_for_repeated_keys() -> None:
    [(_, names, values, _)] = decoder.decode(b'{"a\\"":"\\"\\\\\\"","b":"c\\u0022"}', NOW_MS)
    assert (names, values) == (('a"', "b"), ['"\\"', 'c"'])


def test_a_refusal_names_the_place() -> None:
    with pytest.raises(Undecodable, match=r"\$\[1\]\.b is an object"):
        decoder.decode(b'[{"a":1},{"a":1,"b":{}}]', NOW_MS)


def test_equal_name_sets_are_one_object() -> None:
    first, second = (decoder.decode(b'{"a":%d,"b":2}' % n, NOW_MS)[0][1] for n in (1, 2))
    assert first is second


_keys = st.text(st.sampled_from('ab"\\\u00e9\0'), max_size=3) | st.just("timestamp")
_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
_trees = st.recursive(_scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(_keys, t, max_size=3))


def _check(payload: bytes) -> None:
    try:
        readings = decoder.decode(payload, NOW_MS)
    except Undecodable:
        return
    assert readings
    for time_ms, names, values, _ in readings:
        assert type(time_ms) is int
        assert len(names) == len(values) == len(set(names)) > 0
        for value in values:
            assert type(value) in (float, bool, str)
            assert not isinstance(value, float) or math.isfinite(value)
            assert not isinstance(value, str) or ("\0" not in value and value.encode() is not None)


@given(st.binary(max_size=200))
@example(b'{"a": "\\ud800\\ud800"}')
def test_any_bytes_decode_or_are_refused(payload: bytes) -> None:
    _check(payload)


@given(_trees, st.booleans())
def test_any_json_decodes_or_is_refused(tree: object, ascii_only: bool) -> None:
    _check(json.dumps(tree, ensure_ascii=ascii_only).encode(errors="surrogatepass"))


@given(st.lists(st.tuples(_keys, st.booleans() | st.text(max_size=5)), max_size=4), st.booleans())
def test_repeated_keys_are_found_exactly(members: list[tuple[str, object]], ascii_only: bool) -> None:
    text = ",".join(f"{json.dumps(k, ensure_ascii=ascii_only)}:{json.dumps(v)}" for k, v in members)
    try:
        decoder.decode(f"{{{text}}}".encode(errors="surrogatepass"), NOW_MS)
    except Undecodable as error:
        if error.reason is Reason.DUPLICATE_KEY:
            assert len({k for k, _ in members}) < len(members)
    else:
        assert len({k for k, _ in members}) == len(members)


@given(st.binary(min_size=1, max_size=5), st.integers(0, 100))
def test_a_damaged_payload_decodes_or_is_refused(damage: bytes, at: int) -> None:
    good = b'[{"timestamp":"2024-01-01T12:00:00.123Z","a":23.5,"b":"x\\"y"},{"c":true,"timestamp":1.7e12}]'
    _check(good[:at] + damage + good[at + len(damage) :])
