"""The telemetry format: JSON bytes in, readings or `Undecodable` out. Not a transport, and reads no clock.

A payload is an object, or an array of them: `{"temperature": 23.5, "timestamp": "2024-01-01T12:00:00Z"}`.
`timestamp` is optional: ISO 8601 (UTC when it names no offset) or milliseconds since 1970. Every other key
is a metric, a number, boolean or string.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from sensorium.actors.messages import Measured, Value
from sensorium.ingest.errors import Reason, Undecodable

try:
    from sensorium.ingest._flat import Flat
except ImportError:
    from sensorium.ingest._flat_py import Flat

Telemetry = tuple[int, tuple[str, ...], list[Value], bool]
"""One object of a payload: its time in milliseconds since 1970, the metrics' names (`Measured` where units
were told) and their values in the same order, and whether the time is the sender's own (otherwise it is when
the payload was received)."""

TIMESTAMP = "timestamp"
NO_UNITS: Mapping[str, str] = MappingProxyType({})
_QUOTE = ord('"')
_KNOWN_NAME_SETS = 4096

_decode_object = msgspec.json.Decoder(dict[str, float | bool | str]).decode
_decode_array = msgspec.json.Decoder(list[dict[str, float | bool | str]]).decode
_decode_value = msgspec.json.Decoder(float | bool | str).decode
_split_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode

# RecursionError is how msgspec answers absurd nesting.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Bounds(msgspec.Struct, frozen=True):
    """What a payload may be at most; beyond it is dead-lettered.

    Attributes:
        max_payload_bytes: a whole payload.
        max_metrics: metrics in one object.
        max_name_chars, max_text_chars: a metric's name, a string value.
        max_future_s, max_past_s: how far a timestamp may lie after and before the time of receipt. The
            past is generous, since recordings are data too; it still catches seconds sent for milliseconds.
        max_array: objects in one array.
    """

    max_payload_bytes: int = 262_144
    max_metrics: int = 256
    max_name_chars: int = 128
    max_text_chars: int = 4096
    max_future_s: float = 600.0
    max_past_s: float = 20 * 365.25 * 86_400
    max_array: int = 1000


class TelemetryDecoder:
    """Decodes payloads within `bounds`. Holds no state but a cache of metric names it has approved."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._max_payload_bytes = self.bounds.max_payload_bytes
        self._max_future_ms = round(self.bounds.max_future_s * 1000)
        self._max_past_ms = round(self.bounds.max_past_s * 1000)
        # Also makes equal name tuples one object, which is what travels well in batches.
        self._approved = lru_cache(_KNOWN_NAME_SETS)(self._approve)
        self._flat = Flat(self._approved, self._max_future_ms, self._max_past_ms).read

    def decode(self, payload: bytes, received_ms: int) -> list[Telemetry]:
        """The readings of a payload in its order, at least one.

        Raises `Undecodable` for the whole payload when any part of it breaks a rule.
        """
        if len(payload) > self._max_payload_bytes:
            raise Undecodable(
                Reason.TOO_LARGE, f"{len(payload)} bytes; at most {self._max_payload_bytes} are taken"
            )
        flat = self._flat(payload, received_ms)
        if flat is not None:
            return [flat]
        if payload.startswith(b"["):
            return self._array(payload, received_ms)
        try:
            metrics = _decode_object(payload)
        except _NOT_JSON as error:
            if payload.lstrip().startswith(b"["):
                return self._array(payload, received_ms)
            _explain(payload, error)
        reading, quotes = self._reading(metrics, received_ms)
        # A flat object has two quotes for each key and each string. Only a repeated key (the decoder keeps
        # its last value) or an escaped quote makes more, so equality proves: neither of them, and no text.
        if payload.count(_QUOTE) != quotes:
            self._check_texts(payload, quotes, reading[2])
        return [reading]

    def _array(self, payload: bytes, received_ms: int) -> list[Telemetry]:
        try:
            objects = _decode_array(payload)
        except _NOT_JSON as error:
            _explain(payload, error)
        if not objects:
            raise Undecodable(Reason.EMPTY, "the array holds no object")
        if len(objects) > self.bounds.max_array:
            raise Undecodable(
                Reason.BATCH_TOO_LONG, f"{len(objects)} objects; at most {self.bounds.max_array} are taken"
            )
        read = [self._reading(metrics, received_ms) for metrics in objects]
        quotes = sum(quotes for _, quotes in read)
        if payload.count(_QUOTE) != quotes:
            self._check_texts(payload, quotes, (value for reading, _ in read for value in reading[2]))
        return [reading for reading, _ in read]

    def _reading(self, metrics: dict[str, Value], received_ms: int) -> tuple[Telemetry, int]:
        """The reading, and how many quotes its keys and its timestamp take at least."""
        quotes = 2 * len(metrics)
        stamp = metrics.pop(TIMESTAMP, None)
        if stamp is None:
            return (received_ms, self._approved(tuple(metrics)), list(metrics.values()), False), quotes
        if type(stamp) is str:
            quotes += 2
            time_ms = iso_ms(stamp)
        elif type(stamp) is float:
            time_ms = int(stamp)
        else:
            raise Undecodable(Reason.BAD_TIMESTAMP, "timestamp is neither ISO 8601 nor a number")
        self._check_time(time_ms, stamp, received_ms)
        return (time_ms, self._approved(tuple(metrics)), list(metrics.values()), True), quotes

    def reading(
        self,
        metrics: dict[str, Value],
        received_ms: int,
        time_ms: int | None = None,
        *,
        own_time: bool = True,
        units: Mapping[str, str] = NO_UNITS,
    ) -> Telemetry:
        """One object that another format's decoder has read, held against the same bounds.

        Args:
            metrics: finite floats, booleans and texts by name.
            time_ms: the sender's time; None takes that of the receipt.
            own_time: whether `time_ms` stays the same when the payload is delivered again.
            units: that the format tells, by metric.
        """
        for value in metrics.values():
            if type(value) is str:
                self._check_text(value)
        names = self._approved(tuple(metrics))
        if units:
            names = Measured(names, map(units.get, names))
        if time_ms is None:
            return received_ms, names, list(metrics.values()), False
        self._check_time(time_ms, time_ms, received_ms)
        return time_ms, names, list(metrics.values()), own_time

    def _check_time(self, time_ms: int, stamp: float | str, received_ms: int) -> None:
        if time_ms > received_ms + self._max_future_ms:
            raise Undecodable(
                Reason.TIMESTAMP_TOO_FAR_IN_FUTURE,
                f"timestamp {stamp!r} is {(time_ms - received_ms) / 1000:.0f} s after its receipt; "
                f"{self.bounds.max_future_s:.0f} s are allowed: check the device's clock",
            )
        if time_ms < received_ms - self._max_past_ms:
            raise Undecodable(
                Reason.TIMESTAMP_TOO_OLD,
                f"timestamp {stamp!r} is more than {self.bounds.max_past_s:.0f} s old; a number is in ms",
            )

    def _approve(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise Undecodable(Reason.EMPTY, "there is no metric in the object")
        if len(names) > self.bounds.max_metrics:
            raise Undecodable(
                Reason.TOO_MANY_METRICS, f"{len(names)} metrics; at most {self.bounds.max_metrics} are taken"
            )
        for name in names:
            if not 1 <= len(name) <= self.bounds.max_name_chars or not name.isprintable():
                raise Undecodable(
                    Reason.BAD_METRIC_NAME,
                    f"metric name {name[:40]!r} of {len(name)} characters: "
                    f"1 to {self.bounds.max_name_chars} printable ones are taken",
                )
        return names

    def _check_text(self, value: str) -> None:
        if len(value) > self.bounds.max_text_chars:
            raise Undecodable(
                Reason.TEXT_TOO_LONG,
                f"a text of {len(value)} characters; at most {self.bounds.max_text_chars} are taken",
            )
        if "\0" in value:
            raise Undecodable(Reason.BAD_TEXT, "a text holds the character NUL")

    def _check_texts(self, payload: bytes, quotes: int, values: Iterable[Value]) -> None:
        for value in values:
            if type(value) is not str:
                continue
            quotes += 2
            self._check_text(value)
        if payload.count(_QUOTE) != quotes:
            _refuse_repeated_keys(payload)


def iso_ms(stamp: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time, UTC when it names no offset. Raises `Undecodable`."""
    try:
        moment = datetime.fromisoformat(stamp)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise Undecodable(
            Reason.BAD_TIMESTAMP, f"timestamp {stamp[:40]!r} is neither ISO 8601 nor a number"
        ) from None


def _refuse_repeated_keys(payload: bytes) -> None:
    def pairs(members: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in members:
            if key in seen:
                raise Undecodable(Reason.DUPLICATE_KEY, f"key {key[:40]!r} stands twice in one object")
            seen.add(key)

    json.loads(payload.decode(), object_pairs_hook=pairs, parse_int=float)


def _explain(payload: bytes, error: Exception) -> NoReturn:
    """Find out what is wrong with a payload that the typed decoders did not take."""
    if not payload.strip():
        raise Undecodable(Reason.EMPTY, "the payload is empty")
    try:
        if payload.lstrip().startswith(b"["):
            for index, element in enumerate(_split_array(payload)):
                if not bytes(element).startswith(b"{"):
                    raise Undecodable(Reason.NOT_AN_OBJECT, f"element {index} of the array is not an object")
                _explain_object(f"$[{index}]", _split_object(element))
        else:
            _explain_object("$", _split_object(payload))
    except msgspec.ValidationError:
        raise Undecodable(Reason.NOT_AN_OBJECT, "an object, or an array of objects, is expected") from None
    except RecursionError:
        raise Undecodable(Reason.MALFORMED_JSON, "nested absurdly deep") from None
    except _NOT_JSON:
        _refuse_constants(payload)
        raise Undecodable(Reason.MALFORMED_JSON, str(error)) from None
    # What the typed decoder objected to was replaced by a later member of the same name.
    _refuse_repeated_keys(payload)
    raise Undecodable(Reason.WRONG_TYPE, str(error))


def _explain_object(path: str, members: dict[str, msgspec.Raw]) -> None:
    for key, raw in members.items():
        where = f"{path}.{key[:40]}"
        try:
            _decode_value(raw)
        except _NOT_JSON as error:
            if "out of range" in str(error):
                raise Undecodable(Reason.NOT_FINITE, f"{where} is larger than a 64-bit float") from None
            if isinstance(error, msgspec.ValidationError):
                found = {"n": "null", "[": "an array", "{": "an object"}[bytes(raw)[:1].decode()]
                reason = Reason.BAD_TIMESTAMP if key == TIMESTAMP else Reason.WRONG_TYPE
                raise Undecodable(
                    reason, f"{where} is {found}; a number, boolean or string is taken"
                ) from None
            raise


def _refuse_constants(payload: bytes) -> None:
    """Tell NaN and Infinity, which many writers of JSON emit, from other bad JSON."""

    def constant(literal: str) -> NoReturn:
        raise Undecodable(Reason.NOT_FINITE, f"{literal} is no JSON and no measurement")

    try:
        json.loads(payload.decode(), parse_constant=constant, parse_int=float)
    except (ValueError, RecursionError):
        return
