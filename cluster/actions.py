"""What rules have done, as services of the coordinator: one for each database of the log."""

from collections.abc import Sequence

from sensorium.actors.coordinator import ServiceSpec
from sensorium.cluster.action_service import ActionService, ActionSettings
from sensorium.cluster.config import Config
from sensorium.ingest.mqtt_address import BrokerAddress
from sensorium.storage.action_sink import NAME


def action_services(
    config: Config, broker: BrokerAddress, dsns: Sequence[str], namespace: str
) -> list[ServiceSpec]:
    """One a database; none where actions are switched off."""
    if not config.actions.enabled:
        return []
    services = []
    for position, dsn in enumerate(dsns):
        name = f"{NAME}-{position}"
        settings = ActionSettings(
            broker=broker,
            client_id=f"{config.mqtt.client_id}-{name}",
            mqtt_properties=config.mqtt.url is not None,
            webhook_schemes=tuple(config.actions.webhook_schemes),
            webhook_networks=tuple(config.actions.webhook_networks),
            keys=config.security.keys(),
            keep_days=config.actions.keep_days,
            smtp=config.actions.smtp(),
            kafka=config.streaming.client() if config.streaming.brokers else None,
        )
        services.append(ServiceSpec(name, ActionService, (name, settings, dsn, dsns[0], position, namespace)))
    return services
