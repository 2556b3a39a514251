"""The audit log in PostgreSQL: written with the change, chained once, and every tampering found."""

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest

from sensorium.actors.maintenance import Maintenance
from sensorium.actors.origin import Origin, asked_by
from sensorium.actors.records import AuditRow
from sensorium.storage._joined import apply
from sensorium.storage.audit_chain import AuditLog, forget, note_if_other
from sensorium.storage.audit_trail import MAX_BYTES, REDACTED, entries, record, redacted
from sensorium.storage.database import Pool, acquired, close_pool, open_pool
from sensorium.storage.maintenance import PgMaintenance
from sensorium.storage.webhooks import PgWebhooks, WebhookSpec

pytestmark = pytest.mark.database

ADA = Origin("ada", "192.0.2.7", "rest", "r-1")


@pytest.fixture
def log(pool: Pool) -> AuditLog:
    return AuditLog([pool])


@pytest.fixture
async def ten(pool: Pool, log: AuditLog) -> AuditLog:
    with asked_by(ADA):
        for number in range(10):
            await log.note("device.change", f"d-{number}", {"n": number}, {"n": number + 1})
    return log


async def tampered(pool: Pool, *statements: str) -> list[tuple[int, str]]:
    async with acquired(pool) as connection:
        await connection.execute("SET sensorium.forgets_audit = 'on'")
        for statement in statements:
            await connection.execute(statement)
    verdict = await AuditLog([pool]).verify()
    return [(fault.number, fault.detail.partition(":")[0]) for fault in verdict.faults]


async def test_a_change_and_its_entry_are_one_transaction(pool: Pool, log: AuditLog) -> None:
    with asked_by(ADA):
        window = await PgMaintenance(pool).create(Maintenance(name="pumps", device_type="pump", until_ms=1))
        assert window is not None
        with suppress(ZeroDivisionError):
            async with acquired(pool) as connection, connection.transaction():
                await record(connection, "rule.delete", "gone")
                raise ZeroDivisionError
    await PgMaintenance(pool).delete(window.maintenance_id)  # by nobody
    [entry] = (await log.page()).items
    assert (entry.by, entry.client, entry.what, entry.thing) == (
        *("ada", "192.0.2.7"),
        *("maintenance.create", window.maintenance_id),
    )
    assert entry.after["name"] == "pumps"


async def test_secrets_do_not_come_in(pool: Pool, log: AuditLog) -> None:
    with asked_by(ADA):
        await PgWebhooks(pool).put("w", "https://u:p@example.org/T0K3N", "s3cret", WebhookSpec())
    [entry] = (await log.page(what="webhook")).items
    assert entry.after["url"] == "https://example.org"
    text = await pool.fetchval("SELECT entry FROM audit")
    assert all(word not in text for word in ("s3cret", "T0K3N", "u:p"))
    assert entry.note == {"new_secret": True, "new_address": True}
    assert redacted({"a": [{"apiKey": "x", "has_token": True}], "u": "mqtt://a:b@h/c"}) == {
        "a": [{"apiKey": REDACTED, "has_token": True}],
        "u": f"mqtt://{REDACTED}@h/c",
    }


async def test_pages_and_filters(ten: AuditLog) -> None:
    first = await ten.page(limit=6)
    assert [entry.number for entry in first.items] == [10, 9, 8, 7, 6, 5]
    assert [entry.number for entry in (await ten.page(after=first.next, limit=6)).items] == [4, 3, 2, 1]
    assert [entry.thing for entry in (await ten.page(who="ada", what="device", thing="d-3")).items] == ["d-3"]
    assert (await ten.page(what="rule")).items == []
    assert (await ten.page(who="eve")).items == []
    assert (await ten.page(end_ms=0)).items == []


