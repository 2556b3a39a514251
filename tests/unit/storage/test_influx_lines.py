"""Readings as line protocol: escapes, reserved names, times; and what can be no point."""

import math

import pytest
from storage_rows import NOON_MS, reading

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Location, Value
from sensorium.storage.influx_lines import field_of, line, metric_of, place_of, point_ns
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.known_devices import KnownDevice
from sensorium.storage.projection import LogEntry

PUMP = KnownDevice("pump 1", "pump", Location(52.52, 13.405, "Hall 3, Berlin"))


def entry(offset: int = 7, time_ms: int = NOON_MS, flags: int = 0, **values: Value) -> LogEntry:
    row = reading("d", offset, time_ms, **values)
    numbers = [float(v) for v in row.values if not isinstance(v, str)]
    texts = [v for v in row.values if isinstance(v, str)]
    return LogEntry(
        *(row.shard, row.offset, row.device, row.time_ms, row.key, flags, row.metric_set.id),
        *(numbers, texts, None, None, time_ms),
    )


def written(device: KnownDevice = PUMP, flags: int = 0, **values: Value) -> str:
    made = line(entry(flags=flags, **values), device, reading("d", 1, **values).metric_set)
    return made.decode()


def test_a_reading_is_a_point_with_its_quality() -> None:
    assert written(temperature=20.5, door=True, mode='say "a\\b"', flags=1) == (
        r"sensor_data,device_id=pump\ 1,location=Hall\ 3\,\ Berlin,sensor_type=pump"
        r' quality=1i,temperature=20.5,door=true,mode="say \"a\\b\""'
        " 1704110400000000007"
    )


def test_what_lines_cannot_hold_is_replaced() -> None:
    device = KnownDevice("a=b\\", "x\ny", None)
    assert written(device, **{"a b,c=d\n": 1.0}) == (
        r"sensor_data,device_id=a\=b/,sensor_type=x\ y quality=0i,a\ b\,c\=d\ =1.0 1704110400000000007"
    )


@pytest.mark.parametrize("metric", ["t", "quality", "time", "_field", "metric_x", "metric_quality"])
def test_names_come_back_and_none_is_reserved(metric: str) -> None:
    field = field_of(metric)
    assert metric_of(field) == metric
    assert field not in ("quality", "time")
    assert not field.startswith("_")


def test_a_place_is_an_address_or_coordinates_or_nothing() -> None:
    assert place_of(None) == place_of(Location(latitude=1.0)) == ""
    assert place_of(Location(52.5200066, 13.404954)) == "52.52,13.405"


def test_readings_of_one_millisecond_are_two_points() -> None:
    assert point_ns(NOON_MS, 1) != point_ns(NOON_MS, 2)
    assert point_ns(NOON_MS, 999_999) < point_ns(NOON_MS + 1, 0)
    assert point_ns(-1, 1_000_001) == -999_999


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (entry(t=math.nan), "t is nan, which no field can be"),
        (entry(t=1.0, time_ms=-62_135_596_800_000), "its time is before 1678"),
        (entry(t=1.0)._replace(numbers=[]), "its values do not fit"),
        (entry(t=1.0)._replace(numbers=[1.0, 2.0]), "its values do not fit"),
    ],
)
def test_what_can_be_no_point_is_refused(bad: LogEntry, why: str) -> None:
    with pytest.raises(InvalidMessage, match=why):
        line(bad, PUMP, reading("d", 1, t=1.0).metric_set)


def test_settings_do_not_show_the_token() -> None:
    assert "hunter2" not in repr(InfluxSettings(url="http://h", token="hunter2"))
