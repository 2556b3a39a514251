"""Below `/devices/{id}` over CoAP: a device asks for its commands and its twin, and says what came of it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiocoap
import cbor2
import msgspec
from aiocoap.numbers.codes import Code

from sensorium.actors.errors import SensoriumError
from sensorium.actors.messages import (
    ChangeTwin,
    CommandReply,
    Message,
    Outcome,
    TakeCommands,
    TakeTwin,
)
from sensorium.actors.twin import TWIN
from sensorium.actors.twin_documents import MAX_DOCUMENT_BYTES
from sensorium.ingest.coap_answers import Answered, answer_of, later, refuse
from sensorium.ingest.coap_blocks import Uploads
from sensorium.ingest.coap_resources import (
    CBOR,
    COMMANDS_QUERY,
    COMMIT_TIMEOUT_S,
    JSON,
    Access,
    CoapRouter,
    LatestResource,
    assembled,
    block_of,
    check_rate,
    encoded,
)
from sensorium.ingest.dispatch import ReadyCommands
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.pipeline import is_device_id
from sensorium.ingest.rate_limit import RateLimiter
from sensorium.ingest.replies import MAX_REPLY_BYTES, Reply, decode_reply
from sensorium.ingest.twin_reports import decode_report

MAX_COMMAND_ID_CHARS: Final = 128
MAX_PIGGYBACKED_BYTES: Final = 1_024
"""Of commands and twin in the answer to a reading: one block."""


class DevicesResource(LatestResource):
    """`GET /devices/{id}/latest`, `…/commands`, `…/twin/desired`; `POST …/commands/{id}/response`,
    `…/twin/reported`.

    Only the device itself may ask for its commands: those it is given are SENT then. Asking again gives the
    same ones, until they are answered or out of time. A device that observes them, or its twin, is told when
    there is something new, which `watch` sees.
    """

    def __init__(
        self,
        router: CoapRouter,
        access: Access,
        clock_ms: Callable[[], int],
        clock_s: Callable[[], float],
        limiter: RateLimiter | None = None,
    ) -> None:
        super().__init__(router, access)
        self._limiter = limiter
        self._clock_ms = clock_ms
        self._uploads = Uploads(max(MAX_REPLY_BYTES, MAX_DOCUMENT_BYTES), clock_s)

    async def render_get(self, request: Any) -> Any:
        """The latest values, the commands or the twin."""
        path = request.opt.uri_path
        question = _question(path)
        if question is None:
            return await super().render_get(request)
        self._access.write(request, path[0])
        return await self.answered(request, path[0], question)

    def observed(self, request: Any) -> str:
        """The device's id for its latest values; that and more for its commands and its twin."""
        path = request.opt.uri_path
        question = _question(path)
        if question is None:
            return super().observed(request)
        self._access.write(request, path[0])
        return _observed(path[0], twin=isinstance(question, TakeTwin))

    async def watch(self, source: ReadyCommands) -> None:
        """Tell devices that observe their commands or their twin when there are some, until cancelled."""
        async for batch in source.watch():
            for device_id, command_id, _ in batch:
                self.changed(_observed(device_id, twin=command_id == TWIN))

    async def taken(self, device_id: str, accept: int, asked: Sequence[str]) -> bytes | None:
        """What the device shall do, for the answer to a reading; None where it must ask by itself.

        Of `asked`, which is not empty, each by its name, or the only one as it is.
        """
        questions: dict[str, Message] = {COMMANDS_QUERY: TakeCommands(device_id)}
        try:
            answers = {
                name: await self._router.ask(questions.get(name, TakeTwin(device_id))) for name in asked
            }
        except SensoriumError:
            return None  # the reading is committed all the same
        content = encoded(answers[asked[0]] if len(asked) == 1 else answers, accept)
        # It is SENT already, and the device is given it again when it asks.
        return content if len(content) <= MAX_PIGGYBACKED_BYTES else None

    async def render_post(self, request: Any) -> Any:
        """A reply to a command or a report, answered with 2.04 after its commit."""
        try:
            return await self._post(request)
        except Answered as answered:
            return answered.to_message()

    async def _post(self, request: Any) -> Any:
        path = request.opt.uri_path
        reports = path[1:] == ("twin", "reported")
        replies = len(path) == 4 and path[1] == "commands" and path[3] == "response"
        if not (reports or replies) or not is_device_id(path[0]):
            raise Answered(
                Code.NOT_FOUND,
                "post to /devices/{device id}/commands/{command id}/response or …/twin/reported",
            )
        device_id = path[0]
        if replies and not (0 < len(path[2]) <= MAX_COMMAND_ID_CHARS and path[2].isprintable()):
            raise Answered(Code.NOT_FOUND, "the path names no command")
        self._access.write(request, device_id)
        if (failing := self._router.failing(device_id)) is not None:
            raise answer_of(failing)
        payload, block = request.payload, block_of(request.opt.block1)
        if block is not None:
            key = (request.remote.blockwise_key, *path)
            payload = assembled(self._uploads, key, block, payload)
            if payload is None:
                return aiocoap.Message(code=Code.CONTINUE, block1=request.opt.block1)
        message: Message
        if reports:
            check_rate(self._limiter, device_id, self._clock_ms())
            message = ChangeTwin(device_id, reported=_decoded(request, payload, decode_report), by="coap")
        else:
            said: Reply = _decoded(request, payload, decode_reply)
            now_ms = self._clock_ms()
            message = CommandReply(device_id, path[2], said.status, now_ms, said.result, said.reason)
        refuse(await self._committed(message))
        answer = aiocoap.Message(code=Code.CHANGED)
        if block is not None:
            answer.opt.block1 = request.opt.block1
        return answer

    async def _committed(self, message: Message) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(_: None, outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self._router.message(message, done, None)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise later(f"not committed within {COMMIT_TIMEOUT_S:g} s, though it still may be") from None


def _question(path: Sequence[str]) -> Message | None:
    """What the device asks by that path, if not for its latest values."""
    if not path or not is_device_id(path[0]):
        return None
    if tuple(path[1:]) == ("commands",):
        return TakeCommands(path[0])
    return TakeTwin(path[0]) if tuple(path[1:]) == ("twin", "desired") else None


def _observed(device_id: str, *, twin: bool) -> str:
    # No device id has a slash.
    return f"{device_id}/{'twin' if twin else 'commands'}"


def _decoded(request: Any, payload: bytes, decode: Callable[[bytes], Any]) -> Any:
    """What is said in JSON or CBOR. Unlike over MQTT, what is bad is told so and may be mended."""
    said = request.opt.content_format
    if said is not None and int(said) not in (JSON, CBOR):
        raise Answered(Code.UNSUPPORTED_CONTENT_FORMAT, f"known content formats: {JSON}, {CBOR}")
    try:
        if said is not None and int(said) == CBOR:
            payload = msgspec.json.encode(cbor2.loads(payload))
        return decode(payload)
    except Undecodable as error:
        raise Answered(Code.BAD_REQUEST, str(error)) from None
    except (cbor2.CBORDecodeError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise Answered(Code.BAD_REQUEST, f"not CBOR that JSON can say: {error}") from None
