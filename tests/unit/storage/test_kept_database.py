"""The database that tests get one after another is as new for each."""

import asyncpg
import pytest
from kept_database import KeptDatabase

from sensorium.storage.embedded import EmbeddedPostgres

pytestmark = pytest.mark.database

ROWS = """
SELECT (SELECT count(*) FROM shards), (SELECT sum(epoch) FROM assignments), (SELECT count(*) FROM devices),
    (SELECT last_value FROM hosts_incarnation_seq), (SELECT is_called FROM hosts_incarnation_seq),
    (SELECT count(*) FROM audit), (SELECT count(*) FROM pg_class WHERE relname = 'left_behind')
"""


@pytest.mark.parametrize(
    "left",
    [
        "INSERT INTO hosts (host, node, weight) VALUES ('a', '', 1)",
        "UPDATE assignments SET epoch = epoch + 1 WHERE shard = 7",
        "DELETE FROM assignments WHERE shard < 9",
        "CREATE TABLE left_behind (n int)",
        "ALTER TABLE devices ADD COLUMN left_behind int",
    ],
)
async def test_what_a_test_leaves_is_gone(server: EmbeddedPostgres, template: str, left: str) -> None:
    kept = KeptDatabase(server, template, "of_kept_tests")
    try:
        await kept.ready()
        before = await _rows(kept)
        leaving = await asyncpg.connect(kept.dsn)
        await leaving.execute(left)
        transaction = leaving.transaction()
        await transaction.start()
        await leaving.execute("LOCK TABLE devices")  # and does not come to its end
        await kept.clean()
        await kept.ready()
        assert leaving.is_closed() or await _is_cut(leaving)
        assert await _rows(kept) == before
    finally:
        await kept.close()


async def _is_cut(connection: asyncpg.Connection) -> bool:
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    return True


async def _rows(kept: KeptDatabase) -> tuple[object, ...]:
    reader = await asyncpg.connect(kept.dsn)
    try:
        columns = await reader.fetchval(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'devices'::regclass"
        )
        return (*await reader.fetchrow(ROWS), columns)
    finally:
        await reader.close()
