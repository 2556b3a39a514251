"""The app over a real router, a real host and real devices, on the in-memory store. No Ray, no server."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, Final

import httpx
import msgspec

from sensorium.actors.backtest import BacktestResult, Gathering
from sensorium.actors.backtesting import Asked, Progress, prepare, relive
from sensorium.actors.data_quality import Arrivals
from sensorium.actors.errors import LogUnavailable, NoHistory
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.messages import DeadLetter, Quality, ReadingFlag, Value, quality_of
from sensorium.actors.models.info import ActiveModel, ModelInfo
from sensorium.actors.origin import ASKED_BY
from sensorium.actors.placement import SHARDS, device_key
from sensorium.actors.ports import Filter
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Alarm, Anomaly, Command, Registration
from sensorium.actors.router import Router, Table
from sensorium.actors.rules import Rule
from sensorium.actors.testing import MemoryPast, MemoryStore
from sensorium.actors.twin_documents import NOTHING, Document, DocumentChange, before
from sensorium.actors.whole import whole
from sensorium.ingest.decode import Bounds
from sensorium.ingest.lorawan.adapter import CayenneCodec, LorawanSettings
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.replay import Replay
from sensorium.serve.app import build_app
from sensorium.serve.command_waits import CommandWaits
from sensorium.serve.services import Services
from sensorium.storage.alarms import AlarmEvent
from sensorium.storage.anomalies import SEVERITIES
from sensorium.storage.audit_chain import AuditEntry
from sensorium.storage.bulk_jobs import BulkItem, BulkJob
from sensorium.storage.dead_letters import StoredDeadLetter
from sensorium.storage.erasures import Erasure
from sensorium.storage.events import Event
from sensorium.storage.fleet_figures import Activation, AlarmTimes, Energy
from sensorium.storage.history import Bucket, Buckets, Point, TypeBucket
from sensorium.storage.pages import Page
from sensorium.storage.past_states import PastState
from sensorium.storage.projection import ProjectionStatus
from sensorium.storage.twins import DOCUMENTS, StoredChange
from tests.unit.serve.standing import StandingApp, is_plain, kind_of

NOW_MS = 1_704_110_460_000
AT = "2024-01-01T12:00:00Z"
AT_MS = 1_704_110_400_000


class OneHost:
    """A transport to a single host in this loop."""

    def __init__(self, host: DeviceHost) -> None:
        self.host = host

    async def table(self, newer_than: int | None = None) -> Table:
        return Table(0, ["host-0"] * SHARDS, {"host-0": self.host})

    async def close(self) -> None:
        """Nothing is held."""

    async def deliver(self, address: Any, data: bytes) -> bytes:
        return await self.host.deliver(data)

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        return await self.host.ended(data)


def page_of(items: Sequence[Any], key: Any, after: Any, limit: int) -> Page[Any]:
    rest = [item for item in items if after is None or key(item) > after]
    return Page(rest[:limit], key(rest[limit - 1]) if len(rest) > limit else None)


@dataclass
class ReadSide:
    """The read models, straight from the store."""

    store: MemoryStore
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    buckets: dict[str, list[Bucket]] = field(default_factory=dict)
    """What aggregates are, by aggregation; without, one of 23.5 degrees."""

    async def page(self, which: Filter, after: str | None, limit: int) -> Page[Registration]:
        ids = await self.store.select(which)
        items = [self.store.registrations[device_id] for device_id in ids]
        return page_of(items, lambda r: r.device_id, after, limit)

    async def select(self, which: Filter) -> list[str]:
        return await self.store.select(which)

    async def get(self, device_id: str) -> Registration | None:
        if self.store.down:
            raise LogUnavailable("the database cannot be reached")
        return self.store.registrations.get(device_id)

    async def readings(
        self,
        device_id: str,
        start_ms: int | None,
        end_ms: int | None,
        metrics: Sequence[str] | None,
        limit: int,
        order: str,
        after: Any | None,
        quality: Quality | None = None,
    ) -> Page[Point]:
        points = []
        for row in self.store.readings:
            if quality not in (None, quality_of(row.flags)):
                continue
            if row.device == device_key(device_id) and (start_ms or 0) <= row.time_ms < (end_ms or 2**60):
                named: dict[str, Value] = {
                    n: v for n, v in zip(row.metric_set.names, row.values, strict=True) if v is not None
                }
                points.append(Point(row.time_ms, named, row.flags))
        points.sort(key=lambda p: p.time_ms, reverse=order == "desc")
        sign = -1 if order == "desc" else 1
        return page_of(points, lambda p: sign * p.time_ms, after, limit)

    async def newest_kinds(self, device_ids: Sequence[str]) -> list[tuple[str, str]]:
        return await self.kinds(device_ids, None, None)

    async def kinds(
        self, device_ids: Sequence[str], start_ms: int | None, end_ms: int | None
    ) -> list[tuple[str, str]]:
        keys = {device_key(device_id) for device_id in device_ids}
        sets = {r.metric_set for r in self.store.readings if r.device in keys}
        return sorted({pair for s in sets for pair in zip(s.names, s.kinds, strict=True)})

    async def aggregate(self, *asked: Any) -> Buckets[Bucket]:
        self.asked.append(asked)
        if asked[4] in self.buckets:
            return Buckets(self.buckets[asked[4]], "1h")
        return Buckets([Bucket(AT_MS, {"temperature": 23.5})], "1h")

    async def aggregate_type(self, *asked: Any) -> Buckets[TypeBucket]:
        self.asked.append(asked)
        return Buckets([TypeBucket(AT_MS, 23.5, 2)], "mixed")


class ModelSide:
    """A registry with one version, and another model at work that it has forgotten."""

    async def all(self) -> list[ModelInfo]:
        return [ModelInfo("pumps", 1, "outliers", "pump", ("a",), ("mean(a)",), 3, 1, 2, 1, 400)]

    async def active(self) -> list[ActiveModel]:
        gone = ModelInfo("fans", 2, "failure", "fan", ("b",), (), 3, 1, 2, 1, 400)
        return [ActiveModel(gone, b"", 77)]


@dataclass
class AlarmSide:
    """Alarms, straight from the store."""

    store: MemoryStore

    async def page(self, after: Any | None, limit: int, **conditions: Any) -> Page[Alarm]:
        start_ms, end_ms = conditions.pop("start_ms"), conditions.pop("end_ms")
        shelved = conditions.pop("shelved")
        items = [
            alarm
            for alarm in self.store.alarms.values()
            if shelved in (None, (alarm.shelved_until_ms or 0) > NOW_MS)
            and all(value is None or getattr(alarm, name) == value for name, value in conditions.items())
            and (start_ms is None or alarm.start_ms >= start_ms)
            and (end_ms is None or alarm.start_ms < end_ms)
        ]
        items.sort(key=lambda a: [-a.start_ms, a.alarm_id])
        return page_of(items, lambda a: [-a.start_ms, a.alarm_id], after, limit)

    async def get(self, alarm_id: str) -> Alarm | None:
        return self.store.alarms.get(alarm_id)

    async def life(self, alarm: Alarm) -> list[AlarmEvent]:
        events = (e for e in self.store.events if e.kind.startswith("alarm_"))
        told = (AlarmEvent(e.time_ms, e.kind, msgspec.json.decode(e.body)) for e in events)
        return [event for event in told if event.body["alarm_id"] == alarm.alarm_id]

    async def active_devices(self, rule_id: str) -> list[str]:
        active = (a for a in self.store.alarms.values() if a.state == "ACTIVE" and a.rule_id == rule_id)
        return sorted(a.device_id for a in active)


@dataclass
class RuleSide:
    """Rules in the store, with the reads that people need besides."""

    store: MemoryStore

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def list(self) -> list[Rule]:
        return await self.store.load()

    async def get(self, rule_id: str) -> Rule | None:
        return next((rule for rule in await self.store.load() if rule.rule_id == rule_id), None)


@dataclass
class CommandSide:
    """Commands, straight from the store, which tells of their ends by being looked at."""

    store: MemoryStore

    async def page(self, after: Any | None, limit: int, **conditions: Any) -> Page[Command]:
        start_ms, end_ms = conditions.pop("start_ms"), conditions.pop("end_ms")
        items = [
            command
            for command in self.store.commands.values()
            if all(value is None or getattr(command, name) == value for name, value in conditions.items())
            and (start_ms is None or command.created_ms >= start_ms)
            and (end_ms is None or command.created_ms < end_ms)
        ]
        items.sort(key=lambda c: [-c.created_ms, -c.number])
        return page_of(items, lambda c: [-c.created_ms, -c.number], after, limit)

    async def get(self, command_id: str) -> Command | None:
        return self.store.commands.get(command_id)

    async def counts(self, job_id: str) -> dict[str, int]:
        return Counter(str(c.state) for c in self.store.commands.values() if c.job_id == job_id)

    async def find(self, command_ids: Sequence[str]) -> list[Command]:
        return [self.store.commands[c] for c in command_ids if c in self.store.commands]

    async def watch(self) -> AsyncIterator[None]:
        while True:
            await asyncio.sleep(0.005)
            yield None


@dataclass
class AnomalySide:
    store: MemoryStore

    async def page(
        self,
        device_id: str,
        detector: str | None,
        metric: str | None,
        min_score: float | None,
        severity: str | None,
        ongoing: bool | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Page[Anomaly]:
        items = [
            a
            for a in self.store.anomalies.values()
            if a.device_id == device_id
            and detector in (None, a.detector)
            and metric in (None, a.metric)
            and (min_score is None or a.score >= min_score)
            and (severity is None or a.severity in SEVERITIES[SEVERITIES.index(severity) :])
            and ongoing in (None, a.end_ms is None)
            and (start_ms is None or a.end_ms is None or a.end_ms >= start_ms)
            and (end_ms is None or a.start_ms < end_ms)
        ]
        items.sort(key=lambda a: [-a.start_ms, a.anomaly_id])
        return page_of(items, lambda a: [-a.start_ms, a.anomaly_id], after, limit)


@dataclass
class FigureSide:
    store: MemoryStore
    used: dict[tuple[str, bool, int, int], Energy] = field(default_factory=dict)
    """By metric, whether it counts up, and range."""

    async def arrivals(self, device_id: str, start_ms: int, end_ms: int) -> Arrivals:
        rows = [
            row
            for row in self.store.readings
            if row.device == device_key(device_id) and start_ms <= row.time_ms < end_ms
        ]
        late = sum(bool(row.flags & ReadingFlag.LATE) for row in rows)
        suspect = sum(bool(row.flags & ReadingFlag.SUSPECT) for row in rows)
        return Arrivals(len(rows), late, suspect, 0.0 if rows else None, 0.0 if rows else None)

    async def activation(self, device_type: str | None, start_ms: int, end_ms: int) -> Activation:
        sent = {row.device for row in self.store.readings}
        devices = [r for r in self.store.registrations.values() if device_type in (None, r.device_type)]
        activated = sum(device_key(r.device_id) in sent for r in devices)
        return Activation(len(devices), activated, activated, len(devices), activated, [60.0] * activated)

    async def alarms(self, device_type: str | None, start_ms: int, end_ms: int) -> list[AlarmTimes]:
        return [
            AlarmTimes(
                a.severity,
                a.acknowledged,
                None if a.acknowledged_ms is None else max(0, a.acknowledged_ms - a.start_ms) / 1000,
                None if a.end_ms is None else (a.end_ms - a.start_ms) / 1000,
            )
            for a in self.store.alarms.values()
            if start_ms <= a.start_ms < end_ms and device_type in (None, a.device_type)
        ]

    async def energy(
        self, metric: str, counts_up: bool, device_type: str | None, start_ms: int, end_ms: int
    ) -> Energy:
        return self.used.get((metric, counts_up, start_ms, end_ms), Energy(0.0, 0, 0))


@dataclass
class EventSide:
    store: MemoryStore

    async def page(
        self,
        device_id: str,
        kinds: Sequence[str] | None,
        start_ms: int | None,
        end_ms: int | None,
        order: str,
        after: Any | None,
        limit: int,
    ) -> Page[Event]:
        said = [
            Event(event.time_ms, event.kind, msgspec.json.decode(event.body))
            for event in self.store.events
            if event.device == device_key(device_id)
            and (kinds is None or any(fnmatchcase(event.kind, kind) for kind in kinds))
            and (start_ms is None or event.time_ms >= start_ms)
            and (end_ms is None or event.time_ms < end_ms)
        ]
        if order == "desc":
            said.reverse()
        first = 0 if after is None else int(after)
        rest = said[first + limit :]
        return Page(said[first : first + limit], first + limit if rest else None)


@dataclass
class JobSide:
    """Bulk jobs in memory. While it is `crashing`, nobody gets to note how far a job is."""

    jobs: dict[str, BulkJob] = field(default_factory=dict)
    of_job: dict[str, dict[str, BulkItem]] = field(default_factory=dict)
    crashing: bool = False

    async def create(self, job: BulkJob, device_ids: Sequence[str]) -> BulkJob:
        if job.job_id not in self.jobs:
            self.jobs[job.job_id] = job
            self.of_job[job.job_id] = {d: BulkItem(d, "pending") for d in device_ids}
        return self.jobs[job.job_id]

    async def get(self, job_id: str) -> BulkJob | None:
        return self.jobs.get(job_id)

    async def page(self, kind: str, after: Any | None, limit: int) -> Page[BulkJob]:
        items = [job for job in self.jobs.values() if job.kind == kind]
        return page_of(sorted(items, key=lambda j: j.job_id), lambda j: j.job_id, after, limit)

    async def open(self, limit: int) -> list[BulkJob]:
        return [job for job in self.jobs.values() if job.state in ("RUNNING", "CANCELLING")][:limit]

    async def pending(self, job_id: str, limit: int, after: str = "") -> list[str]:
        items = self.of_job[job_id].values()
        waiting = sorted(item.device_id for item in items if item.state == "pending")
        return [device_id for device_id in waiting if device_id > after][:limit]

    async def mark(self, job_id: str, items: Sequence[BulkItem]) -> None:
        if self.crashing:
            await asyncio.Event().wait()
        self.of_job[job_id] |= {item.device_id: item for item in items}

    async def counts(self, job_id: str) -> dict[str, int]:
        return Counter(item.state for item in self.of_job[job_id].values())

    async def items(self, job_id: str, state: str | None, after: Any | None, limit: int) -> Page[BulkItem]:
        items = [item for item in self.of_job[job_id].values() if state in (None, item.state)]
        return page_of(sorted(items), lambda i: i.device_id, after, limit)

    async def cancel(self, job_id: str) -> None:
        for state in ("RUNNING", "DONE"):
            await self.finish(job_id, state, "CANCELLING")

    async def drop_pending(self, job_id: str) -> None:
        for device_id in await self.pending(job_id, 10**6):
            self.of_job[job_id][device_id] = BulkItem(device_id, "cancelled")

    async def finish(self, job_id: str, before: str, after: str) -> None:
        job = self.jobs[job_id]
        if job.state == before:
            self.jobs[job_id] = msgspec.structs.replace(job, state=after)


@dataclass
class TwinSide:
    """Twins as they were, straight from the store's events."""

    store: MemoryStore

    def _events(self, device_id: str, kind: str) -> list[tuple[int, DocumentChange]]:
        key = device_key(device_id)
        found = (e for e in self.store.events if e.device == key and e.kind == kind)
        return [(e.time_ms, msgspec.json.decode(e.body, type=DocumentChange)) for e in found]

    async def at(self, device_id: str, at_ms: int) -> tuple[Document, Document]:
        state = self.store.twins.get(device_id)
        desired, reported = [
            before(
                [change for time_ms, change in self._events(device_id, f"twin_{name}") if time_ms > at_ms],
                NOTHING if state is None else getattr(state, name),
            )
            for name in DOCUMENTS
        ]
        return desired, reported

    async def changes(
        self, device_id: str, document: str | None, after: Any | None, limit: int, **_: Any
    ) -> Page[StoredChange]:
        items = [
            StoredChange(name, change.version, time_ms, change.by, change.patch)
            for name in DOCUMENTS
            if document in (None, name)
            for time_ms, change in self._events(device_id, f"twin_{name}")
        ]
        return page_of(items, lambda c: [c.document, c.version], after, limit)


