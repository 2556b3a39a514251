"""SenML packs, after the examples and rules of RFC 8428."""

import json
from contextlib import suppress
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.messages import Measured
from sensorium.ingest.decode import Bounds
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.senml import SenmlDecoder

NOW_MS = 1_320_067_500_000
senml = SenmlDecoder(Bounds(max_array=20))
LABELS = {
    "bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6,
    "n": 0, "u": 1, "v": 2, "vs": 3, "vb": 4, "s": 5, "t": 6, "ut": 7, "vd": 8,
}  # fmt: skip


def read(pack: Any) -> Any:
    """The readings, their names without units."""
    decoded = senml.decode_json(json.dumps(pack).encode(), NOW_MS)
    return [(time_ms, tuple(names), values, own) for time_ms, names, values, own in decoded]


def test_one_measurement() -> None:
    pack = [{"n": "urn:dev:ow:10e2073a01080063", "u": "Cel", "v": 23.1}]
    assert read(pack) == [(NOW_MS, ("urn:dev:ow:10e2073a01080063",), [23.1], False)]


def test_base_fields_and_relative_times_within_an_absolute_base_time() -> None:
    pack = [
        {"bn": "urn:dev:ow:10e2073a01080063:", "bt": 1.320067464e9, "bu": "%RH", "v": 21.2},
        {"t": 10, "v": 21.3},
        {"n": "voltage", "u": "V", "t": 10, "v": 120.1},
        {"n": "open", "vb": False, "t": 20},
        {"n": "mode", "vs": "eco", "t": 20},
    ]
    base = "urn:dev:ow:10e2073a01080063:"
    assert read(pack) == [
        (1_320_067_464_000, (base,), [21.2], True),
        (1_320_067_474_000, (base, "voltage"), [21.3, 120.1], True),
        (1_320_067_484_000, ("open", "mode"), [False, "eco"], True),
    ]


def test_json_and_cbor_agree() -> None:
    pack = [
        {"bn": "dev1:", "bt": 1_320_067_464, "bv": 20, "bver": 5},
        {"n": "t", "v": 3.5, "ut": 5, "extra": [1]},
        {"n": "e", "s": 4, "t": -1},
        {"n": "raw", "vd": "AQID"},
    ]
    labelled = [{LABELS.get(k, k): v for k, v in record.items()} for record in pack]
    labelled[3][8] = b"\1\2\3"
    labelled[0][99] = "not known"
    readings = read(pack)
    assert senml.decode_cbor(cbor2.dumps(labelled), NOW_MS) == readings
    assert readings == [
        (1_320_067_464_000, ("t", "raw"), [23.5, "AQID"], True),
        (1_320_067_463_000, ("e_sum",), [4.0], True),
    ]


def test_times_relative_to_now_are_no_identity() -> None:
    assert read([{"n": "a", "v": 1, "t": -5}, {"n": "a", "v": 2, "t": 0}]) == [
        (NOW_MS - 5000, ("a",), [1.0], False),
        (NOW_MS, ("a",), [2.0], False),
    ]


def test_several_base_names_keep_their_metrics_apart() -> None:
    pack = [{"bn": "one/", "n": "t", "v": 1}, {"bn": "two/", "n": "t", "v": 2}]
    assert read(pack) == [(NOW_MS, ("one/t", "two/t"), [1.0, 2.0], False)]


def test_a_base_value_stands_for_a_missing_one_and_a_base_sum_adds() -> None:
    assert read([{"bv": 5, "bs": 2, "n": "a"}, {"n": "b", "v": 1, "s": 3}]) == [
        (NOW_MS, ("a", "b", "b_sum"), [5.0, 6.0, 5.0], False)
    ]


@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        ([], "empty"),
        ([{"bn": "a"}], "empty"),
        ({"n": "a", "v": 1}, "not_an_object"),
        ([1], "not_an_object"),
        ([{"n": "a"}], "bad_senml"),
        ([{"n": "a", "v": 1, "vb": True}], "bad_senml"),
        ([{"n": "a", "v": 1, "bver": 11}], "bad_senml"),
        ([{"n": "a", "v": 1, "must_": 1}], "bad_senml"),
        ([{"v": 1}], "bad_metric_name"),
        ([{"n": "a\u0000", "v": 1}], "bad_metric_name"),
        ([{"n": "a", "v": "1"}], "wrong_type"),
        ([{"n": "a", "v": True}], "wrong_type"),
        ([{"n": "a", "vb": 1}], "wrong_type"),
        ([{"n": "a", "vs": 1}], "wrong_type"),
        ([{"n": "a", "vd": 1}], "wrong_type"),
        ([{"n": 1, "v": 1}], "wrong_type"),
        ([{"n": "a", "v": 1}, {"n": "a", "v": 1}], "duplicate_key"),
        ([{"n": "a", "v": 1, "t": 4e9}], "timestamp_too_far_in_future"),
        ([{"n": "a", "v": 1, "t": 3e8}], "timestamp_too_old"),
        ([{"bv": 1.7e308, "n": "a", "v": 1.7e308}], "not_finite"),
        ([{"bt": 1.7e308, "n": "a", "t": 1.7e308, "v": 1}], "bad_timestamp"),
        ([{"n": str(i), "v": 1} for i in range(21)], "batch_too_long"),
    ],
)
def test_what_is_wrong_has_a_reason(pack: Any, reason: str) -> None:
    with pytest.raises(Undecodable) as caught:
        read(pack)
    assert caught.value.code == reason


KEYS = st.sampled_from([*LABELS, "x", "x_"]) | st.text(max_size=3)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.just(1))


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=5))
def test_any_pack_is_readings_or_undecodable_in_both_encodings(pack: Any) -> None:
    outcomes = []
    labelled = [{LABELS.get(k, k): v for k, v in record.items()} for record in pack]
    for decode, payload in (
        (senml.decode_json, json.dumps(pack).encode()),
        (senml.decode_cbor, cbor2.dumps(labelled)),
    ):
        try:
            outcomes.append(decode(payload, NOW_MS))
        except Undecodable as error:
            outcomes.append(error.code)
    # JSON knows no NaN, and a decoder of JSON reads the largest numbers its own way.
    if b"NaN" not in payload and "malformed_json" not in outcomes:
        assert outcomes[0] == outcomes[1]


@given(st.binary(max_size=60))
def test_any_bytes_are_readings_or_undecodable(payload: bytes) -> None:
    for decode in (senml.decode_json, senml.decode_cbor):
        with suppress(Undecodable):
            assert decode(payload, NOW_MS)


def test_units_go_with_the_names() -> None:
    pack = [
        {"bn": "room/", "bt": 1_320_067_464, "bu": "%RH", "n": "humidity", "v": 40},
        {"n": "temperature", "u": "Cel", "v": 20.5},
        {"n": "door", "u": "Cel", "vb": True},
        {"n": "energy", "u": "W", "s": 9},
    ]
    for decoded in (
        senml.decode_json(json.dumps(pack).encode(), NOW_MS),
        senml.decode_cbor(cbor2.dumps(pack), NOW_MS),
    ):
        ((_, names, _, _),) = decoded
        assert names == Measured(
            ("humidity", "temperature", "door", "energy_sum"), ("%RH", "Cel", None, None)
        )
