"""The Ray adapter: the only place where plain classes become Ray actors and calls become Ray calls."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import ray
import ray._private.node
import ray._private.state
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sensorium.actors.coordinator import Coordinator, RuntimeSpec
from sensorium.actors.placement import Node
from sensorium.actors.profile import ProcessNeeds
from sensorium.actors.reach import answering
from sensorium.actors.router import Router
from sensorium.actors.transport import Doorstep, LocalWay, RayTransport, bounded, in_time

NAMESPACE: Final = "sensorium"
COORDINATOR: Final = "coordinator"
CLAIM_TIMEOUT_S: Final = 10.0
"""In which Ray notices that a process has died."""

STEER_TIMEOUT_S: Final = 20.0
"""In which a call to the coordinator gets through at last."""

# What is launched never restarts by itself (a restart would rerun __init__ and lose what it owns): the
# coordinator replaces it. It claims no CPU slot: how many there are is our decision, not the scheduler's.
_OPTIONS: Final[dict[str, Any]] = {
    "num_cpus": 0,
    "max_restarts": 0,
    "max_task_retries": 0,
    "max_concurrency": 1_000,
    "enable_task_events": False,
    "lifetime": "detached",
}

NODES_FOR_S: Final = 0.5
"""How long what is known of the nodes is gone by."""

SILENT_FOR_S: Final = 2.0
"""How long a node that did not answer is not asked again: to ask it holds the coordinator up."""

_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Of what goes to Ray's log files."""

HOSTS_LABEL: Final = "sensorium.io/hosts"
"""On a deployed cluster every node says by it how many hosts it is meant for."""


def spare_the_collector() -> None:
    """For processes whose objects live long: collecting them again and again costs a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


def remote_class(make: Callable[..., Any], name: str = "") -> Any:
    """The actor class of a plain class whose methods are coroutines (and some plain ones).

    Its processes have the class's title; with `titled_by_name` the name besides, where one class serves many.
    """

    class Hosted:
        """Any plain object in a Ray actor."""

        def __init__(self, *args: Any) -> None:
            spare_the_collector()
            logging.basicConfig(format=_LOG_FORMAT)
            self._object = make(*args)
            self._doorstep = Doorstep(self._object) if getattr(self._object, "local_calls", True) else None

        async def call(self, method: str, *args: Any) -> Any:
            """Call a method of the object."""
            result = getattr(self._object, method)(*args)
            result = await result if asyncio.iscoroutine(result) else result
            if method == "statistics":
                result = {**result, "node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
            return result

        async def deliver(self, data: bytes) -> bytes:
            """`DeviceHost.deliver`."""
            return await self._object.deliver(data)  # type: ignore[no-any-return]

        async def local_calls(self) -> tuple[str, str | None]:
            """The node, and where on it a socket takes calls of `deliver` and `ping`, if one does."""
            node = ray.get_runtime_context().get_node_id()
            return node, None if self._doorstep is None else await self._doorstep.path()

        async def pid(self) -> int:
            """The process's id."""
            return os.getpid()

    title = getattr(make, "__name__", "Hosted")
    if name and getattr(make, "titled_by_name", False):
        title = f"{title}:{name}"
    Hosted.__name__ = Hosted.__qualname__ = title
    return ray.remote(Hosted)


class RayProcess:
    """A launched object behind its actor handle, `local_calls`: pinged over a socket where that can be."""

    def __init__(self, handle: "ActorHandle[Any]", local_calls: bool = True) -> None:
        self.address = handle
        self._way = LocalWay(handle) if local_calls else None

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """See `supervision.Process.call`."""
        if method == "ping" and self._way is not None and (client := self._way.client()) is not None:
            return msgspec.msgpack.decode(await in_time(client.ping(), timeout_s))
        return await bounded(self.address.call.remote(method, *args), timeout_s)

    def kill(self) -> None:
        """See `supervision.Process.kill`."""
        ray.kill(self.address)


