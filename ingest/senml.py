"""SenML packs (RFC 8428) in JSON and CBOR: bytes in, readings or `Undecodable` out. Reads no clock.

A record's name `n` is the metric. Without one it is the pack's base name; when a pack has several base names,
each metric's name is the resolved one, base name and name together. Records of one time are one reading.
Units go with the names, for the device's profile to judge. A sum `s` becomes the metric `{name}_sum`, without
a unit, and data `vd` a text of base64url.
"""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.messages import Value
from sensorium.actors.units import MAX_UNIT_CHARS
from sensorium.ingest.cbor import parse, value_of
from sensorium.ingest.decode import Bounds, Telemetry, TelemetryDecoder
from sensorium.ingest.errors import Reason, Undecodable

VERSION: Final = 10
"""The SenML version of RFC 8428; a pack that asks for a later one is refused."""

RELATIVE_BELOW_S: Final = 2**28
"""Times below it are relative to now (RFC 8428, section 4.5.3)."""

_LABELS: Final[Mapping[int, str]] = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
    0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
_NUMBERS: Final = frozenset({"bver", "bt", "bv", "bs", "v", "s", "t", "ut"})
_TEXTS: Final = frozenset({"bn", "bu", "n", "u", "vs"})
_VALUES: Final = ("v", "vs", "vb", "vd")
_SUM_SUFFIX: Final = "_sum"

_decode_json = msgspec.json.Decoder(list[dict[str, Any]]).decode


class _Resolved(NamedTuple):
    """A record with the base fields worked in; `time_s` is as it was sent."""

    base_name: str
    name: str
    time_s: float
    value: Value
    unit: str | None = None


