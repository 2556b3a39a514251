"""Telling what belongs to the platform: its broker, and devices by commands."""

import asyncio
from typing import Any, Final, Protocol

import msgspec

from sensorium.actors.action_plan import STORM
from sensorium.actors.actions import CommandAction, MqttAction, Transition, fields_of, filled
from sensorium.actors.errors import Refused, Unavailable
from sensorium.actors.messages import Message, SendCommand
from sensorium.actors.records import Alarm
from sensorium.ingest.actions.carriers import Undeliverable, Undelivered, message
from sensorium.ingest.downlink import REFUSED_FOR_NOW
from sensorium.ingest.errors import BrokerRefused, Disconnected
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.ingest.mqtt_client import MqttClient, MqttOptions
from sensorium.storage.delivery_rows import Claimed

COMMAND_TIMEOUT_S: Final = 10.0
PUBLISH_TIMEOUT_S: Final = 10.0
"""For the connection and the broker's acknowledgement."""
STORM_TOPIC: Final = "alarms/storms/{rule_id}"


class Asks(Protocol):
    """The way to the devices."""

    async def ask(self, message: Message, timeout_s: float) -> Any:
        """The answer, after the commit. Raises `Refused`, `Unavailable` or `Overloaded`."""
        ...


class MqttCarrier:
    """A `Carrier` over a connection of its own, which never repeats by itself: deliveries are.

    Without `properties`, messages have none of MQTT 5; see `ingest.downlink.DownlinkSettings`.
    """

    def __init__(self, address: BrokerAddress, client_id: str, *, properties: bool = True) -> None:
        self._properties = properties
        self._client = MqttClient(address, client_id, options=MqttOptions(session_expiry_s=0), repeat=False)
        self._entered = False

    async def send(self, delivery: Claimed, attempts: int) -> None:
        """As the port says: the broker has it. Its id is the user property `idempotency-key`, too."""
        assert isinstance(delivery.action, MqttAction)
        properties: dict[str, Any] = {}
        if self._properties:
            properties["user_property"] = [("idempotency-key", delivery.delivery_id)]
            properties["content_type"] = "application/json"
        if not self._entered:
            self._entered = True
            await self._client.__aenter__()
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                await self._client.connected()
                await self._client.publish(
                    topic_of(delivery, delivery.action),
                    message(delivery),
                    delivery.action.qos,
                    delivery.action.retain,
                    **properties,
                )
        except TimeoutError:
            why = self._client.statistics()["last_error"] or "no answer"
            raise Undelivered(f"the broker: {why}") from None
        except Disconnected as error:
            raise Undelivered(str(error)) from None
        except BrokerRefused as error:
            later = error.reason_code in REFUSED_FOR_NOW
            raise (Undelivered if later else Undeliverable)(str(error)) from None

    async def close(self) -> None:
        """As the port says."""
        if self._entered:
            await self._client.__aexit__(None, None, None)


class CommandCarrier:
    """A `Carrier`: a command of the delivery's id, which devices are given once however often it is asked."""

    def __init__(self, router: Asks) -> None:
        self._router = router

    async def send(self, delivery: Claimed, attempts: int) -> None:
        """As the port says: the device's actor has committed it. What becomes of it is the command's life."""
        action = delivery.action
        assert isinstance(action, CommandAction)
        # By the time of what it tells of, so that a repetition asks for the same.
        asked = SendCommand(
            *(
                action.device_id or delivery.device_id,
                delivery.delivery_id,
                action.command,
                action.parameters,
            ),
            *(round(action.timeout_s * 1000), delivery.created_ms + round(action.expires_s * 1000)),
            action.retries,
        )
        try:
            await self._router.ask(asked, COMMAND_TIMEOUT_S)
        except Unavailable as error:
            raise Undelivered(str(error)) from None
        except Refused as error:
            if error.code == "overloaded":
                raise Undelivered(str(error)) from None
            raise Undeliverable(str(error)) from None

    async def close(self) -> None:
        """As the port says."""


def topic_of(delivery: Claimed, action: MqttAction) -> str:
    """Where it is published."""
    if delivery.transition == STORM:
        return filled(STORM_TOPIC, {"rule_id": delivery.rule_id}, topic=True)
    alarm = msgspec.convert(delivery.content["alarm"], Alarm)
    return filled(action.topic, fields_of(alarm, Transition(delivery.transition)), topic=True)
