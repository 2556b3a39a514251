"""Feeds a sink from the log at its own pace: cursor, lock, pause, rewind and what cannot be taken."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

from sensorium.actors.errors import InvalidMessage, LogUnavailable, SensoriumError
from sensorium.actors.messages import DeadLetter
from sensorium.actors.placement import ALL_SHARDS
from sensorium.storage import _write
from sensorium.storage._joined import apply
from sensorium.storage.database import Connection, connect, translated
from sensorium.storage.projection import LogEntry, ProjectionSettings, Sink, SinkUnavailable
from sensorium.storage.projection_reader import SCAN_TIMEOUT_S, LogReader, Place, beginning, since

_log = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
LONGEST_ASKED_S: Final = 300.0
"""Of what a sink's server asks us to wait: beyond it we ask whether it meant that."""
LOCK_RETRY_S: Final = 0.5
FLUSH_TIMEOUT_S: Final = 120.0
"""How long a sink may compute in a flush between two statements."""
LAG_FRESH_S: Final = 2.0
IDLE_FLUSH_S: Final = 10.0
"""The place is stored so often although nothing was taken, so that readers of it need not look far back."""
MAX_POISON_A_PAGE: Final = 1_000
"""More than these in one page is no bad entry but a bad sink: the projection stops and says so."""

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended('sensorium projection ' || $1, 0))"
_CREATE: Final = (
    "INSERT INTO projections (name, read_from, cursors) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING"
)
_LOAD: Final = "SELECT state, revision, read_from, cursors, rewind_to FROM projections WHERE name = $1"
_ASKED: Final = "SELECT state, revision, rewind_to FROM projections WHERE name = $1"
_MOVE: Final = """
UPDATE projections SET read_from = $3, cursors = $4, revision = revision + 1, updated_at = now()
WHERE name = $1 AND revision = $2
"""
_REWOUND: Final = "UPDATE projections SET rewind_to = NULL WHERE name = $1"
_HEADS: Final = "SELECT shard, head FROM shards"
_DEVICE_IDS: Final = "SELECT device, device_id FROM devices WHERE device = ANY($1::bigint[])"


