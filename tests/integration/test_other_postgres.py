"""`DEVICE_DB_URL`: the log in a PostgreSQL of Debian's: over TLS, behind PgBouncer, on a standby."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from certificates import issue
from postgres_server import (
    PASSWORD,
    Server,
    needs_pgbouncer,
    needs_postgres,
    pgbouncer,
    server,
)

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import GetLatest, Reading, Register
from sensorium.storage import (
    History,
    PgHostPorts,
    PgMembership,
    close_pool,
    migrate,
    open_pool,
)
from sensorium.storage.checkup import UnsuitableDatabase, check_server
from sensorium.storage.claim import Claim, DatabaseClaimed, Role
from sensorium.storage.database import connect

pytestmark = [pytest.mark.database, pytest.mark.slow, needs_postgres]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as it:
        yield it


@pytest.fixture
async def fresh(postgres: Server) -> AsyncIterator[str]:
    """The URL of an empty database in it."""
    admin = await asyncpg.connect(postgres.url())
    await admin.execute("CREATE DATABASE fresh")
    yield postgres.url(database="fresh")
    await admin.execute("DROP DATABASE fresh WITH (FORCE)")
    await admin.close()


@asynccontextmanager
async def host_on(dsn: str) -> AsyncIterator[DeviceHost]:
    """A host of all shards at work on the database, which it migrates."""
    await migrate(dsn)
    pool = await open_pool(dsn, 2)
    member = await PgMembership(pool).join("host-0")
    members = await PgMembership(pool).read()
    assert [m.incarnation for m in members.alive] == [member]
    assert members.claimable_in_s == 0.0
    host = DeviceHost("host-0", member, range(1024), PgHostPorts(dsn), HostSettings())
    await host.start()
    yield host
    await host.stop()
    await close_pool(pool)


async def stored(dsn: str, device: str = "a") -> list[float]:
    pool = await open_pool(dsn, 1)
    page = await History(pool).readings(device, None, None, None, 100, "asc", None)
    await close_pool(pool)
    return [point.values["temperature"] for point in page.items]


async def read(host: DeviceHost, number: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    await host.answer(Reading("a", now_ms, now_ms, number, 0, [float(number)]), ("temperature",))


async def read_at_last(host: DeviceHost, number: int) -> None:
    """As a sender does: again, until it is acknowledged."""
    while True:
        try:
            return await read(host, number)
        except LogUnavailable:
            await asyncio.sleep(0.1)


async def works_on(dsn: str) -> None:
    """Registers a device, sends it readings, and finds them."""
    async with host_on(dsn) as host:
        await host.answer(Register("a", "climate"))
        for number in range(10):
            await read(host, number)
        latest = await host.answer(GetLatest("a"))
        assert latest.metrics["temperature"].value == 9.0
    assert await stored(dsn) == [float(n) for n in range(10)]


async def test_a_host_works_on_it(fresh: str) -> None:
    await works_on(fresh)


async def test_a_wrong_password_is_said_without_showing_it(postgres: Server) -> None:
    with pytest.raises(LogUnavailable) as caught:
        await migrate(postgres.url(password="hunter2"))
    assert "hunter2" not in str(caught.value)


async def test_ten_nodes_migrate_one_empty_database_at_once(fresh: str) -> None:
    applied = sorted(await asyncio.gather(*(migrate(fresh) for _ in range(10))))
    assert applied[:-1] == [0] * 9
    assert applied[-1] > 0
    assert await migrate(fresh) == 0


@needs_pgbouncer
async def test_a_host_works_behind_pgbouncer(postgres: Server) -> None:
    with pgbouncer(postgres, pool_size=20) as url:
        assert await check_server(url, 20) == []
        await works_on(url)
        connection = await connect(url)
        assert await connection.fetchval("SHOW statement_timeout") == "10s"
        await connection.close()


@needs_pgbouncer
async def test_a_claim_behind_pgbouncer_ends_with_whoever_held_it(postgres: Server) -> None:
    with pgbouncer(postgres, pool_size=20) as url:
        await migrate(url)
        first, second = Claim(url, Role.PLATFORM), Claim(url, Role.PLATFORM)
        await first.hold()
        with pytest.raises(DatabaseClaimed):
            await second.hold()
        await first.close()
        await second.hold()
        await second.close()


async def test_tls_is_used_and_the_server_must_prove_who_it_is() -> None:
    authority, stranger = issue("sensorium test CA"), issue("another CA")
    it = Server(ssl="on", ssl_cert_file="../server.pem", ssl_key_file="../server.key")
    try:
        cert, key = issue("127.0.0.1", authority).write(it.directory, "server")
        for path in (cert, key):
            it.write(path.name, path.read_bytes())
        roots = {who: one.write(it.directory, who)[0] for who, one in (("ca", authority), ("no", stranger))}
        it.write("data/pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n")
        it.start()
        trusted = f"{it.url()}?sslmode=verify-full&sslrootcert={roots['ca']}"
        await works_on(trusted)
        connection = await connect(trusted)
        assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        await connection.close()
        with pytest.raises(LogUnavailable, match=r"(?i)certificate verify failed"):
            await connect(f"{it.url()}?sslmode=verify-full&sslrootcert={roots['no']}")
        with pytest.raises(LogUnavailable, match="no encryption"):
            await connect(f"{it.url()}?sslmode=disable")
    finally:
        it.close()


async def test_a_host_goes_on_with_the_standby_that_is_promoted() -> None:
    """Synchronous replication: what was acknowledged is on the standby, and is found there."""
    # pg_basebackup, which makes the standby, commits nothing that would have to wait for one.
    with server(synchronous_standby_names="*") as primary, server(of=primary) as standby:
        with pytest.raises(UnsuitableDatabase, match="is a standby"):
            await check_server(standby.url(), 10)
        place = f"127.0.0.1:{primary.port}"
        both = primary.url().replace(place, f"{place},127.0.0.1:{standby.port}")
        async with host_on(f"{both}?target_session_attrs=read-write") as host:
            await host.answer(Register("a", "climate"))
            await read(host, 1)
            primary.kill()
            with pytest.raises(LogUnavailable):
                await read(host, 2)
            await asyncio.to_thread(standby.promote)
            async with asyncio.timeout(30):
                await read_at_last(host, 3)
            assert (await host.answer(GetLatest("a"))).metrics["temperature"].value == 3.0
        assert await stored(standby.url()) == [1.0, 3.0]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("REVOKE ALL ON SCHEMA public FROM public", "lets little create no tables: GRANT CREATE, USAGE"),
        ("REVOKE TEMPORARY ON DATABASE fresh FROM public", "lets little create no temporary tables"),
        ("ALTER ROLE little SET default_transaction_read_only = on", "is read-only"),
    ],
)
async def test_a_missing_right_is_one_line(postgres: Server, fresh: str, statement: str, said: str) -> None:
    admin = await asyncpg.connect(fresh)
    await admin.execute("CREATE ROLE little LOGIN PASSWORD 'little'")
    try:
        await admin.execute("GRANT CREATE, USAGE ON SCHEMA public TO public")
        little = postgres.url("little", "little", "fresh")
        assert await check_server(little, 10) == []
        await admin.execute(statement)
        with pytest.raises(UnsuitableDatabase) as caught:
            await check_server(little, 10)
        (line,) = str(caught.value).splitlines()
        assert line.startswith("the database fresh ")
        assert said in line
    finally:
        await admin.execute("DROP OWNED BY little")
        await admin.execute("DROP ROLE little")
        await admin.close()


async def test_what_is_dangerous_or_scarce_is_said_and_it_starts_all_the_same() -> None:
    with server(fsync="off", synchronous_commit="off", max_connections="13") as it:
        fsync, commits, scarce = await check_server(it.url(), 40)
        assert fsync == "the database postgres has fsync off: a crash of its machine can destroy it"
        assert "synchronous_commit off" in commits
        assert "grants 10 connections" in scarce
        assert "40" in scarce


async def test_another_encoding_is_refused(postgres: Server) -> None:
    admin = await asyncpg.connect(postgres.url())
    await admin.execute(
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    with pytest.raises(UnsuitableDatabase, match="encoded in LATIN1"):
        await check_server(postgres.url(database="latin"), 10)
    await admin.execute("DROP DATABASE latin")
    await admin.close()


def test_the_password_is_one_that_has_to_be_escaped() -> None:
    assert not PASSWORD.isalnum()
