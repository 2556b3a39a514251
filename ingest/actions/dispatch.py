"""From stored deliveries to targets: each queue by itself, so that who fails delays nobody else.

A delivery is claimed in the database before it is sent. A sender that is killed leaves its claims behind, and
the next one, which has the database's lock first, sends those again: at least once, by the same id.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from sensorium.actors.action_plan import DEAD, DELIVERED, STORM
from sensorium.actors.errors import Unavailable
from sensorium.ingest.actions.carriers import Carrier, Undeliverable, Undelivered, short
from sensorium.ingest.actions.circuit import Circuit
from sensorium.storage import delivery_rows
from sensorium.storage.database import Connection, connect, translated
from sensorium.storage.delivery_rows import Claimed

_log = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Messages under way to one target."""
MAX_QUEUES: Final = 64
"""Targets that are served at the same time; the others get their turn when one is through."""
MAX_CIRCUITS: Final = 2_000
SEND_TIMEOUT_S: Final = 90.0
"""Of one attempt, whatever its carrier's own is."""
MAX_CLAIMS: Final = 60
"""More than any target has attempts: its senders have ended while they sent it."""
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 600.0
LONGEST_ASKED_S: Final = 3_600.0
"""Of what a target asks us to wait."""
GIVE_UP_AFTER_S: Final = 86_400.0
"""A message that its target has not taken by then is dead, however often it was tried."""
LOOK_EVERY_S: Final = 0.5
RECONNECT_S: Final = 1.0
PRUNE_EVERY_S: Final = 60.0
PRUNED_AT_ONCE: Final = 5_000
DRAIN_TIMEOUT_S: Final = 10.0

_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended('sensorium deliveries', 0))"


