"""History read from InfluxDB, by Flux. It holds what the projection has written; see `archive`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Final

from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.messages import Value
from sensorium.actors.metrics import BOOL, NUMBER, TEXT
from sensorium.storage import flux
from sensorium.storage.archive import MAX_ROWS, ArchivedPoint, ArchivedRow, Question
from sensorium.storage.influx_client import connected, influx_errors
from sensorium.storage.influx_lines import SUB_MS, metric_of
from sensorium.storage.influx_settings import NAME, InfluxSettings

_KINDS: Final = {flux.NUMBERS: NUMBER, flux.BOOLS: BOOL, flux.TEXTS: TEXT}
_FIGURES: Final = {
    "sum": "total",
    "count": "n",
    "min": "least",
    "max": "most",
    "first": "first",
    "last": "last",
}


class InfluxArchive:
    """An `Archive`. `close` it in the event loop that has used it."""

    def __init__(self, settings: InfluxSettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: InfluxDBClientAsync | None = None

    @property
    def projection(self) -> str:
        """As the port says."""
        return NAME

    async def close(self) -> None:
        """Give the connections back."""
        self._client = None
        await self._stack.aclose()

    async def points(
        self,
        device_id: str,
        start_ns: int,
        end_ns: int,
        metrics: Sequence[str] | None,
        limit: int,
        newest_first: bool,
    ) -> list[ArchivedPoint]:
        """As the port says. Each field's first points hold all that the first readings can be made of."""
        bucket = self._settings.bucket
        by_ns: dict[int, dict[str, Value]] = {}
        text = flux.points(bucket, device_id, start_ns, end_ns, metrics, limit, newest_first)
        async for row in self._rows(text):
            by_ns.setdefault(row["ns"], {})[metric_of(row["_field"])] = _value(row["_value"])
        found = sorted(by_ns, reverse=newest_first)[:limit]
        if not found:
            return []
        flags: dict[int, int] = {}
        text = flux.qualities(bucket, device_id, min(found), max(found) + 1)
        async for row in self._rows(text):
            flags[row["ns"]] = int(row["_value"])
        return [ArchivedPoint(ns, by_ns[ns], flags.get(ns, 0)) for ns in found]

    async def aggregate(self, question: Question, start_ms: int, end_ms: int) -> list[ArchivedRow]:
        """As the port says."""
        with_first = question.every_ns is None
        text = flux.aggregate(self._settings.bucket, question, start_ms * SUB_MS, end_ms * SUB_MS, with_first)
        rows: list[ArchivedRow] = []
        figures: dict[tuple[Any, ...], dict[str, Any]] = {}
        async for row in self._rows(text):
            kind_name, _, figure = row["result"].partition(".")
            kind, name = _KINDS[kind_name], metric_of(row["_field"])
            at_ms = start_ms if row.get("_time") is None else _ms(row["_time"])
            bucket_ms = None
            if question.every_ns is not None:
                bucket_ms = at_ms * SUB_MS // question.every_ns * question.every_ns // SUB_MS
            if figure == "raw":
                value = float(row["_value"])
                rows.append(
                    ArchivedRow(row["device_id"], bucket_ms, at_ms, at_ms, name, kind, 1, value, value, value)
                )
                continue
            series = (row["device_id"], row.get("sensor_type"), row.get("location"), name, kind, bucket_ms)
            known = figures.setdefault(series, {})
            field = _FIGURES[figure]
            known[f"{field}_text" if kind == TEXT and field in ("first", "last") else field] = row["_value"]
            if figure in ("first", "last"):
                known["first_at_ms" if figure == "first" else "last_at_ms"] = at_ms
            known.setdefault("at_ms", at_ms if bucket_ms is None else bucket_ms)
        return rows + [_row(series, known) for series, known in figures.items()]

    async def _rows(self, text: str) -> AsyncIterator[dict[str, Any]]:
        settings = self._settings
        if self._client is None:
            self._client = await self._stack.enter_async_context(connected(settings))
        client: InfluxDBClientAsync = self._client
        seen = 0
        with influx_errors("a query", what_was_sent_is_fine=True):
            async for record in await client.query_api().query_stream(text, settings.org):
                seen += 1
                if seen > MAX_ROWS:
                    raise InvalidMessage(
                        f"more than {MAX_ROWS} values of the archive: choose a shorter range or fewer metrics"
                    )
                yield record.values


def _row(series: tuple[Any, ...], known: dict[str, Any]) -> ArchivedRow:
    device_id, _, _, name, kind, bucket_ms = series
    at_ms = known.pop("at_ms")
    if kind != TEXT:
        known.setdefault("total", 0.0)
    known["n"] = int(known.get("n", 0))
    times = {"first_at_ms": at_ms, "last_at_ms": known.get("first_at_ms", at_ms)} | {
        name: known.pop(name) for name in ("first_at_ms", "last_at_ms") if name in known
    }
    return ArchivedRow(device_id, bucket_ms, name=name, kind=kind, **times, **known)


def _value(value: Any) -> Value:
    return value if isinstance(value, (bool, str)) else float(value)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000
