"""The way to actors: over a Unix socket to those on the same machine, else by calls of Ray."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
import ray._private.worker
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.local_calls import (
    MAX_FRAME_BYTES,
    MAX_PATH_BYTES,
    WAIT,
    CallLost,
    LocalClient,
    LocalServer,
)
from sensorium.actors.router import HostGone, Table

DELIVER_TIMEOUT_S: Final = 30.0
ASK_TIMEOUT_S: Final = 5.0
"""In which an actor says where its socket is; it is asked again with a later batch."""

_log = logging.getLogger(__name__)


class RayTransport:
    """See `router.Transport`. Close it once."""

    def __init__(self, coordinator: "ActorHandle[Any]") -> None:
        self._coordinator = coordinator
        self._ways: dict[Any, LocalWay] = {}
        """By actor."""

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
        way = self._ways.get(address._actor_id)
        if way is None:
            way = self._ways[address._actor_id] = LocalWay(address)
        client = way.client()
        if client is None or len(data) > MAX_FRAME_BYTES:
            reply: bytes = await bounded(address.deliver.remote(data), DELIVER_TIMEOUT_S)
            return reply
        return await in_time(client.call(data), DELIVER_TIMEOUT_S)

    async def wait(self, address: "ActorHandle[Any]", data: bytes, timeout_s: float) -> bytes | None:
        """See `router.Transport.wait`. Not by Ray: a call that waits takes the place of one that works."""
        way = self._ways.get(address._actor_id)
        client = None if way is None else way.client()
        if client is None:
            return None
        return await in_time(client.call(data, WAIT), timeout_s)

    async def close(self) -> None:
        """End the connections."""
        for way in self._ways.values():
            await way.close()
        self._ways.clear()


class LocalWay:
    """A connection to an actor on this machine, looked for when it is wanted first."""

    def __init__(self, address: "ActorHandle[Any]") -> None:
        self._address = address
        self._asked: asyncio.Task[LocalClient | None] | None = None

    def client(self) -> LocalClient | None:
        """The connection, if there is one; else it is being looked for, or there is none to be had."""
        if self._asked is None:
            self._asked = asyncio.create_task(self._connected(), name="way to an actor")
            return None
        if not self._asked.done():
            return None
        if self._asked.cancelled() or self._asked.exception() is not None:
            self._asked = None  # it did not answer, or not yet: look again the next time
            return None
        client = self._asked.result()
        if client is not None and client.closed:
            self._asked = None
            return None
        return client

    async def close(self) -> None:
        """End the connection."""
        if self._asked is not None:
            self._asked.cancel()
            (client,) = await asyncio.gather(self._asked, return_exceptions=True)
            if isinstance(client, LocalClient):
                client.close()
            self._asked = None

    async def _connected(self) -> LocalClient | None:
        node, path = await bounded(self._address.local_calls.remote(), ASK_TIMEOUT_S)
        if path is None or node != ray.get_runtime_context().get_node_id():
            return None
        return await LocalClient.connect(Path(path))


async def in_time(call: Awaitable[bytes], timeout_s: float) -> bytes:
    """The answer over a socket; `HostGone` when none comes. Whether the process has ended, Ray will tell."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except (TimeoutError, CallLost) as error:
        raise HostGone(str(error) or f"no answer within {timeout_s:g} s") from error


async def bounded(ref: Any, timeout_s: float) -> Any:
    """The result of a call. Our own errors pass; a dead, silent or unreachable actor is `HostGone`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await ref
    except TimeoutError as error:
        raise HostGone(f"no answer within {timeout_s:g} s") from error
    except (RayActorError, GetTimeoutError) as error:
        raise HostGone(str(error).splitlines()[0], dead=isinstance(error, ActorDiedError)) from error
    except RayError as error:
        cause = getattr(error, "cause", None)
        if cause is None:
            raise HostGone(str(error).splitlines()[0]) from error
        raise


class Doorstep:
    """Where an actor's socket is, opened when somebody asks first: for `ping`, and a host's `deliver`."""

    def __init__(self, served: Any) -> None:
        self._served = served
        self._opening: asyncio.Task[str | None] | None = None

    async def path(self) -> str | None:
        """None: there is none, and Ray has to do."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._opened(), name="local calls")
        return await asyncio.shield(self._opening)

    async def _opened(self) -> str | None:
        self._server = LocalServer(
            getattr(self._served, "deliver", _not_here), self._ping, getattr(self._served, "ended", None)
        )
        try:
            path = _folder() / f"{os.getpid()}"
            path.unlink(missing_ok=True)
            await self._server.listen(path)
        except OSError as error:
            _log.warning("senders on this machine call by Ray only: %s", error)
            return None
        return str(path)

    async def _ping(self, _: bytes) -> bytes:
        return msgspec.msgpack.encode(await self._served.ping())


async def _not_here(_: bytes) -> bytes:
    raise InvalidMessage("no device is here")


def _folder() -> Path:
    """A folder that no other user may enter: Ray's of this session, unless its name is too long."""
    node: Any = ray._private.worker._global_node
    folder = Path(node.get_session_dir_path()) / "local_calls"
    if len(os.fsencode(folder)) > MAX_PATH_BYTES - 8:
        return Path(tempfile.mkdtemp(prefix="sensorium-"))
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
