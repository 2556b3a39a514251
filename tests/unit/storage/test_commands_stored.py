"""Commands in PostgreSQL: written with their device's turn, read by people, told to those who wait."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from storage_rows import NOON_MS

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.records import (
    OPEN_STATES,
    Command,
    CommandState,
    CommandStep,
    Commit,
    PresenceRow,
    TwinState,
)
from sensorium.actors.twin import TWIN
from sensorium.actors.twin_documents import NOTHING
from sensorium.storage.command_notices import PgEndedCommands, PgReadyCommands
from sensorium.storage.commands import PgCommands
from sensorium.storage.database import Pool, acquired
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.retention import RetentionSettings, apply
from sensorium.storage.retention_classes import Days

pytestmark = pytest.mark.database


def command(
    command_id: str, number: int, state: str = "QUEUED", device_id: str = "d", **more: Any
) -> Command:
    step = CommandStep(CommandState(state), NOON_MS, 1, "because")
    fields: dict[str, Any] = {"parameters": {"a": [1, None, "ü"]}, "steps": (step,)} | more
    return Command(
        *(command_id, device_id, "open", fields.pop("parameters"), CommandState(state)),
        *(NOON_MS + number, NOON_MS + number, 1000, NOON_MS + 9000, number),
        **fields,
    )


@pytest.fixture
async def log(dsn: str, pool: Pool) -> Any:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


async def test_an_activated_device_has_its_open_commands_and_the_last_ended(log: PgLog) -> None:
    ended = [command(f"e{n:02}", n, "SUCCEEDED", result={"n": n}) for n in range(1, 41)]
    opened = [command("o1", 5, "DELIVERED"), command("o2", 50, ready=True)]
    presence = PresenceRow("d", False, NOON_MS)
    await log.commit(Commit(commands=[*ended, *opened], presences=[presence]))
    await log.commit(Commit(commands=[command("x", 1, device_id="other")]))
    [found] = await log.load(["d"])
    assert [c.command_id for c in found.commands] == ["o1", *[f"e{n:02}" for n in range(9, 41)], "o2"]
    assert found.commands[0] == opened[0]
    assert found.presence == presence
    assert all(c.state not in OPEN_STATES for c in found.commands[1:-1])


async def test_the_later_of_one_id_counts_and_pages_are_newest_first(log: PgLog, pool: Pool) -> None:
    commands = PgCommands(pool)
    await log.commit(Commit(commands=[command("c1", 1, ready=True), command("c1", 1, "SENT")]))
    await log.commit(Commit(commands=[command(f"c{n}", n, job_id="j", ready=n == 2) for n in range(2, 6)]))
    assert await commands.ready(10) == [("d", "c2", 1)]
    elsewhere = [command(f"s{n}", n, ready=True, downlink="coap", device_id=f"s{n}") for n in (1, 2, 3)]
    await log.commit(Commit(commands=elsewhere))
    assert await commands.ready(10) == [("d", "c2", 1)]
    assert await commands.ready(2, "coap") == [("s1", "s1", 1), ("s2", "s2", 1)]
    found = await commands.get("c1")
    assert found is not None
    assert found.state == "SENT"
    assert await commands.get("nothing\0") is None
    first = await commands.page(device_id="d", limit=3)
    rest = await commands.page(device_id="d", limit=3, after=first.next)
    assert [c.command_id for c in (*first.items, *rest.items)] == ["c5", "c4", "c3", "c2", "c1"]
    assert rest.next is None
    assert [c.command_id for c in (await commands.page(state="SENT")).items] == ["c1"]
    assert await commands.counts("j") == {"QUEUED": 4}
    with pytest.raises(InvalidMessage):
        await commands.page(after="nonsense")


async def test_retention_forgets_what_has_ended_long_ago(log: PgLog, pool: Pool) -> None:
    open_long, ended_long = command("open", 1), command("ended", 2, "FAILED")
    await log.commit(Commit(commands=[open_long, ended_long, command("new", 3_600_000, "FAILED")]))
    now = datetime.fromtimestamp(NOON_MS / 1000, UTC) + timedelta(minutes=30, days=3)
    async with acquired(pool) as connection:
        await apply(connection, RetentionSettings(Days(3)), now)
    left = await PgCommands(pool).find(["open", "ended", "new"])
    assert sorted(c.command_id for c in left) == ["new", "open"]


async def test_who_listens_hears_at_once_and_finds_the_rest_in_the_table(log: PgLog, dsn: str) -> None:
    await log.commit(Commit(commands=[command("before", 1, ready=True)]))
    ready, ended = PgReadyCommands(dsn).watch(), PgEndedCommands(dsn).watch()
    async with asyncio.timeout(20):
        assert await anext(ready) == [("d", "before", 1)]
        assert await anext(ended) is None
        many = [command(f"many-{n:03}", n, device_id=f"device-{n}", ready=True) for n in range(2, 400)]
        await log.commit(Commit(commands=[command("c2", 2, ready=True), command("c3", 3, "FAILED")]))
        assert await anext(ready) == [("d", "c2", 1)]
        assert await anext(ended) == [command("c3", 3, "FAILED")]
        await log.commit(Commit(commands=[command("c4", 4, "FAILED")], told=["c4"]))  # heard of otherwise
        await log.commit(
            Commit(commands=[command("c5", 5, "FAILED"), command("c6", 6, "FAILED")], told=["c6"])
        )
        assert await anext(ended) == [command("c5", 5, "FAILED")]
        await log.commit(Commit(commands=many))  # more than a notice takes
        assert len(list(await anext(ready))) == 400
        await log.commit(Commit(commands=[command(f"over-{n:03}", n, "FAILED") for n in range(100)]))
        assert len(list(await anext(ended))) == 100
        twin = TwinState("t", NOTHING, NOTHING, ready=True)
        asks = TwinState("u", NOTHING, NOTHING, ready=True, downlink="coap")
        await log.commit(Commit(twins=[twin, asks, TwinState("v", NOTHING, NOTHING)]))
        while not (batch := await anext(ready)):
            pass
        assert batch == [("t", TWIN, 0)]
        asking = PgReadyCommands(dsn, "coap").watch()
        assert await anext(asking) == [("u", TWIN, 0)]
        await asking.aclose()
        again = PgReadyCommands(dsn).watch()
        assert ("t", TWIN, 0) in await anext(again)
        await again.aclose()
    await ready.aclose()
    await ended.aclose()
