"""A device's figures are read in one way to the server and back, whatever changes there in between."""

import asyncpg
import pytest
from rolled_up import rolled_up
from storage_rows import NOON_MS, reading

from sensorium.actors.placement import DEDICATED_SHARDS, SHARDS
from sensorium.actors.records import Commit
from sensorium.storage import History, PgLog, PgMembership
from sensorium.storage._projected import KNOWN_S, LastProjected, Projected
from sensorium.storage.database import Pool, acquired, borrowed

HOUR_MS = 3_600_000
KNOWN = Projected(read_from_ms=1_000, now_ms=5_000, kept_from={"rollups_1m": 7})


@pytest.mark.parametrize(
    ("later", "holds"),
    [
        (KNOWN, True),
        (KNOWN._replace(read_from_ms=2_000, now_ms=6_000), True),
        (KNOWN._replace(now_ms=4_000), True),
        (KNOWN._replace(read_from_ms=999), False),
        (KNOWN._replace(kept_from={"rollups_1m": 8}), False),
        (KNOWN._replace(kept_from={"rollups_1m": 7, "rollups_1h/1": 3}), False),
        (KNOWN._replace(now_ms=5_001 + round(KNOWN_S * 1000)), False),
    ],
)
def test_a_plan_holds_while_nothing_was_removed_rewound_or_is_long_ago(later: Projected, holds: bool) -> None:
    assert KNOWN.held_until(later) is holds


@pytest.mark.database
async def test_what_is_known_is_asked_for_anew_after_a_while(pool: Pool) -> None:
    now_s = 0.0
    last = LastProjected(lambda: now_s)
    async with acquired(pool) as connection:
        assert await last.get(connection) is None
        await _project(pool, 0)
        first = await last.get(connection)
        assert first is not None
        now_s = KNOWN_S - 1
        assert await last.get(connection) is first
        now_s = KNOWN_S
        assert await last.get(connection) is not first


@pytest.fixture
async def history(dsn: str, pool: Pool) -> History:
    """Over two hours of readings that the rollups count."""
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    rows = [reading("d1", n + 1, NOON_MS + n * 60_000, n, t=float(n)) for n in range(120)]
    await log.commit(Commit(readings=rows))
    await log.close()
    await rolled_up(dsn, len(rows))
    return History(pool)


async def _counts(history: History) -> list[float]:
    found = await history.aggregate("d1", NOON_MS, NOON_MS + 2 * HOUR_MS, ["t"], "count", 3_600.0)
    return [bucket.values["t"] for bucket in found]


async def _project(pool: Pool, cursor: int) -> None:
    """Have the rollups say that they have read each shard up to there."""
    read_from = "now() + interval '1 hour'" if cursor else "'epoch'"
    async with acquired(pool) as connection:
        await connection.execute(
            f"""INSERT INTO projections (name, read_from, cursors) VALUES ('rollups', {read_from}, $1)
                ON CONFLICT (name) DO UPDATE
                SET read_from = excluded.read_from, cursors = excluded.cursors""",
            [cursor] * (SHARDS + DEDICATED_SHARDS),
        )


@pytest.mark.database
async def test_the_second_question_is_one_statement(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _counts(history) == [60, 60]
    sent = []
    for way in ("execute", "fetch", "fetchrow", "fetchval"):
        inner = getattr(asyncpg.Connection, way)

        def told(self, query, *arguments, _inner=inner, **options):  # type: ignore[no-untyped-def]
            sent.append(query)
            return _inner(self, query, *arguments, **options)

        monkeypatch.setattr(asyncpg.Connection, way, told)
    assert await _counts(history) == [60, 60]
    assert len(sent) == 1


@pytest.mark.database
async def test_figures_that_retention_removes_in_between_are_read_elsewhere(
    history: History, pool: Pool
) -> None:
    assert await _counts(history) == [60, 60]
    async with acquired(pool) as connection, connection.transaction():
        await connection.execute("DELETE FROM rollups_1h WHERE bucket < $1", NOON_MS + HOUR_MS)
        await connection.execute("INSERT INTO retention VALUES ('rollups_1h', $1)", NOON_MS + HOUR_MS)
    assert await _counts(history) == [60, 60]


@pytest.mark.database
async def test_rollups_that_are_rewound_in_between_are_made_up_for(history: History, pool: Pool) -> None:
    await _project(pool, 1_000)
    assert await _counts(history) == [60, 60]
    async with acquired(pool) as connection:
        await connection.execute("TRUNCATE rollups_1m, rollups_1h, rollups_1d")
    assert await _counts(history) == []
    await _project(pool, 0)
    assert await _counts(history) == [60, 60]


@pytest.mark.database
async def test_what_was_only_read_from_is_given_back_as_it_is(pool: Pool) -> None:
    async with borrowed(pool) as connection:
        await connection.execute("SET application_name = 'changed'")
    async with borrowed(pool) as connection:
        # Nobody may do so; by this it shows that nothing was reset.
        assert await connection.fetchval("SHOW application_name") == "changed"
    with pytest.raises(ZeroDivisionError):
        async with borrowed(pool):
            _ = 1 / 0
    async with acquired(pool) as connection:
        assert await connection.fetchval("SHOW application_name") == "sensorium"
        assert await connection.fetchval("SHOW jit") == "off"
        assert await connection.fetchval("SHOW statement_timeout") == "10s"
        await connection.execute("SET statement_timeout = 0")
    async with acquired(pool) as connection:
        assert await connection.fetchval("SHOW statement_timeout") == "10s"
