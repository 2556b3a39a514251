"""The pages about actions: what they take, what they hide, and that the document describes them."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from sensorium.actors.maintenance import Maintenance
from sensorium.serve.action_examples import WEBHOOK_BODIES, delivery
from sensorium.serve.examples import ALARM
from sensorium.serve.maintenance import EXAMPLES
from sensorium.serve.services import ActionSide
from sensorium.storage.deliveries import StoredDelivery
from sensorium.storage.maintenance import StoredMaintenance
from sensorium.storage.pages import Page
from sensorium.storage.rule_versions import RuleVersion
from sensorium.storage.webhooks import Webhook, WebhookSpec
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import World, world

SHOWN = msgspec.convert(delivery(ALARM), StoredDelivery)


@dataclass
class Webhooks:
    stored: dict[str, Webhook] = field(default_factory=dict)

    async def list(self) -> list[Webhook]:
        return list(self.stored.values())

    async def get(self, name: str) -> Webhook | None:
        return self.stored.get(name)

    async def put(self, name: str, url: str, secret: str | None, spec: WebhookSpec) -> Webhook | None:
        self.stored[name] = Webhook(name, url, secret, spec, 1)
        return self.stored[name]

    async def delete(self, name: str) -> bool:
        return self.stored.pop(name, None) is not None


@dataclass
class Windows:
    stored: dict[str, StoredMaintenance] = field(default_factory=dict)

    async def list(self) -> list[StoredMaintenance]:
        return list(self.stored.values())

    async def get(self, maintenance_id: str) -> StoredMaintenance | None:
        return self.stored.get(maintenance_id)

    async def create(self, spec: Maintenance) -> StoredMaintenance | None:
        return self.stored.setdefault("1", StoredMaintenance("1", spec, 1, 1))

    async def replace(self, maintenance_id: str, spec: Maintenance) -> StoredMaintenance | None:
        if maintenance_id in self.stored:
            self.stored[maintenance_id] = StoredMaintenance(maintenance_id, spec, 1, 2)
        return self.stored.get(maintenance_id)

    async def delete(self, maintenance_id: str) -> bool:
        return self.stored.pop(maintenance_id, None) is not None


@dataclass
class Sent:
    state: str = "DEAD"

    async def page(self, **which: Any) -> Page[StoredDelivery]:
        return Page([msgspec.structs.replace(SHOWN, state=which["state"] or self.state)], ["after", "this"])

    async def get(self, delivery_id: str) -> StoredDelivery | None:
        shown = msgspec.structs.replace(SHOWN, state=self.state)
        return shown if delivery_id == SHOWN.delivery_id else None

    async def retry(self, delivery_id: str | None, queue: str | None, rule_id: str | None, limit: int) -> int:
        if delivery_id not in (None, SHOWN.delivery_id) or self.state != "DEAD":
            return 0
        self.state = "PENDING"
        return 1


class Versions:
    async def get(self, rule_id: str, version: int) -> RuleVersion | None:
        return None

    async def list(self, rule_id: str) -> list[RuleVersion]:
        return []


@pytest.fixture
async def acting() -> AsyncIterator[World]:
    side = ActionSide(Sent(), Webhooks(), Versions(), Windows(), ("https",))
    async with world(actions=side) as platform:
        yield platform


async def test_a_webhook_is_set_and_its_secrets_stay_hidden(acting: World) -> None:
    for body in WEBHOOK_BODIES.values():
        answered = await acting.http.put("/api/webhooks/pager", json=body)
        assert answered.status_code == 200, answered.text
    signed = await acting.http.put("/api/webhooks/pager", json=WEBHOOK_BODIES["signed"])
    listed = await acting.http.get("/api/webhooks")
    assert listed.json() == {"items": [signed.json()]}
    assert (signed.json()["url"], signed.json()["signed"]) == ("https://hooks.example.com/***", True)
    assert WEBHOOK_BODIES["signed"]["secret"] not in listed.text
    assert (await acting.http.delete("/api/webhooks/pager")).status_code == 204
    assert_problem(await acting.http.get("/api/webhooks/pager"), 404, "not_found")


@pytest.mark.parametrize(
    "url", ["http://plain/", "https://user:hunter2@host/", "https:///x", "https://h:x/", "https://h/#f"]
)
async def test_an_address_that_cannot_be_asked_is_refused_and_not_repeated(acting: World, url: str) -> None:
    answered = await acting.http.put("/api/webhooks/x", json={"url": url})
    assert answered.status_code == 422
    assert answered.json()["errors"][0]["pointer"] == "#/url"
    assert "hunter2" not in answered.text


async def test_a_dead_delivery_is_tried_again_once(acting: World) -> None:
    path = f"/api/actions/{SHOWN.delivery_id}"
    page = await acting.http.get("/api/actions?state=DEAD&kind=webhook&limit=1")
    assert page.json()["items"] == [{**delivery(ALARM), "state": "DEAD"}]
    assert "Link" in page.headers
    assert (await acting.http.get(path)).json()["state"] == "DEAD"
    assert (await acting.http.post(f"{path}/retry")).json()["state"] == "PENDING"
    assert_problem(await acting.http.post(f"{path}/retry"), 409, "conflict")
    assert (await acting.http.post("/api/actions/retry?queue=mqtt")).json() == {"retried": 0}
    assert_problem(await acting.http.post("/api/actions/nobody/retry"), 404, "not_found")
    assert (await acting.http.get("/api/actions?state=LOST")).status_code == 422


async def test_maintenance_is_set_changed_and_ended(acting: World) -> None:
    for body in EXAMPLES.values():
        assert (await acting.http.post("/api/maintenance", json=body)).status_code == 201
    changed = await acting.http.put("/api/maintenance/1", json=EXAMPLES["weekly"])
    assert (await acting.http.get("/api/maintenance/1")).json() == changed.json()
    assert (await acting.http.get("/api/maintenance")).json() == {"items": [changed.json()]}
    assert (await acting.http.delete("/api/maintenance/1")).status_code == 204
    gone = await acting.http.put("/api/maintenance/1", json=EXAMPLES["once"])
    assert_problem(gone, 404, "not_found")
    assert (await acting.http.post("/api/maintenance", json={"name": "x"})).status_code == 422
    zone = {"name": "x", "weekly": {"type": "schedule", "timezone": "Moon/Sea"}}
    refused = await acting.http.post("/api/maintenance", json=zone)
    assert refused.json()["errors"][0]["pointer"] == "#/weekly/timezone"


async def test_a_rule_may_tell_only_webhooks_that_there_are(acting: World) -> None:
    rule = {"name": "x", "expression": "t > 1", "actions": [{"type": "webhook", "target": "pager"}]}
    refused = await acting.http.post("/api/analytics/rules", json=rule)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "#/actions/0/target"
    await acting.http.put("/api/webhooks/pager", json=WEBHOOK_BODIES["signed"])
    assert (await acting.http.post("/api/analytics/rules", json=rule)).status_code == 201
    assert_problem(await acting.http.get("/api/analytics/rules/x/versions"), 404, "not_found")


async def test_the_document_describes_all_of_it(acting: World) -> None:
    api = (await acting.http.get("/openapi.json")).json()
    referred = {part.split('"')[0] for part in json.dumps(api).split('"#/components/schemas/')[1:]}
    assert referred <= set(api["components"]["schemas"])
    paths = {"/api/actions", "/api/webhooks/{name}", "/api/maintenance/{maintenance_id}"}
    assert paths <= set(api["paths"])
