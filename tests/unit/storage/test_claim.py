"""One platform a database: who is refused, who takes over from whom, and what a lost connection means."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from sensorium.actors.errors import Fenced
from sensorium.storage import DatabaseClaimed, PgMembershipFactory
from sensorium.storage.claim import Claim, KeptClaim, Role, await_no_other_runtime
from sensorium.storage.database import Pool, acquired, connect

pytestmark = pytest.mark.database


@pytest.fixture
async def platform(dsn: str) -> AsyncIterator[Claim]:
    """The claim of a platform that runs."""
    claim = Claim(dsn, Role.PLATFORM)
    await claim.hold()
    yield claim
    await claim.close()


async def end_sessions(dsn: str, role: Role) -> None:
    """Cut those that hold the claim, as a server that starts again does."""
    admin = await connect(dsn)
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1",
        f"sensorium-{role.name.lower()}-claim",
    )
    await admin.close()


async def test_a_second_is_refused_with_who_holds_it(dsn: str, platform: Claim) -> None:
    second = Claim(dsn, Role.PLATFORM)
    with pytest.raises(DatabaseClaimed) as refused:
        await second.hold()
    told = str(refused.value)
    assert "\n" not in told
    assert f"is in use by the platform on {socket.gethostname()} (pid {os.getpid()}) since 20" in told
    await platform.hold()
    await platform.close()
    await second.hold()
    await second.close()


async def test_another_database_of_the_server_is_free(dsn: str, module_dsn: str, platform: Claim) -> None:
    other = Claim(module_dsn, Role.PLATFORM)
    await other.hold()
    await other.close()


async def test_one_that_has_not_written_its_name_yet_is_refused_too(dsn: str) -> None:
    starting = await connect(dsn)
    await starting.execute("SELECT pg_advisory_lock($1)", Role.PLATFORM.value)
    with pytest.raises(DatabaseClaimed, match="just starting"):
        await Claim(dsn, Role.PLATFORM).hold()
    await starting.close()


async def test_it_takes_an_unmigrated_database(dsn: str, pool: Pool) -> None:
    await pool.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    claim = Claim(dsn, Role.PLATFORM)
    await claim.hold()
    await await_no_other_runtime(claim, "here", 0)
    with pytest.raises(DatabaseClaimed):
        await Claim(dsn, Role.PLATFORM).hold()
    await claim.close()


async def test_a_connection_that_broke_is_made_anew(dsn: str, platform: Claim) -> None:
    await end_sessions(dsn, Role.PLATFORM)
    await platform.hold()
    with pytest.raises(DatabaseClaimed):
        await Claim(dsn, Role.PLATFORM).hold()


async def test_whoever_lost_it_to_another_is_told(dsn: str, platform: Claim) -> None:
    keeping = asyncio.create_task(platform.keep())
    second = Claim(dsn, Role.PLATFORM)
    await end_sessions(dsn, Role.PLATFORM)
    await second.hold()
    with pytest.raises(DatabaseClaimed, match="is in use by"):
        async with asyncio.timeout(10):
            await keeping
    await second.close()


async def test_our_own_lost_session_is_cut(dsn: str, platform: Claim) -> None:
    """The network broke: we know it, the server does not yet."""
    connection, platform._connection = platform._connection, None
    assert connection is not None
    closed = asyncio.Event()
    connection.add_termination_listener(lambda _: closed.set())
    await platform.hold()
    async with asyncio.timeout(5):
        await closed.wait()


async def test_a_runtime_of_the_same_cluster_takes_over_and_keeps_its_hosts(dsn: str, pool: Pool) -> None:
    first = await PgMembershipFactory(dsn, "cluster-a", "10.0.0.1:6379")()
    host = await first.join("host-0")
    second = await PgMembershipFactory(dsn, "cluster-a", "10.0.0.1:6379")()
    assert [row.incarnation for row in await second.alive()] == [host]
    await second.close()
    await first.close()


async def test_a_runtime_of_another_cluster_is_refused_then_fences_what_was_left(
    dsn: str, pool: Pool
) -> None:
    first = await PgMembershipFactory(dsn, "cluster-a", "10.0.0.1:6379")()
    await first.join("host-0")
    factory = PgMembershipFactory(dsn, "cluster-b", "10.0.0.2:6379")
    with pytest.raises(DatabaseClaimed, match="in use by the runtime on"):
        await factory()
    await first.close()
    second = await factory()
    assert await second.alive() == []
    await second.join("host-7")
    await second.close()


async def test_a_runtime_that_lost_its_claim_lets_nobody_in(dsn: str, pool: Pool) -> None:
    first = await PgMembershipFactory(dsn, "cluster-a")()
    incarnation = await first.join("host-0")
    await end_sessions(dsn, Role.RUNTIME)
    second = Claim(dsn, Role.RUNTIME, "cluster-b")
    await second.hold()
    with pytest.raises(DatabaseClaimed):
        await first.join("host-0")
    with pytest.raises(DatabaseClaimed):
        await first.fence(incarnation)
    await first.close()
    await second.close()
    with pytest.raises(Fenced):
        async with acquired(pool) as connection:
            await connection.execute("SELECT sensorium_check_fence($1)", incarnation)


async def test_a_platform_waits_for_the_runtime_of_a_killed_one(dsn: str, platform: Claim) -> None:
    left = KeptClaim(Claim(dsn, Role.RUNTIME, "cluster-a", "10.0.0.1:6379"))
    await left.hold()
    await await_no_other_runtime(platform, "cluster-a", 0)
    with pytest.raises(DatabaseClaimed, match=r"on the Ray cluster 10\.0\.0\.1:6379 and use this database"):
        await await_no_other_runtime(platform, "cluster-b", 0)
    waiting = asyncio.create_task(await_no_other_runtime(platform, "cluster-b", 10))
    await left.close()
    await waiting
