"""Schemas: what readings must look like, in which units, and what becomes of the others."""

import pickle
from math import isclose
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.device import as_payload
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import (
    ACCEPTED,
    GetLatest,
    Measured,
    Quality,
    Reading,
    ReadingFlag,
    Refusal,
    quality_of,
)
from sensorium.actors.profile import Profile
from sensorium.actors.schema import MetricSpec, MetricType, Outside, Schema
from sensorium.actors.units import conversion, quantity_of
from sensorium.ingest.senml import SenmlDecoder
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of

SUSPECT = int(ReadingFlag.SUSPECT)


def schema(unknown: Outside = Outside.ALLOW, **metrics: MetricSpec) -> Schema:
    return Schema(metrics, unknown)


def code_of(judged: Any) -> str:
    assert isinstance(judged, Refusal), judged
    return judged.code


RANGE = schema(temperature=MetricSpec(minimum=-40.0, maximum=85.0))
STRICT = schema(temperature=MetricSpec(minimum=-40.0, maximum=85.0, outside=Outside.REJECT))


@pytest.mark.parametrize("value", [-40.0, 0.0, 85.0])
def test_a_value_within_its_range_is_good(value: float) -> None:
    assert RANGE.judge(("temperature",), [value]) == ([value], 0)


@pytest.mark.parametrize("value", [-40.1, 85.1, 1e300])
def test_outside_of_it_is_flagged_or_rejected(value: float) -> None:
    assert RANGE.judge(("temperature",), [value]) == ([value], SUSPECT)
    assert code_of(STRICT.judge(("temperature",), [value])) == "out_of_range"


def test_a_rejection_says_what_and_where() -> None:
    judged = schema(t=MetricSpec(unit="degC", maximum=85.0, outside=Outside.REJECT)).judge(("t",), [90.5])
    assert isinstance(judged, Refusal)
    assert judged.detail == "t is 90.5 degC, above 85"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (MetricType.NUMBER, 1.5, True),
        (MetricType.INTEGER, 3.0, 3.5),
        (MetricType.INTEGER, -0.0, "3"),
        (MetricType.BOOLEAN, False, 0.0),
        (MetricType.STRING, "", 1.0),
    ],
)
def test_another_type_is_rejected_whatever_the_policy(kind: MetricType, good: Any, bad: Any) -> None:
    of = schema(m=MetricSpec(kind=kind))
    assert of.judge(("m",), [good]) == ([good], 0)
    assert code_of(of.judge(("m",), [bad])) == "wrong_type"


def test_texts_may_be_among_some_values_only() -> None:
    flags = schema(mode=MetricSpec(values=("eco", "boost")))
    assert flags.judge(("mode",), ["eco"]) == (["eco"], 0)
    assert flags.judge(("mode",), ["off"]) == (["off"], SUSPECT)
    assert code_of(flags.judge(("mode",), [1.0])) == "wrong_type"


def test_a_required_metric_and_unknown_ones() -> None:
    lenient = schema(t=MetricSpec(required=True))
    assert lenient.judge(("t", "x"), [1.0, 2.0]) == ([1.0, 2.0], 0)
    assert lenient.judge(("x",), [2.0]) == ([2.0], SUSPECT)
    strict = schema(Outside.REJECT, t=MetricSpec(required=True, outside=Outside.REJECT))
    assert code_of(strict.judge(("t", "x"), [1.0, 2.0])) == "unknown_metric"
    assert code_of(schema(t=MetricSpec(required=True, outside=Outside.REJECT)).judge(("x",), [1.0])) == (
        "missing_metric"
    )
    assert schema(Outside.FLAG, t=MetricSpec()).judge(("x",), [1.0]) == ([1.0], SUSPECT)


def test_a_name_that_ends_with_a_star_goes_for_many_and_the_longest_counts() -> None:
    of = Schema({"lora_*": MetricSpec(), "lora_r*": MetricSpec(maximum=0.0)}, Outside.REJECT)
    assert of.judge(("lora_snr", "lora_rssi"), [9.0, -100.0]) == ([9.0, -100.0], 0)
    assert of.judge(("lora_rssi",), [1.0]) == ([1.0], SUSPECT)
    assert code_of(of.judge(("rssi",), [1.0])) == "unknown_metric"


