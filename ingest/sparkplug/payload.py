"""Payloads of Sparkplug B (Eclipse Sparkplug 3.0, chapter 6): bytes in, typed metrics out, and back.

A metric may name neither itself nor its type: a birth has said both, so that `Metric.raw` is read by
`typed` once they are known.
"""

from typing import Any, Final

import msgspec

from sensorium.ingest.sparkplug import wire
from sensorium.ingest.sparkplug.datatypes import (
    ARRAYS,
    SIGNED_BITS,
    UNSIGNED_BITS,
    DataType,
    array_of,
    data_type,
)
from sensorium.ingest.sparkplug.wire import as_bytes, as_float, as_number, as_numbers, as_text, malformed

MAX_DEPTH: Final = 5
"""Of templates and property sets in each other."""
MAX_METRICS: Final = 20_000
"""Of one payload, templates included; a birth names all metrics of an edge node."""


class DataSet(msgspec.Struct, frozen=True):
    """A table: names of the columns, and rows of values, None where there is none."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Template(msgspec.Struct, frozen=True):
    """A compound value; a definition says only what instances look like."""

    metrics: tuple["Metric", ...]
    parameters: dict[str, Any]
    is_definition: bool = False


class Metric(msgspec.Struct, frozen=True):
    """A metric as it was sent.

    Attributes:
        name, alias: one of them is there, in births both may be.
        datatype: None where the birth has said it.
        time_ms: None means that of the payload.
        raw: a number, float, boolean, text or bytes as the wire has it, a `DataSet` or a `Template`.
        is_historical: not the metric's current value, but one that could not be sent before.
        properties: values by key; property sets are dictionaries, lists of them are lists.
    """

    name: str | None = None
    alias: int | None = None
    datatype: DataType | None = None
    time_ms: int | None = None
    raw: Any = None
    is_historical: bool = False
    is_transient: bool = False
    is_null: bool = False
    properties: dict[str, Any] = {}


class Payload(msgspec.Struct, frozen=True):
    """What a message says: when, its place among the edge node's messages, and the metrics."""

    time_ms: int | None = None
    metrics: tuple[Metric, ...] = ()
    seq: int | None = None
    uuid: str | None = None
    body: bytes = b""


def decode(data: bytes) -> Payload:
    """A payload. Raises `Undecodable`."""
    time_ms = seq = uuid = None
    body = b""
    left = [MAX_METRICS]
    metrics: list[Metric] = []
    for number, kind, value in wire.fields(data):
        match number:
            case 1:
                time_ms = as_number(kind, value)
            case 2:
                metrics.append(_metric(as_bytes(kind, value), left, MAX_DEPTH))
            case 3:
                seq = as_number(kind, value)
            case 4:
                uuid = as_text(kind, value)
            case 5:
                body = as_bytes(kind, value)
    return Payload(time_ms, tuple(metrics), seq, uuid, body)


def typed(datatype: DataType, raw: Any) -> Any:
    """A raw value by its type: int, float, bool, str, bytes, a list of those, `DataSet` or `Template`.

    Raises:
        Undecodable: the value does not fit the type.
    """
    if datatype in ARRAYS:
        return array_of(datatype, _as(bytes, raw, datatype))
    if (bits := SIGNED_BITS.get(datatype)) is not None:
        # Small ones come in two's complement of 32 or of 64 bits, as the sender's language had it.
        number = _as(int, raw, datatype) & (2**bits - 1)
        return number - 2**bits if number >> (bits - 1) else number
    if (bits := UNSIGNED_BITS.get(datatype)) is not None:
        return _as(int, raw, datatype) & (2**bits - 1)
    match datatype:
        case DataType.FLOAT | DataType.DOUBLE:
            return _as(float, raw, datatype)
        case DataType.BOOLEAN:
            return _as(bool, raw, datatype)
        case DataType.STRING | DataType.TEXT | DataType.UUID:
            return _as(str, raw, datatype)
        case DataType.BYTES | DataType.FILE:
            return _as(bytes, raw, datatype)
        case DataType.DATASET:
            return _as(DataSet, raw, datatype)
        case DataType.TEMPLATE:
            return _as(Template, raw, datatype)
        case _:
            raise malformed(f"a value of the type {datatype.name}")


def _as(kind: type, raw: Any, datatype: DataType) -> Any:
    if type(raw) is not kind:
        raise malformed(f"a {datatype.name} that comes as {type(raw).__name__}")
    return raw


# --- parts of a payload ---------------------------------------------------------------------------------


