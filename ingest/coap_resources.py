"""The CoAP resources: what devices post to and what can be read and observed."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Hashable, Sequence
from hashlib import blake2b
from typing import Any, Final, Protocol

import aiocoap
import cbor2
import msgspec
from aiocoap.numbers.codes import Code
from aiocoap.resource import ObservableResource, PathCapable, Resource

from sensorium.actors.errors import SensoriumError, Unavailable
from sensorium.actors.messages import Content, GetLatest, Message, Outcome
from sensorium.ingest.cbor import CborDecoder
from sensorium.ingest.coap_answers import Answered, answer_of, later, refuse
from sensorium.ingest.coap_blocks import Block, Downloads, Incomplete, TooLarge, Uploads, cut
from sensorium.ingest.coap_exchanges import Exchanges
from sensorium.ingest.decode import Bounds
from sensorium.ingest.pipeline import Decode, Pipeline, Router, is_device_id
from sensorium.ingest.rate_limit import RateLimiter
from sensorium.ingest.senml import SenmlDecoder

JSON: Final = 50
CBOR: Final = 60
SENML_JSON: Final = 110
SENML_CBOR: Final = 112

COMMANDS_QUERY: Final = "commands"
TWIN_QUERY: Final = "twin"
"""In the query of a POST: the device wants to know what it shall do, and how it shall be."""
COMMIT_TIMEOUT_S: Final = 30.0
"""How long a client waits for a commit; then it is told to come back."""
MAX_OBSERVERS: Final = 10_000
NOTIFY_EVERY_S: Final = 1.0
"""Notifications of a device are at least so far apart. An observer that is gone is noticed after some 90 s,
so this is also the bound on what waits for it."""
LOOK_EVERY_S: Final = 2.0
"""How often a device whose latest values are observed is asked for what came by other ways in."""
MAX_LOOKS_PER_S: Final = 200
"""With more observed devices than that allows, each is asked less often."""


class CoapRouter(Router, Protocol):
    """The router, with questions to devices."""

    async def ask(self, message: Message, timeout_s: float = ...) -> Any:
        """The answer as builtins. Raises `SensoriumError`."""
        ...

    def failing(self, device_id: str) -> Unavailable | None:
        """Why messages for the device do not get through at present; None when they do."""
        ...


class Access:
    """Who may do what: a device with an OSCORE context or a key for DTLS is only itself, and only by it."""

    def __init__(
        self, contexts: frozenset[str], required: bool, keys: Container[str] = frozenset[str]()
    ) -> None:
        self._contexts = contexts
        self._keys = keys
        self._required = required

    def write(self, request: Any, device_id: str) -> None:
        """Raise `Answered` unless the request may speak for the device."""
        claims = request.remote.authenticated_claims
        if claims:
            if device_id not in claims:
                raise Answered(Code.FORBIDDEN, f"you have shown to be {claims[0]}, not {device_id}")
        elif self._required or device_id in self._contexts or device_id in self._keys:
            raise Answered(Code.UNAUTHORIZED, self._how(device_id))

    def read(self, request: Any) -> None:
        """Raise `Answered` unless the request may read. Whoever has a context may."""
        if self._required and not request.remote.authenticated_claims:
            raise Answered(Code.UNAUTHORIZED, "protect the request with an OSCORE context or by DTLS")

    def _how(self, device_id: str) -> str:
        if device_id in self._keys and device_id not in self._contexts:
            return "send the request over DTLS, with the device's key"
        return "protect the request with the device's OSCORE context"


class SensorResource(Resource, PathCapable):  # type: ignore[misc]  # aiocoap ships no types
    """`POST /sensors/{id}`: readings in four formats, answered with 2.04 after the commit.

    With `?commands` or `?twin` the answer holds what the device shall do, where that fits one block.

    Args:
        committed: told of the device after each commit.
        commands: what a device shall do by the names of those queries, or None where it must be asked for by
            itself.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        router: CoapRouter,
        access: Access,
        exchanges: Exchanges,
        committed: Callable[[str], None],
        commands: Callable[[str, int, Sequence[str]], Awaitable[bytes | None]],
        *,
        bounds: Bounds,
        max_pending: int,
        limiter: RateLimiter | None,
        clock_ms: Callable[[], int],
        clock_s: Callable[[], float],
    ) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._router = router
        self._access = access
        self._exchanges = exchanges
        self._committed = committed
        self._commands = commands
        self._max_pending = max_pending
        self._limiter = limiter
        self._clock_ms = clock_ms
        self.uploads = Uploads(bounds.max_payload_bytes, clock_s)
        senml = SenmlDecoder(bounds)
        self._decoders: dict[int | None, tuple[Decode | None, Content]] = {
            None: (None, Content.JSON),
            JSON: (None, Content.JSON),
            CBOR: (CborDecoder(bounds).decode, Content.CBOR),
            SENML_JSON: (senml.decode_json, Content.SENML_JSON),
            SENML_CBOR: (senml.decode_cbor, Content.SENML_CBOR),
        }
        self.counts: Counter[str] = Counter()
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.stopping = False

    def get_resources_as_linkheader(self) -> Any:
        """For `.well-known/core`."""
        return _links(ct=f"{JSON} {CBOR} {SENML_JSON} {SENML_CBOR}", rt="sensorium.sensor")

    async def needs_blockwise_assembly(self, request: Any) -> bool:
        """No: `Uploads` is bounded, aiocoap's assembly is not."""
        return False

    async def render_post(self, request: Any) -> Any:
        """Take readings."""
        self.counts["requests"] += 1
        try:
            return await self._post(request)
        except Answered as answered:
            self.counts[answered.code.dotted] += 1
            # Without Block1: in a 4.13 that would say, try smaller blocks (RFC 7959, section 2.9.3).
            return answered.to_message()

    async def _post(self, request: Any) -> Any:
        if len(request.opt.uri_path) != 1:
            raise Answered(Code.NOT_FOUND, "post to /sensors/{device id}")
        (device_id,) = request.opt.uri_path
        self._access.write(request, device_id)
        accept = accepted(request)
        format_number = request.opt.content_format
        if format_number is not None:
            format_number = int(format_number)
        if format_number not in self._decoders:
            known = ", ".join(str(number) for number in self._decoders if number is not None)
            raise Answered(Code.UNSUPPORTED_CONTENT_FORMAT, f"known content formats: {known}")
        self._check_way(device_id)
        block = block_of(request.opt.block1)
        payload = request.payload
        if block is not None:
            key = (request.remote.blockwise_key, device_id, format_number)
            payload = assembled(self.uploads, key, block, payload)
            if payload is None:
                return aiocoap.Message(code=Code.CONTINUE, block1=request.opt.block1)
        check_rate(self._limiter, device_id, self._clock_ms())
        outcome = await self._outcome(request, device_id, payload, *self._decoders[format_number])
        refuse(outcome)
        self.counts[Code.CHANGED.dotted] += 1
        answer = aiocoap.Message(code=Code.CHANGED)
        asked = [name for name in (COMMANDS_QUERY, TWIN_QUERY) if name in request.opt.uri_query]
        if asked:
            commands = await self._commands(device_id, accept, asked)
            if commands is not None:
                answer = aiocoap.Message(code=Code.CHANGED, payload=commands, content_format=accept)
        if block is not None:
            answer.opt.block1 = request.opt.block1
        return answer

    def _check_way(self, device_id: str) -> None:
        if self.stopping:
            raise later("the service is stopping")
        if self._router.pending >= self._max_pending:
            raise later(f"{self._router.pending} readings wait for their commit", 1.0)
        failing = self._router.failing(device_id)
        if failing is not None:
            raise answer_of(failing)

    async def _outcome(
        self, request: Any, device_id: str, payload: bytes, decode: Decode | None, content: Content
    ) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(_: None, outcome: Outcome) -> None:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()
            self._committed(device_id)
            if not future.done():
                future.set_result(outcome)

        self.in_flight += 1
        self.idle.clear()
        # While the memory of exchanges is complete, a repetition does not come here.
        confirmable = request.mtype == 0 and request.mid is not None
        self._pipeline.telemetry(
            f"/sensors/{device_id}",
            device_id,
            payload,
            self._clock_ms(),
            _identity(request) if request.mid is not None else None,
            done,
            None,
            redelivered=confirmable and not self._exchanges.complete,
            decode=decode,
            content=content,
        )
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise later(f"not committed within {COMMIT_TIMEOUT_S:g} s, though it still may be") from None


