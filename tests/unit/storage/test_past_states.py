"""A device as it was: at random times equal to what the living device was then."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from storage_rows import NOON_MS

from sensorium.actors.device import Device, Shard, Surroundings
from sensorium.actors.errors import NoHistory
from sensorium.actors.messages import (
    ActOnAlarm,
    CancelCommand,
    ChangeTwin,
    ClaimCommand,
    EraseData,
    Message,
    Patch,
    PresenceSaid,
    Reading,
    Register,
    SendCommand,
)
from sensorium.actors.placement import SHARDS, shard_of
from sensorium.actors.ports import Rehoming
from sensorium.actors.profile import Profile, Profiles, WindowSpec
from sensorium.actors.records import EventRow
from sensorium.actors.recovery import activate, take_snapshot
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Operator, RuleSpec, Threshold
from sensorium.actors.turns import Work, run
from sensorium.actors.whole import WholeDevice, whole
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.compaction import compact
from sensorium.storage.database import Pool, acquired
from sensorium.storage.erasures import carry_on
from sensorium.storage.partitions import attached
from sensorium.storage.past_states import PastStates
from sensorium.storage.rules import PgRules

pytestmark = pytest.mark.database

ID = "d-1"
HOME = shard_of(ID)
PROFILES = Profiles(Profile(windows=(WindowSpec(60.0, 5.0), WindowSpec(600.0, 60.0)), lateness_s=120.0))
SECOND_MS = 1_000


class Living:
    """A device whose turns are committed, as a host would, with its past on the side."""

    def __init__(self, log: PgLog, pool: Pool, around: Surroundings) -> None:
        self._log = log
        self._pool = pool
        self._around = around
        self.device = Device(ID, Shard(shard_of(ID), 0))
        self.past: list[tuple[int, WholeDevice]] = []

    async def __call__(self, message: Message, names: tuple[str, ...] = ()) -> Any:
        turns = run([Work([message], [names])], {ID: self.device}, self._around, await self._now_ms(), set())
        await self._log.commit(turns.commit)
        if self.device.registration is not None:
            # Two commits in the same millisecond could not be told apart by a time in milliseconds.
            now_ms = await self._now_ms()
            self.past.append((now_ms, whole(self.device)))
            while await self._now_ms() <= now_ms + 1:
                await asyncio.sleep(0.001)
        return turns.outcomes.get(0)

    async def save(self, again: bool) -> None:
        """Write the state behind; with `again`, forget the device and activate it from the log."""
        await self._log.save([take_snapshot(self.device)], {})
        if again:
            [stored] = await self._log.load([ID])
            self.device = activate(stored, self.device.shard, self._around)

    async def move(self) -> None:
        """To a dedicated shard or back, as a host would."""
        await self._log.claim([HOME])
        left = self.device.shard
        to = Shard(SHARDS if left.number == HOME else HOME, 0)
        [to.head] = (await self._log.open([to.number])).values()
        rows = await self._pool.fetch(
            "SELECT shard, epoch FROM assignments WHERE shard = ANY($1::int[])", [left.number, to.number]
        )
        to.head += 1
        snapshot = take_snapshot(self.device)._replace(shard=to.number, offset=to.head)
        event = EventRow(to.number, to.head, self.device.key, NOON_MS, "isolation", b"{}")
        heads = {left.number: left.head, to.number: to.head}
        await self._log.rehome(Rehoming(ID, left.number, to.number, dict(rows), heads, event, snapshot))
        [stored] = await self._log.load([ID])
        self.device = activate(stored, to, self._around)

    async def _now_ms(self) -> int:
        found: int = await self._pool.fetchval("SELECT clock_timestamp()")
        return found


@pytest.fixture(autouse=True)
def _keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.storage._write.KEEP_EVERY_S", 0.001)


@pytest.fixture
async def living(dsn: str, pool: Pool) -> AsyncIterator[Living]:
    spec = RuleSpec(name="hot", condition=Threshold("a", Operator.GT, 80.0))
    rule = await PgRules(pool).create(spec)
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield Living(log, pool, Surroundings(PROFILES, RuleBook([rule])))
    await log.close()


def told(state: WholeDevice) -> WholeDevice:
    """Without what no event tells of: when a command may be told, and until when; an alarm's counts."""
    commands = [
        msgspec.structs.replace(command, ready=False, due_ms=None, updated_ms=0) for command in state.commands
    ]
    uncounted = {"met": 0, "readings": 0, "last_met_ms": None, "last_reading_ms": None}
    alarms = [msgspec.structs.replace(alarm, **uncounted) for alarm in state.alarms]
    return msgspec.structs.replace(state, commands=commands, alarms=alarms)


