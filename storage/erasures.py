"""Deletion of devices' data on request: begun by the device's commit, carried on here, read by the API.

A row of the log is not removed but emptied: its place in the shard stays, since the log is read without gaps,
and nothing in it says whose it was or what was measured. Projections come by the event "erased" in the order
of the log and remove what they have made of the entries before it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from sensorium.actors.messages import ReadingFlag
from sensorium.actors.metrics import EMPTY
from sensorium.actors.origin import Origin
from sensorium.actors.placement import device_key
from sensorium.actors.records import ErasureRow
from sensorium.storage import _write
from sensorium.storage._readings_sql import chunked, pack
from sensorium.storage.audit_trail import record
from sensorium.storage.database import Connection, Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor
from sensorium.storage.partitions import CHUNKS, leaves
from sensorium.storage.projection import ERASED_DEVICE, ERASED_KIND

CHUNK: Final = 5_000
"""Rows that are emptied in one transaction."""
CHUNKS_AT_ONCE: Final = 5
"""Of compacted readings, emptied in one transaction."""
TIMEOUT_S: Final = 300.0
"""Of looking for a device's dead letters, which have no index on devices."""
MAKE_SOMETHING: Final = ("rollups", "influxdb")
"""Projections that keep what they made of the log where they can remove it."""

_COLUMNS: Final = "job_id, device_id, registration, state, requested_at, finished_at, counts"
_STATE: Final = {
    "alarms": "DELETE FROM alarms WHERE device = $1",
    "anomalies": "DELETE FROM anomalies WHERE device = $1",
    "commands": "DELETE FROM commands WHERE device = $1",
    "twins": "DELETE FROM twins WHERE device = $1",
    "timers": "DELETE FROM timers WHERE device = $1",
    "presences": "DELETE FROM presences WHERE device = $1",
}
_BEGIN: Final = """
INSERT INTO erasures
    (job_id, device, device_id, shard, log_offset, registration, requested_at, counts, origin)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (job_id) DO UPDATE SET shard = excluded.shard, log_offset = excluded.log_offset,
    committed_at = excluded.committed_at, state = 'ERASING'
"""
_OPEN: Final = """
SELECT job_id, device, device_id, shard, log_offset, committed_at, registration, requested_at, state, counts,
    origin
FROM erasures WHERE state <> 'DONE' ORDER BY requested_at, job_id
"""
# A device that was isolated has rows in another shard, whose offsets say nothing here.
_EARLIER: Final = """device = $1
    AND CASE WHEN shard = $4 THEN log_offset < $2 ELSE committed_at < $5 END LIMIT $3"""
_EMPTY_READINGS: Final = f"""
UPDATE "{{table}}" SET device = $6, time = 'epoch', key = 0, flags = $7, metric_set = $8,
    numbers = NULL, texts = NULL
WHERE ctid = ANY(ARRAY(SELECT ctid FROM "{{table}}" WHERE {_EARLIER}))
"""
_EMPTY_EVENTS: Final = f"""
UPDATE "{{table}}" SET device = $6, time = 'epoch', kind = $7, body = '{{{{}}}}'
WHERE ctid = ANY(ARRAY(SELECT ctid FROM "{{table}}" WHERE {_EARLIER}))
"""
_TABLE: Final = "the_partition"
_IS_EARLIER: Final = "CASE WHEN r.shard = $4 THEN r.log_offset < $2 ELSE r.committed_at < $5 END"


def _empty_chunks() -> str:
    """Takes chunks out, and puts their readings back with those before the erasure emptied."""
    emptied = {"device": "$6", "time": "'epoch'", "key": "0", "flags": "$7::smallint", "metric_set": "$8"}
    emptied |= {"numbers": "NULL", "texts": "NULL"}
    columns = ", ".join(
        f"CASE WHEN {_IS_EARLIER} THEN {value} ELSE r.{name} END AS {name}" for name, value in emptied.items()
    )
    kept = "r.shard AS shard, r.log_offset AS log_offset, r.committed_at AS committed_at, c.class AS class"
    found = chunked(f"{columns}, {kept}", "true", "true", source="gone")
    return f"""
        WITH gone AS (
            DELETE FROM {_TABLE} d USING (
                SELECT c.ctid FROM {_TABLE} c WHERE c.device = $1 AND CASE WHEN c.shard = $4
                    THEN EXISTS (SELECT FROM unnest(coalesce(c.offsets, ARRAY[c.last_offset])) o WHERE o < $2)
                    ELSE c.committed_at < $5 END LIMIT $3) picked
            WHERE d.ctid = picked.ctid RETURNING d.*),
        packed AS ({pack(_TABLE, found)} RETURNING device, count)
        SELECT sum(count) FILTER (WHERE device = $6) FROM packed
    """


