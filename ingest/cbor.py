"""Telemetry in CBOR (RFC 8949): the objects that `decode` takes as JSON, as maps. Bytes in, readings out."""

import math
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Final

import cbor2

from sensorium.actors.messages import Value
from sensorium.ingest.decode import TIMESTAMP, Bounds, Telemetry, TelemetryDecoder, iso_ms
from sensorium.ingest.errors import Reason, Undecodable

_MAX_DEPTH: Final = 4
_SHOWN_CHARS: Final = 40

_BAD_CBOR: Final = (cbor2.CBORDecodeError, ValueError, OverflowError, TypeError, RecursionError)
"""What the decoder raises over bytes that are not well-formed, or whose tags do not fit their content."""


class CborDecoder:
    """Decodes maps, and arrays of maps, within `bounds`. Keys are texts; `timestamp` may be tagged 0 or 1."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._telemetry = TelemetryDecoder(bounds)

    def decode(self, payload: bytes, received_ms: int) -> list[Telemetry]:
        """The readings of a payload in its order, at least one. Raises `Undecodable` for all of it."""
        bounds = self._telemetry.bounds
        content = parse(payload, bounds.max_payload_bytes)
        if type(content) is dict:
            return [self._reading(content, "the map", received_ms)]
        if type(content) is not list:
            raise Undecodable(Reason.NOT_AN_OBJECT, "a map, or an array of maps, is expected")
        if not content:
            raise Undecodable(Reason.EMPTY, "the array holds no map")
        if len(content) > bounds.max_array:
            raise Undecodable(
                Reason.BATCH_TOO_LONG, f"{len(content)} maps; at most {bounds.max_array} are taken"
            )
        return [self._reading(element, f"element {i}", received_ms) for i, element in enumerate(content)]

    def _reading(self, content: Any, where: str, received_ms: int) -> Telemetry:
        if type(content) is not dict:
            raise Undecodable(Reason.NOT_AN_OBJECT, f"{where} is not a map")
        time_ms = None
        metrics: dict[str, Value] = {}
        for name, value in content.items():
            if type(name) is not str:
                raise Undecodable(Reason.BAD_METRIC_NAME, f"a key of {where} is not a text")
            if name == TIMESTAMP:
                time_ms = _time_ms(value)
            else:
                metrics[name] = value_of(value, name)
        return self._telemetry.reading(metrics, received_ms, time_ms)


def parse(payload: bytes, max_bytes: int) -> Any:
    """The one CBOR item that a payload consists of. Raises `Undecodable`."""
    if len(payload) > max_bytes:
        raise Undecodable(Reason.TOO_LARGE, f"{len(payload)} bytes; at most {max_bytes} are taken")
    if not payload:
        raise Undecodable(Reason.EMPTY, "the payload is empty")
    stream = BytesIO(payload)
    try:
        decoder = cbor2.CBORDecoder(stream, max_depth=_MAX_DEPTH, allow_duplicate_keys=False)
        content = decoder.decode()
    except _BAD_CBOR as error:
        duplicate = "Duplicate map key" in str(error)
        raise Undecodable(
            Reason.DUPLICATE_KEY if duplicate else Reason.MALFORMED_CBOR, str(error)[:200]
        ) from None
    if stream.read(1):
        raise Undecodable(Reason.MALFORMED_CBOR, "bytes follow the end of the item")
    return content


def value_of(value: Any, name: str) -> Value:
    """A metric's value, a number as float. Raises `Undecodable` for what no metric can be."""
    kind = type(value)
    if kind is bool or kind is str:
        return value  # type: ignore[no-any-return]
    if kind is not float and kind is not int:
        raise Undecodable(
            Reason.WRONG_TYPE,
            f"{name[:_SHOWN_CHARS]} is {_KINDS.get(kind, 'of another type')};"
            " a number, boolean or string is taken",
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Undecodable(
            Reason.NOT_FINITE, f"{name[:_SHOWN_CHARS]} is not a finite number of at most 64 bits"
        )
    return number


_KINDS: Final = {type(None): "null", list: "an array", dict: "a map", bytes: "a byte string"}


def _time_ms(stamp: Any) -> int:
    if type(stamp) is str:
        return iso_ms(stamp)
    try:
        if isinstance(stamp, datetime):
            aware = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
            return round(aware.timestamp() * 1000)
        if type(stamp) is int or type(stamp) is float:
            return int(stamp)
    except (ValueError, OverflowError):
        pass
    raise Undecodable(Reason.BAD_TIMESTAMP, "timestamp is neither ISO 8601 nor a finite number")