def anything(rng: random.Random, n: int, alarms: list[str]) -> tuple[Message, tuple[str, ...]]:
    number = f"c-{rng.randrange(n + 1)}"
    at_ms = NOON_MS + n * 7 * SECOND_MS - rng.choice((0, 0, 0, 30, 300)) * SECOND_MS
    names = tuple(rng.sample(("a", "b", "c"), rng.randint(1, 3)))
    values: list[Any] = [float(rng.randrange(100)) for _ in names]
    choices: list[Message] = [
        *([Reading(ID, at_ms, at_ms, n, 0, values)] * 12),
        Patch(ID, metadata={"floor": n}),
        SendCommand(ID, f"c-{n}", "reboot", {"n": n}, 60_000, 10**13),
        ClaimCommand(ID, number, 1),
        CancelCommand(ID, number),
        ChangeTwin(ID, {"rate": n}),
        ChangeTwin(ID, None, {"rate": n}),
        PresenceSaid(ID, rng.random() < 0.5),
        *(ActOnAlarm(ID, alarm, rng.choice(("ack", "unack", "comment")), "ada", "x") for alarm in alarms),
    ]
    return rng.choice(choices), names


SEEDS = [
    pytest.param(0.0, 1, id="in its shard", marks=pytest.mark.slow),
    pytest.param(0.08, 1_559_482_905, id="with more commands than in its own", marks=pytest.mark.slow),
    pytest.param(0.08, 2_826_917_307, id="with windows from before"),
]


@pytest.mark.parametrize(("moves", "seed"), SEEDS)
async def test_it_is_what_it_was_at_any_time(living: Living, pool: Pool, moves: float, seed: int) -> None:
    rng = random.Random(seed)
    await living(Register(ID, "pump", None, {"floor": 0}))
    for n in range(1, 100):
        await living(*anything(rng, n, [alarm.alarm_id for alarm in living.device.alarms.values()]))
        if rng.random() < 0.08:
            await living.save(rng.random() < 0.5)
        if rng.random() < moves:
            await living.move()
    states = PastStates([pool], PROFILES)
    for compacted in (False, True):
        if compacted:
            async with acquired(pool) as connection:
                for day, _ in await attached(connection, "readings"):
                    await compact(connection, day, (), asyncio.sleep)
        from_snapshots = 0
        for at_ms, was in living.past:
            found = await states.at(ID, at_ms)
            one, other = told(found.state), told(was)
            for part in WholeDevice.__struct_fields__:
                assert getattr(one, part) == getattr(other, part), f"{part} at {at_ms} of seed {seed}"
            from_snapshots += found.snapshot_ms is not None
        assert 0 < from_snapshots < len(living.past)


async def test_what_nobody_can_know_is_said(living: Living, pool: Pool) -> None:
    states = PastStates([pool], PROFILES)
    with pytest.raises(NoHistory, match="no device"):
        await states.at(ID, 2**42)
    await living(Register(ID, "pump"))
    registered_ms = living.past[0][0]
    with pytest.raises(NoHistory, match="no device"):
        await states.at(ID, registered_ms - 60_000)
    await living(Reading(ID, NOON_MS, NOON_MS, 1, 0, [1.0]), ("a",))
    await living(EraseData(ID, "j"))
    async with acquired(pool) as connection:
        while await carry_on(connection):
            pass
    with pytest.raises(NoHistory, match="deleted"):
        await states.at(ID, registered_ms)
    assert (await states.at(ID, living.past[-1][0])).state.metrics == {}
    await pool.execute("INSERT INTO retention (kind, kept_from) VALUES ('log', now() + interval '1 hour')")
    with pytest.raises(NoHistory, match="retention"):
        await states.at(ID, living.past[-1][0])


async def test_only_the_last_snapshot_of_a_day_is_kept(
    living: Living, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage._write.KEEP_EVERY_S", 86_400.0)
    await living(Register(ID, "pump"))
    await living.save(False)
    await living.save(False)
    assert await pool.fetchval("SELECT count(*) FROM kept_snapshots") == 0
    await pool.execute("UPDATE snapshots SET saved_at = saved_at - interval '1 day'")
    for _ in range(3):
        await living.save(False)
    assert await pool.fetchval("SELECT count(*) FROM kept_snapshots") == 1
