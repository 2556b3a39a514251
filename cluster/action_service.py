"""What rules have done: decided from the log of one database and sent, in a process of its own."""

import os
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from sensorium.actors.runtime import make_router
from sensorium.ingest.actions.addresses import Reach
from sensorium.ingest.actions.carriers import Carrier
from sensorium.ingest.actions.dispatch import ActionDispatcher
from sensorium.ingest.actions.mail import EmailCarrier, SmtpSettings
from sensorium.ingest.actions.platform import CommandCarrier, MqttCarrier
from sensorium.ingest.actions.webhook import WebhookCarrier
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.storage.action_sink import SETTINGS, ActionSink
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.kafka_settings import KafkaSettings
from sensorium.storage.projection_runner import ProjectionRunner
from sensorium.storage.sealing import Keys

_POOL: Final = 2


class ActionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the service needs to know besides its database. Must pickle."""

    broker: BrokerAddress
    client_id: str
    mqtt_properties: bool
    webhook_schemes: tuple[str, ...]
    webhook_networks: tuple[str, ...]
    keys: Keys
    keep_days: int
    smtp: SmtpSettings | None
    kafka: KafkaSettings | None


class ActionService:
    """Decides from the log what is sent and sends it, in a process of its own."""

    def __init__(
        self, name: str, settings: ActionSettings, dsn: str, main_dsn: str, position: int, namespace: str
    ) -> None:
        self._name = name
        self._settings = settings
        self._dsn = dsn
        self._main_dsn = main_dsn
        self._position = position
        self._router = make_router(f"{name}.{os.getpid()}", namespace)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Begin, and keep trying while the database or a target is away."""
        settings = self._settings
        await self._router.start()
        pool = await open_pool(self._main_dsn, _POOL, "sensorium-webhooks")
        self._stack.push_async_callback(close_pool, pool)
        carriers: dict[str, Carrier] = {
            "webhook": WebhookCarrier(
                pool,
                settings.webhook_schemes,
                sealer=settings.keys.sealer(),
                reach=Reach(settings.webhook_networks),
            ),
            "mqtt": MqttCarrier(settings.broker, settings.client_id, properties=settings.mqtt_properties),
            "command": CommandCarrier(self._router),
        }
        if settings.smtp is not None:
            carriers["email"] = EmailCarrier(settings.smtp)
        if settings.kafka is not None:
            from sensorium.ingest.actions.kafka import KafkaCarrier

            carriers["kafka"] = KafkaCarrier(settings.kafka)
        self._dispatcher = ActionDispatcher(self._dsn, carriers, settings.keep_days)
        sink = ActionSink(self._main_dsn, self._dispatcher.wake)
        self._projection = ProjectionRunner(self._dsn, SETTINGS, sink, position=self._position)
        await self._projection.start()
        await self._dispatcher.start()

    async def ping(self) -> None:
        """Raise what broke it, if something did."""
        self._router.check()
        await self._projection.ping()
        self._dispatcher.check()

    def statistics(self) -> dict[str, Any]:
        """Of the projection, with the dispatcher's under "deliveries" and the router's under "router"."""
        return {
            **self._projection.statistics(),
            "name": self._name,
            "deliveries": self._dispatcher.statistics(),
            "router": self._router.statistics(),
        }

    async def stop(self) -> None:
        """Decide nothing more, finish what is under way."""
        await self._projection.stop()
        await self._dispatcher.stop()
        await self._stack.aclose()
        await self._router.close()
