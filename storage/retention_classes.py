"""Retention classes: a small number for each retention of profiles, the same in every database of a log.

A row bears the class that its device had when it was written, and is kept by that class's days from then on.
A class whose types all come to another retention together keeps its number, so that what was written goes by
the new days; types that part from others get a number of their own.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sensorium.actors.errors import LogUnavailable
from sensorium.storage.database import Connection, connect, translated

DEFAULT: Final = 0
"""The class of every device type that has no retention of its own."""
MAX_CLASSES: Final = 16
"""Retentions that profiles may have at a time, the default one among them: each has partitions of its own."""
NUMBERS: Final = 64
"""Numbers, over all time. Of classes that no type has any more, only old partitions are left."""
LOCK_KEY: Final = 0x53454E_434C53

_COLUMNS: Final = "raw_days, event_days, rollup_1m_days, rollup_1h_days, rollup_1d_days"
_CLASSES: Final = f"SELECT class, {_COLUMNS} FROM retention_classes"
_TYPES: Final = "SELECT device_type, class FROM retention_class_types WHERE until IS NULL"
_SET_CLASS: Final = f"""
INSERT INTO retention_classes (class, {_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (class) DO UPDATE SET raw_days = excluded.raw_days, event_days = excluded.event_days,
    rollup_1m_days = excluded.rollup_1m_days, rollup_1h_days = excluded.rollup_1h_days,
    rollup_1d_days = excluded.rollup_1d_days
"""
_END_TYPES: Final = """
UPDATE retention_class_types t SET until = now() WHERE until IS NULL AND NOT EXISTS (
    SELECT FROM unnest($1::text[], $2::smallint[]) AS wanted (device_type, class)
    WHERE wanted.device_type = t.device_type AND wanted.class = t.class)
"""
_SET_TYPES: Final = """
INSERT INTO retention_class_types (device_type, class)
SELECT * FROM unnest($1::text[], $2::smallint[])
ON CONFLICT (device_type, class) DO UPDATE SET until = NULL WHERE retention_class_types.until IS NOT NULL
"""
KEPT_FROM: Final = """
INSERT INTO retention (kind, kept_from) VALUES ($1, $2)
ON CONFLICT (kind) DO UPDATE SET kept_from = greatest(retention.kept_from, excluded.kept_from)
"""
# What was written until then bears the class, and is of a day later at most.
_FLOORS: Final = """
WITH asked AS (SELECT d.device, d.device_type, d.registered_at, t.since, t.present FROM devices d
               LEFT JOIN (SELECT device_type, min(since) AS since, bool_or(until IS NULL) AS present
                          FROM retention_class_types GROUP BY 1) t USING (device_type)
               WHERE ($1::bigint[] IS NULL OR d.device = ANY($1))
                   AND ($2::text IS NULL OR d.device_type = $2)),
     written AS (
        SELECT t.class, t.until FROM retention_class_types t
            WHERE t.device_type IN (SELECT device_type FROM asked)
        UNION ALL
        SELECT 0, CASE WHEN present THEN since END FROM asked
            WHERE present IS NOT TRUE OR registered_at < since
        UNION ALL
        SELECT unnest(array_append(array(SELECT class FROM retention_class_types t
                                         WHERE t.device_type = f.device_type), 0::smallint)), f.until
            FROM former_device_types f WHERE f.device IN (SELECT device FROM asked))
SELECT split_part(r.kind, '/', 1) AS kind,
       max(least(r.kept_from, w.until + interval '25 hours')) AS kept_from
FROM retention r JOIN written w ON r.kind LIKE '%/' || w.class GROUP BY 1
"""
_OTHERS_UNTIL: Final = """
WITH asked AS (SELECT device, device_type FROM devices
               WHERE ($1::bigint[] IS NULL OR device = ANY($1)) AND ($2::text IS NULL OR device_type = $2))
SELECT max(at) + interval '25 hours' FROM (
    SELECT greatest(since, until) AS at FROM retention_class_types
        WHERE device_type IN (SELECT device_type FROM asked)
    UNION ALL SELECT until FROM former_device_types WHERE device IN (SELECT device FROM asked)) AS changes
"""
_OF_DEVICES: Final = """
SELECT d.device, t.class FROM devices d
JOIN retention_class_types t ON t.device_type = d.device_type AND t.until IS NULL
WHERE d.device = ANY($1::bigint[])
"""


class Days(NamedTuple):
    """For how many days what is kept; None: for ever.

    Attributes:
        raw, events: by the day of the commit.
        rollups_1m, rollups_1h, rollups_1d: by event time.
    """

    raw: int | None = None
    events: int | None = None
    rollups_1m: int | None = None
    rollups_1h: int | None = None
    rollups_1d: int | None = None

    def rollups(self, level: str) -> int | None:
        """Of the level of rollups with this name."""
        return {"1m": self.rollups_1m, "1h": self.rollups_1h, "1d": self.rollups_1d}[level]


KEPT_FOR_EVER: Final = Days()


def longest(days: Iterable[int | None]) -> int | None:
    """How long what several classes share is kept."""
    known = list(days)
    return None if None in known else max(n for n in known if n is not None)


class NoClassLeft(LogUnavailable):
    """All numbers are taken by retentions that types once had."""


def numbered(
    known: Mapping[int, Days], types: Mapping[str, int], default: Days, wanted: Mapping[str, Days]
) -> tuple[dict[int, Days], dict[str, int]]:
    """Give each wanted retention a number.

    Args:
        known: the classes that there are; none is ever removed.
        types: the class of each type that has one besides the default.
        default: what is wanted of class 0.
        wanted: by type, what is wanted of those that have a retention of their own.

    Returns:
        All classes, and the class of each type that has another than `DEFAULT`.

    Raises:
        NoClassLeft: all numbers are taken.
    """
    groups: dict[Days, set[str]] = {}
    for name, days in sorted(wanted.items()):
        if days != default:
            groups.setdefault(days, set()).add(name)
    classes = {**known, DEFAULT: default}
    numbers = {
        days: min(same)
        for days in groups
        if (same := [n for n, of_class in known.items() if n != DEFAULT and of_class == days])
    }
    for days, names in groups.items():
        if days in numbers:
            continue
        # Theirs alone: what was written goes by the new days.
        own = {
            number
            for number in {types[name] for name in names if name in types} - set(numbers.values())
            if {name for name, of_type in types.items() if of_type == number} <= names
        }
        free = min(own) if own else min(set(range(NUMBERS)) - classes.keys(), default=None)
        if free is None:
            raise NoClassLeft(
                f"profiles have had {NUMBERS} retentions over time, which are all that can be told apart:"
                " choose one that another type has or had"
            )
        numbers[days] = free
        classes[free] = days
    return classes, {name: numbers[days] for days, names in groups.items() for name in names}


async def settle(dsns: Sequence[str], default: Days, wanted: Mapping[str, Days]) -> dict[str, int]:
    """Number the wanted retentions, and note them in all databases of the log, which are migrated.

    The first database decides. The platform calls it at its start, before anything is written; done again
    after it was cut off, it comes to the same numbers.

    Returns:
        The class of each type that has another than `DEFAULT`.

    Raises:
        NoClassLeft: as `numbered`.
        LogUnavailable: one of the databases cannot be reached.
    """
    classes: dict[int, Days] = {}
    by_type: dict[str, int] = {}
    for position, dsn in enumerate(dsns):
        connection = await connect(dsn, "sensorium-retention-classes")
        try:
            with translated():
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
                    if position == 0:
                        rows = await connection.fetch(_TYPES)
                        types = {row["device_type"]: row["class"] for row in rows}
                        classes, by_type = numbered(await stored(connection), types, default, wanted)
                    await _note(connection, classes, by_type)
        finally:
            connection.terminate()
    return by_type


async def _note(connection: Connection, classes: Mapping[int, Days], by_type: Mapping[str, int]) -> None:
    await connection.executemany(_SET_CLASS, [(number, *days) for number, days in sorted(classes.items())])
    columns = list(by_type), list(by_type.values())
    await connection.execute(_END_TYPES, *columns)
    await connection.execute(_SET_TYPES, *columns)


async def stored(connection: Connection) -> dict[int, Days]:
    """All classes and their days."""
    return {number: Days(*days) for number, *days in await connection.fetch(_CLASSES)}


async def classes_of(connection: Connection, devices: Collection[int]) -> dict[int, int]:
    """The present class of those of the devices (by key) that have another than `DEFAULT`.

    The connection is to the database that has the devices' shards.
    """
    return {row["device"]: row["class"] for row in await connection.fetch(_OF_DEVICES, list(devices))}


def kind_of(table: str, number: int) -> str:
    """By what name the table `retention` notes what is gone of a class; without a class, of all."""
    return f"{table}/{number}"


async def floors(
    connection: Connection, devices: Collection[int] | None, device_type: str | None = None
) -> dict[str, int]:
    """From when on nothing is gone of these devices, or of all of a type, by table (ms).

    As far as it went by class; what devices wrote while they had other classes counts.
    """
    rows = await connection.fetch(_FLOORS, None if devices is None else list(devices), device_type)
    return {row["kind"]: row["kept_from"] for row in rows}


async def others_until(
    connection: Connection, devices: Collection[int] | None, device_type: str | None = None
) -> int | None:
    """From what time (ms) on all rows of each of these devices have one class; None: from the beginning."""
    until: int | None = await connection.fetchval(
        _OTHERS_UNTIL, None if devices is None else list(devices), device_type
    )
    return until
