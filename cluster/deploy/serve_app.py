"""The API as `serve deploy` builds it, by the import path `sensorium.cluster.deploy.serve_app:api`."""

import os
from pathlib import Path

from ray.serve import Application

from sensorium.cluster.config import load
from sensorium.cluster.errors import ConfigError
from sensorium.cluster.services import api_settings
from sensorium.serve.deployment import application


def api(args: dict[str, str]) -> Application:
    """The application of the platform with the configuration `args["config"]`, on one of its nodes.

    Raises:
        ConfigError: it cannot be used, or its database is embedded, so that only `sensorium up` knows it.
    """
    if set(args) != {"config"}:
        raise ConfigError(f"the application takes one argument, config; got {', '.join(args) or 'none'}")
    config = load(Path(args["config"]), os.environ)
    if config.storage.main_url is None:
        raise ConfigError("storage.url is needed: only `sensorium up` knows its embedded database")
    broker = None if config.mqtt.url is None else config.broker
    return application(api_settings(config, config.storage.main_url, broker), config.http.replicas)
