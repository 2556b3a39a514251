"""The read models over several databases (see `spread`): asked together, merged in the order of one."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from sensorium.actors.errors import InvalidMessage, LogUnavailable
from sensorium.actors.placement import database_of
from sensorium.actors.ports import Filter
from sensorium.actors.records import Alarm, Command, Registration
from sensorium.storage.alarms import LIFE_EVENTS, AlarmEvent, Alarms
from sensorium.storage.commands import PgCommands
from sensorium.storage.database import Pool
from sensorium.storage.dead_letters import DeadLetters, StoredDeadLetter
from sensorium.storage.pages import Page, check_limit, cursor
from sensorium.storage.projection import ProjectionStatus
from sensorium.storage.projection_control import Projections
from sensorium.storage.registry import PgRegistry
from sensorium.storage.spread import database_of_device

T = TypeVar("T")


class SpreadRegistry:
    """`PgRegistry` over a pool for each database."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._parts = [PgRegistry(pool) for pool in pools]

    async def select(self, which: Filter, shards: Sequence[int] | None = None) -> list[str]:
        """As the port says."""
        asked = self._parts
        if shards is not None:
            touched = {database_of(shard, len(self._parts)) for shard in shards}
            asked = [self._parts[n] for n in sorted(touched)]
        return list(heapq.merge(*await asyncio.gather(*(part.select(which, shards) for part in asked))))

    async def page(self, which: Filter, after: str | None, limit: int) -> Page[Registration]:
        """As `PgRegistry.page`."""
        pages = await asyncio.gather(*(part.page(which, after, limit) for part in self._parts))
        return _merged(pages, limit, lambda r: r.device_id, lambda r: r.device_id)

    async def get(self, device_id: str) -> Registration | None:
        """As `PgRegistry.get`."""
        return await self._parts[database_of_device(device_id, len(self._parts))].get(device_id)

    async def counts(self) -> dict[tuple[str, str], int]:
        """As `PgRegistry.counts`."""
        return _added(await asyncio.gather(*(part.counts() for part in self._parts)))


