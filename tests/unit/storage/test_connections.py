"""Our connections to PostgreSQL."""

from typing import Any

import asyncpg
import pytest

from sensorium.storage import database
from sensorium.storage.database import connect

pytestmark = pytest.mark.database


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """What asyncpg asks the server of types, from a process that has asked nothing yet."""
    monkeypatch.setattr(database, "_told", {})
    asked: list[set[int]] = []
    inner = asyncpg.Connection._introspect_types

    async def introspect(self: Any, typeoids: Any, timeout: float | None) -> Any:
        asked.append(set(typeoids))
        return await inner(self, typeoids, timeout)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", introspect)
    return asked


async def test_a_process_asks_of_the_servers_own_types_once(dsn: str, questions: list[set[int]]) -> None:
    for _ in range(2):
        connection = await connect(dsn)
        try:
            assert await connection.fetchval("SELECT $1::bigint[]", [1, 2]) == [1, 2]
        finally:
            await connection.close()
    assert len(questions) == 1


async def test_types_of_a_database_are_asked_of_each_connection(dsn: str, questions: list[set[int]]) -> None:
    """Their numbers mean something else elsewhere."""
    for labels in ("'low', 'high'", "'high', 'low'"):
        connection = await connect(dsn)
        try:
            await connection.execute(f"CREATE TYPE level AS ENUM ({labels})")
            assert await connection.fetchval("SELECT $1::level[]", ["low"]) == ["low"]
            await connection.execute("DROP TYPE level")
        finally:
            await connection.close()
    assert len(questions) == 2
