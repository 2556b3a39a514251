"""The audit log: a chain of entries in the main database, fed from the outboxes of all; read and checked.

Whoever puts entries into the chain holds the row of its head, so many may try at once. A database that is
away delays its own entries only. An entry is put there once, however often it is tried.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.actors.errors import InvalidMessage, LogUnavailable
from sensorium.actors.origin import Origin
from sensorium.storage.audit_trail import bounded, canonical, record, redacted
from sensorium.storage.database import (
    Connection,
    Pool,
    acquired,
    close_pool,
    connect,
    open_pool,
    translated,
)
from sensorium.storage.pages import Page, Where, check_limit, cursor

_log = logging.getLogger(__name__)

AT_ONCE: Final = 500
"""Entries that are put into the chain in one transaction."""
SETTLE_EVERY_S: Final = 1.0
SETTLE_PAUSE_S: Final = 0.5
"""Between two looks, however much is changed: entries that wait go together."""
CHECKED_AT_ONCE: Final = 2_000
RETENTION: Final = Origin("retention", "", "platform")

_WAITING: Final = "SELECT number, entry_id, body FROM audit_outbox ORDER BY number LIMIT $1"
_KNOWN: Final = "SELECT entry_id FROM audit WHERE entry_id = ANY($1::text[])"
_HEAD: Final = "SELECT number, hash FROM audit_head FOR UPDATE"
_APPEND: Final = """
INSERT INTO audit (number, entry_id, at, who, what, thing, entry, hash)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::bytea[])
"""
_PART: Final = """
SELECT number, entry_id, at, who, what, thing, entry, hash FROM audit WHERE number > $1
ORDER BY number LIMIT $2
"""
_CUT: Final = """
SELECT number, hash FROM audit WHERE number < (SELECT coalesce(min(number), 9223372036854775807) FROM audit
    WHERE at >= $1) ORDER BY number DESC LIMIT 1
"""


class AuditEntry(msgspec.Struct, frozen=True):
    """An entry of the audit log.

    Attributes:
        number: its place in the chain, from 1 on without gaps.
        by: the name that was given; "" for none.
        client: the address that it came from.
        way: "rest", "graphql", "cli", "notebook" or "platform".
        what: the kind of what was changed and how, such as "rule.replace".
        thing: the id of what was changed.
        note: what was said besides.
        hash: hexadecimal, over the hash before and the canonical JSON of this entry.
    """

    number: int
    at_ms: int
    by: str
    client: str
    way: str
    what: str
    thing: str
    device_id: str | None
    before: Any
    after: Any
    note: dict[str, Any] | None
    request_id: str
    entry_id: str
    hash: str


class Fault(NamedTuple):
    """What is wrong with the chain, at which place."""

    number: int
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the chain came to. `number` and `hash` are of its newest row."""

    checked: int
    number: int
    hash: str
    faults: tuple[Fault, ...]


def chained(before: bytes, entry: str) -> bytes:
    """The hash of an entry after the one with the hash `before`, which is empty for the first."""
    return sha256(before + entry.encode()).digest()


async def settle(pools: Sequence[Pool]) -> int:
    """Put what waits in the outboxes into the chain, which is in the first database; returns how many."""
    count = 0
    for pool in pools:
        while True:
            async with acquired(pool) as connection:
                if pool is pools[0]:
                    async with connection.transaction():
                        taken = await _chain(connection, waiting := await _lock_and_wait(connection))
                        await _forget_waiting(connection, waiting)
                else:
                    waiting = [tuple(row) for row in await connection.fetch(_WAITING, AT_ONCE)]
                    taken = 0
                    if waiting:
                        async with acquired(pools[0]) as main, main.transaction():
                            await main.fetchrow(_HEAD)
                            taken = await _chain(main, waiting)
                        await _forget_waiting(connection, waiting)
            count += taken
            if len(waiting) < AT_ONCE:
                break
    return count


async def _lock_and_wait(connection: Connection) -> list[tuple[int, str, str]]:
    # Without the lock first, two would read the same entries.
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM audit_outbox)"):
        return []
    await connection.fetchrow(_HEAD)
    return [(row[0], row[1], row[2]) for row in await connection.fetch(_WAITING, AT_ONCE)]