class RayLauncher:
    """Launches objects as detached, named actors of one namespace."""

    def __init__(self, namespace: str, local_calls: bool = True) -> None:
        self._namespace = namespace
        self._local_calls = local_calls
        self._nodes: list[Node] = []
        self._nodes_until_s = 0.0
        self._silent_until_s: dict[tuple[str, int], float] = {}

    def launch(
        self, name: str, node: str, make: Callable[..., Any], *args: Any, needs: ProcessNeeds | None = None
    ) -> RayProcess:
        """See `supervision.Launcher.launch`."""
        options = {**_OPTIONS, **claimed(needs), "name": name, "namespace": self._namespace}
        if node:
            # Ray would put all that claims nothing on one node, and its SPREAD counts only roughly.
            # Soft, it would start elsewhere where the scheduler has not heard of a new node yet.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        return RayProcess(remote_class(make, name).options(**options).remote(*args), self._local_calls)

    def living(self) -> dict[str, RayProcess]:
        """See `supervision.Launcher.living`."""
        found = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            if actor["namespace"] == self._namespace and name != COORDINATOR:
                try:
                    found[name] = RayProcess(ray.get_actor(name, self._namespace), self._local_calls)
                except ValueError:
                    continue  # it died meanwhile
        return found

    def nodes(self) -> list[Node]:
        """See `supervision.Launcher.nodes`. Those that Ray was asked to drain are told apart.

        Ray lists a node that is lost for up to a minute yet. What is launched there would wait as long.
        """
        now_s = time.monotonic()
        if now_s >= self._nodes_until_s:
            self._nodes = self._answering(now_s)
            self._nodes_until_s = time.monotonic() + NODES_FOR_S
        return self._nodes

    def _answering(self, now_s: float) -> list[Node]:
        draining = draining_nodes()
        listed: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        addresses = [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in listed]
        asked = [address for address in addresses if now_s >= self._silent_until_s.get(address, 0.0)]
        answered = {address for address, there in zip(asked, answering(asked), strict=True) if there}
        silent = [address for address in addresses if address not in answered]
        self._silent_until_s = {
            address: now_s + SILENT_FOR_S if address in asked else self._silent_until_s[address]
            for address in silent
        }
        return [
            Node(
                node["NodeID"],
                None if (hosts := node["Labels"].get(HOSTS_LABEL)) is None else int(hosts),
                node["NodeID"] in draining,
            )
            for node, address in zip(listed, addresses, strict=True)
            if address in answered
        ]


def claimed(needs: ProcessNeeds | None) -> dict[str, Any]:
    """The options of a Ray actor for what its process needs."""
    if needs is None:
        return {}
    options = {
        "num_cpus": needs.num_cpus,
        "num_gpus": needs.num_gpus,
        "memory": needs.memory_bytes,
        "resources": needs.resources,
        "label_selector": needs.labels,
    }
    return {name: value for name, value in options.items() if value}


def draining_nodes() -> set[str]:
    """The ids of the nodes that Ray was asked to drain, by an autoscaler or by hand."""
    return set(ray._private.state.state.get_draining_nodes())


def start_ray(namespace: str = NAMESPACE, **options: Any) -> None:
    """Start Ray for this process alone: it ends with it. `options` are further ones of `ray.init`.

    Without what nobody asks there: a monitor that scales clusters, one that forwards the output of workers,
    and a dashboard process that would serve no dashboard. They are a tenth of what a start costs.
    """
    with _bare_head():
        ray.init(
            address="local",
            namespace=namespace,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **options,
        )


@contextmanager
def _bare_head() -> Iterator[None]:
    node: Any = ray._private.node.Node
    parts = {name: getattr(node, name) for name in ("start_monitor", "start_log_monitor", "start_api_server")}
    for name in parts:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, part in parts.items():
            setattr(node, name, part)