class SpreadAlarms:
    """`Alarms` over a pool for each database."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._parts = [Alarms(pool) for pool in pools]

    async def page(
        self,
        state: str | None = None,
        severity: str | None = None,
        device_id: str | None = None,
        device_type: str | None = None,
        rule_id: str | None = None,
        acknowledged: bool | None = None,
        assignee: str | None = None,
        shelved: bool | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Alarm]:
        """As `Alarms.page`."""
        told = (acknowledged, assignee, shelved)
        which = (state, severity, device_id, device_type, rule_id, *told, start_ms, end_ms, after, limit)
        if device_id is not None:
            return await self._parts[database_of_device(device_id, len(self._parts))].page(*which)
        pages = await asyncio.gather(*(part.page(*which) for part in self._parts))
        return _merged(pages, limit, _newest, lambda a: [a.start_ms, a.alarm_id], reverse=True)

    async def get(self, alarm_id: str) -> Alarm | None:
        """As `Alarms.get`; one that is found does not wait for the other databases."""
        asked = [asyncio.ensure_future(part.get(alarm_id)) for part in self._parts]
        for part in asked:
            part.add_done_callback(lambda done: done.cancelled() or done.exception())
        fault: BaseException | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    if (alarm := await answer) is not None:
                        return alarm
                except LogUnavailable as error:
                    fault = error
        finally:
            for part in asked:
                part.cancel()
        if fault is not None:
            raise fault
        return None

    async def life(self, alarm: Alarm, limit: int = LIFE_EVENTS) -> list[AlarmEvent]:
        """As `Alarms.life`."""
        return await self._parts[database_of_device(alarm.device_id, len(self._parts))].life(alarm, limit)

    async def active_devices(self, rule_id: str) -> list[str]:
        """As `Alarms.active_devices`."""
        return list(heapq.merge(*await asyncio.gather(*(p.active_devices(rule_id) for p in self._parts))))

    async def counts(self) -> dict[str, int]:
        """As `Alarms.counts`."""
        return _added(await asyncio.gather(*(part.counts() for part in self._parts)))


class SpreadCommands:
    """`PgCommands` over a pool for each database, but for `ready`: each database is watched by itself."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._parts = [PgCommands(pool) for pool in pools]

    async def page(
        self,
        device_id: str | None = None,
        state: str | None = None,
        command: str | None = None,
        job_id: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[Command]:
        """As `PgCommands.page`."""
        which = (device_id, state, command, job_id, start_ms, end_ms, after, limit)
        if device_id is not None:
            return await self._parts[database_of_device(device_id, len(self._parts))].page(*which)
        pages = await asyncio.gather(*(part.page(*which) for part in self._parts))
        return _merged(pages, limit, _latest, lambda c: [c.created_ms, c.command_id], reverse=True)

    async def get(self, command_id: str) -> Command | None:
        """As `PgCommands.get`."""
        found = await self.find([command_id])
        return found[0] if found else None

    async def find(self, command_ids: Sequence[str]) -> list[Command]:
        """As `PgCommands.find`."""
        found = await asyncio.gather(*(part.find(command_ids) for part in self._parts))
        return [command for part in found for command in part]

    async def counts(self, job_id: str) -> dict[str, int]:
        """As `PgCommands.counts`."""
        return _added(await asyncio.gather(*(part.counts(job_id) for part in self._parts)))


class SpreadDeadLetters:
    """`DeadLetters` over a pool for each database, newest first by the time of receipt.

    Each database numbers its own: an `id` here is that number times the databases, plus the position.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._parts = [DeadLetters(pool) for pool in pools]

    async def page(
        self,
        reason: str | None = None,
        device_id: str | None = None,
        after: Any | None = None,
        limit: int = 100,
    ) -> Page[StoredDeadLetter]:
        """As `DeadLetters.page`; the cursor has a place in each database."""
        check_limit(limit)
        count = len(self._parts)
        places: list[int | None] = [None] * count
        if after is not None:
            places = list(cursor(after, list[int | None]))
            if len(places) != count:
                raise InvalidMessage("the cursor is of a log over other databases: begin anew")
        pages = await asyncio.gather(
            *(
                part.page(reason, device_id, place, limit)
                for part, place in zip(self._parts, places, strict=True)
            )
        )
        heads = [[(letter, n) for letter in page.items] for n, page in enumerate(pages)]
        merged = heapq.merge(*heads, key=lambda one: one[0].received_ms, reverse=True)
        items = []
        for letter, n in islice(merged, limit):
            places[n] = letter.id
            items.append(letter._replace(id=letter.id * count + n))
        more = sum(len(page.items) for page in pages) > limit or any(page.next is not None for page in pages)
        return Page(items, places if more else None)

    async def get(self, letter_id: int) -> StoredDeadLetter | None:
        """As `DeadLetters.get`."""
        own, position = divmod(letter_id, len(self._parts))
        letter = await self._parts[position].get(own)
        return None if letter is None else letter._replace(id=letter_id)

    async def delete(self, letter_id: int, replayed: bool = False) -> bool:
        """As `DeadLetters.delete`."""
        own, position = divmod(letter_id, len(self._parts))
        return await self._parts[position].delete(own, replayed, letter_id)

    async def counts(self) -> dict[str, int]:
        """As `DeadLetters.counts`."""
        return _added(await asyncio.gather(*(part.counts() for part in self._parts)))


class SpreadProjections:
    """`Projections` over a pool for each database, in each of which a projection runs for itself."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._parts = [Projections(pool) for pool in pools]

    async def list(self) -> list[ProjectionStatus]:
        """As `Projections.list`: the one that is furthest behind, and the lag of all together.

        While they differ, the state is that of the first database.
        """
        found: dict[str, ProjectionStatus] = {}
        for part in await asyncio.gather(*(part.list() for part in self._parts)):
            for status in part:
                found[status.name] = _joined(found[status.name], status) if status.name in found else status
        return [found[name] for name in sorted(found)]

    async def pause(self, name: str) -> bool:
        """As `Projections.pause`, in all databases."""
        return any(await asyncio.gather(*(part.pause(name) for part in self._parts)))

    async def resume(self, name: str) -> bool:
        """As `Projections.resume`, in all databases."""
        return any(await asyncio.gather(*(part.resume(name) for part in self._parts)))

    async def rewind(self, name: str, to_ms: int = 0) -> bool:
        """As `Projections.rewind`, in all databases."""
        return any(await asyncio.gather(*(part.rewind(name, to_ms) for part in self._parts)))


def _joined(one: ProjectionStatus, other: ProjectionStatus) -> ProjectionStatus:
    return one._replace(
        read_from_ms=min(one.read_from_ms, other.read_from_ms),
        updated_ms=min(one.updated_ms, other.updated_ms),
        rewinding=one.rewinding or other.rewinding,
        lag_entries=one.lag_entries + other.lag_entries,
    )


def _newest(alarm: Alarm) -> tuple[int, str]:
    return alarm.start_ms, alarm.alarm_id


def _latest(command: Command) -> tuple[int, str]:
    return command.created_ms, command.command_id


def _merged(
    pages: Sequence[Page[T]],
    limit: int,
    key: Callable[[T], Any],
    place: Callable[[T], Any],
    reverse: bool = False,
) -> Page[T]:
    """The first `limit` of what the pages begin with, and whether there is more behind."""
    items = list(islice(heapq.merge(*(page.items for page in pages), key=key, reverse=reverse), limit))
    more = sum(len(page.items) for page in pages) > limit or any(page.next is not None for page in pages)
    return Page(items, place(items[-1]) if more else None)


def _added(counts: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
    total: Counter[Any] = Counter()
    for part in counts:
        total.update(part)
    return {key: total[key] for key in sorted(total)}
