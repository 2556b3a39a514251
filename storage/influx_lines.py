"""Readings as lines of InfluxDB's line protocol, and names back from it. Sends nothing, reads no clock.

Source: InfluxDB v2, "Line protocol": element escaping, reserved names.

A point's time has nanoseconds that the reading has not: the end of its offset in the log. So two readings of
one millisecond are two points, and a reading that is written again is the same point.
"""

import re
from functools import lru_cache
from math import isfinite
from typing import Final

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Location
from sensorium.actors.metrics import MetricSet
from sensorium.storage.encode import decode_values
from sensorium.storage.influx_settings import MEASUREMENT
from sensorium.storage.known_devices import KnownDevice
from sensorium.storage.projection import LogEntry

QUALITY: Final = "quality"
"""A field of every point: the reading's flags (see `ReadingFlag`), 0 when nothing is remarkable."""

SUB_MS: Final = 1_000_000
"""Nanoseconds of a millisecond, and the offsets that they tell apart."""

_OURS: Final = "metric_"
_RESERVED: Final = frozenset({QUALITY, "time"})
_KNOWN: Final = 100_000
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPED: Final = re.compile(r"([,= ])")
_INT64: Final = 2**63


def point_ns(time_ms: int, offset: int) -> int:
    """The time of the point of a reading, nanoseconds since 1970."""
    return time_ms * SUB_MS + offset % SUB_MS


def field_of(metric: str) -> str:
    """The field's name. Names that InfluxDB or we have a use for get a prefix."""
    clean = _clean(metric)
    if clean in _RESERVED or clean.startswith(("_", _OURS)):
        return _OURS + clean
    return clean


def metric_of(field: str) -> str:
    """The metric of a field that `field_of` named."""
    return field.removeprefix(_OURS)


def tag_of(text: str) -> str:
    """A tag's value: without control characters and backslashes, which lines cannot hold everywhere."""
    return _clean(text)


def place_of(location: Location | None) -> str:
    """The tag `location`: the address, else the coordinates, else nothing."""
    if location is None:
        return ""
    if location.address:
        return tag_of(location.address)
    if location.latitude is None or location.longitude is None:
        return ""
    return f"{location.latitude:.6g},{location.longitude:.6g}"


def line(entry: LogEntry, device: KnownDevice, metrics: MetricSet) -> bytes:
    """The line of a reading, without a newline at its end.

    Raises:
        InvalidMessage: it has a number that is none, a time that no point can have, or the wrong values.
    """
    try:
        values = decode_values(metrics, entry.numbers, entry.texts)
        pairs = list(zip(metrics.names, values, strict=True))
    except (StopIteration, ValueError) as error:
        raise InvalidMessage(f"its values do not fit {metrics!r}") from error
    fields = [f"{QUALITY}={entry.flags or 0}i"]
    for name, value in pairs:
        if value is None:
            continue
        if value is True or value is False:
            said = "true" if value else "false"
        elif isinstance(value, str):
            said = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        elif isfinite(value):
            said = repr(value)
        else:
            raise InvalidMessage(f"{name} is {value}, which no field can be")
        fields.append(f"{_field_key(name)}={said}")
    at_ns = point_ns(entry.time_ms, entry.offset)
    if not -_INT64 < at_ns < _INT64:
        raise InvalidMessage("its time is before 1678 or after 2261")
    try:
        return f"{_series(device)} {','.join(fields)} {at_ns}".encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"a text is not valid Unicode: {error.reason}") from error


@lru_cache(_KNOWN)
def _series(device: KnownDevice) -> str:
    tags = {
        "device_id": tag_of(device.device_id),
        "location": place_of(device.location),
        "sensor_type": tag_of(device.device_type),
    }
    return ",".join([MEASUREMENT, *(f"{name}={_escape(value)}" for name, value in tags.items() if value)])


@lru_cache(_KNOWN)
def _field_key(metric: str) -> str:
    return _escape(field_of(metric))


def _escape(text: str) -> str:
    return _ESCAPED.sub(r"\\\1", text)


def _clean(text: str) -> str:
    return _CONTROLS.sub(" ", text).replace("\\", "/")
