"""`/api/analytics/rules`: the alerting rules. Their schema is that of `actors.rules`, and no other."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from sensorium.actors.actions import WebhookAction, all_actions
from sensorium.actors.conditions import validate
from sensorium.actors.errors import InvalidMessage, Refused, Unavailable
from sensorium.actors.messages import RefreshRules
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.written_rules import WrittenRule, checked
from sensorium.serve import examples
from sensorium.serve.body import json_bytes, parse_value, pointer_of_path
from sensorium.serve.describe import answer, body, reference
from sensorium.serve.pages import RuleList, RuleWarning, SavedRule, json_response
from sensorium.serve.problems import invalid_body, not_found, pointer_to
from sensorium.serve.query import RulePath
from sensorium.serve.rule_warnings import warnings_of
from sensorium.serve.services import Services

REFRESHES_AT_ONCE: Final = 64
"""Devices that are told of changed rules at the same time."""
REFRESH_ROUNDS_S: Final = (0.2, 1.0, 5.0)
"""How long each round of telling waits for the hosts to have the changed rules."""
MAX_DESCRIPTION_CHARS: Final = 2000

_EITHER: Final = {"anyOf": [reference(RuleSpec), reference(WrittenRule)]}

ByQuery = Annotated[str, Query(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$", description="Who changes it.")]

log = logging.getLogger(__name__)


def routes(services: Services, refreshing: "Refreshing") -> APIRouter:
    """The routes of this page. The caller closes `refreshing`."""
    router = APIRouter(tags=["rules"])
    rules = services.rules

    async def read(request: Request) -> RuleSpec:
        spec = read_spec(await json_bytes(request))
        if services.actions is not None:
            for place, action in all_actions(spec):
                if not isinstance(action, WebhookAction):
                    continue
                if await services.actions.webhooks.get(action.target) is None:
                    detail = f"no webhook {action.target}; PUT /api/webhooks/{action.target} first"
                    raise invalid_body(detail, pointer_of_path(f"{place}.target"))
        return spec

    @router.post(
        "/api/analytics/rules",
        status_code=201,
        response_model=None,
        summary="Create a rule",
        responses=answer(SavedRule, "Created.", examples.SAVED_RULE, status=201, problems=(413, 415)),
        openapi_extra=body(_EITHER, {**examples.RULE_SPECS, **examples.WRITTEN_RULES}),
    )
    async def create(request: Request, by: ByQuery = "") -> Response:
        """It watches from each device's next reading on. `warnings` tell of metrics that none has sent."""
        spec = await read(request)
        warnings = await warnings_of(services, spec)
        with told_with_its_place():
            rule = await rules.create(spec, by)
        return json_response(
            _saved(rule, warnings), 201, {"Location": f"/api/analytics/rules/{rule.rule_id}"}
        )

    @router.get(
        "/api/analytics/rules",
        response_model=None,
        summary="List rules",
        responses=answer(RuleList, "All rules.", {"items": [examples.RULE]}),
    )
    async def list_rules() -> Response:
        """Switched on or off, oldest first."""
        return json_response(RuleList(list(await rules.list())))

    @router.get(
        "/api/analytics/rules/{rule_id}",
        response_model=None,
        summary="Look at a rule",
        responses=answer(Rule, "The rule.", examples.RULE, problems=(404,)),
    )
    async def get_rule(rule_id: RulePath) -> Response:
        """One rule by its id."""
        return json_response(_found(await rules.get(rule_id), rule_id))

    @router.put(
        "/api/analytics/rules/{rule_id}",
        response_model=None,
        summary="Replace a rule",
        responses=answer(SavedRule, "Its next version.", examples.SAVED_RULE, problems=(404, 413, 415)),
        openapi_extra=body(_EITHER, {**examples.RULE_SPECS, **examples.WRITTEN_RULES}),
    )
    async def replace(rule_id: RulePath, request: Request, by: ByQuery = "") -> Response:
        """Alarms of devices that it no longer watches are cleared soon after."""
        spec = await read(request)
        warnings = await warnings_of(services, spec)
        with told_with_its_place():
            rule = _found(await rules.replace(rule_id, spec, by), rule_id)
        refreshing.start(rule_id)
        return json_response(_saved(rule, warnings))

    @router.delete(
        "/api/analytics/rules/{rule_id}",
        status_code=204,
        response_model=None,
        summary="Delete a rule",
        responses=answer(None, "Deleted.", status=204, problems=(404,)),
    )
    async def delete(rule_id: RulePath) -> Response:
        """Its active alarms are cleared soon after."""
        if not await rules.delete(rule_id):
            raise not_found(f"no rule {rule_id}")
        refreshing.start(rule_id)
        return Response(status_code=204)

    return router