@dataclass
class DeadLetterSide:
    """Dead letters, straight from the store."""

    store: MemoryStore
    gone: set[int] = field(default_factory=set)

    async def page(
        self, reason: str | None, device_id: str | None, after: Any | None, limit: int
    ) -> Page[StoredDeadLetter]:
        numbered: list[tuple[int, DeadLetter]] = list(zip(count(1), self.store.dead_letters, strict=False))
        items = [
            StoredDeadLetter(
                number,
                d.received_ms,
                d.device_id,
                d.source,
                d.address,
                d.reason,
                d.detail,
                d.payload,
                d.size_bytes,
                d.content,
            )
            for number, d in reversed(numbered)
            if reason in (None, d.reason) and device_id in (None, d.device_id)
        ]
        return page_of([d for d in items if d.id not in self.gone], lambda d: -d.id, after, limit)

    async def get(self, letter_id: int) -> StoredDeadLetter | None:
        page = await self.page(None, None, None, 10_000)
        return next((letter for letter in page.items if letter.id == letter_id), None)

    async def delete(self, letter_id: int, replayed: bool = False) -> bool:
        there = await self.get(letter_id) is not None
        self.gone.add(letter_id)
        return there


@dataclass
class ProjectionSide:
    """One projection."""

    state: str = "running"
    rewound_to: int | None = None

    async def list(self) -> list[ProjectionStatus]:
        return [ProjectionStatus("rollups", self.state, AT_MS, AT_MS, self.rewound_to is not None, 7)]

    async def pause(self, name: str) -> bool:
        self.state = "paused" if name == "rollups" else self.state
        return name == "rollups"

    async def resume(self, name: str) -> bool:
        self.state = "running" if name == "rollups" else self.state
        return name == "rollups"

    async def rewind(self, name: str, to_ms: int) -> bool:
        self.rewound_to = to_ms
        return name == "rollups"


