"""The Cayenne Low Power Payload: channel, type and value, one after the other. Bytes in, metrics out."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from sensorium.actors.messages import Value
from sensorium.ingest.errors import Reason, Undecodable


class _Kind(NamedTuple):
    name: str
    bytes_each: int
    per_unit: int
    signed: bool = False
    parts: tuple[str, ...] = ("",)
    unit: str | None = None


_AXES: Final = ("_x", "_y", "_z")
# IPSO object ids less 3200; the larger set is the one that the common libraries agree on.
_KINDS: Final = {
    0: _Kind("digital_in", 1, 1),
    1: _Kind("digital_out", 1, 1),
    2: _Kind("analog_in", 2, 100, True),
    3: _Kind("analog_out", 2, 100, True),
    100: _Kind("generic", 4, 1),
    101: _Kind("illuminance", 2, 1, unit="lx"),
    102: _Kind("presence", 1, 1),
    103: _Kind("temperature", 2, 10, True, unit="Cel"),
    104: _Kind("humidity", 1, 2, unit="%RH"),
    113: _Kind("accelerometer", 2, 1000, True, _AXES, unit="g0"),
    115: _Kind("barometer", 2, 10, unit="hPa"),
    116: _Kind("voltage", 2, 100, unit="V"),
    117: _Kind("current", 2, 1000, unit="A"),
    118: _Kind("frequency", 4, 1, unit="Hz"),
    120: _Kind("percentage", 1, 1, unit="%"),
    121: _Kind("altitude", 2, 1, True, unit="m"),
    125: _Kind("concentration", 2, 1, unit="ppm"),
    128: _Kind("power", 2, 1, unit="W"),
    130: _Kind("distance", 4, 1000, unit="m"),
    131: _Kind("energy", 4, 1000, unit="kWh"),
    132: _Kind("direction", 2, 1, unit="deg"),
    133: _Kind("unix_time", 4, 1, unit="s"),
    134: _Kind("gyrometer", 2, 100, True, _AXES, unit="deg/s"),
    142: _Kind("switch", 1, 1),
}
_GPS: Final = 136
_GPS_PARTS: Final = (("latitude", 10_000), ("longitude", 10_000), ("altitude", 100))
_NAME: Final = re.compile(r"([a-z_]+)_\d+")
_UNITS: Final = {kind.name: kind.unit for kind in _KINDS.values() if kind.unit is not None} | {
    "latitude": "deg",
    "longitude": "deg",
}


def decode(frame: bytes) -> dict[str, Value]:
    """Metrics such as `temperature_3`: kind and channel. Raises `Undecodable`."""
    metrics: dict[str, Value] = {}
    at = 0
    while at < len(frame):
        if at + 2 > len(frame):
            raise Undecodable(Reason.BAD_FRAME, "the frame ends after a channel")
        channel, number = frame[at], frame[at + 1]
        at += 2
        kind = _KINDS.get(number)
        if number == _GPS:
            steps = [(f"{name}_{channel}", 3, per_unit, True) for name, per_unit in _GPS_PARTS]
        elif kind is not None:
            steps = [
                (f"{kind.name}_{channel}{part}", kind.bytes_each, kind.per_unit, kind.signed)
                for part in kind.parts
            ]
        else:
            raise Undecodable(Reason.BAD_FRAME, f"type {number} at byte {at - 1} is not known")
        for name, size, per_unit, signed in steps:
            if at + size > len(frame):
                raise Undecodable(Reason.BAD_FRAME, f"the frame ends within {name}")
            metrics[name] = int.from_bytes(frame[at : at + size], "big", signed=signed) / per_unit
            at += size
    return metrics


def units(names: Iterable[str]) -> dict[str, str]:
    """The units of those metrics of `decode` that have one."""
    found = {}
    for name in names:
        kind = _NAME.match(name)
        if kind is not None and (unit := _UNITS.get(kind[1])) is not None:
            found[name] = unit
    return found
