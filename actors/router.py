"""The router: every sender's way to the hosts, in order and without loss, one batch in flight a lane.

A lane leads to the devices of one database in one host, so that what waits for a database that is away
holds back nothing else.

What is submitted is kept until its outcome is known: through host crashes, moves and database outages the
same batch is sent again, and the device recognises what it had seen. It knows hosts only by the `Transport`.
"""

import asyncio
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from sensorium.actors.command_waiters import encoder, ended_decoder
from sensorium.actors.errors import LogUnavailable, Overloaded, SensoriumError, Unavailable, refused
from sensorium.actors.isolation import isolated_in
from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    Batch,
    BatchReply,
    Measured,
    Message,
    Outcome,
    Reading,
    Refusal,
    Value,
    batch_encoder,
    reply_decoder,
)
from sensorium.actors.placement import database_of, shard_of
from sensorium.actors.records import Command
from sensorium.actors.turns import Names

BATCH_MESSAGES: Final = 1_000
"""Messages a batch takes at most: at some 70 bytes each it stays below the 100 KiB that Ray sends inline."""

BATCH_METRICS: Final = 256
"""Distinct metric sets a batch carries at most, so that a sender of ever new names cannot swell it."""

KNOWN_DEVICES: Final = 262_144
"""Devices whose lane a router remembers."""

ASK_PENDING: Final = 20_000
"""Pending messages from which on `ask` is refused; readings are held back by their adapters."""

SILENT_S: Final = 2.0
"""After which a host that has not answered is asked about: it may be cut off and replaced."""

WAIT_MORE_S: Final = 5.0
"""How much longer than a command's end is waited for its host may take to say that there was none."""

STALLED_S: Final = 5.0
"""After which a batch without an answer counts as failing for those who could wait elsewhere."""

HELD_MOST: Final = 40_000
"""Messages for databases that are away that count against nobody's bound: some 40 MB, and as many as MQTT
lets a broker have unacknowledged at one client, less what the others need."""

EASED_LOOK_S: Final = 0.25

RETRY_FIRST_S: Final = 0.05
RETRY_MOST_S: Final = 2.0

Done = Callable[[Any, Outcome], None]
"""done(token, outcome): called once after the commit, in order per device. Must not raise."""


class HostGone(Exception):
    """The host did not answer and may be dead; whether it ran the batch is unknown.

    `dead` says that its process is known to have ended.
    """

    def __init__(self, message: str, dead: bool = False) -> None:
        super().__init__(message)
        self.dead = dead


class Table(NamedTuple):
    """Who owns what: the host's name by shard, and by name whatever the transport reaches a host with.

    A later table has a higher version. A host that is being replaced may lack an address. `homes` has the
    devices with a dedicated shard. `databases` is over how many the log is spread; it never changes.
    """

    version: int
    hosts: Sequence[str]
    addresses: Mapping[str, Any]
    homes: Mapping[str, int] = {}
    databases: int = 1

    def shard_of(self, device_id: str) -> int:
        """The device's shard."""
        return self.homes.get(device_id) or shard_of(device_id)

    def host_of(self, device_id: str) -> str:
        """The name of the device's host."""
        return self.hosts[self.shard_of(device_id)]

    def way_to(self, host: str, shard: int) -> "Way":
        """To the shard's devices in that host."""
        return Way(host, database_of(shard, self.databases))


class Way(NamedTuple):
    """Where a lane leads: to the devices in a host whose shards are in the database at that position."""

    host: str
    database: int

    def __str__(self) -> str:
        return f"{self.host} (database {self.database + 1})" if self.database else self.host


class Transport(Protocol):
    """How a router reaches hosts: Ray in production, plain objects in tests."""

    async def table(self, newer_than: int | None = None) -> Table:
        """The present routing table.

        Args:
            newer_than: the version that proved wrong; waits a moment for a newer one before answering.
        """
        ...

    async def deliver(self, address: Any, data: bytes) -> bytes:
        """`DeviceHost.deliver` at that address. Raises what it raises, and `HostGone`."""
        ...

    async def wait(self, address: Any, data: bytes, timeout_s: float) -> bytes | None:
        """`DeviceHost.ended` at that address; None where it cannot be waited there. Raises as `deliver`."""
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


class _Item(NamedTuple):
    """A message between two parcels. `names` are those of a reading's metrics."""

    message: Message
    names: Names
    done: Done
    token: Any

    @property
    def device_id(self) -> str:
        """Whom it is for."""
        return self.message.device_id