class ActionDispatcher:
    """Sends what is due, for as long as it has the database's lock. Start and stop it once.

    Args:
        carriers: by kind of target. They are closed at the end.
        keep_days: for so long ended deliveries stay.
        scale: of the waits between attempts; tests make them short.
    """

    def __init__(
        self,
        dsn: str,
        carriers: Mapping[str, Carrier],
        keep_days: int = 30,
        scale: float = 1.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dsn = dsn
        self._carriers = carriers
        self._keep_days = keep_days
        self._scale = scale
        self._clock_s = clock_s
        self._circuits: dict[str, Circuit] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._counts: Counter[str] = Counter()
        self._state = "starting"
        self._trouble = ""
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._database = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, and keep trying while the database is away."""
        self._task = asyncio.create_task(self._run(), name="actions")

    def wake(self) -> None:
        """There is something new, or will be in a moment."""
        self._wake.set()

    def check(self) -> None:
        """Raise what ended it, if something but `stop` did."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Claim nothing more, wait for what is under way, close the carriers."""
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the circuits that are not closed."""
        now_s = self._clock_s()
        states = {queue: circuit.state(now_s) for queue, circuit in self._circuits.items()}
        return {
            "state": self._state,
            "trouble": self._trouble,
            "queues": len(self._working),
            **{name: self._counts[name] for name in ("delivered", "failed", "dead")},
            "circuits": {queue: state for queue, state in states.items() if state != "closed"},
        }

    async def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    await self._session()
                except (Unavailable, OSError) as error:
                    self._state, self._trouble = "failing", short(str(error))
                    _log.warning("actions: %s; again in %.1f s", error, RECONNECT_S)
                    await self._pause(RECONNECT_S)
        finally:
            for carrier in self._carriers.values():
                await carrier.close()

    async def _session(self) -> None:
        """From the lock to an error or the end: everything on one connection."""
        connection = await connect(self._dsn, "sensorium-actions")
        try:
            with translated():
                while not await connection.fetchval(_LOCK):
                    self._state = "waiting"
                    await self._pause(LOOK_EVERY_S)
                    if self._stopping.is_set():
                        return
                await delivery_rows.again(connection)
            self._state, self._trouble = "running", ""
            try:
                await self._serve(connection)
            finally:
                await self._drain()
        finally:
            connection.terminate()

    async def _serve(self, connection: Connection) -> None:
        pruned_s = float("-inf")
        while not self._stopping.is_set():
            self._wake.clear()
            async with self._database:
                with translated():
                    queues = await delivery_rows.due(connection)
                    if self._clock_s() - pruned_s > PRUNE_EVERY_S:
                        pruned_s = self._clock_s()
                        await delivery_rows.prune(connection, self._keep_days, PRUNED_AT_ONCE)
            for queue in queues:
                if queue not in self._working and len(self._working) < MAX_QUEUES and self._room(queue):
                    self._working[queue] = asyncio.create_task(
                        self._work(connection, queue), name=f"actions {queue}"
                    )
            await self._pause(LOOK_EVERY_S)
            self._reap()

    def _reap(self) -> None:
        """Forget the queues that are through; raise what went wrong with one."""
        for queue, task in list(self._working.items()):
            if task.done():
                del self._working[queue]
                task.result()

    async def _drain(self) -> None:
        """Wait for what is under way, and give up on the rest: it is sent again."""
        tasks = list(self._working.values())
        self._working.clear()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=DRAIN_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, connection: Connection, queue: str) -> None:
        """Send what is due in one queue, `AT_ONCE` at a time, until nothing is or its circuit opens."""
        while not self._stopping.is_set():
            room = self._room(queue)
            if not room:
                return
            async with self._database:
                with translated():
                    claimed = await delivery_rows.claim(connection, queue, room)
            if not claimed:
                return
            sent = [asyncio.create_task(self._deliver(connection, delivery)) for delivery in claimed]
            try:
                await asyncio.wait(sent)
            finally:
                for task in sent:
                    task.cancel()
            for task in sent:
                task.result()

    async def _deliver(self, connection: Connection, delivery: Claimed) -> None:
        circuit = self._circuit(delivery.queue)
        carrier = self._carriers.get(delivery.queue.partition(":")[0])
        try:
            if carrier is None:
                raise Undeliverable(f"this platform is not set up for {delivery.queue}")
            if delivery.attempts > MAX_CLAIMS:
                raise Undeliverable(f"its sender has ended {delivery.attempts} times while it sent this")
            whole = await self._whole(connection, delivery)
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await carrier.send(whole, delivery.attempts)
            except TimeoutError:
                raise Undelivered(f"no answer within {SEND_TIMEOUT_S:g} s") from None
        except Undelivered as error:
            circuit.failed(self._clock_s())
            if error.retry_after_s:
                circuit.paused(self._clock_s(), min(error.retry_after_s, LONGEST_ASKED_S))
            await self._failed(connection, delivery, error)
        except Undeliverable as error:
            # The target has answered, though not as one would wish.
            circuit.succeeded()
            self._counts["dead"] += 1
            await self._finish(connection, delivery, DEAD, short(str(error)))
        else:
            circuit.succeeded()
            self._counts["delivered"] += 1
            await self._finish(connection, delivery, DELIVERED, None)

    async def _failed(self, connection: Connection, delivery: Claimed, error: Undelivered) -> None:
        self._counts["failed"] += 1
        if error.counts and delivery.attempts >= error.most:
            self._counts["dead"] += 1
            await self._finish(connection, delivery, DEAD, str(error))
            return
        wait_s = min(FIRST_RETRY_S * 2.0 ** min(delivery.attempts - 1, 20), LONGEST_RETRY_S)
        wait_s *= self._scale * random.uniform(0.75, 1.0)
        wait_ms = round(max(wait_s, min(error.retry_after_s, LONGEST_ASKED_S)) * 1000)
        async with self._database:
            with translated():
                await delivery_rows.later(connection, delivery.delivery_id, str(error), wait_ms, error.counts)
                # A target that is away is tried by few messages; the others shall not wait for ever.
                self._counts["dead"] += await delivery_rows.give_up(
                    connection, delivery.queue, str(error), GIVE_UP_AFTER_S
                )

    async def _finish(
        self, connection: Connection, delivery: Claimed, state: str, reason: str | None
    ) -> None:
        async with self._database:
            with translated():
                await delivery_rows.finish(connection, delivery.delivery_id, state, reason)

    async def _whole(self, connection: Connection, delivery: Claimed) -> Claimed:
        """A summary with what it tells of; any other as it is."""
        if delivery.transition != STORM:
            return delivery
        async with self._database:
            with translated():
                count, alarms, devices = await delivery_rows.collapsed(connection, delivery.delivery_id)
        told = {"count": count, "alarm_ids": alarms, "device_ids": devices}
        return delivery._replace(content=delivery.content | told)

    def _circuit(self, queue: str) -> Circuit:
        circuit = self._circuits.get(queue)
        if circuit is None:
            if len(self._circuits) >= MAX_CIRCUITS:
                self._circuits.clear()
            circuit = self._circuits[queue] = Circuit(self._scale)
        return circuit

    def _room(self, queue: str) -> int:
        return self._circuit(queue).room(self._clock_s(), AT_ONCE)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