_EMPTY_CHUNKS: Final = _empty_chunks()
_PASSED: Final = """
SELECT name FROM projections WHERE name = ANY($1::text[]) AND cursors[$2::int + 1] < $3 ORDER BY name
"""
_LETTERS: Final = "DELETE FROM dead_letters WHERE device_id = $1 AND committed_at <= $2"
_KEPT: Final = """
DELETE FROM kept_snapshots WHERE device = $1
    AND CASE WHEN shard = $3 THEN log_offset < $2 ELSE saved_at < $4 END
"""
_COMPACTED: Final = """
DELETE FROM compacted_devices WHERE device = $1 AND NOT EXISTS (SELECT FROM reading_chunks WHERE device = $1)
"""
_DELIVERIES: Final = "DELETE FROM deliveries WHERE device_id = $1 AND created_at <= $2"


class Erasure(msgspec.Struct, frozen=True):
    """A deletion of a device's data.

    Attributes:
        registration: whether the device's registration went, too.
        state: "ERASING" the log, "PROJECTING" while projections have yet to remove what they have made of it,
            then "DONE".
        counts: rows deleted so far, by kind.
        waiting_for: the projections that have not come so far.
    """

    job_id: str
    device_id: str
    registration: bool
    state: str
    requested_ms: int
    finished_ms: int | None
    counts: dict[str, int]
    waiting_for: list[str] = []


async def begin(connection: Connection, rows: Iterable[ErasureRow]) -> None:
    """Delete the devices' states, and keep what is left to do, inside of the caller's transaction."""
    for row in rows:
        key = device_key(row.device_id)
        counts = {name: _count(await connection.execute(sql, key)) for name, sql in _STATE.items()}
        if row.registration:
            counts["registrations"] = _count(
                await connection.execute("DELETE FROM devices WHERE device = $1", key)
            )
        await _write.snapshots(connection, [row.snapshot])
        await connection.execute(
            _BEGIN,
            *(row.job_id, key, row.device_id, row.shard, row.offset, row.registration, row.at_ms, counts),
            None if row.origin is None else msgspec.structs.asdict(row.origin),
        )


async def carry_on(connection: Connection) -> bool:
    """A step of each deletion that is not done yet, each in its own transactions; whether there is more.

    May be called again at any time, after a failure too.
    """
    more = False
    for job in await connection.fetch(_OPEN):
        if job["state"] == "ERASING":
            if await _empty_log(connection, job):
                more = True
                continue
            await _delete_others(connection, job)
        await _finish(connection, job["job_id"])
    return more


async def _empty_log(connection: Connection, job: Any) -> bool:
    """Empty some rows of the log; whether there were any.

    Rows before chunks: what is compacted meanwhile is found there.
    """
    await _write.metric_sets(connection, [EMPTY])
    erased = int(ReadingFlag.ERASED)
    for kind, statement, values in (
        ("readings", _EMPTY_READINGS, (ERASED_DEVICE, erased, EMPTY.id)),
        ("events", _EMPTY_EVENTS, (ERASED_DEVICE, ERASED_KIND)),
    ):
        for _, table, _ in await leaves(connection, kind):
            async with connection.transaction():
                done = await connection.execute(
                    statement.format(table=table),
                    *(job["device"], job["log_offset"], CHUNK, job["shard"], job["committed_at"]),
                    *values,
                )
                if count := _count(done):
                    await _add(connection, job["job_id"], {kind: count})
                    return True
    for _, table, _ in await leaves(connection, CHUNKS):
        async with connection.transaction():
            emptied = await connection.fetchval(
                _EMPTY_CHUNKS.replace(_TABLE, table),
                *(job["device"], job["log_offset"], CHUNKS_AT_ONCE, job["shard"], job["committed_at"]),
                *(ERASED_DEVICE, erased, EMPTY.id),
            )
            if emptied:
                await _add(connection, job["job_id"], {"readings": emptied})
                return True
    return False


