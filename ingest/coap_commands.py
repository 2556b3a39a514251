"""Commands over CoAP, below `/devices/{id}`: a device asks what it shall do, and says what came of it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiocoap
import cbor2
import msgspec
from aiocoap.numbers.codes import Code

from sensorium.actors.errors import SensoriumError
from sensorium.actors.messages import CommandReply, Outcome, TakeCommands
from sensorium.ingest.coap_answers import Answered, answer_of, later, refuse
from sensorium.ingest.coap_blocks import Uploads
from sensorium.ingest.coap_resources import (
    CBOR,
    COMMIT_TIMEOUT_S,
    JSON,
    Access,
    CoapRouter,
    LatestResource,
    assembled,
    block_of,
    encoded,
)
from sensorium.ingest.dispatch import ReadyCommands
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.pipeline import is_device_id
from sensorium.ingest.replies import MAX_REPLY_BYTES, Reply, decode_reply

MAX_COMMAND_ID_CHARS: Final = 128
MAX_PIGGYBACKED_BYTES: Final = 1_024
"""Of commands in the answer to a reading: one block."""


class DevicesResource(LatestResource):
    """`GET /devices/{id}/latest`, `GET /devices/{id}/commands`, `POST /devices/{id}/commands/{id}/response`.

    Only the device itself may ask for its commands: those it is given are SENT then. Asking again gives the
    same ones, until they are answered or out of time. A device that observes them is told when there are new
    ones, which `watch` sees.
    """

    def __init__(
        self,
        router: CoapRouter,
        access: Access,
        clock_ms: Callable[[], int],
        clock_s: Callable[[], float],
    ) -> None:
        super().__init__(router, access)
        self._clock_ms = clock_ms
        self._uploads = Uploads(MAX_REPLY_BYTES, clock_s)

    async def render_get(self, request: Any) -> Any:
        """The latest values, or the commands."""
        path = request.opt.uri_path
        if not _are_commands(path):
            return await super().render_get(request)
        self._access.write(request, path[0])
        return await self.answered(request, path[0], TakeCommands(path[0]))

    def observed(self, request: Any) -> str:
        """The device's id for its latest values; that and more for its commands."""
        path = request.opt.uri_path
        if not _are_commands(path):
            return super().observed(request)
        self._access.write(request, path[0])
        return _commands_of(path[0])

    async def watch(self, source: ReadyCommands) -> None:
        """Tell devices that observe their commands when some are ready, until cancelled."""
        async for batch in source.watch():
            for device_id, _, _ in batch:
                self.changed(_commands_of(device_id))

    async def taken(self, device_id: str, accept: int) -> bytes | None:
        """What the device shall do, for the answer to a reading; None where it must ask by itself."""
        try:
            answer = await self._router.ask(TakeCommands(device_id))
        except SensoriumError:
            return None  # the reading is committed all the same
        content = encoded(answer, accept)
        # It is SENT already, and the device is given it again when it asks.
        return content if len(content) <= MAX_PIGGYBACKED_BYTES else None

    async def render_post(self, request: Any) -> Any:
        """A reply to a command, answered with 2.04 after its commit."""
        try:
            return await self._post(request)
        except Answered as answered:
            return answered.to_message()

    async def _post(self, request: Any) -> Any:
        path = request.opt.uri_path
        if len(path) != 4 or path[1] != "commands" or path[3] != "response" or not is_device_id(path[0]):
            raise Answered(Code.NOT_FOUND, "post to /devices/{device id}/commands/{command id}/response")
        device_id, command_id = path[0], path[2]
        if not 0 < len(command_id) <= MAX_COMMAND_ID_CHARS or not command_id.isprintable():
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
        said = _reply_of(request, payload)
        now_ms = self._clock_ms()
        reply = CommandReply(device_id, command_id, said.status, now_ms, said.result, said.reason)
        refuse(await self._committed(reply))
        answer = aiocoap.Message(code=Code.CHANGED)
        if block is not None:
            answer.opt.block1 = request.opt.block1
        return answer

    async def _committed(self, reply: CommandReply) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(_: None, outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self._router.message(reply, done, None)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise later(f"not committed within {COMMIT_TIMEOUT_S:g} s, though it still may be") from None


def _are_commands(path: Sequence[str]) -> bool:
    return len(path) == 2 and path[1] == "commands" and is_device_id(path[0])


def _commands_of(device_id: str) -> str:
    # No device id has a slash.
    return f"{device_id}/commands"


def _reply_of(request: Any, payload: bytes) -> Reply:
    """The reply in JSON or CBOR. Unlike over MQTT, a bad one is told so and may be mended."""
    said = request.opt.content_format
    if said is not None and int(said) not in (JSON, CBOR):
        raise Answered(Code.UNSUPPORTED_CONTENT_FORMAT, f"known content formats: {JSON}, {CBOR}")
    try:
        if said is not None and int(said) == CBOR:
            payload = msgspec.json.encode(cbor2.loads(payload))
        return decode_reply(payload)
    except Undecodable as error:
        raise Answered(Code.BAD_REQUEST, str(error)) from None
    except (cbor2.CBORDecodeError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise Answered(Code.BAD_REQUEST, f"not a reply in CBOR: {error}") from None