@dataclass
class PastStateSide:
    """Devices as they are; they were nothing before `AT_MS`."""

    host: DeviceHost

    async def at(self, device_id: str, at_ms: int) -> PastState:
        devices = self.host._compartments[0].activations.devices
        if at_ms < AT_MS or device_id not in devices:
            raise NoHistory(f"there was no device {device_id} then")
        return PastState(device_id, at_ms, None, 0, whole(devices[device_id]))


@dataclass
class ErasureSide:
    """Deletions, which the store carries out at once."""

    store: MemoryStore

    async def get(self, job_id: str) -> Erasure | None:
        return next((e for e in self._all() if e.job_id == job_id), None)

    async def page(self, device_id: str | None, after: Any | None, limit: int) -> Page[Erasure]:
        items = [e for e in self._all() if device_id in (None, e.device_id)]
        return page_of(sorted(items, key=lambda e: e.job_id), lambda e: e.job_id, after, limit)

    def _all(self) -> list[Erasure]:
        return [
            Erasure(row.job_id, row.device_id, row.registration, "DONE", row.at_ms, row.at_ms, {})
            for row in self.store.erasures
        ]


@dataclass
class AuditSide:
    """The audit log: what devices put into the store and what was noted besides."""

    store: MemoryStore
    noted: list[tuple[Any, ...]] = field(default_factory=list)
    kicks: int = 0

    async def note(self, what: str, thing: str, before: Any = None, after: Any = None, **_: Any) -> None:
        origin = ASKED_BY.get()
        assert origin is not None
        self.noted.append((origin.by, what, thing, before, after))

    async def page(
        self,
        who: str | None,
        what: str | None,
        thing: str | None,
        start_ms: int | None,
        end_ms: int | None,
        after: Any | None,
        limit: int,
    ) -> Page[AuditEntry]:
        items = [
            AuditEntry(
                *(number, row.at_ms, row.origin.by, row.origin.client, row.origin.way, row.what, row.thing),
                *(
                    row.device_id,
                    row.before,
                    row.after,
                    dict(row.note),
                    row.origin.request_id,
                    str(number),
                    "",
                ),
            )
            for number, row in enumerate(self.store.audits, 1)
            if who in (None, row.origin.by) and what in (None, row.what) and thing in (None, row.thing)
        ]
        return page_of(items[::-1], lambda e: -e.number, after, limit)

    async def head(self) -> tuple[int, str]:
        return len(self.store.audits), ""

    def kick(self) -> None:
        self.kicks += 1


