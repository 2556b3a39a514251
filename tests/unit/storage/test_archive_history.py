"""History over the seam between an archive and the log is what the whole log would say."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from storage_rows import reading, registration

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.metrics import TEXT
from sensorium.actors.placement import SHARDS, shard_of
from sensorium.actors.records import Commit, ReadingRow
from sensorium.storage import History, PgLog, PgMembership
from sensorium.storage._history_sql import AGGREGATIONS
from sensorium.storage.archive import FUTURE_MS, ArchivedPoint, ArchivedRow, Question, merged, range_ns
from sensorium.storage.database import Pool, acquired
from sensorium.storage.influx_lines import point_ns
from sensorium.storage.partitions import create

pytestmark = pytest.mark.database
H, D = 3_600_000, 86_400_000
DEVICES = ("d1", "d2")
UNPROJECTED = 15


class MemoryArchive:
    """Answers from rows, a figure of its own for each value."""

    projection = "influxdb"

    def __init__(self, rows: Sequence[tuple[str, ReadingRow]]) -> None:
        self._rows = rows
        self.asked = 0

    async def points(
        self,
        device_id: str,
        start_ns: int,
        end_ns: int,
        metrics: Sequence[str] | None,
        limit: int,
        newest_first: bool,
    ) -> list[ArchivedPoint]:
        self.asked += 1
        found = []
        for owner, row in self._rows:
            ns = point_ns(row.time_ms, row.offset)
            if owner == device_id and start_ns <= ns < end_ns:
                values = {n: v for n, v in said(row) if metrics is None or n in metrics}
                if values:
                    found.append(ArchivedPoint(ns, values, row.flags))
        return sorted(found, key=lambda point: point.ns, reverse=newest_first)[:limit]

    async def aggregate(self, question: Question, start_ms: int, end_ms: int) -> list[ArchivedRow]:
        self.asked += 1
        found: dict[Any, ArchivedRow] = {}
        # Of equally old values the one that stands first or last in the log counts, as it does in an archive.
        newest_first = question.aggregation == "first"
        ends = question.aggregation in ("first", "last")
        rows = sorted(self._rows, key=lambda r: (r[1].time_ms, r[1].offset), reverse=newest_first)
        for number, (owner, row) in enumerate(rows):
            if owner != question.device_id and question.device_id is not None:
                continue
            if not start_ms <= row.time_ms < end_ms:
                continue
            bucket_ms = None
            if question.every_ns is not None:
                every_ms = question.every_ns // 1_000_000
                bucket_ms = row.time_ms // every_ms * every_ms
            for (name, value), kind in zip(said(row), row.metric_set.kinds, strict=True):
                if question.metrics is not None and name not in question.metrics:
                    continue
                key = (owner, bucket_ms, name, kind, None if ends else number)
                first_ms = min(row.time_ms, found[key].first_at_ms) if key in found else row.time_ms
                at = (owner, bucket_ms, first_ms, row.time_ms, name, kind, 1)
                if kind == TEXT:
                    found[key] = ArchivedRow(*at, first_text=str(value), last_text=str(value))
                else:
                    found[key] = ArchivedRow(*at, *[float(value)] * 5)
        return list(found.values())


def said(row: ReadingRow) -> list[tuple[str, Any]]:
    return list(zip(row.metric_set.names, row.values, strict=True))


@pytest.fixture
async def world(dsn: str, pool: Pool) -> tuple[Pool, list[tuple[str, ReadingRow]], int]:
    """Readings of six days of commits, with event times around them; and where retention will cut."""
    rng = random.Random(11)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    today_ms = int(today.timestamp() * 1000)
    kept_from_ms = today_ms - 3 * D
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    rows: list[tuple[str, ReadingRow]] = []
    commits: list[tuple[int, int, int]] = []
    for device in DEVICES:
        for offset in range(1, 201):
            committed_ms = today_ms - 6 * D + offset * 6 * D // 201
            if offset > 200 - UNPROJECTED:
                assert committed_ms > kept_from_ms
            late_ms = rng.choice([rng.randrange(4 * D), rng.randrange(H), -rng.randrange(20 * H)])
            # Whole seconds: so that several readings stand at one time.
            time_ms = (committed_ms - late_ms) // 60_000 * 60_000
            values = {"t": rng.uniform(-5, 30), "door": rng.random() < 0.5, "mode": rng.choice("ab")}
            row = reading(device, offset, time_ms, key=offset, **values)
            rows.append((device, row))
            commits.append((committed_ms, row.shard, offset))
    await log.commit(Commit(readings=[r for _, r in rows], registrations=[registration(d) for d in DEVICES]))
    await log.close()
    async with acquired(pool) as connection:
        for days in range(1, 8):
            await create(connection, "readings", (today - timedelta(days=days)).date())
        await connection.executemany(
            "UPDATE readings SET committed_at = $1 WHERE shard = $2 AND log_offset = $3", commits
        )
    return pool, rows, kept_from_ms


async def cut(pool: Pool, kept_from_ms: int) -> None:
    """What retention does, once the projection has read all but the last readings."""
    cursors = [0] * SHARDS
    for device in DEVICES:
        cursors[shard_of(device)] = 200 - UNPROJECTED
    async with acquired(pool) as connection:
        await connection.execute(
            "INSERT INTO projections (name, read_from, cursors) VALUES ('influxdb', $1, $2)",
            *(kept_from_ms, cursors),
        )
        assert await connection.execute("DELETE FROM readings WHERE committed_at < $1", kept_from_ms) != (
            "DELETE 0"
        )
        await connection.execute("INSERT INTO retention (kind, kept_from) VALUES ('log', $1)", kept_from_ms)


def projected(rows: Sequence[tuple[str, ReadingRow]]) -> list[tuple[str, ReadingRow]]:
    return [(device, row) for device, row in rows if row.offset <= 200 - UNPROJECTED]


async def answers(history: History, seam_ms: int) -> dict[Any, Any]:
    """Every kind of question, at ranges that lie before, over and behind the seam."""
    found: dict[Any, Any] = {}
    around = [None, seam_ms - 3 * D - 12_345, seam_ms - 7_000, seam_ms, seam_ms + D]
    for start in around:
        for end in around:
            if start is not None and end is not None and start >= end:
                continue
            for order in ("asc", "desc"):
                for metrics in (None, ["mode"]):
                    points: list[Any] = []
                    after = None
                    while True:
                        page = await history.readings("d1", start, end, metrics, 37, order, after)
                        points += page.items
                        after = page.next
                        if after is None:
                            break
                    found["points", start, end, order, str(metrics)] = points
    for aggregation in AGGREGATIONS:
        for start, end in ((None, None), (seam_ms - 2 * D - 1, seam_ms + 5 * H + 3)):
            for interval_s in (None, 90.0, 7 * 3600.0):
                key = (aggregation, start, interval_s)
                buckets = await history.aggregate("d1", start, end, None, aggregation, interval_s, 10_000)
                found["device", *key] = [(b.start_ms, approximately(b.values)) for b in buckets]
                whole = await history.aggregate_type("pump", "t", start, end, aggregation, interval_s)
                found["type", *key] = [(b.start_ms, approximately({"t": b.value}), b.devices) for b in whole]
    return found


def approximately(values: dict[str, Any]) -> dict[str, Any]:
    return {n: pytest.approx(v) if type(v) is float else v for n, v in values.items()}


@pytest.mark.slow
async def test_no_seam_is_to_be_seen(world: tuple[Pool, list[tuple[str, ReadingRow]], int]) -> None:
    pool, rows, kept_from_ms = world
    seam_ms = kept_from_ms + FUTURE_MS
    archive = MemoryArchive(projected(rows))
    history = History(pool, archive)
    before = await answers(history, seam_ms)
    assert archive.asked == 0
    assert before == await answers(History(pool), seam_ms)
    await cut(pool, kept_from_ms)
    after = await answers(history, seam_ms)
    assert archive.asked > 0
    assert after.keys() == before.keys()
    for question, answer in before.items():
        assert after[question] == answer, question
    # Without the archive much would be missing: the comparison can fail.
    assert await answers(History(pool), seam_ms) != before


async def test_the_source_is_told_and_what_is_hot_asks_nobody(
    world: tuple[Pool, list[tuple[str, ReadingRow]], int],
) -> None:
    pool, rows, kept_from_ms = world
    await cut(pool, kept_from_ms)
    archive = MemoryArchive(projected(rows))
    history = History(pool, archive)
    seam_ms = kept_from_ms + FUTURE_MS
    await history.readings("d1", seam_ms)
    hot = await history.aggregate("d1", seam_ms, None, ["t"])
    assert (archive.asked, hot.source) == (0, "raw")
    assert (await history.aggregate("d1", None, None, ["t"])).source == "mixed"
    first_ms = min(row.time_ms for _, row in rows)
    assert (await history.aggregate("d1", first_ms, kept_from_ms - 2 * D, ["t"])).source == "influxdb"


async def test_readings_that_are_dropped_in_between_are_asked_for_again(
    world: tuple[Pool, list[tuple[str, ReadingRow]], int],
) -> None:
    pool, rows, kept_from_ms = world
    await cut(pool, kept_from_ms)

    class Slow(MemoryArchive):
        async def aggregate(self, question: Question, start_ms: int, end_ms: int) -> list[ArchivedRow]:
            async with acquired(pool) as connection:
                await connection.execute("UPDATE retention SET kept_from = kept_from + interval '1 day'")
            return await super().aggregate(question, start_ms, end_ms)

    with pytest.raises(LogUnavailable, match="ask again"):
        await History(pool, Slow(projected(rows))).aggregate("d1", None, None, ["t"])


def test_what_both_have_is_taken_once() -> None:
    one, two, three = (ArchivedPoint(n, {"t": float(n)}, 0) for n in (1, 2, 3))
    assert merged([two, three], [one, two], 3, False) == [one, two, three]
    assert merged([three, two], [two, one], 2, True) == [three, two]


def test_the_range_of_the_archive_ends_at_the_seam_and_begins_behind_the_cursor() -> None:
    assert range_ns(1, 9, 5, (None, None), False) == (1_000_000, 5_000_000)
    assert range_ns(1, 4, 5, (2, 7), False) == (2_000_008, 4_000_000)
    assert range_ns(1, 9, 5, (2, 7), True) == (1_000_000, 2_000_007)
