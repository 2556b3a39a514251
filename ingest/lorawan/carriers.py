"""Queues commands for devices at their network server: ChirpStack v4 by MQTT, The Things Stack v3 by HTTP."""

import base64
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from sensorium.actors.messages import Telling, TwinTelling
from sensorium.ingest.dispatch import Untold
from sensorium.ingest.downlink import REFUSED_FOR_NOW
from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.lorawan.chirpstack import queue_item_of
from sensorium.ingest.lorawan.frames import TWIN, Frame, FrameEncoder
from sensorium.ingest.lorawan.tts import correlation_of
from sensorium.ingest.mqtt_client import NO_SUBSCRIBERS, MqttClient

HTTP_TIMEOUT_S: Final = 8.0
_LATER: Final = frozenset((408, 425, 429, 503))
"""Answers that say that the request was not taken and may be taken later."""


class ChirpstackCarrier:
    """Publishes into the queue of a device; the queue item's id is made of the command's."""

    def __init__(self, publisher: MqttClient, encoder: FrameEncoder) -> None:
        self._publisher = publisher
        self._encoder = encoder

    async def ready(self) -> None:
        """Return once connected."""
        await self._publisher.connected()

    async def tell(self, device_id: str, telling: Telling) -> None:
        """Queue it; see `Carrier.tell`."""
        application = level_of(telling.route, "application")
        frame = await self._encoder.encode(telling, profile_of(telling.route))
        item = queue_item_of(telling.command_id, confirmed=frame.confirmed)
        said: dict[str, Any] = {
            **({} if item is None else {"id": item}),
            "devEui": device_id,
            "confirmed": frame.confirmed,
            "fPort": frame.port,
            **_content(frame, "data", "object"),
        }
        topic = f"application/{application}/device/{device_id}/command/down"
        try:
            code = await self._publisher.publish(topic, msgspec.json.encode(said), 1)
        except BrokerRefused as error:
            raise Untold(str(error), final=error.reason_code not in REFUSED_FOR_NOW) from None
        if code == NO_SUBSCRIBERS:
            raise Untold(f"no ChirpStack has subscribed to {topic}", final=False, count="unreached")

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        """Queue it; see `TwinCarrier.tell_twin`."""
        await self.tell(device_id, as_command(telling))


class TtsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The Things Stack's application server.

    Attributes:
        url: of the cluster, such as `https://eu1.cloud.thethings.network`.
        api_key: with the right to write downlink traffic.
        webhook: the id of the webhook that the application has.
    """

    url: str
    api_key: str
    webhook: str


class TtsCarrier:
    """Pushes into the queue of a device by HTTP, under the name of a webhook. `close` it."""

    def __init__(self, settings: TtsSettings, encoder: FrameEncoder) -> None:
        self._webhook = settings.webhook
        self._encoder = encoder
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers={"Authorization": f"Bearer {settings.api_key}", "User-Agent": "sensorium"},
            timeout=HTTP_TIMEOUT_S,
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def ready(self) -> None:
        """At once: whether the server answers is known when it is asked."""

    async def tell(self, device_id: str, telling: Telling) -> None:
        """Queue it; see `Carrier.tell`."""
        application, device = (level_of(telling.route, name) for name in ("application", "device"))
        frame = await self._encoder.encode(telling, profile_of(telling.route))
        path = "/".join(
            quote(part, safe="")
            for part in (*("applications", application, "webhooks", self._webhook), *("devices", device))
        )
        try:
            answer = await self._http.post(
                f"/api/v3/as/{path}/down/push", json={"downlinks": [tts_downlink(frame, telling.command_id)]}
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Untold(f"The Things Stack is away: {error}", final=False, count="unreached") from None
        except httpx.HTTPError as error:
            raise Disconnected(f"The Things Stack did not answer: {error}") from None
        if answer.status_code in _LATER:
            raise Untold(f"The Things Stack answered {answer.status_code}", final=False)
        if 400 <= answer.status_code < 500:
            raise Untold(f"The Things Stack answered {answer.status_code}: {answer.text[:200]}", final=True)
        if not answer.is_success:
            raise Disconnected(f"The Things Stack answered {answer.status_code}")

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        """Queue it; see `TwinCarrier.tell_twin`."""
        await self.tell(device_id, as_command(telling))


def as_command(telling: TwinTelling) -> Telling:
    """A twin as the codecs take it: the delta's values as the parameters of a command `twin` without an id.

    What is desired no longer is left out. A profile may have a layout for it; a script is given the values.
    """
    values = {name: value for name, value in telling.delta.items() if value is not None}
    if not values:
        raise Untold(
            "a frame holds values, and nothing is desired in the place of what was removed", final=True
        )
    return Telling("", TWIN, values, 0, 0, telling.route)


def tts_downlink(frame: Frame, command_id: str) -> dict[str, Any]:
    """An entry of The Things Stack's queue, over whichever protocol."""
    return {
        "f_port": frame.port,
        **_content(frame, "frm_payload", "decoded_payload"),
        "confirmed": frame.confirmed,
        "priority": "NORMAL",
        **({"correlation_ids": [correlation_of(command_id)]} if command_id else {}),
    }


def _content(frame: Frame, payload: str, decoded: str) -> dict[str, Any]:
    if frame.object is not None:
        return {decoded: frame.object}
    return {payload: base64.b64encode(frame.payload).decode()}


def profile_of(route: dict[str, Any] | None) -> str:
    """The name by which the device's codec goes; "" where its metadata does not say."""
    profile = (route or {}).get("profile", "")
    return profile if type(profile) is str else ""


def level_of(route: dict[str, Any] | None, name: str) -> str:
    """A part of where the device is found, fit for a topic. Raises `Untold`."""
    value = (route or {}).get(name)
    if type(value) is not str or not value or set(value) & set("/+#\0"):
        raise Untold(f"its metadata does not say what its {name} is at the network server", final=True)
    return value
