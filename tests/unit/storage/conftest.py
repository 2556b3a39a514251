"""The stores that the contract tests run over: memory always, PostgreSQL where it is asked for."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from kept_database import KeptDatabase, of_database
from storage_stores import MemoryPorts, PostgresPorts, SpreadPorts, Store

from sensorium.storage.database import Pool, close_pool, open_pool
from sensorium.storage.embedded import EmbeddedPostgres
from sensorium.storage.migrate import migrate

SHARED_MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2 << 30
"""What must be free in memory for the servers of the tests to stand there."""


def _quick_place() -> Path | None:
    """Memory, where a database is copied thirty times as fast; None takes the usual temporary directory."""
    if not os.access(SHARED_MEMORY, os.W_OK) or shutil.disk_usage(SHARED_MEMORY).free < MEMORY_BYTES:
        return None
    return SHARED_MEMORY


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    settings = {"shared_buffers": "64MB", "fsync": "off", "max_wal_size": "256MB", "min_wal_size": "32MB"}
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-test-", dir=_quick_place()) as directory,
        EmbeddedPostgres(f"{directory}/pg", settings) as running,
    ):
        yield running


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """An empty directory. Not pytest's own, which each run of it closes to the server's user again."""
    with tempfile.TemporaryDirectory(prefix="sensorium-test-", dir=_quick_place()) as name:
        yield Path(name)


@pytest.fixture(scope="session")
async def template(server: EmbeddedPostgres) -> str:
    """A migrated database's name, to copy from."""
    admin = await asyncpg.connect(server.dsn)
    await admin.execute("CREATE DATABASE sensorium_template")
    await admin.close()
    await migrate(of_database(server.dsn, "sensorium_template"))
    return "sensorium_template"


@asynccontextmanager
async def copied(server: EmbeddedPostgres, template: str, name: str) -> AsyncIterator[str]:
    admin = await asyncpg.connect(server.dsn)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    try:
        yield of_database(server.dsn, name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture(scope="session")
async def kept(server: EmbeddedPostgres, template: str) -> AsyncIterator[list[KeptDatabase]]:
    databases = [KeptDatabase(server, template, name) for name in ("of_a_test", "of_a_test_too")]
    yield databases
    for database in databases:
        await database.close()


@asynccontextmanager
async def lent(database: KeptDatabase) -> AsyncIterator[str]:
    await database.ready()
    try:
        yield database.dsn
    finally:
        await database.clean()


@pytest.fixture
async def dsn(kept: list[KeptDatabase]) -> AsyncIterator[str]:
    """A migrated, empty database of the test's own."""
    async with lent(kept[0]) as address:
        yield address


@pytest.fixture(scope="module")
async def module_dsn(server: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """A migrated, empty database for tests of one module that do not write."""
    async with copied(server, template, "of_a_module") as address:
        yield address


@pytest.fixture(scope="module")
async def module_pool(module_dsn: str) -> AsyncIterator[Pool]:
    pool = await open_pool(module_dsn)
    yield pool
    await close_pool(pool)


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    pool = await open_pool(dsn)
    yield pool
    await close_pool(pool)


@pytest.fixture
async def postgres_store(dsn: str, pool: Pool) -> AsyncIterator[Store]:
    store = PostgresPorts(dsn, pool)
    yield store
    await store.close()


@pytest.fixture
async def two_dsns(kept: list[KeptDatabase], dsn: str) -> AsyncIterator[list[str]]:
    """Two migrated, empty databases of the test's own, for one log."""
    async with lent(kept[1]) as other:
        yield [dsn, other]


@pytest.fixture
async def two_pools(two_dsns: list[str]) -> AsyncIterator[list[Pool]]:
    pools = [await open_pool(dsn) for dsn in two_dsns]
    yield pools
    for pool in pools:
        await close_pool(pool)


@pytest.fixture
async def spread_store(two_dsns: list[str], two_pools: list[Pool]) -> AsyncIterator[Store]:
    store = SpreadPorts(two_dsns, two_pools)
    yield store
    await store.close()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("postgres", marks=pytest.mark.database),
        pytest.param("spread", marks=pytest.mark.database),
    ]
)
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryPorts()
    # Asked for here only, so that the fast suite starts no server.
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
