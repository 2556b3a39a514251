"""Backtests at work: the devices of an order in parts, each relived by a Ray task of its own.

The tasks read the stored past and nothing else; no host is asked for more than the way to it.
"""

import asyncio
import gc
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import ray

from sensorium.actors.backtest import (
    BacktestResult,
    DeviceOutcome,
    Gathering,
    Order,
    Trial,
    check_range,
)
from sensorium.actors.conditions import validate
from sensorium.actors.conditions.recursion import check_recursion, needed_derivations
from sensorium.actors.errors import InvalidMessage, NoHistory, RuleNotFound
from sensorium.actors.past import Past, StoredPast
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.ray_tasks import as_task, results_of
from sensorium.actors.records import Registration
from sensorium.actors.rules import RuleSpec

if TYPE_CHECKING:
    from sensorium.actors.fleet import Fleet

MAX_DEVICES: Final = 10_000
PART_DEVICES: Final = 10
"""Devices of one task at most, so that progress shows and a task that is lost costs little."""

PARTS_A_SLOT: Final = 4
"""Parts a CPU at least, so that none waits long for the last one."""


class Asked(msgspec.Struct, frozen=True):
    """A backtest as a caller wants it: `replaces` is the id of the rule to compare with."""

    draft: RuleSpec
    since_ms: int
    until_ms: int
    replaces: str | None = None
    which: Filter = Filter()


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a backtest is. `readings` are those relived so far."""

    devices_done: int
    devices: int
    readings: int


def backtest(fleet: "Fleet", asked: Asked) -> Generator[Progress | BacktestResult, None, None]:
    """Run it; yields how far it is, at first 0, and its result at last. Closing it ends the work.

    Raises:
        Refused: as `prepare` and `relive`, the former before the first yield.
        LogUnavailable: the database does not answer.
    """
    past = fleet.past()
    order, devices = results_of(as_task(_prepare_in_task).remote(past.open_past, asked))
    yield from _in_parts(past, order, devices)


async def prepare(stored: StoredPast, asked: Asked) -> tuple[Order, list[Registration]]:
    """The order, and the devices that it is about.

    Raises:
        InvalidMessage: the rule can never work, or there is more past than a backtest takes.
        RuleNotFound, NoHistory: there is no such rule, no such device, or no reading in the range.
    """
    validate(asked.draft)
    check_range(asked.since_ms, asked.until_ms, 0)
    present = None
    if asked.replaces is not None:
        present = await stored.rule(asked.replaces)
        if present is None:
            raise RuleNotFound(f"no rule {asked.replaces}")
    others = [rule for rule in await stored.rules() if rule.rule_id != asked.replaces]
    check_recursion(asked.draft, [rule.spec for rule in others])
    judged = [asked.draft] if present is None else [asked.draft, present.spec]
    derive = tuple(needed_derivations(judged, others))
    order = Order(asked.draft, asked.since_ms, asked.until_ms, present, derive)
    found = await stored.devices(_narrowed(asked.which, order), MAX_DEVICES + 1)
    if len(found) > MAX_DEVICES:
        raise InvalidMessage(f"select: more than {MAX_DEVICES} devices; choose fewer")
    scopes = [rule.spec.scope for rule in order.rules]
    devices = [r for r in found if any(s.covers(r.device_id, r.device_type, r.metadata) for s in scopes)]
    if not devices:
        raise NoHistory("no device is both selected and covered by the rule")
    check_range(asked.since_ms, asked.until_ms, len(devices))
    ids = [registration.device_id for registration in devices]
    if not await stored.has_readings(ids, asked.since_ms, asked.until_ms):
        raise NoHistory(f"there is no history: no reading of these {len(ids)} devices is in the range")
    return order, devices


async def relive(
    stored: StoredPast, profiles: Profiles, order: Order, devices: Iterable[Registration]
) -> list[DeviceOutcome]:
    """What the order's rules would have made of these devices, one after the other.

    Raises:
        InvalidMessage: a device has too many readings, or a rule raises too many alarms.
    """
    outcomes = []
    for registration in devices:
        trial = Trial(order, profiles, registration)
        if trial.looks_at_twin:
            trial.recall(await stored.twins(registration.device_id, trial.from_ms, order.end_ms))
        await stored.readings(registration.device_id, trial.from_ms, order.end_ms, trial.take)
        outcomes.append(trial.finish())
    return outcomes


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles, which costs a fifth: readings are many and make none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _in_parts(
    past: Past, order: Order, devices: Sequence[Registration]
) -> Generator[Progress | BacktestResult, None, None]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    slots = max(1, int(resources.get("CPU", 1)))
    size = max(1, min(PART_DEVICES, len(devices) // (slots * PARTS_A_SLOT)))
    waiting = [devices[start : start + size] for start in range(0, len(devices), size)][::-1]
    task = as_task(_relive_in_task)
    gathering = Gathering(order)
    running: list[Any] = []
    try:
        yield Progress(0, len(devices), 0)
        while waiting or running:
            # One more than can run, so that no CPU waits for us; the rest stays here, and ends with us.
            while waiting and len(running) <= slots:
                running.append(task.remote(past, order, waiting.pop()))
            done, running = ray.wait(running)
            for outcomes in results_of(done):
                gathering.add(outcomes)
            yield Progress(gathering.devices, len(devices), gathering.readings)
        yield gathering.result()
    finally:
        for ref in running:
            ray.cancel(ref)


def _prepare_in_task(open_past: Any, asked: Asked) -> tuple[Order, list[Registration]]:
    async def run() -> tuple[Order, list[Registration]]:
        stored = await open_past()
        try:
            return await prepare(stored, asked)
        finally:
            await stored.close()

    return asyncio.run(run())


def _relive_in_task(past: Past, order: Order, devices: Sequence[Registration]) -> list[DeviceOutcome]:
    async def run() -> list[DeviceOutcome]:
        stored = await past.open_past()
        try:
            with _uncollected():
                return await relive(stored, past.profiles, order, devices)
        finally:
            await stored.close()

    return asyncio.run(run())


def _narrowed(which: Filter, order: Order) -> Filter:
    """The filter with what all the rules' scopes demand alike, so that fewer devices are read."""
    scopes = {(rule.spec.scope.device_id, rule.spec.scope.device_type) for rule in order.rules}
    if len(scopes) > 1:
        return which
    ((device_id, device_type),) = scopes
    if device_type is not None and which.device_type is None:
        which = which._replace(device_type=device_type)
    if device_id is not None and which.device_ids is None:
        which = which._replace(device_ids=[device_id])
    return which
