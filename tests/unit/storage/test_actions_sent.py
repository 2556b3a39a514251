"""From an alarm in the log to whom it concerns: at least once, by one id, whatever fails on the way."""

import asyncio
import hashlib
import hmac
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from action_receivers import HttpReceiver, Received, http_receiver, smtp_receiver
from storage_rows import alarm, event, registration

from sensorium.actors.maintenance import Maintenance
from sensorium.actors.records import Alarm, Commit
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.ingest.actions import dispatch
from sensorium.ingest.actions.carriers import Carrier
from sensorium.ingest.actions.dispatch import ActionDispatcher
from sensorium.ingest.actions.mail import EmailCarrier, SmtpSettings
from sensorium.ingest.actions.webhook import WebhookCarrier
from sensorium.storage import PgLog, PgMembership, delivery_rows
from sensorium.storage.action_sink import SETTINGS, ActionSink
from sensorium.storage.database import Pool, acquired, connect
from sensorium.storage.deliveries import Deliveries, StoredDelivery
from sensorium.storage.maintenance import PgMaintenance
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.rule_versions import RuleVersions
from sensorium.storage.rules import PgRules
from sensorium.storage.webhooks import PgWebhooks, WebhookSpec

pytestmark = pytest.mark.database

SECRET = "a-secret-of-the-receiver"


class Field:
    """A log that alarms happen in, and the way from there."""

    def __init__(self, dsn: str, pool: Pool, log: PgLog) -> None:
        self.dsn = dsn
        self.pool = pool
        self.deliveries = Deliveries([pool])
        self.webhooks = PgWebhooks(pool)
        self.rules = PgRules(pool)
        self._log = log
        self._offsets: dict[int, int] = {}

    async def rule(self, *actions: dict[str, Any], **more: Any) -> Rule:
        spec = {
            "name": "hot",
            "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 90},
            "actions": actions or ({"type": "webhook", "target": "pager"},),
            **more,
        }
        return await self.rules.create(msgspec.convert(spec, RuleSpec), "ada")

    async def webhook(self, name: str, receiver: HttpReceiver, **spec: Any) -> None:
        await self.webhooks.put(name, receiver.url, SECRET, WebhookSpec(**spec))

    async def happens(self, *alarms: Alarm, kind: str = "alarm_raised") -> None:
        """All in one commit."""
        events = []
        for one in alarms:
            row = event(one.device_id, 0, kind, msgspec.json.encode(one))
            offset = self._offsets[row.shard] = self._offsets.get(row.shard, 0) + 1
            events.append(row._replace(offset=offset))
        await self._log.commit(Commit(events=events, alarms=list(alarms)))

    async def register(self, device_id: str, **metadata: Any) -> None:
        await self._log.commit(Commit(registrations=[registration(device_id, **metadata)]))

    def of(self, rule: Rule, alarm_id: str, device_id: str = "pump-1", **other: Any) -> Alarm:
        return alarm(alarm_id, device_id, rule_id=rule.rule_id, rule_version=rule.version, **other)

    @asynccontextmanager
    async def deciding(self) -> AsyncIterator[ProjectionRunner]:
        runner = ProjectionRunner(self.dsn, SETTINGS, ActionSink(self.dsn))
        await runner.start()
        try:
            yield runner
            await runner.ping()
        finally:
            await runner.stop()

    @asynccontextmanager
    async def sending(self, **carriers: Carrier) -> AsyncIterator[ActionDispatcher]:
        given: dict[str, Carrier] = {"webhook": WebhookCarrier(self.pool), **carriers}
        dispatcher = ActionDispatcher(self.dsn, given, scale=0.05)
        await dispatcher.start()
        try:
            yield dispatcher
            dispatcher.check()
        finally:
            await dispatcher.stop()

    async def all(self, **which: Any) -> list[StoredDelivery]:
        return (await self.deliveries.page(**which)).items

    async def until(self, done: Callable[[list[StoredDelivery]], bool]) -> list[StoredDelivery]:
        async with asyncio.timeout(20):
            while not done(found := await self.all()):
                await asyncio.sleep(0.02)
        return found


@pytest.fixture
async def field(dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Field]:
    monkeypatch.setattr(dispatch, "LOOK_EVERY_S", 0.02)
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    yield Field(dsn, pool, log)
    await log.close()


def ended(count: int) -> Callable[[list[StoredDelivery]], bool]:
    return lambda found: sum(d.finished_ms is not None for d in found) >= count


