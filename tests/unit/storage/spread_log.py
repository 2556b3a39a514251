"""What the compartments of hosts have for several databases, as one `Log`: to fill and to look at them."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import TypeVar

from sensorium.actors.errors import Fenced, InvalidMessage, LogUnavailable
from sensorium.actors.placement import database_of, shard_of, shard_of_key
from sensorium.actors.ports import Held, Log, Rehoming
from sensorium.actors.records import Commit, Identity, Snapshot, StoredDevice, TimerRow
from sensorium.storage.spread import by_database

T = TypeVar("T")


def split(commit: Commit, databases: int) -> dict[int, Commit]:
    """The part of the commit that belongs into each database; empty ones are left out."""
    parts: dict[int, Commit] = {}

    def part(shard: int) -> Commit:
        position = database_of(shard, databases)
        if position not in parts:
            parts[position] = Commit()
        return parts[position]

    for reading in commit.readings:
        part(reading.shard).readings.append(reading)
    for event in commit.events:
        part(event.shard).events.append(event)
    for registration in commit.registrations:
        part(shard_of(registration.device_id)).registrations.append(registration)
    for alarm in commit.alarms:
        part(shard_of(alarm.device_id)).alarms.append(alarm)
    for timer in commit.timers:
        part(timer.shard).timers.append(timer)
    for command in commit.commands:
        part(shard_of(command.device_id)).commands.append(command)
    for presence in commit.presences:
        part(shard_of(presence.device_id)).presences.append(presence)
    for twin in commit.twins:
        part(shard_of(twin.device_id)).twins.append(twin)
    for anomaly in commit.anomalies:
        part(shard_of(anomaly.device_id)).anomalies.append(anomaly)
    for note in commit.alarm_notes:
        part(shard_of(note.device_id)).alarm_notes.append(note)
    for erasure in commit.erasures:
        part(erasure.shard).erasures.append(erasure)
    for audit in commit.audits:
        part(shard_of(audit.device_id)).audits.append(audit)
    for letter in commit.dead_letters:
        part(shard_of(letter.device_id)).dead_letters.append(letter)
    for position, present in parts.items():
        present.epochs = {s: e for s, e in commit.epochs.items() if database_of(s, databases) == position}
    return parts


class SpreadLog:
    """`Log` over the logs of several databases, by position; `close` closes them."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self._logs = logs

    async def open(self, shards: Sequence[int]) -> dict[int, int]:
        """As the port says."""
        parts = by_database(shards, lambda shard: shard, len(self._logs))
        found = await _all(self._logs[n].open(part) for n, part in parts.items())
        return {shard: head for heads in found for shard, head in heads.items()}

    async def held(self) -> dict[int, Held]:
        """As the port says, once every database has answered."""
        return self._own(await _all(log.held() for log in self._logs))

    async def claim(self, shards: Sequence[int]) -> dict[int, Held]:
        """As the port says, in one transaction a database."""
        parts = by_database(shards, lambda shard: shard, len(self._logs))
        return self._own(await _all(log.claim(parts.get(n, [])) for n, log in enumerate(self._logs)))

    async def hand_over(self, held: Mapping[int, Held], to: int) -> dict[int, int]:
        """As the port says, in one transaction a database: when it raises, some shards may have gone."""
        parts = by_database(held, lambda shard: shard, len(self._logs))
        calls = (self._logs[n].hand_over({s: held[s] for s in part}, to) for n, part in parts.items())
        return {shard: epoch for went in await _all(calls) for shard, epoch in went.items()}

    async def rehome(self, move: Rehoming) -> dict[int, Held]:
        """As the port says: both shards are in one database, that of the device."""
        await self._logs[database_of(move.to, len(self._logs))].rehome(move)
        return await self.held()

    def _own(self, answers: Sequence[Mapping[int, Held]]) -> dict[int, Held]:
        """Of each database the shards that are in it: only there does their assignment count."""
        databases = len(self._logs)
        return {
            shard: one
            for n, held in enumerate(answers)
            for shard, one in held.items()
            if database_of(shard, databases) == n
        }

    async def commit(self, commit: Commit) -> None:
        """As the port says, but part of it may have been written whatever is raised: one part a database."""
        parts = split(commit, len(self._logs))
        await _all(self._logs[n].commit(part) for n, part in parts.items())

    async def load(self, device_ids: Sequence[str]) -> list[StoredDevice]:
        """As the port says."""
        parts = by_database(device_ids, shard_of, len(self._logs))
        found = await _all(self._logs[n].load(part) for n, part in parts.items())
        devices = {stored.device_id: stored for part in found for stored in part}
        return [devices[device_id] for device_id in device_ids]

    async def seen(self, identities: Sequence[Identity]) -> set[Identity]:
        """As the port says."""
        parts = by_database(identities, lambda i: shard_of_key(i.device), len(self._logs))
        return set().union(*await _all(self._logs[n].seen(part) for n, part in parts.items()))

    async def timers(self, shards: Sequence[int], before_ms: int, limit: int) -> list[TimerRow]:
        """As the port says."""
        parts = by_database(shards, lambda shard: shard, len(self._logs))
        found = await _all(self._logs[n].timers(part, before_ms, limit) for n, part in parts.items())
        rows = [row for part in found for row in part]
        return sorted(rows, key=lambda row: (row.due_ms or 0, row.device_id, row.name))[:limit]

    async def save(self, snapshots: Sequence[Snapshot], heads: Mapping[int, int]) -> None:
        """As the port says, in one transaction a database."""
        parts = by_database(snapshots, lambda snapshot: snapshot.shard, len(self._logs))
        numbers = by_database(heads, lambda shard: shard, len(self._logs))
        await _all(
            self._logs[n].save(parts.get(n, []), {shard: heads[shard] for shard in numbers.get(n, ())})
            for n in sorted(parts.keys() | numbers.keys())
        )

    async def close(self) -> None:
        """As the port says."""
        await _all(log.close() for log in self._logs)


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All results, once all have ended; raises what weighs most of what they raised.

    To be fenced outweighs all, since it is for good; a refused value outweighs a failure, which may pass.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for kind in (Fenced, InvalidMessage, LogUnavailable, BaseException):
        for error in errors:
            if isinstance(error, kind):
                raise error
    return [result for result in results if not isinstance(result, BaseException)]