class _Parcel:
    """Messages that become one batch, with what is to be called when they are done."""

    __slots__ = ("dones", "messages", "metrics", "tokens")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.dones: list[Done] = []
        self.tokens: list[Any] = []
        self.metrics: dict[Names, int] = {}

    def encoded(self, sender: str, sequence: int) -> bytes:
        """The batch on the wire."""
        units = {at: names.units for names, at in self.metrics.items() if type(names) is Measured}
        return batch_encoder.encode(Batch(sender, sequence, list(self.metrics), self.messages, units))

    def items(self) -> list[_Item]:
        """What it holds, to be put elsewhere."""
        names = list(self.metrics)
        rows = zip(self.messages, self.dones, self.tokens, strict=True)
        return [
            _Item(m, names[m.metrics] if isinstance(m, Reading) else (), done, token)
            for m, done, token in rows
        ]


class _Lane:
    """What one sender has for one way: the parcels that wait, and the task that carries them.

    `held` has the messages for shards that left the host while a batch of them was under way: they wait here,
    behind it, until its outcome is known.
    """

    __slots__ = (
        "failing",
        "held",
        "host",
        "open",
        "sent",
        "since_s",
        "task",
        "under_way",
        "waiting",
        "wake",
        "way",
    )

    def __init__(self, way: Way) -> None:
        self.way = way
        self.host = way.host
        self.open = _Parcel()
        """The last of those that wait: it takes what comes."""
        self.waiting: deque[_Parcel] = deque((self.open,))
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.failing: SensoriumError | None = None
        self.under_way = False
        self.since_s: float | None = None
        """When what waits in front was sent first; None while nothing was sent that is not answered for."""
        self.sent = 0
        """How many messages are under way."""
        self.held: _Lane | None = None

    def put(self, item: _Item) -> None:
        """Add a message behind the others."""
        parcel = self.open
        if len(parcel.messages) >= BATCH_MESSAGES or len(parcel.metrics) >= BATCH_METRICS:
            parcel = self.next_open()
        message = item.message
        if isinstance(message, Reading):
            index = parcel.metrics.setdefault(item.names, len(parcel.metrics))
            message = msgspec.structs.replace(message, metrics=index)
        parcel.messages.append(message)
        parcel.dones.append(item.done)
        parcel.tokens.append(item.token)
        self.wake.set()

    def take_all(self) -> list[_Item]:
        """Remove and return what waits."""
        items = [item for parcel in self.waiting for item in parcel.items()]
        self.waiting.clear()
        self.next_open()
        return items

    def count(self) -> int:
        """The messages that are under way or wait."""
        held = 0 if self.held is None else self.held.count()
        return self.sent + held + sum(len(parcel.messages) for parcel in self.waiting)

    def next_open(self) -> _Parcel:
        """A new parcel behind the others."""
        self.open = _Parcel()
        self.waiting.append(self.open)
        return self.open


