"""One wish to many devices: who is to have it, who has it, and how far that is. Not who gives it out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.storage.audit_trail import record
from sensorium.storage.database import Connection, Pool, acquired
from sensorium.storage.pages import Page, Where, check_limit, cursor

RUNNING: Final = "RUNNING"
DONE: Final = "DONE"
CANCELLING: Final = "CANCELLING"
CANCELLED: Final = "CANCELLED"

PENDING: Final = "pending"
GIVEN: Final = "given"
REFUSED: Final = "refused"

COMMAND: Final = "command"
TWIN: Final = "twin"

_JOB: Final = "job_id, kind, state, created_at, total, per_second, spec"
_FORGET: Final = """
WITH gone AS (DELETE FROM bulk_jobs WHERE created_at < $1 AND state IN ('DONE', 'CANCELLED') RETURNING job_id)
DELETE FROM bulk_items WHERE job_id IN (SELECT job_id FROM gone)
"""


class BulkJob(msgspec.Struct, frozen=True):
    """What is to be given out.

    Attributes:
        kind: "command" or "twin".
        state: "RUNNING" while it is given out, then "DONE"; or "CANCELLING", then "CANCELLED".
        total: to how many devices.
        per_second: to how many in a second at most.
        spec: the wish itself.
    """

    job_id: str
    kind: str
    state: str
    created_ms: int
    total: int
    per_second: float
    spec: dict[str, Any]


class BulkItem(NamedTuple):
    """A device of a job: "pending", "given", "refused" (and why) or "cancelled" before it had its turn."""

    device_id: str
    state: str
    reason: str | None = None


class BulkJobs:
    """Jobs in one database. Every call raises `LogUnavailable` when it does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, job: BulkJob, device_ids: Sequence[str]) -> BulkJob:
        """Keep a new job for these devices; the one of that id where there is one."""
        async with acquired(self._pool) as connection, connection.transaction():
            made = await connection.execute(
                f"INSERT INTO bulk_jobs ({_JOB}) VALUES ($1, $2, $3, $4, $5, $6, $7)"
                " ON CONFLICT (job_id) DO NOTHING",
                *(job.job_id, job.kind, job.state, job.created_ms, job.total, job.per_second),
                msgspec.json.encode(job.spec).decode(),
            )
            if made == "INSERT 0 1":
                await connection.execute(
                    "INSERT INTO bulk_items (job_id, device_id) SELECT $1, unnest($2::text[])",
                    job.job_id,
                    list(device_ids),
                )
                spec = {"kind": job.kind, "total": job.total, "per_second": job.per_second, **job.spec}
                await record(connection, "bulk_job.create", job.job_id, None, spec)
                return job
            row = await connection.fetchrow(f"SELECT {_JOB} FROM bulk_jobs WHERE job_id = $1", job.job_id)
        assert row is not None
        return _job(row)

    async def get(self, job_id: str) -> BulkJob | None:
        """One job."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(f"SELECT {_JOB} FROM bulk_jobs WHERE job_id = $1", job_id)
        return None if row is None else _job(row)

    async def page(self, kind: str, after: Any | None = None, limit: int = 100) -> Page[BulkJob]:
        """Jobs of a kind, the newest first. Raises `InvalidMessage` where `after` or `limit` is none."""
        check_limit(limit)
        where = Where()
        where.add("kind = ?", kind)
        if after is not None:
            where.add("(created_at, job_id) < (?, ?)", *cursor(after, tuple[int, str]))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {_JOB} FROM bulk_jobs {where}"
                f" ORDER BY created_at DESC, job_id DESC LIMIT {limit + 1}",
                *where.arguments,
            )
        jobs = [_job(row) for row in rows[:limit]]
        return Page(jobs, [jobs[-1].created_ms, jobs[-1].job_id] if len(rows) > limit else None)

    async def open(self, limit: int) -> list[BulkJob]:
        """Those that somebody has to work on: to be cancelled or given out, the oldest first."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {_JOB} FROM bulk_jobs WHERE state IN ('RUNNING', 'CANCELLING')"
                " ORDER BY state, created_at, job_id LIMIT $1",
                limit,
            )
        return [_job(row) for row in rows]

    async def pending(self, job_id: str, limit: int, after: str = "") -> list[str]:
        """Devices that have not had their turn, in order of their ids, beyond `after`."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT device_id FROM bulk_items WHERE job_id = $1 AND state = 'pending'"
                " AND device_id > $3 ORDER BY device_id LIMIT $2",
                *(job_id, limit, after),
            )
        return [row["device_id"] for row in rows]

    async def mark(self, job_id: str, items: Sequence[BulkItem]) -> None:
        """Note what became of devices that were pending."""
        async with acquired(self._pool) as connection:
            await connection.execute(
                "UPDATE bulk_items i SET state = n.state, reason = n.reason"
                " FROM unnest($2::text[], $3::text[], $4::text[]) AS n (device_id, state, reason)"
                " WHERE i.job_id = $1 AND i.device_id = n.device_id AND i.state = 'pending'",
                job_id,
                *([getattr(item, name) for item in items] for name in BulkItem._fields),
            )

    async def counts(self, job_id: str) -> dict[str, int]:
        """How many of its devices are in each state."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT state, count(*) AS n FROM bulk_items WHERE job_id = $1 GROUP BY 1", job_id
            )
        return {row["state"]: row["n"] for row in rows}

    async def items(
        self, job_id: str, state: str | None = None, after: Any | None = None, limit: int = 100
    ) -> Page[BulkItem]:
        """Its devices in order of their ids. Raises `InvalidMessage` where `after` or `limit` is none."""
        check_limit(limit)
        where = Where()
        where.add("job_id = ?", job_id)
        where.add("state = ?", state)
        where.add("device_id > ?", None if after is None else cursor(after, str))
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT device_id, state, reason FROM bulk_items {where}"
                f" ORDER BY device_id LIMIT {limit + 1}",
                *where.arguments,
            )
        found = [BulkItem(*row) for row in rows[:limit]]
        return Page(found, found[-1].device_id if len(rows) > limit else None)

    async def cancel(self, job_id: str) -> None:
        """Ask for it to be cancelled, also what was given out already."""
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchval(
                "SELECT state FROM bulk_jobs WHERE job_id = $1 FOR UPDATE", job_id
            )
            if old in ("RUNNING", "DONE"):
                await connection.execute(
                    "UPDATE bulk_jobs SET state = 'CANCELLING' WHERE job_id = $1", job_id
                )
                after = {"state": "CANCELLING"}
                await record(connection, "bulk_job.cancel", job_id, {"state": old}, after)

    async def drop_pending(self, job_id: str) -> None:
        """Those who have not had their turn will not have it."""
        async with acquired(self._pool) as connection:
            await connection.execute(
                "UPDATE bulk_items SET state = 'cancelled' WHERE job_id = $1 AND state = 'pending'", job_id
            )

    async def finish(self, job_id: str, before: str, after: str) -> None:
        """Take it from one state to another, if it is in that still."""
        async with acquired(self._pool) as connection:
            await connection.execute(
                "UPDATE bulk_jobs SET state = $3 WHERE job_id = $1 AND state = $2", job_id, before, after
            )


async def forget_jobs(connection: Connection, before: datetime) -> None:
    """Delete jobs that were given before then and have ended."""
    await connection.execute(_FORGET, int(before.timestamp() * 1000))


def _job(row: Any) -> BulkJob:
    job_id, kind, state, created_ms, total, per_second, spec = row
    return BulkJob(job_id, kind, state, created_ms, total, per_second, msgspec.json.decode(spec))