async def test_a_whole_chain_is_whole(ten: AuditLog) -> None:
    number, digest = await ten.head()
    verdict = await ten.verify(since_hash=digest)
    assert (verdict.checked, verdict.number, verdict.hash, verdict.faults) == (10, number, digest, ())
    assert (await ten.verify(since_hash="00" * 32)).faults != ()


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["UPDATE audit SET entry = replace(entry, 'ada', 'eve') WHERE number = 4"], 4),
        (["UPDATE audit SET who = 'eve' WHERE number = 4"], 4),
        (["UPDATE audit SET at = at + interval '1 hour' WHERE number = 4"], 4),
        (["DELETE FROM audit WHERE number = 4"], 4),
        (["DELETE FROM audit WHERE number > 8"], 9),
        (["DELETE FROM audit WHERE number = 1"], 1),
        (
            [
                "INSERT INTO audit SELECT 11, 'x', at, who, what, thing, entry, hash FROM audit"
                " WHERE number = 10",
            ],
            11,
        ),
        (
            [
                "UPDATE audit SET entry = replace(entry, 'ada', 'eve'), who = 'eve',"
                " hash = sha256((SELECT b.hash FROM audit b WHERE b.number = 3)"
                " || convert_to(replace(entry, 'ada', 'eve'), 'UTF8')) WHERE number = 4"
            ],
            5,
        ),
    ],
)
async def test_tampering_is_found_and_named(
    ten: AuditLog, pool: Pool, statements: list[str], found: int
) -> None:
    await ten.settle()
    faults = await tampered(pool, *statements)
    assert [number for number, _ in faults] == [found]


async def test_a_chain_that_was_written_anew_lacks_the_hash_kept_elsewhere(ten: AuditLog, pool: Pool) -> None:
    _, digest = await ten.head()
    await tampered(pool, "TRUNCATE audit", "UPDATE audit_head SET number = 0, hash = ''")
    with asked_by(Origin("eve")):
        await ten.note("device.change", "d-1")
    assert (await ten.verify()).faults == ()
    assert [fault.number for fault in (await ten.verify(since_hash=digest)).faults] == [0]


async def test_it_is_only_appended_to(ten: AuditLog, pool: Pool) -> None:
    await ten.settle()
    for statement in ("DELETE FROM audit", "UPDATE audit SET who = 'eve'"):
        with pytest.raises(Exception, match="only appended to"):
            await pool.execute(statement)


async def test_many_append_at_once(dsn: str) -> None:
    async with AsyncExitStack() as stack:
        pools = [await open_pool(dsn, 4) for _ in range(3)]
        for pool in pools:
            stack.push_async_callback(close_pool, pool)
        logs = [AuditLog([pool]) for pool in pools]

        async def one(number: int) -> None:
            log = logs[number % 3]
            with asked_by(ADA):
                await log.note("rule.create", str(number))
            await log.settle()

        await asyncio.gather(*(one(number) for number in range(30)))
        verdict = await logs[0].verify()
        assert (verdict.checked, verdict.faults) == (30, ())


async def test_what_a_database_away_could_not_give_is_taken_once(two_pools: list[Pool]) -> None:
    main, other = two_pools
    async with acquired(other) as connection:
        await apply(connection, entries([AuditRow("d", 1, ADA, "device.change", "d", None, None)]))
        # As if it had been chained, and the outbox not been emptied any more.
        waiting = await connection.fetch("SELECT entry_id, body FROM audit_outbox")
    log = AuditLog([main, other])
    assert await log.settle() == 1
    await other.execute("INSERT INTO audit_outbox (entry_id, body) VALUES ($1, $2)", *waiting[0])
    assert await log.settle() == 0
    assert (await log.verify()).checked == 1
    assert await other.fetchval("SELECT count(*) FROM audit_outbox") == 0


async def test_old_entries_are_forgotten_from_the_beginning(ten: AuditLog, pool: Pool) -> None:
    await ten.settle()
    async with acquired(pool) as connection:
        assert await forget(connection, 0) == 0
        assert await forget(connection, 2**42) == 10
    verdict = await ten.verify()
    assert (verdict.checked, verdict.number, verdict.faults) == (1, 11, ())
    [entry] = (await ten.page()).items
    assert (entry.what, entry.by, entry.note) == ("audit.forget", "retention", {"entries": 10})


async def test_a_setting_is_noted_when_it_is_another(dsn: str, log: AuditLog) -> None:
    for value, kept in (({"a": 1}, True), ({"a": 1}, False), ({"a": 2}, True)):
        assert await note_if_other(dsn, "configuration.change", "configuration", value, ADA) is kept
    newest, first = (await log.page()).items
    assert (newest.before, newest.after, first.before) == ({"a": 1}, {"a": 2}, None)


async def test_long_and_odd_values_are_bounded(pool: Pool, log: AuditLog) -> None:
    with asked_by(ADA):
        await log.note("twin.change", "d", {"x": "a" * MAX_BYTES}, {"nul": "a\0b\ud800"})
    [entry] = (await log.page()).items
    assert set(entry.before["left_out"]) == {"size_bytes", "sha256"}
    assert entry.after["nul"].startswith("a\ufffdb")
    assert (await log.verify()).faults == ()
