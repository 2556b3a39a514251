"""The webhook of The Things Stack."""

from typing import Any

import pytest

from sensorium.actors.router import Router
from sensorium.ingest.lorawan.adapter import CayenneCodec, LorawanAdapter, LorawanSettings
from sensorium.ingest.pipeline import Pipeline
from sensorium.serve.lorawan import EXAMPLES
from tests.unit.serve.world import NOW_MS, World, world

SECRET = "0123456789abcdef"
EUI = "a8404137b182428e"


class LateAdapter(LorawanAdapter):
    """An adapter whose router is known later than the adapter itself."""

    def __init__(self) -> None:
        pass

    def use(self, router: Router) -> None:
        settings = LorawanSettings(codecs={"default": CayenneCodec()})
        super().__init__(Pipeline(router, source="lorawan"), router, settings)


def message(**changes: Any) -> dict[str, Any]:
    uplink = {
        "session_key_id": "s",
        "f_port": 1,
        "f_cnt": 1,
        "frm_payload": "A2cBEA==",
        "rx_metadata": [{"gateway_ids": {"gateway_id": "gw"}, "rssi": -35, "snr": 5.5}],
        "received_at": "2024-01-01T12:00:00Z",
    }
    ids = {"dev_eui": EUI.upper(), "application_ids": {"application_id": "app"}}
    return {"end_device_ids": ids, "uplink_message": {**uplink, **changes}}


async def posted(here: World, content: Any, secret: str | None = SECRET, application: str = "app") -> Any:
    headers = {} if secret is None else {"X-Webhook-Secret": secret}
    return await here.http.post(f"/api/lorawan/tts/{application}", json=content, headers=headers)


async def test_an_uplink_is_stored_once_however_often_it_comes() -> None:
    adapter = LateAdapter()
    async with world(lorawan=adapter, tts_secret=SECRET) as here:
        adapter.use(here.router)
        await here.registered(EUI)
        for changes in ({}, {"rx_metadata": []}):
            assert (await posted(here, message(**changes))).status_code == 204
        [reading] = here.store.readings
        values = dict(zip(reading.metric_set.names, reading.values, strict=True))
        assert values["temperature_3"] == 27.2
        assert values["lora_gateway"] == "gw"
        assert reading.time_ms == NOW_MS - 60_000


@pytest.mark.parametrize("secret", [None, "", "0123456789abcdeF", "ä"])
async def test_without_the_secret_nothing_is_taken(secret: str | None) -> None:
    adapter = LateAdapter()
    async with world(lorawan=adapter, tts_secret=SECRET) as here:
        adapter.use(here.router)
        headers = {} if secret is None else {"X-Webhook-Secret": secret.encode("latin-1")}
        answer = await here.http.post("/api/lorawan/tts/app", json=message(), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert here.store.dead_letters == []


async def test_refusals_are_problems_and_dead_letters() -> None:
    adapter = LateAdapter()
    async with world(lorawan=adapter, tts_secret=SECRET) as here:
        adapter.use(here.router)
        answer = await posted(here, message())
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        answer = await posted(here, message(frm_payload="AQ=="))
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_frame")
        answer = await posted(here, message(), application="other")
        assert (answer.status_code, answer.json()["code"]) == (422, "wrong_application")
        assert [letter.reason for letter in here.store.dead_letters] == [
            "unregistered",
            "bad_frame",
            "wrong_application",
        ]
        assert {letter.source for letter in here.store.dead_letters[1:]} == {"lorawan"}


async def test_without_a_secret_configured_there_is_no_webhook() -> None:
    async with world() as here:
        assert (await posted(here, message())).status_code == 404


async def test_the_examples_of_the_document_are_taken_with_the_secret_that_it_names() -> None:
    adapter = LateAdapter()
    async with world(lorawan=adapter, tts_secret=SECRET) as here:
        adapter.use(here.router)
        await here.registered(EUI)
        api = (await here.http.get("/openapi.json")).json()
        operation = api["paths"]["/api/lorawan/tts/{application}"]["post"]
        [name] = {name for way in operation["security"] for name in way}
        scheme = api["components"]["securitySchemes"][name]
        assert (scheme["type"], scheme["in"]) == ("apiKey", "header")
        content = operation["requestBody"]["content"]["application/json"]
        assert {name: each["value"] for name, each in content["examples"].items()} == EXAMPLES
        for name, shown in EXAMPLES.items():
            headers = {scheme["name"]: SECRET}
            answer = await here.http.post("/api/lorawan/tts/app", json=shown, headers=headers)
            # Nobody has sent the command that one of them tells of.
            expected = (422, "unknown_command") if name == "of a command" else (204, "")
            assert (answer.status_code, answer.json()["code"] if answer.content else "") == expected, name
        metrics = {each for reading in here.store.readings for each in reading.metric_set.names}
        assert {"temperature_3", "lora_dev_addr", "lora_latitude"} <= metrics
        assert [letter.reason for letter in here.store.dead_letters] == ["unknown_command"]
        assert {"204", "401", "404", "413", "415", "422", "429", "503"} <= set(operation["responses"])
        members = api["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"]
        assert {member for shown in EXAMPLES.values() for member in shown} <= set(members)
