"""What happened to devices, read from the log's events."""

import msgspec
import pytest
from storage_rows import NOON_MS

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.placement import device_key, shard_of
from sensorium.actors.records import Commit, EventRow
from sensorium.storage.database import Pool
from sensorium.storage.events import Event, Events
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog

pytestmark = pytest.mark.database

KINDS = ["online", "updated", "offline", "alarm_raised", "alarmxraised"]


async def kept(dsn: str, pool: Pool) -> Events:
    """An event of each kind, two at a time."""
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    try:
        await log.commit(
            Commit(
                events=[
                    EventRow(
                        shard_of("d"),
                        n,
                        device_key("d"),
                        NOON_MS + n // 2,
                        kind,
                        b'{"n":%d,"value":1e300}' % n,
                    )
                    for n, kind in enumerate(KINDS, 1)
                ]
            )
        )
    finally:
        await log.close()
    return Events([pool])


async def test_pages_hold_every_event_once_in_either_order(dsn: str, pool: Pool) -> None:
    events = await kept(dsn, pool)
    expected = [Event(NOON_MS + n // 2, kind, {"n": n, "value": 1e300}) for n, kind in enumerate(KINDS, 1)]
    for order, wanted in (("asc", expected), ("desc", expected[::-1])):
        said, after = [], None
        while True:
            page = await events.page("d", order=order, after=after, limit=2)
            said += page.items
            after = page.next
            if after is None:
                break
        assert said == wanted
        # A page can be told as JSON: the database gives a large float back as an integer of 301 digits.
        assert msgspec.json.decode(msgspec.json.encode(said[0].body))["value"] == 1e300
    assert (await events.page("other")).items == []
    with pytest.raises(InvalidMessage, match="order"):
        await events.page("d", order="sideways")
    with pytest.raises(InvalidMessage, match="cursor"):
        await events.page("d", after=["x"])


async def test_kinds_and_times_choose(dsn: str, pool: Pool) -> None:
    events = await kept(dsn, pool)

    async def found(*kinds: str) -> list[str]:
        return [event.kind for event in (await events.page("d", kinds, order="asc")).items]

    assert await found("online", "offline") == ["online", "offline"]
    assert await found("alarm_*") == ["alarm_raised"]
    assert await found("alarm*", "updated") == ["updated", "alarm_raised", "alarmxraised"]
    assert await found("alarm_") == await found("%") == []
    assert [e.kind for e in (await events.page("d", None, NOON_MS + 1, NOON_MS + 2)).items] == [
        "offline",
        "updated",
    ]
