"""The API on Ray Serve. Set `serve_environment` before.

Ray Serve is imported when something is deployed, not with this module: it reads the environment at import.
What a replica serves is imported in the replica alone: it takes a second, of each process that has it.
"""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import ray

from sensorium.actors.profile import Profiles, RateLimits
from sensorium.actors.runtime import NAMESPACE, spare_the_collector
from sensorium.ingest.decode import Bounds
from sensorium.ingest.downlink import DownlinkSettings
from sensorium.ingest.lorawan.adapter import LorawanSettings
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.models.opening import RegistrySettings
from sensorium.storage.sealing import Keys

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

APPLICATION: Final = "sensorium"
DEPLOYMENT: Final = "api"
STOP_TIMEOUT_S: Final = 15.0

# The app's own bound refuses first, with a problem document; Serve's only catches what slips by.
_ABOVE_OUR_BOUND: Final = 200
_QUEUED_REQUESTS: Final = 500
_QUIET: Final[dict[str, Any]] = {"log_level": "WARNING", "enable_access_log": False}


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """What a replica is given. Must pickle.

    Attributes:
        dsn: the main database; `pool_size` connections a replica.
        further_dsns: the databases besides it that the log is spread over, as many connections each.
        namespace: the Ray namespace of the hosts' coordinator.
        timeout_s: how long a device may take to answer.
        max_body_bytes, max_requests: bounds of a request, and of requests at once in a replica.
        bounds: of telemetry, the same as the other ways in have.
        lorawan: codecs, and the secret of the webhook.
        limit, lorawan_limit: on what each device sends by HTTP and by LoRaWAN, held by each replica itself.
        profiles: of device types, as hosts have them.
        archive: where older history is.
        max_subscribers: of the live feed in a replica, besides its requests.
        webhook_schemes, webhook_networks: of the addresses that webhooks may have.
        keys: with what secrets are sealed at rest.
        models: where trained models are registered; None: they are not told of.
        downlink: how devices are told of commands; None: not by the replica itself.
    """

    dsn: str
    namespace: str = NAMESPACE
    pool_size: int = 8
    further_dsns: tuple[str, ...] = ()
    timeout_s: float = 10.0
    max_body_bytes: int = 1_048_576
    max_requests: int = 1000
    bounds: Bounds = field(default_factory=Bounds)
    lorawan: LorawanSettings = field(default_factory=LorawanSettings)
    limit: RateLimits | None = None
    lorawan_limit: RateLimits | None = None
    profiles: Profiles = field(default_factory=Profiles)
    archive: InfluxSettings | None = None
    max_subscribers: int = 2_000
    webhook_schemes: tuple[str, ...] = ("https", "http")
    webhook_networks: tuple[str, ...] = ("loopback",)
    keys: Keys = field(default_factory=Keys)
    models: RegistrySettings | None = None
    downlink: DownlinkSettings | None = None


class Api:
    """A replica. Ray Serve calls its parts; everything else is the app's."""

    # Ray Serve awaits the constructor, in the event loop that serves the requests.
    async def __init__(self, settings: ApiSettings) -> None:  # type: ignore[misc]
        from sensorium.serve.replica import opened

        self._stack = AsyncExitStack()
        self._services = await self._stack.enter_async_context(opened(settings))
        spare_the_collector()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from sensorium.serve.app import build_app
        from sensorium.serve.short_way import ShortWay

        app = build_app(self._services)
        ShortWay.open(app)
        return app

    async def check_health(self) -> None:
        """Fails once the router is broken, so that Ray Serve replaces the replica.

        What lies behind the router is `readyz`'s: a restart would not mend it.
        """
        self._services.router.check()
        self._services.waits.check()
        if self._services.feed is not None:
            self._services.feed.check()

    async def __del__(self) -> None:
        # Ray Serve awaits it when a replica stops; a constructor that failed leaves nothing to close.
        if hasattr(self, "_services"):
            await self._stack.aclose()


def deploy(
    settings: ApiSettings, host: str, port: int, replicas: int = 1, proxies: str = "every_node"
) -> None:
    """Start Ray Serve's proxy on `host` and `port`, and the API behind it; returns when it serves.

    The coordinator has to be there; its hosts may still be starting.
    On a cluster of several nodes, `host` must be an address that all of them reach, such as 0.0.0.0.
    `proxies` is "every_node" (that has a replica, and the head) or "head".

    Raises:
        RuntimeError: Ray Serve could not bring the API up; its message says why.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    location = ProxyLocation.EveryNode if proxies == "every_node" else ProxyLocation.HeadOnly
    with ThreadPoolExecutor(1) as beside:
        # Until the proxies are ready, which replicas need not wait for.
        starting = beside.submit(
            serve.start, location, HTTPOptions(host=host, port=port), logging_config=_QUIET
        )
        _await_controller(starting)
        serve.run(application(settings, replicas), name=APPLICATION, route_prefix="/")
        starting.result()


def _await_controller(starting: "Future[None]") -> None:
    """Return when there is Ray Serve's controller; who finds none would start another."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    while not starting.done():
        with suppress(ValueError):
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            return
        time.sleep(0.05)
    starting.result()


def application(settings: ApiSettings, replicas: int = 1) -> "Application":
    """The API as an application of Ray Serve."""
    from ray import serve
    from ray.serve.config import BackpressureConfig

    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=settings.max_requests + settings.max_subscribers + _ABOVE_OUR_BOUND,
        max_queued_requests=_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=STOP_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=_QUIET,
    )
    bound: Application = deployment(serve.ingress()(Api)).bind(settings)
    return bound


def shutdown() -> None:
    """Stop the API and the proxy: requests under way are answered first. Ray itself stays."""
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()  # type: ignore[no-untyped-call]