class Router:
    """One sender's router. `async with` it, or call `start` and `close`.

    Args:
        sender: a name that is unique among living senders.
        transport: how to reach the hosts.
    """

    def __init__(self, sender: str, transport: Transport) -> None:
        self.sender = sender
        self._on_the_wire = f"{sender}#{secrets.token_hex(4)}"
        """Also told apart from a router of the same name before it: its batches are counted from 1."""
        self._transport = transport
        self._table = Table(-1, (), {})
        self._lanes: dict[Way, _Lane] = {}
        self._lane_of: dict[str, _Lane] = {}
        """By device id, for as long as the table holds: saves working out the shard each time."""
        self._holder_of: dict[int | str, _Lane] = {}
        """By shard, or by device that changes its shard, the lane in whose `held` the messages wait."""
        self._resettled: set[str] = set()
        """The devices whose shard is another by the newest table."""
        self._pending = 0
        self._drained: list[tuple[int, asyncio.Future[None]]] = []
        self._sequence = 0
        self._counts: Counter[str] = Counter()
        self._broken: BaseException | None = None

    async def __aenter__(self) -> "Router":
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Learn the routing table; waits until there is one."""
        self._clock_s = asyncio.get_running_loop().time
        self._table = await self._transport.table()

    async def close(self) -> None:
        """Stop sending. What is still pending is dropped without its `done`; wait for `drained(1)` first."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()

    # --- submitting -------------------------------------------------------------------------------------

    def reading(
        self,
        device_id: str,
        time_ms: int,
        received_ms: int,
        key: int,
        names: Names,
        values: list[Value],
        flags: int,
        done: Done,
        token: Any,
    ) -> None:
        """Submit a reading (see `messages.Reading`). It is never dropped: bound `pending` yourself."""
        lane = self._lane_of.get(device_id) or self._lane(device_id)
        parcel = lane.open
        metrics = parcel.metrics
        if len(parcel.messages) >= BATCH_MESSAGES or len(metrics) >= BATCH_METRICS:
            parcel = lane.next_open()
            metrics = parcel.metrics
        index = metrics.get(names)
        if index is None:
            index = metrics[names] = len(metrics)
        parcel.messages.append(Reading(device_id, time_ms, received_ms, key, index, values, flags))
        parcel.dones.append(done)
        parcel.tokens.append(token)
        self._pending += 1
        lane.wake.set()

    def message(self, message: Message, done: Done, token: Any) -> None:
        """Submit any message but a reading."""
        lane = self._lane_of.get(message.device_id) or self._lane(message.device_id)
        parcel = lane.open
        if len(parcel.messages) >= BATCH_MESSAGES:
            parcel = lane.next_open()
        parcel.messages.append(message)
        parcel.dones.append(done)
        parcel.tokens.append(token)
        self._pending += 1
        lane.wake.set()

    async def ask(self, message: Message, timeout_s: float = 10.0) -> Any:
        """Submit a message and wait for its answer.

        Returns:
            The value of its `Answer` as builtins, or None when it was just accepted.

        Raises:
            Refused: a subclass by the refusal's code.
            Unavailable: the host or the log is not there now; it may still be carried out.
            Overloaded: too much waits, or there was no answer in time.
        """
        if self._pending >= ASK_PENDING:
            raise Overloaded(f"{self._pending} messages wait for the hosts")
        failing = self.failing(message.device_id)
        if failing is not None:
            raise failing
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.message(message, _resolve, future)
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await future
        except TimeoutError:
            raise Overloaded(f"no answer within {timeout_s:g} s") from None
        if isinstance(outcome, Refusal):
            raise refused(outcome.code, outcome.detail)
        return outcome.value if isinstance(outcome, Answer) else None

    async def ended(self, device_id: str, command_id: str, wait_s: float) -> Command | None:
        """A command as its host has it end within `wait_s`, from now on. None: it cannot be waited for there.

        Ask before the command is sent.
        """
        address = self._table.addresses.get(self._lane(device_id).way.host)
        if address is None:
            return None
        try:
            told = await self._transport.wait(
                address, encoder.encode((command_id, wait_s)), wait_s + WAIT_MORE_S
            )
        except (HostGone, SensoriumError):
            return None
        return ended_decoder.decode(told) if told else None

    def failing(self, device_id: str) -> Unavailable | None:
        """Why messages for this device do not get through at present; None when they do."""
        lane = self._lane(device_id)
        if lane.failing is not None:
            return LogUnavailable(str(lane.failing))
        if not self._stalled(lane):
            return None
        return LogUnavailable(f"{lane.way} has not taken anything for {STALLED_S:g} s")

    def _stalled(self, lane: _Lane) -> bool:
        since_s = lane.since_s
        return lane.failing is not None or (since_s is not None and self._clock_s() - since_s >= STALLED_S)

    # --- looking ----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Messages submitted whose outcome is not known yet."""
        return self._pending

    @property
    def load(self) -> int:
        """What is to be held against a bound: `pending`, less what waits for one database of several that is
        away, up to `HELD_MOST` messages. So devices in the others are read on while these wait."""
        if self._table.databases == 1 or not self._pending:
            return self._pending
        held: dict[int, int] = {}
        for lane in self._lanes.values():
            if self._stalled(lane):
                held[lane.way.database] = held.get(lane.way.database, 0) + lane.count()
        if len(held) == self._table.databases:
            return self._pending
        return self._pending - min(sum(held.values()), HELD_MOST)

    async def eased(self, below: int) -> None:
        """Wait until `load` is below `below`."""
        while (over := self.load - below) >= 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(EASED_LOOK_S):
                    await self.drained(self._pending - over)

    async def drained(self, below: int) -> None:
        """Wait until fewer than `below` messages are pending."""
        if self._pending < below:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drained.append((below, future))
        await future

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and gauges, by name."""
        return {
            "pending": self._pending,
            "batches": self._counts["batches"],
            "messages": self._counts["messages"],
            "retries": self._counts["retries"],
            "moved": self._counts["moved"],
            "failing": {str(w): str(lane.failing) for w, lane in self._lanes.items() if lane.failing},
        }

    def check(self) -> None:
        """Raise what broke this router, if a fault of ours did: whoever supervises should start it anew."""
        if self._broken is not None:
            raise self._broken

    # --- carrying ---------------------------------------------------------------------------------------

    def _lane(self, device_id: str) -> _Lane:
        lane = self._lane_for(device_id)
        if len(self._lane_of) >= KNOWN_DEVICES:
            self._lane_of.clear()
        self._lane_of[device_id] = lane
        return lane

    def _lane_for(self, device_id: str) -> _Lane:
        shard = self._table.shard_of(device_id)
        holder = self._holder_of.get(device_id) or self._holder_of.get(shard)
        if holder is not None:
            assert holder.held is not None
            return holder.held
        way = self._table.way_to(self._table.hosts[shard], shard)
        lane = self._lanes.get(way)
        if lane is None:
            lane = self._lanes[way] = _Lane(way)
            lane.task = asyncio.create_task(self._carry(lane), name=f"{self.sender} to {way.host}")
            lane.task.add_done_callback(self._ended)
        return lane

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self._broken = task.exception()

    async def _carry(self, lane: _Lane) -> None:
        while True:
            parcel = lane.waiting.popleft()
            if parcel is lane.open:
                lane.next_open()
            if parcel.messages:
                lane.under_way = True
                lane.sent = len(parcel.messages)
                if lane.since_s is None:
                    lane.since_s = self._clock_s()
                reply = await self._deliver(lane, parcel)
                if len(reply.moved) < len(parcel.messages):
                    lane.since_s = None
                items = parcel.items() if reply.moved else []
                self._settle(parcel, reply)
                self._release(lane, [items[i] for i in reply.moved])
            elif not lane.open.messages:
                lane.since_s = None
                lane.wake.clear()
                await lane.wake.wait()

    async def _deliver(self, lane: _Lane, parcel: _Parcel) -> BatchReply:
        """Deliver until there is an answer. What is to go elsewhere by a newer table counts as moved."""
        self._sequence += 1
        data = parcel.encoded(self._on_the_wire, self._sequence)
        retry_s = RETRY_FIRST_S
        tries = 0
        while True:
            tries += 1
            version = self._table.version
            try:
                address = self._table.addresses.get(lane.host)
                if address is None:
                    raise HostGone(f"{lane.host} is being replaced")
                reply = reply_decoder.decode(await self._answer(lane.host, address, data))
            except (HostGone, Unavailable) as error:
                # A host that is gone was perhaps replaced long ago: only the next try can tell.
                if tries > 1 or isinstance(error, LogUnavailable):
                    lane.failing = error if isinstance(error, SensoriumError) else LogUnavailable(str(error))
                self._counts["retries"] += 1
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
                retry_s = min(retry_s * 2, RETRY_MOST_S)
                if not isinstance(error, LogUnavailable):
                    await self._learn_table(version)
                if self._table.version != version:
                    return BatchReply(self._sequence, {}, list(range(len(parcel.messages))))
            else:
                lane.failing = None
                self._counts["batches"] += 1
                self._counts["messages"] += len(parcel.messages) - len(reply.moved)
                if reply.moved:
                    self._counts["moved"] += len(reply.moved)
                    await self._learn_table(version)
                return reply

    async def _answer(self, host: str, address: Any, data: bytes) -> bytes:
        """What the host says to a batch. A silent one is not waited for once another is in its place.

        Whether the silent one ran the batch is then unknown; it cannot commit it any more.
        """
        asked = asyncio.ensure_future(self._transport.deliver(address, data))
        replaced: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({asked}, timeout=SILENT_S)
            if not asked.done():
                replaced = asyncio.create_task(self._replaced(host, address))
                await asyncio.wait({asked, replaced}, return_when=asyncio.FIRST_COMPLETED)
            if replaced is not None and not asked.done():
                await replaced
                raise HostGone(f"{host} was silent and has been replaced")
            return await asked
        finally:
            asked.cancel()
            if replaced is not None:
                replaced.cancel()

    async def _replaced(self, host: str, address: Any) -> None:
        """Return once the table has another in the place of that host, or nobody."""
        while self._table.addresses.get(host) == address:
            await self._learn_table(self._table.version)
            await asyncio.sleep(SILENT_S)

    async def _learn_table(self, wrong: int) -> None:
        """Ask for a newer table than `wrong`, unless there is one already."""
        if self._table.version <= wrong:
            self._adopt(await self._transport.table(newer_than=wrong))

    def _adopt(self, table: Table) -> None:
        """Go by this table, if it is newer. What waits for shards that go elsewhere goes along, in order."""
        old, self._table = self._table, max(self._table, table, key=lambda known: known.version)
        if self._table is old:
            return
        self._lane_of.clear()
        for lane, leaving in self._leaving(old, self._table).items():
            if lane.under_way:
                lane.held = lane.held or _Lane(lane.way)
                self._holder_of.update(dict.fromkeys(leaving, lane))
            for item in lane.take_all():
                key = item.device_id if item.device_id in self._resettled else old.shard_of(item.device_id)
                (self._lane_for(item.device_id) if key in leaving else lane).put(item)
        self._forget_lanes()

    def _leaving(self, old: Table, new: Table) -> dict[_Lane, set[int | str]]:
        """By lane the shards that go to another host, and the devices that do so by changing their shard."""
        held = set(self._holder_of)
        pairs = enumerate(zip(old.hosts, new.hosts, strict=True))
        moves = {shard: before for shard, (before, now) in pairs if before != now and shard not in held}
        leaving: dict[_Lane, set[int | str]] = {}
        found: list[tuple[int | str, Way]] = [(s, old.way_to(host, s)) for s, host in moves.items()]
        self._resettled = {
            device for device in {**old.homes, **new.homes} if old.homes.get(device) != new.homes.get(device)
        }
        for device in sorted(self._resettled - held):
            holder = self._holder_of.get(old.shard_of(device))
            if holder is not None:
                self._holder_of[device] = holder  # it waits with the shard that it was in
            elif old.host_of(device) != new.host_of(device):
                found.append((device, old.way_to(old.host_of(device), old.shard_of(device))))
        for key, way in found:
            if way in self._lanes:
                leaving.setdefault(self._lanes[way], set()).add(key)
        return leaving

    def _forget_lanes(self) -> None:
        """End those of isolated devices' processes that are no more."""
        present = set(self._table.hosts)
        for way, lane in list(self._lanes.items()):
            idle = not lane.under_way and lane.held is None and not any(p.messages for p in lane.waiting)
            if idle and lane.host not in present and isolated_in(lane.host) is not None:
                assert lane.task is not None
                lane.task.cancel()
                del self._lanes[way]

    def _release(self, lane: _Lane, moved: Sequence[_Item]) -> None:
        """Nothing of the lane is under way any more: what was sent back goes where it belongs, in front."""
        lane.under_way = False
        lane.sent = 0
        if moved:
            lane.failing = None
        held, lane.held = lane.held, None
        if held is not None:
            for key in [key for key, holder in self._holder_of.items() if holder is lane]:
                del self._holder_of[key]
            self._lane_of.clear()
        items = [*moved, *(held.take_all() if held is not None else ())]
        mine = [item for item in items if self._lane_for(item.device_id) is lane]
        if mine:
            for item in [*mine, *lane.take_all()]:
                lane.put(item)
        for item in items:
            to = self._lane_for(item.device_id)
            if to is not lane:
                to.put(item)

    def _settle(self, parcel: _Parcel, reply: BatchReply) -> None:
        outcomes = reply.outcomes
        if not outcomes and not reply.moved:
            for done, token in zip(parcel.dones, parcel.tokens, strict=True):
                done(token, ACCEPTED)
        else:
            moved = set(reply.moved)
            for i, (done, token) in enumerate(zip(parcel.dones, parcel.tokens, strict=True)):
                if i not in moved:
                    done(token, outcomes.get(i, ACCEPTED))
        self._pending -= len(parcel.messages) - len(reply.moved)
        if self._drained:
            still = []
            for below, future in self._drained:
                if self._pending >= below:
                    still.append((below, future))
                elif not future.done():
                    future.set_result(None)
            self._drained = still


def _resolve(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
