"""The partitions of the log's tables: daily by commit time (UTC), and those of a day by retention class.

A day from before there were classes is one partition, which has rows of all of them.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from sensorium.storage.database import Connection
from sensorium.storage.retention_classes import DEFAULT, KEPT_FROM, kind_of

TABLES: Final = ("readings", "events", "kept_snapshots")
CHUNKS: Final = "reading_chunks"
"""Of days that are compacted; made by `compaction`."""
DAYS_AHEAD: Final = 2
LOCK_KEY: Final = 0x53454E_504152
"""The advisory lock that one process that changes partitions holds at a time."""
BACKUP_KEY: Final = 0x53454E_42434B
"""The advisory lock that backups share while they read, and that dropping partitions needs for itself."""

_BY_CLASS: Final = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = 'class')
"""
_LEAVES: Final = """
SELECT right(day.relname, 8) AS day, coalesce(leaf.relname, day.relname)::text AS name,
       substring(pg_get_expr(leaf.relpartbound, leaf.oid) FROM '[0-9]+')::int AS class
FROM pg_inherits i JOIN pg_class day ON day.oid = i.inhrelid
LEFT JOIN pg_inherits j ON j.inhparent = day.oid LEFT JOIN pg_class leaf ON leaf.oid = j.inhrelid
WHERE i.inhparent = $1::text::regclass AND (day.relkind = 'r' OR leaf.oid IS NOT NULL) ORDER BY 1, 3, 2
"""
_USED: Final = "SELECT pg_relation_size($1::text::regclass) > 0"
USED_DAYS: Final = 7
"""Classes that had rows in the last days have partitions made ahead."""


ROLLUP_KEY: Final = ", PRIMARY KEY (device, metric, bucket)"
"""Of a partition that has rollups itself; that of all of them would have to have the class in it."""


class Leaf(NamedTuple):
    """A table that has rows: its first day, and the class of its rows; None: of all classes."""

    day: date
    name: str
    retention_class: int | None


async def ensure_partitions(
    connection: Connection,
    now: datetime | None = None,
    days_ahead: int = DAYS_AHEAD,
    classes: Collection[int] = (),
) -> list[str]:
    """Create the partitions of the day of `now` (the server's clock when None) and the days after it.

    Of the retention classes in `classes`, of those that had rows lately, and of the default one. Call it at
    start and daily; the log creates one that is missing by itself. Does not block commits.

    Returns:
        The names of those created.
    """
    moment: datetime = now or datetime.fromtimestamp(
        await connection.fetchval("SELECT extract(epoch FROM now())::float8"), UTC
    )
    today = moment.astimezone(UTC).date()
    created = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        for table in TABLES:
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", table):
                # Of a schema that an older backup is to fill.
                continue
            have = {day for day, _ in await attached(connection, table)}
            wanted: set[int] | None = None
            there = []
            if await connection.fetchval(_BY_CLASS, table):
                there = await leaves(connection, table)
                wanted = {DEFAULT, *classes} | await _used(connection, there, today)
            for day in (today + timedelta(days=n) for n in range(days_ahead + 1)):
                if day not in have:
                    created.append(await create(connection, table, day, classes=wanted))
                elif wanted is not None:
                    of_day = {leaf.retention_class for leaf in there if leaf.day == day}
                    if None not in of_day:
                        for number in sorted(wanted - of_day):
                            created.append(await create_class(connection, f"{table}_{day:%Y%m%d}", number))
    return created


async def _used(connection: Connection, there: Sequence[Leaf], today: date) -> set[int]:
    """The classes that have had rows in the last days."""
    used: set[int] = set()
    for leaf in there:
        number = leaf.retention_class
        if (
            number is not None
            and number not in used
            and leaf.day >= today - timedelta(days=USED_DAYS)
            and await connection.fetchval(_USED, leaf.name)
        ):
            used.add(number)
    return used