@dataclass
class BacktestSide:
    """Backtests over the store, in this process."""

    store: MemoryStore
    failure: Exception | None = None
    """Raised after the first step, if set."""

    async def run(self, asked: Asked) -> AsyncGenerator[Progress | BacktestResult, None]:
        stored = MemoryPast(self.store)
        order, devices = await prepare(stored, asked)
        yield Progress(0, len(devices), 0)
        if self.failure is not None:
            raise self.failure
        gathering = Gathering(order)
        gathering.add(await relive(stored, Profiles(), order, devices))
        yield Progress(gathering.devices, len(devices), gathering.readings)
        yield gathering.result()


@dataclass
class BatchedSide:
    """Reads for many devices, straight from the store; remembers what was asked."""

    store: MemoryStore
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def registrations(self, device_ids: Sequence[str]) -> dict[str, Registration]:
        self.asked.append(("registrations", *device_ids))
        return {d: self.store.registrations[d] for d in device_ids if d in self.store.registrations}

    async def alarms(
        self, device_ids: Sequence[str], state: str | None, limit: int
    ) -> dict[str, list[Alarm]]:
        self.asked.append(("alarms", *device_ids))
        found = [a for a in self.store.alarms.values() if state in (None, a.state)]
        return {d: [a for a in found if a.device_id == d][:limit] for d in device_ids}

    async def commands(
        self, device_ids: Sequence[str], state: str | None, limit: int
    ) -> dict[str, list[Command]]:
        self.asked.append(("commands", *device_ids))
        found = [c for c in self.store.commands.values() if state in (None, c.state)]
        return {d: [c for c in found if c.device_id == d][:limit] for d in device_ids}

    async def readings(
        self,
        device_ids: Sequence[str],
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
        quality: Quality | None = None,
    ) -> dict[str, list[Point]]:
        self.asked.append(("readings", *device_ids))
        history = ReadSide(self.store)
        return {
            d: (await history.readings(d, start_ms, end_ms, None, limit, "desc", None, quality)).items
            for d in device_ids
        }


