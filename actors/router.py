"""The router: every sender's way to the hosts, in order and without loss, one batch in flight a host.

What is submitted is kept until its outcome is known: through host crashes, moves and database outages the
same batch is sent again, and the device recognises what it had seen. It knows hosts only by the `Transport`.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from sensorium.actors.errors import LogUnavailable, Overloaded, SensoriumError, Unavailable, refused
from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    Batch,
    BatchReply,
    Message,
    Outcome,
    Reading,
    Refusal,
    Value,
    batch_encoder,
    reply_decoder,
)
from sensorium.actors.placement import shard_of
from sensorium.actors.turns import Names

BATCH_MESSAGES: Final = 1_000
"""Messages a batch takes at most: at some 70 bytes each it stays below the 100 KiB that Ray sends inline."""

ASK_PENDING: Final = 20_000
"""Pending messages from which on `ask` is refused; readings are held back by their adapters."""

RETRY_FIRST_S: Final = 0.05
RETRY_MOST_S: Final = 2.0

Done = Callable[[Any, Outcome], None]
"""done(token, outcome): called once after the commit, in order per device. Must not raise."""


class HostGone(Exception):
    """The host did not answer and may be dead; whether it ran the batch is unknown."""


class Table(NamedTuple):
    """Who owns what: the host's name by shard, and by name whatever the transport reaches a host with."""

    version: int
    hosts: Sequence[str]
    addresses: Mapping[str, Any]


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


class _Entry(NamedTuple):
    """A submitted message that waits: a reading with its names, or any other message."""

    message: Message
    names: Names
    done: Done
    token: Any


class _Lane:
    """What one sender has for one host: the messages that wait, and the task that carries them."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: list[_Entry] = []
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.failing: SensoriumError | None = None


class Router:
    """One sender's router. `async with` it, or call `start` and `close`.

    Args:
        sender: a name that is unique among living senders.
        transport: how to reach the hosts.
    """

    def __init__(self, sender: str, transport: Transport) -> None:
        self.sender = sender
        self._transport = transport
        self._table = Table(-1, (), {})
        self._lanes: dict[str, _Lane] = {}
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
        self._table = await self._transport.table()

    async def close(self) -> None:
        """Stop sending. What is still pending is dropped without its `done`; wait for `drained(1)` first."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        lane = self._lane(device_id)
        reading = Reading(device_id, time_ms, received_ms, key, 0, values, flags)
        lane.waiting.append(_Entry(reading, names, done, token))
        self._pending += 1
        if not lane.wake.is_set():
            lane.wake.set()

    def message(self, message: Message, done: Done, token: Any) -> None:
        """Submit any message but a reading."""
        lane = self._lane(message.device_id)
        lane.waiting.append(_Entry(message, (), done, token))
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

    def failing(self, device_id: str) -> Unavailable | None:
        """Why messages for this device do not get through at present; None when they do."""
        error = self._lane(device_id).failing
        return None if error is None else LogUnavailable(str(error))

    # --- looking ----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Messages submitted whose outcome is not known yet."""
        return self._pending

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
            "failing": {h: str(lane.failing) for h, lane in self._lanes.items() if lane.failing is not None},
        }

    def check(self) -> None:
        """Raise what broke this router, if a fault of ours did: whoever supervises should start it anew."""
        if self._broken is not None:
            raise self._broken

    # --- carrying ---------------------------------------------------------------------------------------

    def _lane(self, device_id: str) -> _Lane:
        host = self._table.hosts[shard_of(device_id)]
        lane = self._lanes.get(host)
        if lane is None:
            lane = self._lanes[host] = _Lane(host)
            lane.task = asyncio.create_task(self._carry(lane), name=f"{self.sender} to {host}")
            lane.task.add_done_callback(self._ended)
        return lane

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self._broken = task.exception()

    async def _carry(self, lane: _Lane) -> None:
        while True:
            if not lane.waiting:
                lane.wake.clear()
                await lane.wake.wait()
            entries = lane.waiting[:BATCH_MESSAGES]
            del lane.waiting[: len(entries)]
            reply = await self._deliver(lane, entries)
            await self._settle(entries, reply)

    async def _deliver(self, lane: _Lane, entries: Sequence[_Entry]) -> BatchReply:
        """Deliver until there is an answer: the batch is the same each time, so order and identity hold."""
        data = self._encode(entries)
        retry_s = RETRY_FIRST_S
        while True:
            try:
                reply = reply_decoder.decode(
                    await self._transport.deliver(self._table.addresses[lane.host], data)
                )
            except (HostGone, Unavailable) as error:
                lane.failing = error if isinstance(error, SensoriumError) else LogUnavailable(str(error))
                self._counts["retries"] += 1
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
                retry_s = min(retry_s * 2, RETRY_MOST_S)
                if not isinstance(error, LogUnavailable):
                    self._table = await self._transport.table(newer_than=self._table.version)
                    if lane.host not in self._table.hosts:
                        return BatchReply(self._sequence, {}, list(range(len(entries))))
            else:
                lane.failing = None
                self._counts["batches"] += 1
                self._counts["messages"] += len(entries)
                return reply

    def _encode(self, entries: Sequence[_Entry]) -> bytes:
        self._sequence += 1
        metrics: dict[Names, int] = {}
        messages: list[Message] = []
        for message, names, _, _ in entries:
            if type(message) is Reading:
                index = metrics.setdefault(names, len(metrics))
                if index:
                    message = Reading(
                        message.device_id,
                        message.time_ms,
                        message.received_ms,
                        message.key,
                        index,
                        message.values,
                        message.flags,
                    )
            messages.append(message)
        return batch_encoder.encode(Batch(self.sender, self._sequence, list(metrics), messages))

    async def _settle(self, entries: Sequence[_Entry], reply: BatchReply) -> None:
        if reply.moved:
            self._counts["moved"] += len(reply.moved)
            self._table = await self._transport.table(newer_than=self._table.version)
            self._requeue([entries[i] for i in reply.moved])
        outcomes = reply.outcomes
        if not outcomes and not reply.moved:
            for _, _, done, token in entries:
                done(token, ACCEPTED)
        else:
            moved = set(reply.moved)
            for i, (_, _, done, token) in enumerate(entries):
                if i not in moved:
                    done(token, outcomes.get(i, ACCEPTED))
        self._pending -= len(entries) - len(reply.moved)
        if self._drained:
            still = []
            for below, future in self._drained:
                if self._pending >= below:
                    still.append((below, future))
                elif not future.done():
                    future.set_result(None)
            self._drained = still

    def _requeue(self, entries: Sequence[_Entry]) -> None:
        """Put messages that met the wrong host in front of what waits for the right one."""
        front: dict[str, list[_Entry]] = {}
        for entry in entries:
            front.setdefault(self._lane(entry.message.device_id).host, []).append(entry)
        for host, first in front.items():
            lane = self._lanes[host]
            lane.waiting[:0] = first
            lane.wake.set()


def _resolve(future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