async def drop_partitions(connection: Connection, before: date, tables: Sequence[str] = TABLES) -> list[str]:
    """Drop the partitions of days before `before`: the readings and events committed then are gone.

    Drops none while a backup is made: it would wait for that, and commits would wait for it.

    Returns:
        The names of those dropped.
    """
    dropped: list[str] = []
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", BACKUP_KEY):
            return dropped
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        for table in tables:
            for day, name in await attached(connection, table):
                if day < before:
                    await connection.execute(f'DROP TABLE "{name}"')
                    dropped.append(name)
    return dropped


async def drop_classes(
    connection: Connection, table: str, before: Mapping[int, date], before_all: date | None, days: int = 1
) -> list[str]:
    """Drop the partitions of each class that end by what `before` says, and those of all by `before_all`.

    A partition is `days` long.
    What is gone is noted in the table `retention`. Drops none while a backup is made, as `drop_partitions`.

    Returns:
        The names of those dropped.
    """
    dropped: list[str] = []
    gone: dict[int | None, date] = {}
    async with connection.transaction():
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", BACKUP_KEY):
            return dropped
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        left: set[date] = set()
        oldest = min(
            (until for until in (*before.values(), before_all) if until is not None), default=date.min
        )
        for leaf in await leaves(connection, table):
            until = before_all if leaf.retention_class is None else before.get(leaf.retention_class)
            end = leaf.day + timedelta(days=days)
            if until is not None and end <= until:
                await connection.execute(f'DROP TABLE "{leaf.name}"')
                dropped.append(leaf.name)
                gone[leaf.retention_class] = end
            else:
                left.add(leaf.day)
        for number, end in gone.items():
            kind = table if number is None else kind_of(table, number)
            await connection.execute(KEPT_FROM, kind, _midnight_ms(end))
        for day, name in await attached(connection, table):
            if day + timedelta(days=days) <= oldest and day not in left and name not in dropped:
                # A day without any class.
                await connection.execute(f'DROP TABLE "{name}"')
    return dropped


def midnight(day: date) -> datetime:
    """Its first moment (UTC)."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _midnight_ms(day: date) -> int:
    return int(midnight(day).timestamp() * 1000)


async def leaves(connection: Connection, table: str) -> list[Leaf]:
    """All partitions that have rows themselves, oldest first."""
    return [
        Leaf(datetime.strptime(row["day"], "%Y%m%d").date(), row["name"], row["class"])
        for row in await connection.fetch(_LEAVES, table)
    ]


async def attached(connection: Connection, table: str) -> list[tuple[date, str]]:
    """The first day and the name of each partition, oldest first."""
    rows = await connection.fetch(
        "SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = $1::text::regclass ORDER BY c.relname",
        table,
    )
    return [(datetime.strptime(row["name"][-8:], "%Y%m%d").date(), row["name"]) for row in rows]


async def create(
    connection: Connection, table: str, day: date, days: int = 1, classes: Collection[int] | None = None
) -> str:
    """Create the partition of `days` days from `day` on and give its name. Readers and writers go on.

    With `classes` it has a partition for each of these; more can be added by `create_class`.
    """
    name = f"{table}_{day:%Y%m%d}"
    # Attaching a finished table takes a lock that commits do not mind; CREATE … PARTITION OF stops them all.
    parts = "" if classes is None else " PARTITION BY LIST (class)"
    await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL){parts}")
    for number in sorted(classes or ()):
        await create_class(connection, name, number)
    await connection.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {name}"
        f" FOR VALUES FROM ('{day} 00:00+00') TO ('{day + timedelta(days=days)} 00:00+00')"
    )
    return name


async def create_class(connection: Connection, day: str, number: int) -> str:
    """Create the partition of a class in a day's table and give its name. Readers and writers go on."""
    name = f"{day}_c{number}"
    key = ROLLUP_KEY if day.startswith("rollups_") else ""
    await connection.execute(f"CREATE TABLE {name} (LIKE {day} INCLUDING ALL{key})")
    await connection.execute(f"ALTER TABLE {day} ATTACH PARTITION {name} FOR VALUES IN ({number})")
    return name
