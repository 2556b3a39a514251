"""`/api/analytics/rules/backtest`: a draft rule tried on stored history, and not stored itself."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from sensorium.actors.backtest import BacktestResult
from sensorium.actors.backtesting import Asked, Progress
from sensorium.actors.errors import InvalidMessage, SensoriumError
from sensorium.actors.ports import Filter
from sensorium.actors.rules import RuleSpec
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse_value, pointer_of_path
from sensorium.serve.describe import answer, body
from sensorium.serve.pages import BacktestBody, SelectedDevices, encode, json_response
from sensorium.serve.problems import Problem, invalid_body, problem_of
from sensorium.serve.query import interval_s, time_ms
from sensorium.serve.rules import read_spec
from sensorium.serve.services import Services

NDJSON: Final = "application/x-ndjson"
SIGN_OF_LIFE_S: Final = 5.0
"""A stream says how far it is at least so often, so that nothing between us and the caller gives it up."""

_AGO: Final = re.compile(r"\d{1,9}[smhd]")

Step = Progress | BacktestResult


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`BacktestBody` with the rule as it was written."""

    rule: msgspec.Raw
    since: str | int
    until: str | int | None = None
    replaces: str | None = None
    select: SelectedDevices = SelectedDevices()


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["rules"])

    @router.post(
        "/api/analytics/rules/backtest",
        response_model=None,
        summary="Try a rule on the past",
        responses=answer(
            BacktestResult, "What would have been.", examples.BACKTEST, problems=(404, 413, 415)
        ),
        openapi_extra=body(BacktestBody, examples.BACKTESTS),
    )
    async def backtest(request: Request) -> Response:
        """What a draft rule would have raised, beside the rule that it would replace.

        With `Accept: application/x-ndjson` the answer is a stream of JSON lines: `progress` now and then, at
        last the `result`, or a `problem` when it failed on the way.
        """
        asked = _asked(await json_bytes(request), services.now_ms())
        steps = services.backtests.run(asked)
        try:
            first = await anext(steps)
        except InvalidMessage as error:
            raise _problem(error) from None
        if NDJSON in request.headers.get("accept", ""):
            return StreamingResponse(_lines(first, steps, request.url.path), media_type=NDJSON)
        try:
            last = first
            async for step in steps:
                last = step
        except InvalidMessage as error:
            raise _problem(error) from None
        finally:
            await steps.aclose()
        return json_response(last)

    return router


async def _lines(first: Step, steps: AsyncGenerator[Step, None], path: str) -> AsyncIterator[bytes]:
    step = first
    waiting: asyncio.Task[Step] | None = None
    try:
        while True:
            yield encode(step) + b"\n"
            waiting = waiting or asyncio.ensure_future(anext(steps))
            await asyncio.wait({waiting}, timeout=SIGN_OF_LIFE_S)
            if waiting.done():
                step, waiting = waiting.result(), None
    except StopAsyncIteration:
        return
    except SensoriumError as error:
        problem = _problem(error) if isinstance(error, InvalidMessage) else problem_of(error)
        document = msgspec.json.decode(problem.response(path).body)
        yield encode({"type": "problem", "problem": document}) + b"\n"
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.wait({waiting})
        await steps.aclose()


def _asked(payload: bytes, now_ms: int) -> Asked:
    written = parse_value(payload, _Body)
    until_ms = now_ms if written.until is None else _moment("until", written.until, now_ms)
    chosen = written.select
    return Asked(
        _rule(bytes(written.rule)),
        _moment("since", written.since, now_ms),
        until_ms,
        written.replaces,
        Filter(chosen.device_type, chosen.status, chosen.metadata, chosen.device_ids),
    )


def _moment(field: str, value: str | int, now_ms: int) -> int:
    text = str(value)
    try:
        if _AGO.fullmatch(text):
            return now_ms - (interval_s(text) or 0) * 1000
        return time_ms(field, text) or 0
    except Problem as problem:
        raise invalid_body(problem.errors[0].detail, f"#/{field}") from None


def _rule(payload: bytes) -> RuleSpec:
    try:
        return read_spec(payload)
    except Problem as problem:
        raise _below("rule", problem) from None


def _below(place: str, problem: Problem) -> Problem:
    """The problem of a part of the body, told of the whole."""

    def moved(pointer: str | None) -> str | None:
        return pointer if pointer is None else f"#/{place}{pointer[1:]}"

    errors = [msgspec.structs.replace(error, pointer=moved(error.pointer)) for error in problem.errors]
    detail = f"{errors[0].pointer}: {errors[0].detail}" if errors else problem.detail
    return Problem(problem.status, problem.code, detail, errors=errors)


def _problem(error: InvalidMessage) -> Problem:
    """Of an error whose text begins with the field that it is about."""
    place, colon, detail = str(error).partition(": ")
    if not colon:
        return problem_of(error)
    below: dict[str, Any] = {"since": "#/since", "select": "#/select"}
    return invalid_body(detail, below.get(place) or "#/rule" + pointer_of_path(place)[1:])
