"""DTLS 1.2 (RFC 6347) with pre-shared keys, over python-mbedtls: datagrams in, what known devices say out.

It knows nothing of CoAP. Needs the extra `dtls`; nothing imports this module where no keys are configured.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, Final, cast

from mbedtls import tls
from mbedtls.exceptions import TLSError

from sensorium.ingest.dtls_keys import DeviceKeys
from sensorium.ingest.errors import InvalidContext

CIPHERS: Final = (
    "TLS-PSK-WITH-AES-128-CCM-8",  # which every CoAP implementation has (RFC 7252, section 9.1.3.1)
    "TLS-PSK-WITH-AES-128-CCM",
    "TLS-PSK-WITH-AES-128-GCM-SHA256",
)
MAX_HANDSHAKES: Final = 200
"""Under way at once. Those who show no cookie take no place here; whoever comes beyond is not answered."""
HANDSHAKE_S: Final = 30.0
LOOK_EVERY_S: Final = 1.0
"""How often handshakes are gone over, sessions that are idle are ended and the file of keys is looked at."""
MAX_PLAINTEXT_BYTES: Final = 16_384

_OVER: Any = tls.HandshakeStep.HANDSHAKE_OVER
_RECORD, _HANDSHAKE, _CLIENT_HELLO, _HELLO_VERIFY_REQUEST = 13, 0x16, 1, 3
_RANDOM: Final = slice(27, 59)
"""Where a ClientHello has its random, which tells a repetition from another one."""

Address = tuple[Any, ...]


class DtlsSession:
    """A device at an address. `device_id` is whose key it has shown, once `established`."""

    __slots__ = ("address", "began_s", "buffer", "device_id", "established", "heard_s", "random")

    def __init__(self, address: Address, buffer: tls.TLSWrappedBuffer, random: bytes, now_s: float) -> None:
        self.address = address
        self.buffer = buffer
        self.random = random
        self.began_s = self.heard_s = now_s
        self.device_id = ""
        self.established = False


class _Step(Enum):
    """Where a handshake stands."""

    ASKED_COOKIE = 0
    WAITS = 1
    OVER = 2
    FAILED = 3


class DtlsServer(asyncio.DatagramProtocol):
    """Sessions at one socket. Create it as the protocol of a datagram endpoint and `close` it.

    Whoever comes must show a cookie before anything is kept of them (RFC 6347, section 4.2.1). A datagram
    that cannot be used is counted and dropped.

    Args:
        received: called with a session and what its device has said.
        gone: called with an established session that has ended, for whatever reason.
        max_sessions: at which the one that was silent for longest makes room.
        idle_s: for so long a session may be silent.
    """

    def __init__(
        self,
        keys: DeviceKeys,
        received: Callable[[DtlsSession, bytes], None],
        gone: Callable[[DtlsSession], None],
        *,
        clock_s: Callable[[], float],
        max_sessions: int,
        idle_s: float,
    ) -> None:
        self._keys = keys
        self._received = received
        self._gone = gone
        self._clock_s = clock_s
        self._max_sessions = max_sessions
        self._idle_s = idle_s
        self._context = tls.ServerContext(
            tls.DTLSConfiguration(
                validate_certificates=False,
                pre_shared_key_store=keys,
                ciphers=CIPHERS,
                lowest_supported_version=tls.DTLSVersion.DTLSv1_2,
            )
        )
        self._handshakes: OrderedDict[Address, DtlsSession] = OrderedDict()
        self._sessions: OrderedDict[Address, DtlsSession] = OrderedDict()
        """Established, the one that was silent for longest first."""
        self._transport: asyncio.DatagramTransport | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._counts: Counter[str] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio says."""
        # Not every datagram transport of asyncio is an instance of its class.
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._looking = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def close(self) -> None:
        """End all sessions, telling their devices, and the socket."""
        if self._looking is not None:
            self._looking.cancel()
        for session in list(self._sessions.values()):
            self._end(session, "closed")
        self._handshakes.clear()
        if self._transport is not None:
            self._transport.close()

    def statistics(self) -> dict[str, int]:
        """Sessions and handshakes at present, and counts since the start."""
        return {"sessions": len(self._sessions), "handshakes": len(self._handshakes), **self._counts}

    def send(self, session: DtlsSession, plaintext: bytes) -> None:
        """To the device, unless the session has ended meanwhile."""
        if self._sessions.get(session.address) is not session:
            return
        try:
            session.buffer.write(plaintext)
        except (tls.WantWriteError, tls.WantReadError):
            pass  # it is in the buffer
        except TLSError:
            self._end(session, "failed")
            return
        self._flush(session)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """As asyncio says."""
        session = self._sessions.get(addr) or self._handshakes.get(addr)
        if _has_client_hello(data):
            if len(data) < _RANDOM.stop:
                self._counts["strays"] += 1
            elif session is None or session.random != data[_RANDOM]:
                self._greet(data, addr)
            elif not session.established:
                self._go_on(session, data)
        elif session is None:
            self._counts["strays"] += 1
        elif session.established:
            self._hear(session, data)
        else:
            self._go_on(session, data)

    def _greet(self, data: bytes, address: Address) -> None:
        """Ask for the cookie, of which nothing is kept, or go on with who has shown it."""
        if len(self._handshakes) >= MAX_HANDSHAKES and address not in self._handshakes:
            self._counts["refused"] += 1
            return
        buffer = self._context.wrap_buffers()
        buffer.setcookieparam(repr(address).encode())
        session = DtlsSession(address, buffer, data[_RANDOM], self._clock_s())
        if self._shake(session, data) is _Step.WAITS:
            self._handshakes[address] = session

    def _go_on(self, session: DtlsSession, data: bytes) -> None:
        step = self._shake(session, data)
        if step is not _Step.WAITS:
            del self._handshakes[session.address]
        if step is _Step.OVER:
            self._establish(session)

    def _shake(self, session: DtlsSession, data: bytes) -> "_Step":
        """Go on with a handshake, with a datagram of the peer or to repeat what was sent."""
        keys, buffer = self._keys, session.buffer
        try:
            if data:
                buffer.receive_from_network(data)
            while buffer._handshake_state is not _OVER:
                keys.asked = None
                try:
                    buffer.do_handshake()
                except tls.WantWriteError:
                    out = self._flush(session)
                    if out[_RECORD : _RECORD + 1] == bytes([_HELLO_VERIFY_REQUEST]):
                        return _Step.ASKED_COOKIE
                if keys.asked is not None:
                    session.device_id = keys.asked
        except tls.WantReadError:
            self._flush(session)
            return _Step.WAITS
        except (TLSError, OSError, ValueError) as error:
            self._counts["handshakes_failed"] += 1
            _LOG.info("DTLS handshake of %s failed: %s", session.address, error)
            self._flush(session)
            return _Step.FAILED
        self._flush(session)
        return _Step.OVER

    def _establish(self, session: DtlsSession) -> None:
        # That it has shown the cookie and the key says that the old one at the address is over.
        if (before := self._sessions.get(session.address)) is not None:
            self._end(before, "replaced", tell=False)
        while len(self._sessions) >= self._max_sessions:
            self._end(next(iter(self._sessions.values())), "displaced")
        session.established = True
        session.heard_s = self._clock_s()
        self._sessions[session.address] = session
        self._counts["established"] += 1
        self._read(session)

    def _hear(self, session: DtlsSession, data: bytes) -> None:
        try:
            session.buffer.receive_from_network(data)
        except (TLSError, OSError, ValueError):
            self._end(session, "failed")
            return
        self._read(session)

    def _read(self, session: DtlsSession) -> None:
        said = False
        try:
            while self._sessions.get(session.address) is session:
                plaintext = session.buffer.read(MAX_PLAINTEXT_BYTES)
                if not plaintext:
                    break
                if not said:
                    said = True
                    session.heard_s = self._clock_s()
                    self._sessions.move_to_end(session.address)
                self._received(session, plaintext)
        except (tls.WantReadError, tls.WantWriteError):
            pass
        except TLSError:
            # Its device has said that it is over, or what it sent cannot be gone on with.
            self._end(session, "ended")
            return
        self._counts["unusable"] += not said
        self._flush(session)

    def _end(self, session: DtlsSession, why: str, *, tell: bool = True) -> None:
        if self._sessions.get(session.address) is session:
            del self._sessions[session.address]
            self._counts[why] += 1
            if tell:
                with suppress(tls.WantReadError, tls.WantWriteError, TLSError):
                    session.buffer.shutdown()
                self._flush(session)
            self._gone(session)

    def _flush(self, session: DtlsSession) -> bytes:
        """Send what the session has to send: a datagram, however many records it is."""
        out = session.buffer.peek_outgoing(MAX_PLAINTEXT_BYTES)
        if out:
            session.buffer.consume_outgoing(len(out))
            if self._transport is not None and not self._transport.is_closing():
                self._transport.sendto(out, session.address)
        return out

    def _look(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
        now_s = self._clock_s()
        for session in list(self._handshakes.values()):
            if now_s - session.began_s >= HANDSHAKE_S:
                del self._handshakes[session.address]
                self._counts["handshakes_failed"] += 1
            else:
                self._go_on(session, b"")
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if now_s - oldest.heard_s < self._idle_s:
                break
            self._end(oldest, "idle")
        try:
            changed = self._keys.refresh()
        except InvalidContext as error:
            _LOG.warning("the keys for DTLS stay as they were: %s", error)
            return
        for session in list(self._sessions.values()) if changed else ():
            if session.device_id in changed:
                self._end(session, "key_changed")


def _has_client_hello(data: bytes) -> bool:
    """Whether a record of the datagram is one, in the clear.

    It begins a handshake, or is a forgery: a session that is established must not be given it.
    """
    start = 0
    while start + _RECORD < len(data):
        kind, epoch, length = data[start], data[start + 3 : start + 5], data[start + 11 : start + 13]
        if kind == _HANDSHAKE and epoch == b"\0\0" and data[start + _RECORD] == _CLIENT_HELLO:
            return True
        start += _RECORD + int.from_bytes(length, "big")
    return False


_LOG: Final = logging.getLogger(__name__)