def test_values_in_another_unit_are_converted_and_then_held_against_the_range() -> None:
    of = schema(t=MetricSpec(unit="degF", maximum=100.0), u=MetricSpec())
    sent = [25.0, 1.0]
    assert of.judge(Measured(("t", "u"), ("Cel", "Pa")), sent) == ([77.0, 1.0], 0)
    assert sent == [25.0, 1.0], "what was sent stays as it is"
    assert of.judge(Measured(("t",), ("Cel",)), [40.0]) == ([104.0], SUSPECT)
    assert of.judge(Measured(("t",), ("°F",)), [40.0]) == ([40.0], 0)
    assert of.judge(Measured(("t",), (None,)), [40.0]) == ([40.0], 0)
    assert of.judge(("t",), [40.0]) == ([40.0], 0)


def test_a_unit_of_another_quantity_is_refused_clearly() -> None:
    of = schema(t=MetricSpec(unit="degF"))
    judged = of.judge(Measured(("t",), ("Pa",)), [1.0])
    assert isinstance(judged, Refusal)
    assert judged.detail == "metric t was sent in 'Pa'; the profile has it in degF, a unit of temperature"
    assert code_of(judged) == "wrong_unit"
    assert (
        code_of(schema(t=MetricSpec(unit="kPa")).judge(Measured(("t",), ("MPa",)), [1e306])) == "not_finite"
    )
    assert schema(t=MetricSpec(unit="furlong")).judge(Measured(("t",), ("furlong",)), [1.0]) == ([1.0], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum": 2.0, "maximum": 1.0},
        {"kind": MetricType.STRING, "maximum": 1.0},
        {"kind": MetricType.NUMBER, "values": ("a",)},
        {"values": ("a",), "unit": "m"},
        {"unit": "a" * 33},
        {"unit": " "},
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        MetricSpec(**wrong)


@pytest.mark.parametrize(
    ("value", "told", "wanted", "expected"),
    [
        (0.0, "Cel", "K", 273.15),
        (212.0, "degF", "degC", 100.0),
        (1013.25, "hPa", "Pa", 101_325.0),
        (1.0, "psi", "kPa", 6.894757293168361),
        (1.0, "kWh", "J", 3.6e6),
        (10.0, "dBW", "dBm", 40.0),
        (180.0, "deg", "rad", 3.141592653589793),
        (36.0, "km/h", "m/s", 10.0),
        (50.0, "%RH", "%", 50.0),
        (0.5, "/", "%", 50.0),
        (1.0, "in/h", "mm/h", 25.4),
        (120.0, "rpm", "Hz", 2.0),
    ],
)
def test_conversions(value: float, told: str, wanted: str, expected: float) -> None:
    there, back = conversion(told, wanted), conversion(wanted, told)
    assert there is not None
    assert back is not None
    converted = value * there.scale + there.shift
    assert isclose(converted, expected, rel_tol=1e-15, abs_tol=1e-12)
    assert isclose(converted * back.scale + back.shift, value, rel_tol=1e-12, abs_tol=1e-9)


def test_the_coulomb_is_no_degree() -> None:
    assert quantity_of("C") == "charge"
    assert conversion("C", "Cel") is None


NAMES = st.sampled_from(["a", "b", "c", "lora_x"])
SPECS = st.builds(
    MetricSpec,
    minimum=st.none() | st.floats(-5, 0),
    maximum=st.none() | st.floats(0, 5),
    required=st.booleans(),
    outside=st.sampled_from(Outside),
) | st.builds(MetricSpec, kind=st.sampled_from(MetricType), outside=st.sampled_from(Outside))
VALUES = st.floats(-10, 10) | st.booleans() | st.sampled_from(["", "x"])


@given(st.dictionaries(NAMES, SPECS), st.sampled_from(Outside), st.dictionaries(NAMES, VALUES, min_size=1))
def test_the_short_way_says_what_looking_at_each_value_says(
    metrics: dict[str, MetricSpec], unknown: Outside, reading: dict[str, Any]
) -> None:
    judged = Schema(metrics, unknown).judge(tuple(reading), list(reading.values()))
    expected, rejected = 0, False
    for name, spec in metrics.items():
        if name not in reading:
            if spec.required:
                expected |= SUSPECT * (spec.outside is Outside.FLAG)
                rejected |= spec.outside is Outside.REJECT
            continue
        value = reading[name]
        if spec.accepts not in (None, type(value)) or (
            spec.kind is MetricType.INTEGER and not value.is_integer()
        ):
            rejected = True
        elif spec.problem(name, value) is not None:
            expected |= SUSPECT * (spec.outside is Outside.FLAG)
            rejected |= spec.outside is Outside.REJECT
    if set(reading) - set(metrics):
        expected |= SUSPECT * (unknown is Outside.FLAG)
        rejected |= unknown is Outside.REJECT
    if rejected:
        code_of(judged)
    else:
        assert judged == (list(reading.values()), expected)


# --- in a device's turn ---------------------------------------------------------------------------------


def test_the_flag_is_stored_with_the_reading_and_the_latest_value_says_so() -> None:
    of = schema(t=MetricSpec(maximum=50.0), door=MetricSpec(kind=MetricType.BOOLEAN))
    driver = Driver(around_of(profile=Profile(schema=of)))
    assert driver.read({"t": 20.0, "door": True}, 0) is ACCEPTED
    assert driver.read({"t": 60.0, "door": False}, 1) is ACCEPTED
    assert [quality_of(row.flags) for row in driver.log.readings] == [Quality.GOOD, Quality.SUSPECT]
    answer: Any = driver.send(GetLatest(DEVICE_ID))
    assert {name: value.quality for name, value in answer.value.metrics.items()} == {
        "t": "suspect",
        "door": "good",
    }
    driver = driver.recovered()
    answer = driver.send(GetLatest(DEVICE_ID))
    assert answer.value.metrics["t"].quality == "suspect"


def test_what_is_rejected_becomes_a_dead_letter_and_changes_nothing() -> None:
    driver = Driver(around_of(profile=Profile(schema=STRICT)))
    driver.read({"temperature": 20.0}, 0)
    outcome = driver.read({"temperature": 99.0, "other": 1.0}, 1)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "out_of_range"
    assert outcome.dead_lettered
    assert driver.log.dead_letters[0].reason == "out_of_range"
    assert driver.device.metrics.names == ("temperature",)
    assert len(driver.log.readings) == 1


def test_a_repetition_of_what_was_flagged_is_a_duplicate() -> None:
    driver = Driver(around_of(profile=Profile(schema=RANGE)))
    driver.read({"temperature": 99.0}, 0, key=7)
    driver.read({"temperature": 99.0}, 0, key=7)
    assert len(driver.log.readings) == 1


def test_no_device_registers_itself_by_a_reading_that_its_profile_rejects() -> None:
    driver = Driver(around_of(profile=Profile(schema=STRICT), auto=TYPE), register=False)
    driver.read({"temperature": 99.0}, 0)
    assert driver.device.registration is None
    assert driver.log.dead_letters[0].reason == "out_of_range"
    driver.read({"temperature": 9.0}, 1)
    assert driver.device.registration is not None


def test_a_schema_travels() -> None:
    copy = pickle.loads(pickle.dumps(STRICT))
    assert copy == STRICT
    assert code_of(copy.judge(("temperature",), [99.0])) == "out_of_range"


def test_a_letter_of_a_reading_with_units_keeps_them() -> None:
    names = Measured(("t", "door"), ("Pa", None))
    reading = Reading(DEVICE_ID, T0_MS + 1, T0_MS + 5, 7, 0, [1.5, True])
    content, payload = as_payload(reading, names)
    assert content == "senml+json"
    assert SenmlDecoder().decode_json(payload, T0_MS + 9) == [(T0_MS + 1, names, [1.5, True], True)]
    assert as_payload(reading, tuple(names))[0] == "json"