class ProjectionRunner:
    """Keeps one projection going, through failures of the database and the sink.

    Of several runners of one name, in whatever processes, one feeds; the others wait for its lock. The cursor
    moves only in the session that holds the lock, and only from where this runner has read it. `position` is
    that of its database among several (see `spread`).
    """

    def __init__(
        self,
        dsn: str,
        settings: ProjectionSettings,
        sink: Sink,
        now_s: Callable[[], float] = time.time,
        position: int = 0,
    ) -> None:
        self._dsn = dsn
        self._name = f"projection-{settings.name}{f'-{position}' if position else ''}"
        self._settings = settings
        self._sink = sink
        self._now_s = now_s
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._state = "starting"
        self._trouble = ""
        self._entries = self._flushes = self._poisoned = self._lost = self._unflushed = 0
        self._lag_entries = 0
        self._lag_read_s = float("-inf")
        self._oldest_ms: int | None = None
        """Commit time of the oldest entry that is taken and not flushed."""
        self._revision = 0
        self._poison: list[DeadLetter] = []

    async def start(self) -> None:
        """Begin, and keep trying while the database is away."""
        self._task = asyncio.create_task(self._run(), name=f"projection {self._settings.name}")

    async def ping(self) -> None:
        """Raise what broke it, if something did that trying again does not mend."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Flush what was taken and end."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start; the lag is of what is durably projected."""
        oldest = self._oldest_ms
        return {
            "name": self._name,
            "projection": self._settings.name,
            "state": self._state,
            "lag_entries": self._lag_entries + self._unflushed,
            "lag_s": 0.0 if oldest is None else max(0.0, self._now_s() - oldest / 1000),
            "entries": self._entries,
            "flushes": self._flushes,
            "poisoned": self._poisoned,
            "lost": self._lost,
            "trouble": self._trouble,
        }

    async def _run(self) -> None:
        wait_s = FIRST_RETRY_S
        while not self._stopping.is_set():
            flushes = self._flushes
            try:
                await self._session()
            except (SensoriumError, OSError) as error:
                self._state, self._trouble = "failing", str(error)
                wait_s = FIRST_RETRY_S if self._flushes > flushes else min(wait_s * 2, LONGEST_RETRY_S)
                pause_s = wait_s
                if isinstance(error, SinkUnavailable):
                    pause_s = max(wait_s, min(error.retry_after_s, LONGEST_ASKED_S))
                _log.warning("projection %s: %s; again in %.1f s", self._settings.name, error, pause_s)
                await self._pause(pause_s)

    async def _session(self) -> None:
        """From the lock to an error or the end: everything on one connection."""
        name = self._settings.name
        async with AsyncExitStack() as stack:
            connection = await connect(self._dsn, f"sensorium-projection-{name}")
            stack.callback(connection.terminate)
            with translated():
                await connection.execute(
                    f"SET statement_timeout = '{SCAN_TIMEOUT_S:.0f}s';"
                    f" SET idle_in_transaction_session_timeout = '{FLUSH_TIMEOUT_S:.0f}s'"
                )
                while not await connection.fetchval(_LOCK, name):
                    self._state = "waiting"
                    await self._pause(LOCK_RETRY_S)
                    if self._stopping.is_set():
                        return
                start = await beginning(connection)
                await connection.execute(_CREATE, name, start.read_from_ms, start.cursors)
                row = await connection.fetchrow(_LOAD, name)
                assert row is not None
                self._revision = row["revision"]
                reader = LogReader(Place(row["read_from"], row["cursors"]), self._settings.page_entries)
                if self._trouble:
                    # Perhaps it fails for hours: how far behind it falls is to be seen all the same.
                    await self._measure(connection, reader)
                await self._sink.open(connection)
                stack.push_async_callback(self._sink.close)
                self._unflushed, self._oldest_ms, self._poison = 0, None, []
                await self._feed(connection, reader)

    async def _feed(self, connection: Connection, reader: LogReader) -> None:
        flushed_s = time.monotonic()
        while True:
            asked = await connection.fetchrow(_ASKED, self._settings.name)
            if asked is None or asked["revision"] != self._revision:
                raise LogUnavailable("its cursor was moved by another")
            if asked["rewind_to"] is not None:
                await self._rewind(connection, asked["rewind_to"])
                return
            ending = self._stopping.is_set() or asked["state"] == "paused"
            full, entries = False, []
            if not ending:
                entries = await reader.page(connection)
                self._lost += reader.lost
                reader.lost = 0
                if entries and self._oldest_ms is None:
                    self._oldest_ms = entries[0].committed_ms
                full = await self._take(connection, entries)
            self._trouble = ""
            age_s = time.monotonic() - flushed_s
            every_s = self._settings.flush_every_s
            pending = self._unflushed > 0 and (age_s >= every_s or full or ending)
            if pending or (age_s >= max(every_s, IDLE_FLUSH_S) and not ending):
                await self._flush(connection, reader)
                flushed_s = time.monotonic()
            await self._measure(connection, reader)
            # Asked to stop since this round began, it has yet to flush: in the next one.
            if ending and self._stopping.is_set():
                return
            self._state = "paused" if ending else "running"
            if ending or reader.at_end:
                await self._pause(self._settings.poll_s)

    async def _take(self, connection: Connection, entries: Sequence[LogEntry]) -> bool:
        if not entries:
            return False
        poisoned: list[tuple[LogEntry, str]] = []
        full = await self._take_halves(entries, poisoned)
        if poisoned:
            await self._bury(connection, poisoned)
        self._entries += len(entries)
        self._unflushed += len(entries)
        return full

    async def _take_halves(self, entries: Sequence[LogEntry], poisoned: list[tuple[LogEntry, str]]) -> bool:
        """Take what can be taken, in order; what cannot ends alone in `poisoned`."""
        try:
            return await self._sink.take(entries)
        except InvalidMessage as error:
            if len(entries) == 1:
                if len(poisoned) >= MAX_POISON_A_PAGE:
                    raise LogUnavailable(f"it refuses everything: {error}") from error
                poisoned.append((entries[0], str(error)))
                return False
        middle = len(entries) // 2
        first = await self._take_halves(entries[:middle], poisoned)
        return await self._take_halves(entries[middle:], poisoned) or first

    async def _bury(self, connection: Connection, poisoned: Sequence[tuple[LogEntry, str]]) -> None:
        """Make them dead letters, to be written with the cursor that passes over them."""
        rows = await connection.fetch(_DEVICE_IDS, [entry.device for entry, _ in poisoned])
        ids = {row["device"]: row["device_id"] for row in rows}
        name = self._settings.name
        for entry, why in poisoned:
            told = f"{entry.numbers} {entry.texts}" if entry.kind is None else f"{entry.kind} {entry.body}"
            payload = told.encode("utf-8", "replace")
            self._poison.append(
                DeadLetter(
                    ids.get(entry.device, ""),
                    source="log",
                    address=f"shard {entry.shard} offset {entry.offset}",
                    reason=f"projection:{name}",
                    detail=why,
                    payload=payload[:1024],
                    size_bytes=len(payload),
                    received_ms=entry.committed_ms,
                )
            )

    async def _flush(self, connection: Connection, reader: LogReader) -> None:
        place = reader.place
        async with connection.transaction():
            await self._sink.flush(connection)
            if self._poison:
                await apply(connection, _write.dead_letters(self._poison))
            await self._move(connection, place)
        self._revision += 1
        self._flushes += 1
        self._poisoned += len(self._poison)
        self._unflushed, self._oldest_ms, self._poison = 0, None, []

    async def _move(self, connection: Connection, place: Place) -> None:
        moved = await connection.execute(
            _MOVE, self._settings.name, self._revision, place.read_from_ms, place.cursors
        )
        if moved != "UPDATE 1":
            raise LogUnavailable("its cursor was moved by another")

    async def _rewind(self, connection: Connection, to_ms: int) -> None:
        name = self._settings.name
        async with connection.transaction():
            await connection.execute(_REWOUND, name)
            row = await connection.fetchrow(_LOAD, name)
            assert row is not None
            place = await since(connection, Place(row["read_from"], row["cursors"]), to_ms)
            with suppress(InvalidMessage):
                # Whoever asked was told before whether it can be; a refusal here leaves all as it is.
                async with connection.transaction():
                    await self._sink.rewind(connection, to_ms)
                    await self._move(connection, place)

    async def _measure(self, connection: Connection, reader: LogReader) -> None:
        if reader.at_end:
            self._lag_entries = 0
            if self._unflushed == 0:
                self._oldest_ms = None
        elif time.monotonic() - self._lag_read_s > LAG_FRESH_S:
            self._lag_read_s = time.monotonic()
            cursors = reader.place.cursors
            heads = await connection.fetch(_HEADS)
            self._lag_entries = sum(
                max(0, head - cursors[shard]) for shard, head in heads if shard < ALL_SHARDS
            )
            if self._oldest_ms is None:
                self._oldest_ms = reader.place.read_from_ms

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
