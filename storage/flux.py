"""The Flux that history is read with. Text only: whatever comes from outside stands in quotes, escaped.

Source: the Flux language specification, "String literals" and "Date and time literals".

Nothing is grouped anew: series of one device that differ in their tags, and fields of one name that differ in
their types, come as tables of their own. Grouping could not bring those together; who reads the answer can.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from sensorium.storage.archive import MAX_ROWS, NEVER_NS, Question
from sensorium.storage.influx_lines import QUALITY, field_of, tag_of
from sensorium.storage.influx_settings import MEASUREMENT

LAST_NS: Final = 9_214_646_400_000_000_000
"""2262: behind every point."""

NUMBERS, BOOLS, TEXTS = "numbers", "bools", "texts"
_TYPES: Final = {NUMBERS: "float", BOOLS: "bool", TEXTS: "string"}
_FIGURES: Final = {
    "mean": ("sum", "count"),
    "sum": ("sum",),
    "count": ("count",),
    "min": ("min",),
    "max": ("max",),
    "first": ("first",),
    "last": ("last",),
}
_ALSO_OF_TEXTS: Final = frozenset({"count", "first", "last"})


def quoted(text: str) -> str:
    """A string literal. `${` would begin an expression."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def moment(ns: int) -> str:
    """A time literal; times that no point can have are brought to the nearest."""
    ns = min(max(ns, NEVER_NS), LAST_NS)
    second = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000:09d}Z"


def points(
    bucket: str,
    device_id: str,
    start_ns: int,
    end_ns: int,
    metrics: Sequence[str] | None,
    limit: int,
    newest_first: bool,
) -> str:
    """Values of the first points of each field: `_field`, `_value`, and `ns` as a whole number."""
    return _text(
        _source(bucket, start_ns, end_ns, _of_device(device_id)),
        _fields(metrics),
        f"|> {'tail' if newest_first else 'limit'}(n: {limit})",
        _WITH_NS,
    )


def qualities(bucket: str, device_id: str, start_ns: int, end_ns: int) -> str:
    """Those points whose quality is not 0: `_value` and `ns`."""
    return _text(
        _source(bucket, start_ns, end_ns, _of_device(device_id)),
        f'|> filter(fn: (r) => r["_field"] == {quoted(QUALITY)})',
        '|> filter(fn: (r) => r["_value"] > 0)',
        _WITH_NS,
    )


def aggregate(bucket: str, question: Question, start_ns: int, end_ns: int, with_first: bool) -> str:
    """Results called `KIND.FIGURE`, such as `numbers.sum`, or `numbers.raw` with every value.

    `with_first` adds the first value of each series, for its time.
    """
    which = (
        _of_device(question.device_id)
        if question.device_id is not None
        else f'r["sensor_type"] == {quoted(tag_of(question.device_type or ""))}'
    )
    data = _text(f"data = {_source(bucket, start_ns, end_ns, which)}", _fields(question.metrics))
    figures = _FIGURES.get(question.aggregation, ("raw",))
    if with_first and "first" not in figures and figures != ("raw",):
        figures = (*figures, "first")
    kinds = [NUMBERS, BOOLS] + ([TEXTS] if question.aggregation in _ALSO_OF_TEXTS else [])
    parts = ['import "types"', data]
    for kind in kinds:
        to_float = " |> toFloat()" if kind == BOOLS else ""
        parts.append(
            f'{kind} = data |> filter(fn: (r) => types.isType(v: r._value, type: "{_TYPES[kind]}")){to_float}'
        )
    parts += [
        f'{kind} {_figure(figure, question.every_ns)} |> yield(name: "{kind}.{figure}")'
        for kind in kinds
        for figure in figures
    ]
    return "\n\n".join(parts)


_WITH_NS: Final = "|> map(fn: (r) => ({r with ns: int(v: r._time)}))"


def _figure(figure: str, every_ns: int | None) -> str:
    if figure == "raw":
        return f"|> limit(n: {MAX_ROWS + 1})"
    if every_ns is None:
        return f"|> {figure}()"
    if figure in ("first", "last"):
        # aggregateWindow would give the window's time; which of two is the first goes by their own.
        return f"|> window(every: {every_ns}ns) |> {figure}()"
    return f'|> aggregateWindow(every: {every_ns}ns, fn: {figure}, createEmpty: false, timeSrc: "_start")'


def _of_device(device_id: str) -> str:
    return f'r["device_id"] == {quoted(tag_of(device_id))}'


def _source(bucket: str, start_ns: int, end_ns: int, which: str) -> str:
    return _text(
        f"from(bucket: {quoted(bucket)})",
        f"|> range(start: {moment(start_ns)}, stop: {moment(end_ns)})",
        f'|> filter(fn: (r) => r["_measurement"] == {quoted(MEASUREMENT)} and {which})',
    )


def _fields(metrics: Sequence[str] | None) -> str:
    if metrics is None:
        return f'|> filter(fn: (r) => r["_field"] != {quoted(QUALITY)})'
    wanted: Iterable[str] = (f'r["_field"] == {quoted(field_of(name))}' for name in metrics)
    return f"|> filter(fn: (r) => {' or '.join(wanted) or 'false'})"


def _text(*lines: str) -> str:
    return "\n  ".join(lines)