class SenmlDecoder:
    """Decodes packs within `bounds`. Holds no state but a cache of approved names."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._telemetry = TelemetryDecoder(bounds)

    def decode_json(self, payload: bytes, received_ms: int) -> list[Telemetry]:
        """The readings of an `application/senml+json` pack. Raises `Undecodable` for all of it."""
        if len(payload) > self._telemetry.bounds.max_payload_bytes:
            raise Undecodable(Reason.TOO_LARGE, f"{len(payload)} bytes")
        try:
            records = _decode_json(payload)
        except msgspec.ValidationError:
            raise Undecodable(Reason.NOT_AN_OBJECT, "a pack is an array of records") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Undecodable(Reason.MALFORMED_JSON, str(error)[:200]) from None
        return self._readings(records, received_ms)

    def decode_cbor(self, payload: bytes, received_ms: int) -> list[Telemetry]:
        """The readings of an `application/senml+cbor` pack. Raises `Undecodable` for all of it."""
        content = parse(payload, self._telemetry.bounds.max_payload_bytes)
        if type(content) is not list or any(type(record) is not dict for record in content):
            raise Undecodable(Reason.NOT_AN_OBJECT, "a pack is an array of maps")
        return self._readings([_named(record) for record in content], received_ms)

    def _readings(self, records: list[dict[str, Any]], received_ms: int) -> list[Telemetry]:
        if len(records) > self._telemetry.bounds.max_array:
            raise Undecodable(
                Reason.BATCH_TOO_LONG,
                f"{len(records)} records; at most {self._telemetry.bounds.max_array} are taken",
            )
        resolved = _resolve(records)
        if not resolved:
            raise Undecodable(Reason.EMPTY, "the pack holds no value")
        several = len({record.base_name for record in resolved}) > 1
        by_time: dict[float, tuple[dict[str, Value], dict[str, str]]] = {}
        for record in resolved:
            name = record.base_name + record.name if several else record.name or record.base_name
            metrics, units = by_time.setdefault(record.time_s, ({}, {}))
            if name in metrics:
                raise Undecodable(Reason.DUPLICATE_KEY, f"{name[:40]!r} stands twice for one time")
            metrics[name] = record.value
            if record.unit:
                units[name] = record.unit[:MAX_UNIT_CHARS]
        return [self._reading(time_s, *said, received_ms) for time_s, said in by_time.items()]

    def _reading(
        self, time_s: float, metrics: dict[str, Value], units: dict[str, str], received_ms: int
    ) -> Telemetry:
        if time_s == 0:
            return self._telemetry.reading(metrics, received_ms, units=units)
        if time_s >= RELATIVE_BELOW_S:
            return self._telemetry.reading(metrics, received_ms, _ms(time_s), units=units)
        return self._telemetry.reading(
            metrics, received_ms, received_ms + _ms(time_s), own_time=False, units=units
        )


def _ms(time_s: float) -> int:
    try:
        return round(time_s * 1000)
    except OverflowError:
        raise Undecodable(Reason.BAD_TIMESTAMP, f"{time_s!r} s is no time") from None


def _named(record: dict[Any, Any]) -> dict[str, Any]:
    """A CBOR record with the names that JSON has."""
    named: dict[str, Any] = {}
    for label, value in record.items():
        name = _LABELS.get(label) if type(label) is int else label if type(label) is str else None
        if name is None:
            if type(label) is int:
                continue
            raise Undecodable(Reason.BAD_SENML, "a label is neither a text nor a whole number")
        if name in named:
            raise Undecodable(Reason.DUPLICATE_KEY, f"label {name!r} stands twice in one record")
        named[name] = value
    return named


def _resolve(records: list[dict[str, Any]]) -> list[_Resolved]:
    base: dict[str, Any] = {"bn": "", "bt": 0.0, "bv": None, "bs": None, "bu": None}
    resolved = []
    for index, raw in enumerate(records):
        record = _checked(raw, index)
        base.update((key, record[key]) for key in base if key in record)
        base_name: str = base["bn"]
        name: str = record.get("n", "")
        time_s: float = base["bt"] + record.get("t", 0.0)
        found = [key for key in _VALUES if key in record]
        if len(found) > 1:
            raise Undecodable(Reason.BAD_SENML, f"record {index} has {' and '.join(found)}: one is allowed")
        measures = found or "s" in record or "n" in record
        if measures and not base_name and not name:
            raise Undecodable(Reason.BAD_METRIC_NAME, f"record {index} has neither a name nor a base name")
        if found and found[0] != "v":
            resolved.append(_Resolved(base_name, name, time_s, record[found[0]]))
        elif found or ("n" in record and "s" not in record and base["bv"] is not None):
            number = record.get("v", 0.0) + (base["bv"] or 0.0)
            unit: str | None = record.get("u", base["bu"])
            resolved.append(_Resolved(base_name, name, time_s, value_of(number, name), unit))
        elif "n" in record and "s" not in record:
            raise Undecodable(Reason.BAD_SENML, f"record {index} has a name and no value")
        if "s" in record:
            total = value_of(record["s"] + (base["bs"] or 0.0), "s")
            resolved.append(
                _Resolved(base_name if name else "", (name or base_name) + _SUM_SUFFIX, time_s, total)
            )
    return resolved


def _checked(raw: dict[str, Any], index: int) -> dict[str, Any]:
    """The record's known fields, each of its type."""
    record: dict[str, Any] = {}
    for key, value in raw.items():
        where = f"{key[:40]!r} of record {index}"
        if key in _NUMBERS:
            if type(value) is bool or type(value) is str:
                raise Undecodable(Reason.WRONG_TYPE, f"{where} is not a number")
            record[key] = value_of(value, key)
        elif key in _TEXTS:
            if type(value) is not str:
                raise Undecodable(Reason.WRONG_TYPE, f"{where} is not a text")
            record[key] = value
        elif key == "vb":
            if type(value) is not bool:
                raise Undecodable(Reason.WRONG_TYPE, f"{where} is not true or false")
            record[key] = value
        elif key == "vd":
            if type(value) is bytes:
                value = urlsafe_b64encode(value).rstrip(b"=").decode()
            if type(value) is not str:
                raise Undecodable(Reason.WRONG_TYPE, f"{where} is not data")
            record[key] = value
        elif key.endswith("_"):
            raise Undecodable(Reason.BAD_SENML, f"{where} must be understood, and is not known here")
    if record.get("bver", VERSION) > VERSION:
        raise Undecodable(Reason.BAD_SENML, f"version {record['bver']:g}; {VERSION} is the newest known")
    return record
