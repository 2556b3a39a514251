"""`/api/dead-letters`: what could not be used, and another try at it."""

import asyncio
import base64
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from sensorium.actors.messages import Duplicate, Outcome, Refusal
from sensorium.ingest.replay import NotReplayable
from sensorium.serve import examples
from sensorium.serve.describe import answer
from sensorium.serve.pages import (
    DeadLetterItem,
    DeadLetterPage,
    Replayed,
    ReplayedLetters,
    json_response,
    page_response,
)
from sensorium.serve.problems import Problem, not_found
from sensorium.serve.query import CursorQuery, PageLimitQuery, cursor_in
from sensorium.serve.services import Services
from sensorium.serve.telemetry import item_identity, not_in_time

LetterPath = Annotated[int, Path(ge=1, le=2**62)]
ReasonQuery = Annotated[str | None, Query(max_length=64)]
DeviceQuery = Annotated[str | None, Query(max_length=128)]


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["dead letters"])
    letters, registry, timeout_s = services.dead_letters, services.registry, services.timeout_s
    replay_of = services.replay

    @router.get(
        "/api/dead-letters",
        response_model=None,
        summary="List dead letters",
        responses=answer(DeadLetterPage, "A page of dead letters, newest first.", examples.DEAD_LETTERS),
    )
    async def list_dead_letters(
        request: Request,
        reason: ReasonQuery = None,
        device_id: DeviceQuery = None,
        limit: PageLimitQuery = 100,
        cursor: CursorQuery = None,
    ) -> Response:
        """Messages that could not be used, each with its reason and first bytes."""
        page = await letters.page(
            reason=reason, device_id=device_id, after=cursor_in("dead-letters", cursor), limit=limit
        )
        items = [_item(letter) for letter in page.items]
        return page_response(DeadLetterPage, request, "dead-letters", items, page.next)

    @router.get(
        "/api/dead-letters/{letter_id:digits}",
        response_model=None,
        summary="Look at a dead letter",
        responses=answer(DeadLetterItem, "The letter.", examples.DEAD_LETTERS["items"][0], problems=(404,)),
    )
    async def get_dead_letter(letter_id: LetterPath) -> Response:
        """One message that could not be used."""
        return json_response(_item(await found(letter_id)))

    @router.delete(
        "/api/dead-letters/{letter_id:digits}",
        status_code=204,
        response_model=None,
        summary="Delete a dead letter",
        responses=answer(None, "Deleted.", status=204, problems=(404,)),
    )
    async def delete_dead_letter(letter_id: LetterPath) -> Response:
        """It is gone for good."""
        if not await letters.delete(letter_id):
            raise _none(letter_id)
        return Response(status_code=204)

    @router.post(
        "/api/dead-letters/{letter_id:digits}/replay",
        response_model=None,
        summary="Try a dead letter again",
        responses=answer(Replayed, "Committed; the letter is gone.", examples.REPLAYED, problems=(404, 409)),
    )
    async def replay(letter_id: LetterPath) -> Response:
        """As if it came again, received when it was; for when its cause is mended, such as a device that was
        not registered. However often it is tried, it is stored once.

        What still cannot be used stays, and 409 says why.
        """
        letter = await found(letter_id)
        try:
            return json_response(Replayed(letter_id, await again(letter)))
        except NotReplayable as error:
            raise Problem(409, error.code, f"dead letter {letter_id} stays: {error}") from None

    @router.post(
        "/api/dead-letters/replay",
        response_model=None,
        summary="Try dead letters again",
        responses=answer(ReplayedLetters, "What became of them.", examples.REPLAYED_LETTERS),
    )
    async def replay_many(
        reason: ReasonQuery = None, device_id: DeviceQuery = None, limit: PageLimitQuery = 1000
    ) -> Response:
        """The newest that match, the oldest of them first. Those that still cannot be used stay."""
        page = await letters.page(reason=reason, device_id=device_id, after=None, limit=limit)
        replayed, stay = 0, {}
        for letter in reversed(page.items):
            try:
                await again(letter)
                replayed += 1
            except NotReplayable as error:
                stay[letter.id] = f"{error.code}: {error}"
        return json_response(ReplayedLetters(replayed, {str(n): why for n, why in stay.items()}))

    async def found(letter_id: int) -> Any:
        if (letter := await letters.get(letter_id)) is None:
            raise _none(letter_id)
        return letter

    async def again(letter: Any) -> str:
        """Commit what is in it, delete it, and say what became of it."""
        if replay_of is None:
            raise NotReplayable("not_replayable", "this server tries nothing again")
        replay_of.check(letter)
        if letter.device_id and await registry.get(letter.device_id) is None:
            raise NotReplayable("unregistered", f"no device {letter.device_id} is registered")
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        await replay_of.take(
            letter,
            item_identity("dead letter", letter.id),
            lambda _, outcome: None if done.done() else done.set_result(outcome),
        )
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await done
        except TimeoutError:
            raise not_in_time(timeout_s) from None
        if isinstance(outcome, Refusal):
            if outcome.dead_lettered:
                # The device has written a new letter, which says why.
                await letters.delete(letter.id, replayed=True)
            raise NotReplayable(outcome.code, outcome.detail)
        await letters.delete(letter.id, replayed=True)
        return "duplicate" if isinstance(outcome, Duplicate) else "accepted"

    return router


def _none(letter_id: int) -> Problem:
    return not_found(f"no dead letter {letter_id}")


def _item(stored: Any) -> DeadLetterItem:
    payload = bytes(stored.payload)
    try:
        text, encoding = payload.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(payload).decode(), "base64"
    return DeadLetterItem(
        stored.id,
        stored.received_ms,
        stored.device_id,
        stored.source,
        stored.address,
        stored.reason,
        stored.detail,
        stored.size_bytes,
        text,
        encoding,
        stored.content,
    )