async def _chain(connection: Connection, waiting: Sequence[tuple[Any, ...]]) -> int:
    if not waiting:
        return 0
    known = {row[0] for row in await connection.fetch(_KNOWN, [entry_id for _, entry_id, _ in waiting])}
    head = await connection.fetchrow(_HEAD)
    assert head is not None
    number, last = head
    rows = []
    for _, entry_id, body in waiting:
        if entry_id in known:
            continue
        number += 1
        said = msgspec.json.decode(body)
        entry = canonical({"number": number, **said}).decode()
        last = chained(last, entry)
        who = said["by"] or said["client"]
        rows.append((number, entry_id, said["at_ms"], who, said["what"], said["thing"], entry, last))
    if rows:
        await connection.execute(_APPEND, *(list(column) for column in zip(*rows, strict=True)))
        await connection.execute("UPDATE audit_head SET number = $1, hash = $2", number, last)
    return len(rows)


async def _forget_waiting(connection: Connection, waiting: Sequence[tuple[Any, ...]]) -> None:
    if waiting:
        await connection.execute(
            "DELETE FROM audit_outbox WHERE number = ANY($1::bigint[])", [number for number, *_ in waiting]
        )


class AuditLog:
    """The audit log over a pool for each database, the first of which has the chain.

    Every call raises `LogUnavailable` when a database that it needs does not answer.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools
        self._kicked = asyncio.Event()

    def kick(self) -> None:
        """Have `keep` look now: something was changed."""
        self._kicked.set()

    async def keep(self) -> None:
        """Settle whenever kicked, and every `SETTLE_EVERY_S` what others left behind; until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_EVERY_S):
                    await self._kicked.wait()
            self._kicked.clear()
            try:
                await self.settle()
            except LogUnavailable as error:
                _log.warning("the audit log gets its entries later: %s", error)
                await asyncio.sleep(SETTLE_EVERY_S)
            await asyncio.sleep(SETTLE_PAUSE_S)

    async def settle(self) -> int:
        """See `settle`."""
        return await settle(self._pools)

    async def note(self, what: str, thing: str, before: Any = None, after: Any = None, **note: Any) -> None:
        """Keep an entry of a change that is no write to a database of ours; see `audit_trail.record`."""
        async with acquired(self._pools[0]) as connection, connection.transaction():
            await record(connection, what, thing, before, after, **note)

    async def page(
        self,
        who: str | None = None,
        what: str | None = None,
        thing: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[AuditEntry]:
        """Entries for which all holds that is given, the newest first. `what` may be a kind alone: "rule".

        Raises `InvalidMessage` where `after` or `limit` is none.
        """
        check_limit(limit)
        await self.settle()
        where = Where()
        where.add("who = ?", who)
        if what is not None and "." not in what:
            # "/" comes after ".": all that begin with the kind and a dot.
            where.add("(what > ? AND what < ?)", f"{what}.", f"{what}/")
        else:
            where.add("what = ?", what)
        where.add("thing = ?", thing)
        where.add("at >= ?", start_ms)
        where.add("at < ?", end_ms)
        where.add("number < ?", None if after is None else cursor(after, int))
        async with acquired(self._pools[0]) as connection:
            rows = await connection.fetch(
                f"SELECT entry, hash FROM audit {where} ORDER BY number DESC LIMIT {limit + 1}",
                *where.arguments,
            )
        items = [_shown(*row) for row in rows[:limit]]
        return Page(items, items[-1].number if len(rows) > limit else None)

    async def head(self) -> tuple[int, str]:
        """Number and hash of the newest row; 0 and "" while there is none."""
        await self.settle()
        async with acquired(self._pools[0]) as connection:
            row = await connection.fetchrow("SELECT number, hash FROM audit_head")
        assert row is not None
        return row[0], row[1].hex()

    async def verify(self, since_hash: str | None = None) -> Verdict:
        """Check every row that is kept; with `since_hash`, the newest row's once, that it is there still.

        Raises `InvalidMessage` when `since_hash` is no hash.
        """
        try:
            wanted = None if since_hash is None else bytes.fromhex(since_hash)
        except ValueError:
            raise InvalidMessage(f"{since_hash!r} is no hash: 64 hexadecimal digits") from None
        await self.settle()
        async with (
            acquired(self._pools[0]) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await _verify(connection, wanted)


async def _verify(connection: Connection, wanted: bytes | None) -> Verdict:
    head = await connection.fetchrow("SELECT number, hash, first_number, first_hash FROM audit_head")
    assert head is not None
    last_number, last_hash, number, hash_before = head
    faults: list[Fault] = []
    found = wanted is None or wanted == hash_before
    checked = 0
    whole = True
    """Whether the row before is there, so that what follows it can be told."""
    async for row in _rows(connection):
        if row["number"] <= number:
            faults.append(Fault(row["number"], "was put in: what was there has been removed by retention"))
            continue
        if row["number"] > last_number:
            faults.append(Fault(row["number"], f"was put in: the chain ends at {last_number}"))
            continue
        if row["number"] > number + 1:
            missing = (
                f"{number + 1}" if row["number"] == number + 2 else f"{number + 1} to {row['number'] - 1}"
            )
            faults.append(Fault(number + 1, f"missing: {missing}"))
            whole = False
        checked += 1
        if whole and chained(hash_before, row["entry"]) != row["hash"]:
            faults.append(
                Fault(row["number"], "was edited, or put in: its hash does not follow from the row before")
            )
        elif (why := _disagrees(row)) is not None:
            faults.append(Fault(row["number"], f"was edited: {why}"))
        number, hash_before, whole = row["number"], row["hash"], True
        found = found or hash_before == wanted
    if number < last_number:
        faults.append(Fault(number + 1, f"missing: {number + 1} to {last_number}, the end of the chain"))
    elif number == last_number and hash_before != last_hash:
        faults.append(Fault(number, "was edited: its hash is not the one that the head of the chain has"))
    if not found:
        faults.append(Fault(0, "no row has the hash that was the newest once: the chain was written anew"))
    return Verdict(checked, last_number, last_hash.hex(), tuple(faults))


async def _rows(connection: Connection) -> AsyncIterator[Any]:
    number = -(2**62)
    while rows := await connection.fetch(_PART, number, CHECKED_AT_ONCE):
        for row in rows:
            yield row
        number = rows[-1]["number"]


def _disagrees(row: Any) -> str | None:
    """Why the columns are not what the entry says."""
    try:
        said = msgspec.json.decode(row["entry"])
        columns = {
            "number": said["number"],
            "entry_id": said["entry_id"],
            "at": said["at_ms"],
            "who": said["by"] or said["client"],
            "what": said["what"],
            "thing": said["thing"],
        }
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "its entry is none of ours"
    for name, value in columns.items():
        if row[name] != value:
            return f"its column {name} is not what its entry says"
    return None


async def note(dsn: str, what: str, thing: str, origin: Origin) -> None:
    """Keep an entry, in the main database; one of before migration 16 has no audit log."""
    connection = await connect(dsn, "sensorium-audit")
    try:
        with translated():
            if await connection.fetchval("SELECT to_regclass('audit_outbox') IS NOT NULL"):
                async with connection.transaction():
                    await record(connection, what, thing, origin=origin)
    finally:
        connection.terminate()


async def note_if_other(dsn: str, what: str, thing: str, value: Any, origin: Origin) -> bool:
    """Keep an entry unless the newest of the same thing came to the same value; whether one was kept."""
    pool = await open_pool(dsn, 1, "sensorium-audit")
    try:
        await settle([pool])
        async with acquired(pool) as connection, connection.transaction():
            entry = await connection.fetchval(
                "SELECT entry FROM audit WHERE what = $1 AND thing = $2 ORDER BY number DESC LIMIT 1",
                what,
                thing,
            )
            before = None if entry is None else msgspec.json.decode(entry)["after"]
            kept: bool = before != msgspec.json.decode(canonical(bounded(redacted(value))))
            if kept:
                await record(connection, what, thing, before, value, origin)
        return kept
    finally:
        await close_pool(pool)


async def forget(connection: Connection, before_ms: int) -> int:
    """Remove the oldest entries, all of them older than `before_ms`, and note that in the log; how many.

    The chain begins after them from then on.
    """
    async with connection.transaction():
        await connection.fetchrow(_HEAD)
        cut = await connection.fetchrow(_CUT, before_ms)
        if cut is None:
            return 0
        await connection.execute("SET LOCAL sensorium.forgets_audit = 'on'")
        gone = await connection.execute("DELETE FROM audit WHERE number <= $1", cut["number"])
        await connection.execute("UPDATE audit_head SET first_number = $1, first_hash = $2", *cut)
        count = int(gone.split()[-1])
        await record(connection, "audit.forget", str(cut["number"]), origin=RETENTION, entries=count)
    return count


def _shown(entry: str, digest: bytes) -> AuditEntry:
    return msgspec.convert({**msgspec.json.decode(entry), "hash": digest.hex()}, AuditEntry)