class Refreshing:
    """Tells the devices that hold an alarm of a changed rule to look at their rules again, in the background.

    The hosts hear of the change by themselves within moments, and not at the same one; so there are several
    rounds, the last of them late enough for a host that was being replaced meanwhile.
    """

    def __init__(self, services: Services) -> None:
        self._ask = services.router.ask
        self._timeout_s = services.timeout_s
        self._active_devices = services.alarms.active_devices
        self._at_once = asyncio.Semaphore(REFRESHES_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, rule_id: str) -> None:
        """Begin the rounds for a rule, anew if they were going on."""
        running = self._tasks.pop(rule_id, None)
        if running is not None:
            running.cancel()
        task = asyncio.create_task(self._rounds(rule_id), name=f"refresh of rule {rule_id}")
        self._tasks[rule_id] = task
        task.add_done_callback(lambda done: self._forget(rule_id, done))

    async def close(self) -> None:
        """Stop; devices not told yet look at their rules at their next reading."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, rule_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(rule_id) is task:
            del self._tasks[rule_id]

    async def _rounds(self, rule_id: str) -> None:
        for pause_s in REFRESH_ROUNDS_S:
            await asyncio.sleep(pause_s)
            try:
                devices = await self._active_devices(rule_id)
            except Unavailable as error:
                log.warning("alarms of rule %s are not known now, to be asked again: %s", rule_id, error)
                continue
            if not devices:
                return
            # One by one into the semaphore, so that a rule of a million devices makes no million tasks.
            async with asyncio.TaskGroup() as group:
                for device_id in devices:
                    await self._at_once.acquire()
                    group.create_task(self._refresh(device_id))

    async def _refresh(self, device_id: str) -> None:
        try:
            await self._ask(RefreshRules(device_id), self._timeout_s)
        except (Refused, Unavailable) as error:
            log.warning("device %s was not told of changed rules: %s", device_id, error)
        finally:
            self._at_once.release()


class _Written(msgspec.Struct):
    """Which of the two ways a rule is written in."""

    condition: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    expression: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def read_spec(payload: bytes) -> RuleSpec:
    """The rule of a body, with a condition or an expression; a `Problem` says what is wrong with it."""
    written = parse_value(payload, _Written)
    by_expression = written.condition is msgspec.UNSET and written.expression is not msgspec.UNSET
    with told_with_its_place():
        if by_expression:
            spec = parse_value(payload, WrittenRule).spec()
        else:
            spec = checked(parse_value(payload, RuleSpec))
        validate(spec)
    if len(spec.description) > MAX_DESCRIPTION_CHARS:
        raise invalid_body(f"more than {MAX_DESCRIPTION_CHARS} characters", "#/description")
    for place, text in _texts(spec):
        if "\0" in text:
            raise invalid_body("holds the character NUL, which cannot be stored", place)
    return spec


@contextmanager
def told_with_its_place() -> Iterator[None]:
    """What is wrong with a rule, as a `Problem` that points at the field."""
    try:
        yield
    except InvalidMessage as error:
        place, _, detail = str(error).partition(": ")
        raise invalid_body(detail, pointer_of_path(place)) from None


def _texts(spec: RuleSpec) -> Iterator[tuple[str, str]]:
    yield from _texts_in(msgspec.to_builtins(spec), ())


def _texts_in(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield pointer_to(path), value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _texts_in(part, (*path, name))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _texts_in(part, (*path, str(number)))


def _saved(rule: Rule, warnings: list[RuleWarning]) -> SavedRule:
    return SavedRule(**msgspec.structs.asdict(rule), warnings=tuple(warnings))


def _found(rule: Rule | None, rule_id: str) -> Rule:
    if rule is None:
        raise not_found(f"no rule {rule_id}")
    return rule
