"""Anomalies in PostgreSQL: written with a commit, replaced by id, read by pages, forgotten when old."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest
from rolled_up import rolled_up
from storage_rows import NOON_MS, anomaly, reading, registration

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.peer_watch import HourMean
from sensorium.actors.records import Commit
from sensorium.storage import PgLog, PgMembership
from sensorium.storage.anomalies import Anomalies
from sensorium.storage.database import Pool, acquired
from sensorium.storage.peer_means import PeerMeans
from sensorium.storage.retention import forget_anomalies

pytestmark = pytest.mark.database
HOUR_MS = 3_600_000


@pytest.fixture
async def log(dsn: str, pool: Pool) -> AsyncIterator[PgLog]:
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield log
    await log.close()


async def test_what_is_committed_is_read_newest_first(log: PgLog, pool: Pool) -> None:
    rows = [
        anomaly(0, end_ms=NOON_MS + 1000, end_reason="quiet", readings=3),
        anomaly(1, severity="major", score=0.9, end_ms=NOON_MS + 3 * HOUR_MS, end_reason="gap"),
        anomaly(2, detector="peers", peers=7, severity="critical", score=0.99),
        anomaly(3, metric="u"),
        anomaly(4, device_id="b1"),
    ]
    await log.commit(Commit(registrations=[registration("a1", "pump")], anomalies=rows))
    anomalies = Anomalies([pool])
    assert (await anomalies.page("a1")).items == rows[3::-1]
    assert (await anomalies.page("nobody")).items == []
    first = await anomalies.page("a1", limit=3)
    rest = await anomalies.page("a1", after=first.next, limit=3)
    assert (first.items + rest.items, rest.next) == (rows[3::-1], None)
    for asked, expected in (
        ({"detector": "peers"}, [2]),
        ({"metric": "u"}, [3]),
        ({"min_score": 0.9}, [2, 1]),
        ({"severity": "major"}, [2, 1]),
        ({"ongoing": True}, [3, 2]),
        ({"ongoing": False}, [1, 0]),
        # It touches the range when it goes on into it.
        ({"start_ms": NOON_MS + 2 * HOUR_MS + 1, "end_ms": NOON_MS + 3 * HOUR_MS}, [2, 1]),
        ({"end_ms": NOON_MS + 1}, [0]),
    ):
        assert (await anomalies.page("a1", **asked)).items == [rows[n] for n in expected], asked
    with pytest.raises(InvalidMessage):
        await anomalies.page("a1", after=["x", 1])


async def test_the_last_of_one_id_counts_in_a_commit_and_after_it(log: PgLog, pool: Pool) -> None:
    began = anomaly(0)
    worse = msgspec.structs.replace(began, score=0.97, severity="critical", value=99.0, readings=2)
    ended = msgspec.structs.replace(worse, end_ms=NOON_MS + 5, end_reason="quiet")
    anomalies = Anomalies([pool])
    await log.commit(Commit(anomalies=[began, worse]))
    assert (await anomalies.page("a1")).items == [worse]
    assert await anomalies.open_of("ensemble", ["a1", "b1"]) == [worse]
    await log.commit(Commit(anomalies=[ended]))
    assert (await anomalies.page("a1")).items == [ended]
    assert await anomalies.open_of("ensemble", ["a1", "b1"]) == []


async def test_those_that_have_ended_are_forgotten_with_the_raw_days(log: PgLog, pool: Pool) -> None:
    rows = [anomaly(0, end_ms=NOON_MS + 5, end_reason="quiet"), anomaly(1), anomaly(9, end_ms=NOON_MS * 2)]
    await log.commit(Commit(anomalies=rows))
    async with acquired(pool) as connection:
        when = datetime.fromtimestamp((NOON_MS + 24 * HOUR_MS) / 1000, UTC)
        assert await forget_anomalies(connection, when) == 1
    assert (await Anomalies([pool]).page("a1")).items == [rows[2], rows[1]]


async def test_means_of_an_hour_come_from_the_rollups(log: PgLog, pool: Pool, dsn: str) -> None:
    devices = [registration(d, "pump", place="x") for d in ("a1", "a2")]
    rows = [reading("a1", 1, NOON_MS + 5, 1, t=10.0), reading("a1", 2, NOON_MS + 9, 2, t=20.0, on=True)]
    rows += [reading("a2", 1, NOON_MS + HOUR_MS, 1, t=7.0)]
    await log.commit(Commit(readings=rows, registrations=devices))
    await rolled_up(dsn, 3)
    means = PeerMeans([pool])
    assert await means.types() == ["pump"]
    assert await means.means("pump", NOON_MS) == [HourMean("a1", "pump", None, {"place": "x"}, "t", 15.0)]
    assert [m.mean for m in await means.means("pump", NOON_MS + HOUR_MS)] == [7.0]
    await log.commit(Commit(anomalies=[anomaly(1, detector="peers"), anomaly(2)]))
    assert await means.standing("peers", "pump") == [anomaly(1, detector="peers")]
    assert await means.standing("peers", "valve") == []