class LatestResource(ObservableResource, PathCapable):  # type: ignore[misc]  # aiocoap ships no types
    """`GET /devices/{id}/latest`, as JSON or CBOR by Accept; observers are told when `changed` is called."""

    def __init__(self, router: CoapRouter, access: Access, notify_every_s: float = NOTIFY_EVERY_S) -> None:
        super().__init__()
        self._router = router
        self._access = access
        self._notify_every_s = notify_every_s
        self._downloads = Downloads()
        self._observers: dict[str, set[Any]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._changed_again: set[str] = set()
        self._shown: dict[str, bytes] = {}
        """Of the devices that are observed, a digest of the latest values that were told last."""
        self.observers = 0
        self.notifications = 0

    def get_resources_as_linkheader(self) -> Any:
        """For `.well-known/core`."""
        return _links(ct=f"{JSON} {CBOR}", rt="sensorium.latest", obs=None)

    async def needs_blockwise_assembly(self, request: Any) -> bool:
        """No: `Downloads` is bounded, aiocoap's is not."""
        return False

    async def add_observation(self, request: Any, serverobservation: Any) -> None:
        """Register an observer, unless there are too many: then it gets one plain answer."""
        try:
            observed = self.observed(request)
        except Answered:
            observed = ""
        if not observed or self.observers >= MAX_OBSERVERS:
            serverobservation.accept(_nothing)
            serverobservation.deregister()
            return
        observers = self._observers.setdefault(observed, set())
        observers.add(serverobservation)
        self.observers += 1

        def gone() -> None:
            self.observers -= 1
            observers.discard(serverobservation)
            if not observers and self._observers.get(observed) is observers:
                del self._observers[observed]
                self._shown.pop(observed, None)

        serverobservation.accept(gone)

    def observed(self, request: Any) -> str:
        """What a request observes, as `changed` names it. Raises `Answered` where there is nothing."""
        return _device_of(request)

    def changed(self, observed: str) -> None:
        """Tell the observers, of a device's latest values by its id, at once or when the last notification is
        `notify_every_s` old."""
        if observed not in self._observers:
            return
        if observed in self._timers:
            self._changed_again.add(observed)
            return
        loop = asyncio.get_running_loop()
        self._timers[observed] = loop.call_later(self._notify_every_s, self._rested, observed)
        for observer in tuple(self._observers[observed]):
            self.notifications += 1
            observer.trigger()

    def _rested(self, observed: str) -> None:
        del self._timers[observed]
        if observed in self._changed_again:
            self._changed_again.discard(observed)
            self.changed(observed)

    async def look(self) -> None:
        """Tell observers of latest values that came by other ways in, until cancelled."""
        while True:
            # What else is observed has a slash in its name, and is told of by `watch`.
            observed = [name for name in self._observers if "/" not in name]
            pause_s = max(1 / MAX_LOOKS_PER_S, LOOK_EVERY_S / (len(observed) or 1))
            for device_id in observed:
                await asyncio.sleep(pause_s)
                before = self._shown.get(device_id)
                if before is None or device_id in self._timers:
                    continue  # nothing was told yet, or just now
                try:
                    answer = await self._router.ask(GetLatest(device_id))
                except SensoriumError:
                    continue  # who asks is told that, who observes may be told later
                if _digest(answer) != before == self._shown.get(device_id):
                    self.changed(device_id)
            if not observed:
                await asyncio.sleep(pause_s)

    def close(self) -> None:
        """Tell nobody any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._observers.clear()

    async def render_get(self, request: Any) -> Any:
        """The newest value of each metric, by event time, from the device itself."""
        device_id = _device_of(request)
        self._access.read(request)
        return await self.answered(request, device_id, GetLatest(device_id))

    async def answered(self, request: Any, device_id: str, question: Message) -> Any:
        """What the device answers, as JSON or CBOR, block by block where it is long."""
        accept = accepted(request)
        asked = block_of(request.opt.block2)
        key = (request.remote.blockwise_key, type(question), device_id, accept)
        content = self._downloads.kept(key) if asked is not None and asked.number else None
        if content is None:
            try:
                answer = await self._router.ask(question)
            except SensoriumError as error:
                raise answer_of(error) from None
            content = encoded(answer, accept)
            if device_id in self._observers and isinstance(question, GetLatest):
                self._shown[device_id] = _digest(answer)
        try:
            part, block = cut(content, asked)
        except Incomplete as error:
            raise Answered(Code.BAD_OPTION, str(error)) from None
        message = aiocoap.Message(payload=part, content_format=accept, max_age=round(NOTIFY_EVERY_S))
        message.opt.etag = blake2b(content, digest_size=8).digest()
        if block is not None:
            message.opt.block2 = tuple(block)
            if block.more:
                self._downloads.keep(key, content)
        return message


def _digest(answer: Any) -> bytes:
    return blake2b(msgspec.json.encode(answer), digest_size=8).digest()


def accepted(request: Any) -> int:
    """The content format that is wanted. Raises `Answered`."""
    accept = int(request.opt.accept) if request.opt.accept is not None else JSON
    if accept not in (JSON, CBOR):
        raise Answered(Code.NOT_ACCEPTABLE, f"there are {JSON} (JSON) and {CBOR} (CBOR)")
    return accept


def encoded(answer: Any, accept: int) -> bytes:
    """An answer in that format."""
    return msgspec.json.encode(answer) if accept == JSON else cbor2.dumps(answer)


def check_rate(limiter: RateLimiter | None, device_id: str, now_ms: int) -> None:
    """Raise `Answered` for a message that is over the device's limit."""
    if limiter is not None and (wait_s := limiter.wait_s(device_id, now_ms)):
        raise Answered(Code.TOO_MANY_REQUESTS, "more messages than the device may send", wait_s)


def _device_of(request: Any) -> str:
    path = request.opt.uri_path
    if len(path) != 2 or path[1] != "latest" or not is_device_id(path[0]):
        raise Answered(Code.NOT_FOUND, "there is /devices/{device id}/latest")
    return str(path[0])


def assembled(uploads: Uploads, key: Hashable, block: Block, payload: bytes) -> bytes | None:
    """The whole payload once its last block is there. Raises `Answered`."""
    try:
        return uploads.add(key, block, payload)
    except Incomplete as error:
        raise Answered(Code.REQUEST_ENTITY_INCOMPLETE, str(error)) from None
    except TooLarge as error:
        raise Answered(Code.REQUEST_ENTITY_TOO_LARGE, str(error)) from None


def block_of(option: Any) -> Block | None:
    """A Block1 or Block2 option as a value."""
    return None if option is None else Block(option.block_number, option.more, option.size_exponent)


def _identity(request: Any) -> int:
    """What stays the same when a message is transmitted again (RFC 7252, section 4.2)."""
    name = f"{request.remote.hostinfo}|{request.mid}|".encode() + request.token
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


def _links(**attributes: str | None) -> Any:
    from aiocoap.util.linkformat import Link, LinkFormat

    return LinkFormat([Link("/", **attributes)])


def _nothing() -> None:
    return None