@dataclass
class World:
    """An app, a client of it, and what lies behind."""

    http: httpx.AsyncClient
    store: MemoryStore
    host: DeviceHost
    read: ReadSide
    router: Router
    projections: ProjectionSide
    backtests: BacktestSide
    batched: BatchedSide
    letters: DeadLetterSide
    jobs: JobSide
    commands: CommandSide
    audit: "AuditSide"
    figures: FigureSide

    async def registered(self, device_id: str = "sensor-001", **more: Any) -> httpx.Response:
        response = await self.http.post(
            "/api/devices", json={"device_id": device_id, "device_type": "temperature", **more}
        )
        assert response.status_code == 201, response.text
        return response

    async def send(self, payload: Any, device_id: str = "sensor-001", **more: Any) -> httpx.Response:
        return await self.http.post(f"/api/devices/{device_id}/data", json=payload, **more)


APPS: Final = defaultdict[frozenset[tuple[str, Any]], StandingApp](StandingApp)
LOOKED_UP: Final = {"actions", "cluster", "direct", "feed", "limiter", "lorawan", "profiles"}
"""Settings that an app looks up at each use."""

LORAWAN: Final = LorawanSettings(codecs={"lpp": CayenneCodec()})


@asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    store = MemoryStore(lambda: NOW_MS)
    known = HostSettings(profiles=settings.get("profiles", Profiles()))
    host = DeviceHost("host-0", 1, range(SHARDS), store.ports, known, lambda: NOW_MS)
    await store.join("host-0")
    await host.start()
    read = ReadSide(store)
    projections = ProjectionSide()
    letters = DeadLetterSide(store)
    jobs = JobSide()
    commands = CommandSide(store)
    router = Router("http-test", OneHost(host))
    waits = CommandWaits([commands], commands, router)
    await waits.start()
    audit = AuditSide(store)
    figures = FigureSide(store)
    backtests = BacktestSide(store)
    batched = BatchedSide(store)

    async def database() -> None:
        if store.down:
            raise LogUnavailable("the database cannot be reached")

    async def statistics() -> Mapping[str, Any]:
        return {"hosts": [host.statistics()], "services": [], "down": ["mqtt"], "replaced": {"host-0": 2}}

    try:
        async with router:
            services = Services(
                router=router,
                pipeline=Pipeline(router, source="http"),
                registry=read,
                history=read,
                rules=RuleSide(store),
                alarms=AlarmSide(store),
                dead_letters=letters,
                projections=projections,
                commands=commands,
                audit=audit,
                anomalies=AnomalySide(store),
                erasures=ErasureSide(store),
                figures=figures,
                past_states=PastStateSide(host),
                events=EventSide(store),
                twins=TwinSide(store),
                jobs=jobs,
                waits=waits,
                backtests=backtests,
                batched=batched,
                models=ModelSide(),
                now_ms=lambda: NOW_MS,
                replay=Replay(router, Bounds(), LORAWAN),
                checks={"database": database},
                statistics=statistics,
                **{"timeout_s": 5.0, **settings},
            )
            # Of the same plain settings, one app serves world after world.
            kind = frozenset((name, kind_of(value)) for name, value in settings.items())
            shared = all(name in LOOKED_UP or is_plain(value) for name, value in settings.items())
            app = APPS[kind].over(services) if shared else build_app(services)
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://platform") as http,
            ):
                parts = (
                    read,
                    router,
                    projections,
                    backtests,
                    batched,
                    letters,
                    jobs,
                    commands,
                    audit,
                    figures,
                )
                yield World(http, store, host, *parts)
    finally:
        store.down = False
        await waits.close()
        await host.stop()
