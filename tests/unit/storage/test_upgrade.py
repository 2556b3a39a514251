"""From the oldest schema that ever held data to the present one: everything is there and goes on."""

from collections.abc import AsyncIterator

import pytest
from storage_rows import reading
from tests.old_schema import EXPECTED, SCHEMA, fill
from tests.unit.storage.conftest import copied

from sensorium.actors.device import Shard, Surroundings
from sensorium.actors.placement import shard_of
from sensorium.actors.records import Commit
from sensorium.actors.recovery import activate
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.alarms import Alarms
from sensorium.storage.audit_chain import AuditLog
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.dead_letters import DeadLetters
from sensorium.storage.embedded import EmbeddedPostgres
from sensorium.storage.events import Events
from sensorium.storage.history import History
from sensorium.storage.migrate import migrate, migrations
from sensorium.storage.registry import PgRegistry
from sensorium.storage.rule_versions import RuleVersions
from sensorium.storage.rules import PgRules

pytestmark = pytest.mark.database


@pytest.fixture
async def old(server: EmbeddedPostgres) -> AsyncIterator[str]:
    async with copied(server, "template0", "of_the_oldest_schema") as dsn:
        await fill(dsn)
        yield dsn


async def test_everything_is_there_after_all_steps(old: str) -> None:
    assert await migrate(old) == len(migrations()) - SCHEMA
    assert await migrate(old) == 0
    pool = await open_pool(old)
    try:
        log = PgLog(old, await PgMembership(pool).join("host-0"))
        for stored in await log.load(sorted(EXPECTED)):
            expected = EXPECTED[stored.device_id]
            head = (await log.open([shard_of(stored.device_id)]))[shard_of(stored.device_id)]
            assert head == expected["head"]
            device = activate(stored, Shard(shard_of(stored.device_id), head), Surroundings())
            latest = device.newest_values()
            assert latest is not None
            for metric, (value, time_ms) in expected["latest"].items():
                assert (latest.metrics[metric].value, latest.metrics[metric].time_ms) == (value, time_ms)
            assert [alarm.alarm_id for alarm in device.alarms.values()] == expected["alarms"]
            window = device.window("temperature")
            assert window is not None
            figures = (window.count, window.sum, window.stddev, window.first, window.last)
            assert figures == pytest.approx(expected["window"])
            page = await History(pool).readings(stored.device_id, None, None, None, 1000, "asc", None)
            assert len(page.items) == expected["readings"]
            # Redelivered from before the upgrade: known still.
            assert device.seen.holds(*((page.items[-1].time_ms), page_key(expected)))
        assert len((await Alarms(pool).page()).items) == 2
        assert len((await DeadLetters(pool).page()).items) == 2
        registered = await PgRegistry(pool).get("sensor-001")
        assert registered is not None
        assert registered.metadata == {"floor": 2, "site": "a"}
        assert [event.kind for event in (await Events([pool]).page("sensor-002", order="asc")).items] == [
            *("registered", "alarm_raised", "alarm_cleared"),
        ]
        [rule] = await PgRules(pool).list()
        assert await RuleVersions(pool).get(rule.rule_id, rule.version) is not None
        await log.commit(Commit(readings=[reading("sensor-001", 42, 1_704_112_860_000, 99, temperature=1.0)]))
        await log.close()
        assert (await AuditLog([pool]).verify()).faults == ()
    finally:
        await close_pool(pool)


def page_key(expected: dict[str, object]) -> int:
    """The key that the newest reading was written with: its number."""
    return int(str(expected["readings"]))
