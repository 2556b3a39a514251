"""The Ray adapter: the only place where plain classes become Ray actors and calls become Ray calls."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sensorium.actors.coordinator import Coordinator, RuntimeSpec
from sensorium.actors.router import HostGone, Router, Table

NAMESPACE: Final = "sensorium"
COORDINATOR: Final = "coordinator"
DELIVER_TIMEOUT_S: Final = 30.0
CLAIM_TIMEOUT_S: Final = 10.0
"""In which Ray notices that a process has died."""

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

HOSTS_LABEL: Final = "sensorium.io/hosts"
"""On a deployed cluster every node says by it how many hosts it is meant for."""


def spare_the_collector() -> None:
    """For processes whose objects live long: collecting them again and again costs a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


def remote_class(make: Callable[..., Any]) -> Any:
    """The actor class of a plain class whose methods are coroutines (and some plain ones)."""

    class Hosted:
        """Any plain object in a Ray actor."""

        def __init__(self, *args: Any) -> None:
            spare_the_collector()
            self._object = make(*args)

        async def call(self, method: str, *args: Any) -> Any:
            """Call a method of the object."""
            result = getattr(self._object, method)(*args)
            result = await result if asyncio.iscoroutine(result) else result
            if method == "statistics":
                result = {**result, "node": ray.get_runtime_context().get_node_id()}
            return result

        async def deliver(self, data: bytes) -> bytes:
            """`DeviceHost.deliver`."""
            return await self._object.deliver(data)  # type: ignore[no-any-return]

        async def pid(self) -> int:
            """The process's id."""
            return os.getpid()

    Hosted.__name__ = Hosted.__qualname__ = getattr(make, "__name__", "Hosted")
    return ray.remote(Hosted)


class RayProcess:
    """A launched object behind its actor handle."""

    def __init__(self, handle: "ActorHandle[Any]") -> None:
        self.address = handle

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """See `coordinator.Process.call`."""
        return await _bounded(self.address.call.remote(method, *args), timeout_s)

    def kill(self) -> None:
        """See `coordinator.Process.kill`."""
        ray.kill(self.address)


class RayLauncher:
    """Launches objects as detached, named actors of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._nodes: dict[str, str] = {}
        """Where what was launched last under a name went."""

    def launch(self, name: str, make: Callable[..., Any], *args: Any) -> RayProcess:
        """See `coordinator.Launcher.launch`."""
        options = {**_OPTIONS, "name": name, "namespace": self._namespace}
        node = self._choose_node(name.partition(".")[0])
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        return RayProcess(remote_class(make).options(**options).remote(*args))

    def _choose_node(self, name: str) -> str | None:
        """The node with the fewest of the name's kind (`host-3` is a host); None where there is no choice.

        Ray would put all that claims nothing on one node, and its SPREAD counts only roughly. A node that is
        meant for no hosts takes some when there is no other.
        """
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in nodes if node["Alive"]]
        meant = [node for node in alive if node["Labels"].get(HOSTS_LABEL) != "0"] or alive
        if len(alive) < 2:
            return None
        kind = name.partition("-")[0]
        others = [node for other, node in self._nodes.items() if other != name and other.startswith(kind)]
        chosen = min((str(node["NodeID"]) for node in meant), key=lambda node: (others.count(node), node))
        self._nodes[name] = chosen
        return chosen

    def clear(self) -> None:
        """See `coordinator.Launcher.clear`."""
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == self._namespace and actor["name"] != COORDINATOR:
                try:
                    ray.kill(ray.get_actor(actor["name"], self._namespace))
                except ValueError:
                    continue  # it died meanwhile


class RayTransport:
    """A router's way to the hosts through Ray."""

    def __init__(self, coordinator: "ActorHandle[Any]") -> None:
        self._coordinator = coordinator

    async def table(self, newer_than: int | None = None) -> Table:
        """See `router.Transport.table`. Waits for the coordinator to come back when it is down."""
        while True:
            try:
                table: Table = await self._coordinator.call.remote("table", newer_than)
            except RayActorError:
                await asyncio.sleep(0.5)
            else:
                return table

    async def deliver(self, address: "ActorHandle[Any]", data: bytes) -> bytes:
        """See `router.Transport.deliver`."""
        reply: bytes = await _bounded(address.deliver.remote(data), DELIVER_TIMEOUT_S)
        return reply


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
    RayLauncher(namespace).clear()
    return True


def start_coordinator(spec: RuntimeSpec, namespace: str = NAMESPACE) -> "ActorHandle[Any]":
    """Create the coordinator of a namespace; call its `start` to have everything up.

    Ray makes it anew when it dies: call `start` now and then, which does nothing on one that is started.
    """
    # It owns no device: made anew, it finds in the database what it needs once `start` is called again.
    options = {**_OPTIONS, "max_restarts": -1, "name": COORDINATOR, "namespace": namespace}
    actor = remote_class(Coordinator).options(**options)
    handle: ActorHandle[Any] = actor.remote(spec, RayLauncher(namespace))
    return handle


def find_coordinator(namespace: str = NAMESPACE) -> "ActorHandle[Any]":
    """The running coordinator of a namespace. Raises ValueError when there is none."""
    handle: ActorHandle[Any] = ray.get_actor(COORDINATOR, namespace=namespace)
    return handle


def make_router(sender: str, namespace: str = NAMESPACE) -> Router:
    """A router of the running namespace; start it before use."""
    return Router(sender, RayTransport(find_coordinator(namespace)))


async def _bounded(ref: Any, timeout_s: float) -> Any:
    """The result of a call. Our own errors pass; a dead, silent or unreachable actor is `HostGone`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await ref
    except TimeoutError as error:
        raise HostGone(f"no answer within {timeout_s:g} s") from error
    except (RayActorError, GetTimeoutError) as error:
        raise HostGone(str(error).splitlines()[0]) from error
    except RayError as error:
        cause = getattr(error, "cause", None)
        if cause is None:
            raise HostGone(str(error).splitlines()[0]) from error
        raise