async def test_a_webhook_is_told_signed_and_with_an_id(field: Field) -> None:
    async with http_receiver() as receiver, field.deciding(), field.sending():
        await field.webhook("pager", receiver)
        rule = await field.rule()
        await field.happens(field.of(rule, "a1"))
        [delivery] = await field.until(ended(1))
    [request] = receiver.received
    body = msgspec.json.decode(request.body)
    assert (delivery.state, delivery.attempts, delivery.reason) == ("DELIVERED", 1, None)
    assert request.headers["idempotency-key"] == delivery.delivery_id == body["id"]
    assert (body["transition"], body["alarm"]["alarm_id"]) == ("raised", "a1")
    stamp = request.headers["sensorium-timestamp"]
    expected = hmac.new(SECRET.encode(), stamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["sensorium-signature"] == f"v1={expected}"


async def test_the_raise_comes_before_the_end_though_it_fails_at_first(field: Field) -> None:
    answers = iter([(503, {}), (429, {}), (200, {})])
    async with (
        http_receiver(lambda _: next(answers, (200, {}))) as receiver,
        field.deciding(),
        field.sending(),
    ):
        await field.webhook("pager", receiver)
        rule = await field.rule()
        await field.happens(field.of(rule, "a1"))
        await field.happens(field.of(rule, "a1", state="CLEARED"), kind="alarm_cleared")
        found = await field.until(ended(2))
    told = [msgspec.json.decode(r.body)["transition"] for r in receiver.received]
    assert told == ["raised", "raised", "raised", "cleared"]
    assert len({r.headers["idempotency-key"] for r in receiver.received}) == 2
    assert {d.transition: d.attempts for d in found} == {"raised": 3, "cleared": 1}


async def test_who_does_not_answer_delays_nobody_else(field: Field) -> None:
    async with (
        http_receiver(lambda _: None) as silent,
        http_receiver() as well,
        field.deciding(),
        field.sending(),
    ):
        await field.webhook("silent", silent, timeout_s=0.3, max_attempts=2)
        await field.webhook("well", well)
        rule = await field.rule(
            {"type": "webhook", "target": "silent"}, {"type": "webhook", "target": "well"}
        )
        await field.happens(*(field.of(rule, f"a{n}", f"pump-{n}") for n in range(3)))
        await well.until(3)
        dead = [d for d in await field.until(ended(6)) if d.state == "DEAD"]
    assert {d.queue for d in dead} == {"webhook:silent"}
    assert {(d.attempts, d.reason) for d in dead} == {(2, "no answer within 0.3 s")}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((302, {"Location": "http://127.0.0.1:1/elsewhere"}), "answered 302: redirects are not followed"),
        ((403, {}), "answered 403"),
    ],
)
async def test_what_is_refused_is_dead_and_can_be_tried_again(
    field: Field, answer: tuple[int, dict[str, str]], reason: str
) -> None:
    answers = iter([answer])
    async with (
        http_receiver(lambda _: next(answers, (200, {}))) as receiver,
        field.deciding(),
        field.sending(),
    ):
        await field.webhook("pager", receiver)
        await field.happens(field.of(await field.rule(), "a1"))
        [dead] = await field.until(ended(1))
        assert (dead.state, dead.reason, dead.attempts) == ("DEAD", reason, 1)
        assert await field.deliveries.retry(queue="webhook:pager") == 1
        await field.until(lambda found: found[0].state == "DELIVERED")
    assert [r.headers["idempotency-key"] for r in receiver.received] == [dead.delivery_id] * 2


async def test_a_webhook_that_is_gone_or_too_small_says_so(field: Field) -> None:
    async with http_receiver() as receiver, field.deciding(), field.sending():
        await field.webhook("pager", receiver, max_body_bytes=256)
        rule = await field.rule({"type": "webhook", "target": "pager"}, {"type": "webhook", "target": "none"})
        await field.happens(field.of(rule, "a1"))
        found = await field.until(ended(2))
    reasons = {d.queue: (d.reason or "")[-17:] for d in found}
    assert reasons == {"webhook:none": "e is no webhook none"[-17:], "webhook:pager": "are more than 256"}
    assert receiver.received == []


async def test_what_was_being_sent_is_sent_again(field: Field) -> None:
    async with http_receiver() as receiver:
        await field.webhook("pager", receiver)
        async with field.deciding():
            await field.happens(field.of(await field.rule(), "a1"))
            await field.until(lambda found: len(found) == 1)
        connection = await connect(field.dsn)
        [claimed] = await delivery_rows.claim(connection, "webhook:pager", 8)
        assert await delivery_rows.claim(connection, "webhook:pager", 8) == []
        connection.terminate()
        async with field.sending():
            [delivery] = await field.until(ended(1))
    assert (delivery.delivery_id, delivery.attempts) == (claimed.delivery_id, 2)


