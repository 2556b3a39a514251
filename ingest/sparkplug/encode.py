"""Payloads to be sent: commands to edge nodes and devices, and whatever a test says for them."""

import struct
from typing import Any, Final

from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.sparkplug import wire
from sensorium.ingest.sparkplug.datatypes import SIGNED_BITS, TEXTS, UNSIGNED_BITS, DataType
from sensorium.ingest.sparkplug.payload import Metric, Payload

_LONG: Final = frozenset((DataType.INT64, DataType.UINT64, DataType.DATETIME))
_UINT32: Final = 2**32 - 1
_BY_KIND: Final = {
    bool: DataType.BOOLEAN,
    int: DataType.UINT32,
    float: DataType.DOUBLE,
    str: DataType.STRING,
}


def encode(payload: Payload) -> bytes:
    """A payload whose metrics have scalar values, read by `payload.decode`. Raises `Undecodable`."""
    parts = []
    if payload.time_ms is not None:
        parts.append(wire.put(1, payload.time_ms))
    parts += [wire.put(2, _metric(metric)) for metric in payload.metrics]
    if payload.seq is not None:
        parts.append(wire.put(3, payload.seq))
    return b"".join(parts)


def _metric(metric: Metric) -> bytes:
    parts = []
    for number, said in ((1, metric.name), (2, metric.alias), (3, metric.time_ms), (4, metric.datatype)):
        if said is not None:
            parts.append(wire.put(number, said))
    for number, flag in ((5, metric.is_historical), (6, metric.is_transient), (7, metric.is_null)):
        if flag:
            parts.append(wire.put(number, flag))
    if metric.properties:
        parts.append(wire.put(9, _properties(metric.properties)))
    if metric.raw is not None:
        # Who goes by a birth need not repeat the type.
        datatype = _BY_KIND.get(type(metric.raw)) if metric.datatype is None else metric.datatype
        if datatype is None:
            raise _unfit(metric.name, f"a value of {type(metric.raw).__name__} without a type")
        parts.append(_value(metric.name, datatype, metric.raw))
    return b"".join(parts)


def _value(name: str | None, datatype: DataType, value: Any) -> bytes:
    if datatype in SIGNED_BITS or datatype in UNSIGNED_BITS:
        signed = datatype in SIGNED_BITS
        bits = (SIGNED_BITS if signed else UNSIGNED_BITS)[datatype]
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value < high:
            raise _unfit(name, f"not an {datatype.name}: {str(value)[:40]!r}")
        return wire.put(11, value) if datatype in _LONG else wire.put(10, value & _UINT32)
    if datatype in (DataType.FLOAT, DataType.DOUBLE):
        if type(value) not in (int, float):
            raise _unfit(name, f"not a number: {str(value)[:40]!r}")
        try:
            as_float = float(value)
            return (
                wire.put_float(12, as_float) if datatype is DataType.FLOAT else wire.put_double(13, as_float)
            )
        except (OverflowError, struct.error):
            raise _unfit(name, f"too large for a {datatype.name}") from None
    if datatype is DataType.BOOLEAN:
        if type(value) is not bool:
            raise _unfit(name, f"not a boolean: {str(value)[:40]!r}")
        return wire.put(14, value)
    if datatype in TEXTS:
        if type(value) is not str:
            raise _unfit(name, f"not a text: {str(value)[:40]!r}")
        return wire.put(15, value)
    raise _unfit(name, f"values of the type {datatype.name} are not written")


def _properties(properties: dict[str, Any]) -> bytes:
    parts = [wire.put(1, key) for key in properties]
    for key, value in properties.items():
        match value:
            case bool():
                said = wire.put(1, DataType.BOOLEAN) + wire.put(7, value)
            case int():
                said = wire.put(1, DataType.INT32) + wire.put(3, value & _UINT32)
            case float():
                said = wire.put(1, DataType.DOUBLE) + wire.put_double(6, value)
            case str():
                said = wire.put(1, DataType.STRING) + wire.put(8, value)
            case _:
                raise _unfit(key, "a property that is no scalar")
        parts.append(wire.put(2, said))
    return b"".join(parts)


def _unfit(name: str | None, detail: str) -> Undecodable:
    return Undecodable(Reason.WRONG_TYPE, f"metric {(name or '')[:60]!r}: {detail}")
