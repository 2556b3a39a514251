"""CoAP over DTLS (`coaps`, RFC 7252 section 9): hands what devices with pre-shared keys say to aiocoap.

Needs the extra `dtls`; see `ingest.dtls`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiocoap import Message, error, interfaces
from aiocoap.util import hostportjoin

from sensorium.ingest.dtls import DtlsServer, DtlsSession
from sensorium.ingest.dtls_keys import DeviceKeys

MAX_SESSIONS: Final = 1_000
IDLE_S: Final = 3_600.0


class _Remote(interfaces.EndpointAddress):  # type: ignore[misc]  # aiocoap ships no types
    """A device by its session: another session is another remote, whoever it is."""

    scheme = "coaps"
    is_multicast = False
    is_multicast_locally = False
    # aiocoap sets it on what it answers.
    maximum_block_size_exp = 6

    def __init__(self, session: DtlsSession, local: str) -> None:
        self.session = session
        self._local = local

    @property
    def authenticated_claims(self) -> list[str]:
        return [self.session.device_id]

    @property
    def blockwise_key(self) -> Any:
        return self.session.address, self.session.device_id

    @property
    def hostinfo(self) -> str:
        return hostportjoin(*self.session.address[:2])  # type: ignore[no-any-return]

    @property
    def hostinfo_local(self) -> str:
        return self._local

    @property
    def uri_base(self) -> str:
        return f"coaps://{self.hostinfo}"

    @property
    def uri_base_local(self) -> str:
        return f"coaps://{self._local}"


class DtlsInterface(interfaces.MessageInterface):  # type: ignore[misc]
    """A message interface of aiocoap. Create it by `open_dtls`."""

    def __init__(self, manager: Any, keys: DeviceKeys, clock_s: Callable[[], float]) -> None:
        self._manager = manager
        self._remotes: dict[DtlsSession, _Remote] = {}
        self._local = ""
        self.server = DtlsServer(
            keys, self._received, self._gone, clock_s=clock_s, max_sessions=MAX_SESSIONS, idle_s=IDLE_S
        )

    async def listen(self, host: str, port: int) -> None:
        """Begin. Raises `OSError` when the port is taken."""
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self.server, local_addr=(host, port)
        )
        self._local = hostportjoin(*transport.get_extra_info("sockname")[:2])

    def send(self, message: Any) -> None:
        """As aiocoap says."""
        self.server.send(message.remote.session, message.encode())

    async def shutdown(self) -> None:
        """As aiocoap says."""
        self.server.close()
        self._manager = None

    async def recognize_remote(self, remote: Any) -> bool:
        """As aiocoap says."""
        return isinstance(remote, _Remote)

    async def determine_remote(self, message: Any) -> None:
        """As aiocoap says: none, since we begin no sessions."""

    def _received(self, session: DtlsSession, plaintext: bytes) -> None:
        remote = self._remotes.get(session)
        if remote is None:
            remote = self._remotes[session] = _Remote(session, self._local)
        try:
            message = Message.decode(plaintext, remote=remote)
        except error.UnparsableMessage:
            return  # as over UDP
        self._manager.dispatch_message(message)

    def _gone(self, session: DtlsSession) -> None:
        remote = self._remotes.pop(session, None)
        if remote is not None and self._manager is not None:
            self._manager.dispatch_error(error.NetworkError("the DTLS session has ended"), remote)


async def open_dtls(
    context: Any, host: str, port: int, keys: DeviceKeys, clock_s: Callable[[], float]
) -> DtlsServer:
    """Let an `aiocoap.Context` serve at that port, too; it closes it with itself."""
    opened: list[DtlsInterface] = []

    async def interface(manager: Any) -> DtlsInterface:
        opened.append(DtlsInterface(manager, keys, clock_s))
        await opened[0].listen(host, port)
        return opened[0]

    await context._append_tokenmanaged_messagemanaged_transport(interface)
    return opened[0].server