KILLED = """
import asyncio, sys
from sensorium.ingest.actions.dispatch import ActionDispatcher
from sensorium.ingest.actions.webhook import WebhookCarrier
from sensorium.storage.database import open_pool

async def main():
    pool = await open_pool(sys.argv[1])
    await ActionDispatcher(sys.argv[1], {"webhook": WebhookCarrier(pool)}).start()
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_sender_that_is_killed_leaves_nothing_behind(field: Field) -> None:
    silent_first: list[Received] = []

    def answer(request: Received) -> tuple[int, dict[str, str]] | None:
        silent_first.append(request)
        return None if len(silent_first) == 1 else (200, {})

    async with http_receiver(answer) as receiver, field.deciding():
        await field.webhook("pager", receiver)
        await field.happens(field.of(await field.rule(), "a1"))
        sender = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, field.dsn)
        await receiver.until(1)
        sender.send_signal(signal.SIGKILL)
        await sender.wait()
        async with field.sending():
            [delivery] = await field.until(ended(1))
    assert delivery.state == "DELIVERED"
    assert [r.headers["idempotency-key"] for r in receiver.received] == [delivery.delivery_id] * 2


async def test_a_storm_is_told_once_with_counts_and_ids(field: Field) -> None:
    async with http_receiver() as receiver, field.deciding(), field.sending():
        await field.webhook("pager", receiver)
        rule = await field.rule(limits={"storm": {"count": 3, "within_s": 1}})
        await field.happens(*(field.of(rule, f"a{n:02}", f"pump-{n}") for n in range(30)))
        found = await field.until(
            lambda found: (
                any(d.transition == "storm" and d.state == "DELIVERED" for d in found)
                and ended(len(found))(found)
            )
        )
    bodies = [msgspec.json.decode(r.body) for r in receiver.received]
    assert sum(body["transition"] == "raised" for body in bodies) == 3
    [storm] = [body for body in bodies if body["transition"] == "storm"]
    assert storm["count"] == len(storm["alarm_ids"]) == len(storm["device_ids"]) == 27
    assert storm["rule_name"] == "hot"
    assert sum(d.state == "COLLAPSED" and d.summary_id == storm["id"] for d in found) == 27


async def test_limits_hold_over_a_restart_and_rewinding_tells_nothing_twice(field: Field) -> None:
    rule = await field.rule(limits={"per_device": {"count": 1, "within_s": 3600}})
    async with field.deciding():
        await field.happens(field.of(rule, "a1"))
        await field.until(lambda found: len(found) == 1)
    async with field.deciding():
        await field.happens(field.of(rule, "a2"))
        await field.until(lambda found: len(found) == 2)
    async with acquired(field.pool) as connection:
        await connection.execute("UPDATE projections SET rewind_to = to_timestamp(0) WHERE name = 'actions'")
    async with field.deciding():
        await field.happens(field.of(rule, "a3", "other"))
        found = await field.until(lambda found: len(found) >= 3)
    assert {d.alarm_id: d.state for d in found} == {"a1": "PENDING", "a2": "SUPPRESSED", "a3": "PENDING"}


async def test_nothing_is_told_of_devices_under_maintenance(field: Field) -> None:
    maintenance = PgMaintenance(field.pool)
    window = {"name": "cleaning", "metadata": {"hall": {"number": 3}}, "until_ms": 4_000_000_000_000}
    stored = await maintenance.create(msgspec.convert(window, Maintenance))
    assert stored is not None
    await field.register("pump-1", hall={"number": 3, "side": "left"})
    await field.register("pump-2", hall={"number": 4})
    rule = await field.rule()
    async with field.deciding():
        await field.happens(field.of(rule, "a1"), field.of(rule, "a2", "pump-2"))
        found = await field.until(lambda found: len(found) == 2)
        assert {d.alarm_id: (d.state, d.reason) for d in found} == {
            "a1": ("SUPPRESSED", "maintenance: cleaning"),
            "a2": ("PENDING", None),
        }
        assert await maintenance.delete(stored.maintenance_id)
        await field.happens(field.of(rule, "a3"))
        found = await field.until(lambda found: len(found) == 3)
    assert found[0].state == "PENDING"
    assert await maintenance.list() == []


async def test_a_full_queue_loses_nothing_silently(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_rows, "MAX_QUEUE", 2)
    rule = await field.rule(limits={"storm": None})
    async with field.deciding():
        await field.happens(*(field.of(rule, f"a{n}", f"pump-{n}") for n in range(5)))
        found = await field.until(lambda found: len(found) == 5)
    assert sorted(d.state for d in found) == ["DEAD"] * 3 + ["PENDING"] * 2
    assert {d.reason for d in found} == {None, "2 messages wait for this target already"}


async def test_an_alarm_without_actions_leaves_no_row_and_an_acknowledgement_is_told(field: Field) -> None:
    silent = await field.rules.create(
        msgspec.convert(
            {
                "name": "x",
                "condition": {"type": "threshold", "metric": "t", "operator": ">", "value": 1},
            },
            RuleSpec,
        )
    )
    rule = await field.rule({"type": "mqtt", "on": ["acknowledged"]})
    async with field.deciding():
        await field.happens(field.of(silent, "a1"), field.of(rule, "a2"))
        acknowledged = msgspec.structs.replace(field.of(rule, "a2"), acknowledged=True)
        await field.happens(acknowledged, kind="alarm_ack")
        [delivery] = await field.until(lambda found: len(found) == 1)
    assert (delivery.transition, delivery.alarm_id, delivery.kind) == ("acknowledged", "a2", "mqtt")


async def test_mail_goes_out_and_a_refusal_is_told(field: Field) -> None:
    mail = {"type": "email", "to": ["ada@example.com"], "on": ["raised"]}

    async def sent(code: int, alarm_id: str, finish: Callable[[], Awaitable[Any]]) -> list[str]:
        async with smtp_receiver(code=code) as server:
            settings = SmtpSettings(host="127.0.0.1", port=server.port, security="none", sender="s@here")
            async with field.sending(email=EmailCarrier(settings)):
                await finish()
            return server.mails

    rule = await field.rule(mail)
    async with field.deciding():
        await field.happens(field.of(rule, "a1"))
        [text] = await sent(250, "a1", lambda: field.until(ended(1)))
        await field.happens(field.of(rule, "a2", "pump-2"))
        assert await sent(550, "a2", lambda: field.until(ended(2))) == []
    by_alarm = {d.alarm_id: d for d in await field.all()}
    assert f"Message-ID: <{by_alarm['a1'].delivery_id}@here>" in text
    assert "Subject: [major] hot: pump-1 raised" in text
    assert "temperature = 99.0 (temperature > 90)" in text
    assert (by_alarm["a2"].state, by_alarm["a2"].reason) == ("DEAD", "the SMTP server answered 550 said")


async def test_what_a_target_has_not_taken_for_a_day_is_dead(field: Field) -> None:
    async with http_receiver(lambda _: (503, {})) as receiver:
        await field.webhook("pager", receiver)
        rule = await field.rule(limits={"storm": None})
        async with field.deciding():
            await field.happens(*(field.of(rule, f"a{n}", f"pump-{n}") for n in range(30)))
            await field.until(lambda found: len(found) == 30)
        async with acquired(field.pool) as connection:
            await connection.execute(
                "UPDATE deliveries SET created_at = created_at - interval '25 hours' WHERE alarm_id <> 'a7'"
            )
        async with field.sending():
            found = await field.until(ended(29))
    assert len(receiver.received) < 29
    assert {d.alarm_id for d in found if d.state != "DEAD"} == {"a7"}
    assert "answered 503" in {d.reason for d in found}


async def test_every_version_of_a_rule_is_kept_with_who_wrote_it(field: Field) -> None:
    rule = await field.rule()
    await field.rules.replace(rule.rule_id, msgspec.structs.replace(rule.spec, name="hotter"), "grace")
    await field.rules.delete(rule.rule_id)
    versions = await RuleVersions(field.pool).list(rule.rule_id)
    assert [(v.version, v.spec.name, v.changed_by) for v in versions] == [
        (2, "hotter", "grace"),
        (1, "hot", "ada"),
    ]
    first = await RuleVersions(field.pool).get(rule.rule_id, 1)
    assert first is not None
    assert first.spec == rule.spec


async def test_secrets_stay_where_they_are(field: Field) -> None:
    async with http_receiver() as receiver:
        await field.webhook("pager", receiver)
    webhook = await field.webhooks.get("pager")
    assert webhook is not None
    assert SECRET not in repr(webhook)
    kept = await field.webhooks.put("pager", receiver.url, None, WebhookSpec())
    assert kept is not None
    assert kept.secret == SECRET