async def _delete_others(connection: Connection, job: Any) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = '{TIMEOUT_S:.0f}s'")
        which = (job["device_id"], job["requested_at"])
        counts = {
            "dead_letters": _count(await connection.execute(_LETTERS, *which, timeout=TIMEOUT_S)),
            "kept_snapshots": _count(
                await connection.execute(
                    _KEPT,
                    *(job["device"], job["log_offset"], job["shard"], job["committed_at"]),
                    timeout=TIMEOUT_S,
                )
            ),
            "deliveries": _count(await connection.execute(_DELIVERIES, *which, timeout=TIMEOUT_S)),
        }
        if job["registration"]:
            # Nothing shall be left of a device that is gone; one that has come back has another snapshot.
            await connection.execute(
                "DELETE FROM snapshots s WHERE device = $1 AND (log_offset = $2 OR shard <> $3)"
                " AND NOT EXISTS (SELECT FROM devices d WHERE d.device = s.device)",
                job["device"],
                job["log_offset"],
                job["shard"],
            )
        await connection.execute(_COMPACTED, job["device"])
        await _add(connection, job["job_id"], counts)
        await connection.execute("UPDATE erasures SET state = 'PROJECTING' WHERE job_id = $1", job["job_id"])


async def _finish(connection: Connection, job_id: str) -> None:
    """Done, once projections have come so far, which the audit log is told."""
    async with connection.transaction():
        job = await connection.fetchrow("SELECT * FROM erasures WHERE job_id = $1 FOR UPDATE", job_id)
        if job is None or job["state"] != "PROJECTING":
            return
        if await connection.fetch(_PASSED, list(MAKE_SOMETHING), job["shard"], job["log_offset"]):
            return
        await connection.execute(
            "UPDATE erasures SET state = 'DONE', finished_at = now() WHERE job_id = $1", job_id
        )
        origin = Origin("erasures", "", "platform")
        if job["origin"] is not None:
            origin = Origin(**job["origin"])
        note = {"job_id": job_id, "counts": job["counts"]}
        await record(connection, "device.erased", job["device_id"], origin=origin, **note)


async def _add(connection: Connection, job_id: str, more: dict[str, int]) -> None:
    counts = await connection.fetchval("SELECT counts FROM erasures WHERE job_id = $1 FOR UPDATE", job_id)
    for kind, count in more.items():
        counts[kind] = counts.get(kind, 0) + count
    await connection.execute("UPDATE erasures SET counts = $2 WHERE job_id = $1", job_id, counts)


def _count(done: str) -> int:
    return int(done.split()[-1])


class Erasures:
    """Deletions over a pool for each database. Calls raise `LogUnavailable` when one does not answer."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools

    async def get(self, job_id: str) -> Erasure | None:
        """One of them."""
        if "\0" in job_id:
            return None
        for pool in self._pools:
            async with acquired(pool) as connection:
                row = await connection.fetchrow("SELECT * FROM erasures WHERE job_id = $1", job_id)
                if row is not None:
                    passed = await connection.fetch(
                        _PASSED, list(MAKE_SOMETHING), row["shard"], row["log_offset"]
                    )
                    waiting = [] if row["state"] == "DONE" else [one["name"] for one in passed]
                    return _erasure(row, waiting)
        return None

    async def page(
        self, device_id: str | None = None, after: Any | None = None, limit: int = 100
    ) -> Page[Erasure]:
        """The newest first. Raises `InvalidMessage` where `after` or `limit` is none."""
        check_limit(limit)
        where = Where()
        where.add("device_id = ?", device_id)
        if after is not None:
            where.add("(requested_at, job_id) < (?, ?)", *cursor(after, tuple[int, str]))
        found = []
        for pool in self._pools:
            async with acquired(pool) as connection:
                found += await connection.fetch(
                    f"SELECT {_COLUMNS} FROM erasures {where}"
                    f" ORDER BY requested_at DESC, job_id DESC LIMIT {limit + 1}",
                    *where.arguments,
                )
        found.sort(key=lambda row: (row["requested_at"], row["job_id"]), reverse=True)
        items = [_erasure(row, []) for row in found[:limit]]
        return Page(items, [items[-1].requested_ms, items[-1].job_id] if len(found) > limit else None)


def _erasure(row: Any, waiting_for: list[str]) -> Erasure:
    return Erasure(
        *(row["job_id"], row["device_id"], row["registration"], row["state"], row["requested_at"]),
        *(row["finished_at"], row["counts"], waiting_for),
    )