def _metric(data: bytes, left: list[int], depth: int) -> Metric:
    left[0] -= 1
    if left[0] < 0:
        raise malformed(f"more than {MAX_METRICS} metrics")
    said: dict[str, Any] = {}
    for number, kind, value in wire.fields(data):
        match number:
            case 1:
                said["name"] = as_text(kind, value)
            case 2:
                said["alias"] = as_number(kind, value)
            case 3:
                said["time_ms"] = as_number(kind, value)
            case 4:
                said["datatype"] = data_type(as_number(kind, value))
            case 5:
                said["is_historical"] = bool(as_number(kind, value))
            case 6:
                said["is_transient"] = bool(as_number(kind, value))
            case 7:
                said["is_null"] = bool(as_number(kind, value))
            case 9:
                said["properties"] = _properties(as_bytes(kind, value), depth)
            case 10 | 11:
                said["raw"] = as_number(kind, value)
            case 12 | 13:
                said["raw"] = as_float(kind, value)
            case 14:
                said["raw"] = bool(as_number(kind, value))
            case 15:
                said["raw"] = as_text(kind, value)
            case 16:
                said["raw"] = as_bytes(kind, value)
            case 17:
                said["raw"] = _data_set(as_bytes(kind, value))
            case 18:
                said["raw"] = _template(as_bytes(kind, value), left, depth)
    return Metric(**said)


def _scalar(step: int, kind: int, value: int | bytes) -> Any:
    """A value of the alternatives that properties, parameters and elements share, by their order."""
    match step:
        case 0 | 1:
            return as_number(kind, value)
        case 2 | 3:
            return as_float(kind, value)
        case 4:
            return bool(as_number(kind, value))
        case _:
            return as_text(kind, value)


def _properties(data: bytes, depth: int) -> dict[str, Any]:
    if not depth:
        raise malformed(f"property sets are nested more than {MAX_DEPTH} deep")
    keys: list[str] = []
    values: list[Any] = []
    for number, kind, value in wire.fields(data):
        if number == 1:
            keys.append(as_text(kind, value))
        elif number == 2:
            values.append(_property(as_bytes(kind, value), depth))
    if len(keys) != len(values):
        raise malformed(f"{len(keys)} keys of properties with {len(values)} values")
    return dict(zip(keys, values, strict=True))


def _property(data: bytes, depth: int) -> Any:
    datatype: DataType | None = None
    raw: Any = None
    for number, kind, value in wire.fields(data):
        if number == 1:
            datatype = data_type(as_number(kind, value))
        elif 3 <= number <= 8:
            raw = _scalar(number - 3, kind, value)
        elif number == 9:
            raw = _properties(as_bytes(kind, value), depth - 1)
        elif number == 10:
            parts = wire.fields(as_bytes(kind, value))
            raw = [_properties(as_bytes(k, v), depth - 1) for n, k, v in parts if n == 1]
    if raw is None or datatype is None or isinstance(raw, dict | list):
        return raw
    return typed(datatype, raw)


def _data_set(data: bytes) -> DataSet:
    columns: list[str] = []
    types: list[DataType] = []
    rows: list[bytes] = []
    for number, kind, value in wire.fields(data):
        match number:
            case 2:
                columns.append(as_text(kind, value))
            case 3:
                types += map(data_type, as_numbers(kind, value))
            case 4:
                rows.append(as_bytes(kind, value))
    if len(columns) != len(types):
        raise malformed(f"a data set of {len(columns)} columns and {len(types)} types")
    return DataSet(tuple(columns), tuple(_row(row, types) for row in rows))


def _row(data: bytes, types: list[DataType]) -> tuple[Any, ...]:
    elements = [as_bytes(kind, value) for number, kind, value in wire.fields(data) if number == 1]
    if len(elements) != len(types):
        raise malformed(f"a row of {len(elements)} elements in a data set of {len(types)} columns")
    row: list[Any] = []
    for datatype, element in zip(types, elements, strict=True):
        raw = None
        for number, kind, value in wire.fields(element):
            if 1 <= number <= 6:
                raw = _scalar(number - 1, kind, value)
        row.append(None if raw is None else typed(datatype, raw))
    return tuple(row)


def _template(data: bytes, left: list[int], depth: int) -> Template:
    if not depth:
        raise malformed(f"templates are nested more than {MAX_DEPTH} deep")
    metrics: list[Metric] = []
    parameters: dict[str, Any] = {}
    is_definition = False
    for number, kind, value in wire.fields(data):
        match number:
            case 2:
                metrics.append(_metric(as_bytes(kind, value), left, depth - 1))
            case 3:
                name, parameter = _parameter(as_bytes(kind, value))
                parameters[name] = parameter
            case 5:
                is_definition = bool(as_number(kind, value))
    return Template(tuple(metrics), parameters, is_definition)


def _parameter(data: bytes) -> tuple[str, Any]:
    name, datatype, raw = "", None, None
    for number, kind, value in wire.fields(data):
        if number == 1:
            name = as_text(kind, value)
        elif number == 2:
            datatype = data_type(as_number(kind, value))
        elif 3 <= number <= 8:
            raw = _scalar(number - 3, kind, value)
    return name, raw if raw is None or datatype is None else typed(datatype, raw)