def join_ray(address: str | None, namespace: str = NAMESPACE) -> None:
    """Connect this process to a running Ray cluster. Raises ConnectionError when there is none.

    A cluster on this machine wants the token in the user's home. `ray.init` offers it to a cluster that it
    finds by itself ("auto") but not to one that is named: it would try for 20 s and give up.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING)


def cluster_id() -> str:
    """What tells the Ray cluster that was joined from every other, also from a later one at its address."""
    worker: Any = ray._private.worker.global_worker
    identity: str = worker.gcs_client.cluster_id.hex()
    return identity


class _Claim:
    """Holds a name for as long as the process that made it lives."""

    def ready(self) -> None:
        """Answers when it is there."""


def claim_cluster(namespace: str = NAMESPACE) -> "ActorHandle[Any]":
    """Be the only platform of the namespace until the handle or this process is gone. Blocks.

    Raises:
        ValueError: another process is; one that has died is waited for.
    """
    options = {"name": "platform", "namespace": f"{namespace}.claim", "num_cpus": 0}
    options["max_task_retries"] = -1  # a call that fails on the way says nothing about the claim
    deadline_s = time.monotonic() + CLAIM_TIMEOUT_S
    while True:
        try:
            actor: Any = ray.remote(_Claim)
            claim: ActorHandle[Any] = actor.options(**options).remote()
            ray.get(claim.ready.remote())
        except ValueError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)
        else:
            return claim


def end_left_behind(namespace: str = NAMESPACE) -> bool:
    """End a coordinator, and what it has launched, whose platform was killed; whether there was one.

    Nothing that was acknowledged is lost: the log has it, and new hosts fence the old ones.
    """
    try:
        ray.kill(find_coordinator(namespace))
    except ValueError:
        return False
    for process in RayLauncher(namespace).living().values():
        process.kill()
    return True


def start_coordinator(spec: RuntimeSpec, namespace: str = NAMESPACE) -> "ActorHandle[Any]":
    """Create the coordinator of a namespace; call its `start` to have everything up.

    Ray makes it anew when it dies: call `start` now and then, which does nothing on one that is started.
    """
    # It owns no device: made anew, it finds in the database what it needs once `start` is called again.
    options = {**_OPTIONS, "max_restarts": -1, "name": COORDINATOR, "namespace": namespace}
    # Beside the platform, so that it does not go when a node goes that only carries hosts: Ray would take
    # a quarter of a minute to make it anew. Elsewhere it is of no use, since the platform calls `start`.
    here = ray.get_runtime_context().get_node_id()
    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    actor = remote_class(Coordinator).options(**options)
    handle: ActorHandle[Any] = actor.remote(spec, RayLauncher(namespace, spec.settings.local_calls))
    return handle


def find_coordinator(namespace: str = NAMESPACE) -> "ActorHandle[Any]":
    """The running coordinator of a namespace. Raises ValueError when there is none."""
    handle: ActorHandle[Any] = ray.get_actor(COORDINATOR, namespace=namespace)
    return handle


async def steer_coordinator(
    coordinator: "ActorHandle[Any]", method: str, clock_s: Callable[[], float] = time.monotonic
) -> None:
    """Call its `start` or `stop`, which may be called twice: again when the call did not get through.

    A call that took long before it failed did get through: its answer was lost. Raises ActorUnavailableError
    when none got through for `STEER_TIMEOUT_S`, and whatever the method raises.
    """
    deadline_s = clock_s() + STEER_TIMEOUT_S
    while True:
        began_s = clock_s()
        try:
            return await coordinator.call.remote(method)  # type: ignore[no-any-return]
        except ActorUnavailableError:
            now_s = clock_s()
            if now_s - began_s > STEER_TIMEOUT_S:
                deadline_s = now_s + STEER_TIMEOUT_S
            if now_s > deadline_s:
                raise
            await asyncio.sleep(0.5)


def make_router(sender: str, namespace: str = NAMESPACE) -> Router:
    """A router of the running namespace; start it before use."""
    return Router(sender, RayTransport(find_coordinator(namespace)))
