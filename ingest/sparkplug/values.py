"""Metrics of Sparkplug as metrics of ours: numbers, booleans and texts by name. Pure."""

import base64
import math
from collections.abc import Iterator
from typing import Any, Final

from sensorium.actors.messages import Value
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.payload import DataSet, Metric, Template, typed
from sensorium.ingest.sparkplug.wire import malformed

QUALITY: Final = "Quality"
UNITS: Final = ("engUnit", "Units", "units", "EngUnit")
BAD, STALE = 0, 500
"""Quality codes under which a value is none (Eclipse Sparkplug 3.0, section 6.4.12)."""

MAX_BYTES: Final = 3_072
"""Bytes and files become texts in base64 up to so many, 4,096 characters; longer ones are left out."""

_COMMANDS: Final = ("Node Control/", "Device Control/")


def is_control(name: str) -> bool:
    """Whether a metric only names what may be written, rather than measures something."""
    return name.startswith(_COMMANDS)


def values(name: str, datatype: DataType, metric: Metric) -> Iterator[tuple[str, Value]]:
    """What a metric says, by our names; nothing where it says that there is no value.

    Compound values become several: `name.0` of an array, `name.0.column` of a data set's first row,
    `name/member` of a template. A quality is `name.quality`.

    Raises:
        Undecodable: the value does not fit its type.
    """
    quality = metric.properties.get(QUALITY)
    if type(quality) is int:
        yield f"{name}.quality", float(quality)
    if metric.is_null or metric.raw is None or quality in (BAD, STALE):
        return
    yield from _flat(name, typed(datatype, metric.raw))


def unit_of(metric: Metric) -> str | None:
    """The unit that a birth names."""
    for key in UNITS:
        unit = metric.properties.get(key)
        if type(unit) is str and unit:
            return unit
    return None


def _flat(name: str, value: Any) -> Iterator[tuple[str, Value]]:
    match value:
        case bool() | str():
            yield name, value
        case int() | float():
            if math.isfinite(value):
                yield name, float(value)
        case bytes():
            if len(value) <= MAX_BYTES:
                yield name, base64.b64encode(value).decode()
        case list():
            for index, member in enumerate(value):
                yield from _flat(f"{name}.{index}", member)
        case DataSet(columns, rows):
            for index, row in enumerate(rows):
                for column, member in zip(columns, row, strict=True):
                    if member is not None:
                        yield from _flat(f"{name}.{index}.{column}", member)
        case Template(metrics, parameters, is_definition) if not is_definition:
            for key, parameter in parameters.items():
                if parameter is not None:
                    yield from _flat(f"{name}/{key}", parameter)
            for member in metrics:
                if member.name is None or member.datatype is None:
                    raise malformed(f"a member of {name[:60]!r} without name or type")
                yield from values(f"{name}/{member.name}", member.datatype, member)
