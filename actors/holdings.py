"""How a host comes to own shards and parts with them: claims, hand-overs, and the lease on answering."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from sensorium.actors.errors import Fenced, LeaseOver, LogUnavailable, Moved, Unavailable
from sensorium.actors.lease import RENEW_EVERY_S, Lease
from sensorium.actors.ownership import Ownership
from sensorium.actors.ports import Held, Log, Rehoming

T = TypeVar("T")

FREEZE_S: Final = 5.0
"""In which a hand-over drains and flushes, or is given up; messages for the shards wait meanwhile."""

HAND_OVER_S: Final = 3.0
"""How long the transaction of a hand-over may take: less than the lease, whose renewal waits for it."""


class Tenant(Protocol):
    """The host, as far as shards come to it and go."""

    async def opened(self, held: Mapping[int, Held]) -> None:
        """Make ready for the devices of these shards. Raises `LogUnavailable`."""
        ...

    async def closed(self, shards: Iterable[int]) -> None:
        """Forget the devices of these shards."""
        ...

    async def drained(self) -> None:
        """Return once every message taken so far has been committed. Raises `Unavailable`."""
        ...

    async def flush(self, shards: Iterable[int]) -> None:
        """Save the unsaved devices of these shards. Raises `Unavailable`."""
        ...

    def heads(self, shards: Iterable[int]) -> Mapping[int, int]:
        """The newest offsets, of those shards where they are known for sure."""
        ...

    async def packed(self, device_id: str, left: int, to: int, epochs: Mapping[int, int]) -> Rehoming:
        """The device as it goes to another shard, all of its turns committed. Raises `Unavailable`."""
        ...


class Holdings:
    """What one incarnation owns. What it is told is a hint: the truth is read from the database each time.

    Attributes:
        owned: as of now; change it through the methods only.
        coming: shards that are about to be opened: what is for them need not go elsewhere.
        fenced: this incarnation is over.
    """

    def __init__(self, log: Log, tenant: Tenant, clock_s: Callable[[], float]) -> None:
        self.owned = Ownership()
        self.fenced = False
        self._log = log
        self._tenant = tenant
        self._clock_s = clock_s
        self._lease = Lease()
        self._truth = asyncio.Lock()
        """Held from asking the database until its answer has been taken in."""
        self._in_doubt: set[int] = set()
        """Frozen by a hand-over of which nobody knows whether it took place."""
        self._closing = 0
        self.coming: set[int] = set()
        self._changed = asyncio.Event()
        self._stale = asyncio.Event()
        self._began_s = clock_s()

    @property
    def steady(self) -> bool:
        """Whether every device in memory belongs to an open shard."""
        return not self.owned.frozen and not self._closing

    def epochs(self, shards: Iterable[int]) -> dict[int, int]:
        """The epochs to commit these shards with. Raises `Moved` unless all are owned."""
        epochs = self.owned.epochs
        try:
            return {shard: epochs[shard] for shard in shards}
        except KeyError as error:
            raise Moved(f"shard {error} is not owned here") from None

    def check_homes(self, shards: Iterable[int], known: Sequence[int] | None) -> None:
        """Raises `Moved` if a device of these shards has a dedicated one that is neither here nor `known`."""
        if known is not None and not self.owned.homes(shards) <= {*shards, *known}:
            raise Moved("a device got a dedicated shard meanwhile")

    def check_lease(self) -> None:
        """Raises `LeaseOver` unless this host may answer from memory."""
        now_s = self._clock_s()
        if not self._lease.holds(now_s):
            age_s = self._lease.age_s(now_s)
            raise LeaseOver(f"no contact with the database for {age_s:.1f} s; others may own the shards")

    @property
    def lease_age_s(self) -> float:
        """Time since the last renewal or, before the first, since the beginning."""
        now_s = self._clock_s()
        return min(self._lease.age_s(now_s), now_s - self._began_s)

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change of what is owned or frozen, or after the time-out."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Renew the lease until cancelled or fenced."""
        while not self.fenced:
            await asyncio.sleep(RENEW_EVERY_S)
            asked_s = self._clock_s()
            try:
                held = await self._asked(self._log.held())
            except Unavailable:
                continue  # the lease runs out by itself
            fresh, gone = self.owned.news(held)
            if not gone:
                self._lease.renewed(asked_s)
            if fresh or gone or self._in_doubt:
                self._stale.set()

    def look(self) -> None:
        """Have `follow` refresh soon."""
        self._stale.set()

    async def follow(self) -> None:
        """Take in what a renewal has found, until cancelled. A task of its own: to open shards takes time."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self.refresh()
            except Unavailable:
                continue  # the next renewal finds the same

    async def refresh(self) -> None:
        """Take in what the database says is owned. Renews the lease. Raises `Fenced`, `LogUnavailable`."""
        async with self._truth:
            asked_s = self._clock_s()
            held = await self._asked(self._log.held())
            await self._close(self.owned.news(held)[1])
            self._lease.renewed(asked_s)
            await self._take_in(held)

    async def claim(self, shards: Sequence[int]) -> dict[int, int]:
        """Own what can be had of these shards; returns all epochs that are owned. Raises as `refresh`."""
        async with self._truth:
            await self._take_in(await self._asked(self._log.claim(shards)))
            return dict(self.owned.epochs)

    async def hand_over(self, epochs: Mapping[int, int], to: int) -> dict[int, int]:
        """Give the shards that are owned at these epochs to another incarnation.

        Returns:
            Those that went, with their new epochs.

        Raises:
            Unavailable: it was given up, or nobody knows; ask again, or look at the database.
        """
        return await self._frozen(epochs, lambda chosen: self._give(chosen, to))

    async def rehome(self, device_id: str, to: int, epochs: Mapping[int, int]) -> None:
        """Give a device another shard: a dedicated one that is nobody's, or the one of its key.

        To its neighbours in the shards it is a hand-over, by which they stay.

        Args:
            epochs: of the shard it is in and of the other, to go by. What of them exists here is owned here.

        Raises:
            Moved: the shards are not at these epochs, or not this host's.
            Unavailable: it was given up, or nobody knows; ask again, or look at the database.
        """
        left = self.owned.shard_of(device_id)
        mine = {shard: epoch for shard, epoch in epochs.items() if shard in self.owned.epochs}
        if left not in mine or to == left or to not in epochs or len(epochs) != 2:
            raise Moved(f"{device_id} is not where it was said to be")

        async def carry(chosen: set[int]) -> None:
            if chosen != mine.keys():
                raise Moved(f"{device_id} cannot leave its shard now")
            await self._carry(device_id, left, to, epochs)

        await self._frozen(mine, carry)

    async def _frozen(self, epochs: Mapping[int, int], part: Callable[[set[int]], Awaitable[T]]) -> T:
        """Do it while the shards that are owned at these epochs are frozen, drained and flushed."""
        # Most of it while they still serve, so that the freeze is short.
        await self._tenant.flush([s for s, epoch in epochs.items() if self.owned.epochs.get(s) == epoch])
        chosen = self.owned.freeze(epochs)
        try:
            async with asyncio.timeout(FREEZE_S):
                await self._tenant.drained()
                await self._tenant.flush(chosen)
        except TimeoutError:
            self._thaw(chosen)
            raise Unavailable(f"could not drain {len(chosen)} shards in {FREEZE_S:g} s") from None
        except BaseException:
            self._thaw(chosen)
            raise
        try:
            return await part(chosen)
        except (LogUnavailable, asyncio.CancelledError):
            self._in_doubt |= chosen & self.owned.frozen
            raise
        except BaseException:
            self._thaw(chosen)
            raise

    async def _give(self, chosen: set[int], to: int) -> dict[int, int]:
        async with self._truth:
            heads = self._tenant.heads(chosen)
            # Meanwhile a refresh may have found that some were taken.
            mine = [shard for shard in chosen if shard in self.owned.frozen]
            given = {shard: Held(self.owned.epochs[shard], heads.get(shard)) for shard in mine}
            try:
                async with asyncio.timeout(HAND_OVER_S):
                    went = await self._asked(self._log.hand_over(given, to)) if given else {}
            except TimeoutError:
                raise LogUnavailable("the hand-over did not end in time") from None
            await self._close(went)
            self._thaw(chosen)
            return went

    async def _carry(self, device_id: str, left: int, to: int, epochs: Mapping[int, int]) -> None:
        async with self._truth:
            try:
                async with asyncio.timeout(HAND_OVER_S):
                    move = await self._tenant.packed(device_id, left, to, epochs)
                    held = await self._asked(self._log.rehome(move))
            except TimeoutError:
                raise LogUnavailable(f"{device_id} did not get to another shard in time") from None
            await self._take_in(held)

    async def _asked(self, answer: Any) -> Any:
        try:
            return await answer
        except Moved:
            raise
        except Fenced:
            self.fenced = True
            self._announce()
            raise

    async def _take_in(self, held: Mapping[int, Held]) -> None:
        fresh, gone = self.owned.news(held)
        self.coming = set(fresh)
        try:
            await self._close(gone)
            if fresh:
                await self._tenant.opened(fresh)
                self.owned.open(fresh)
        finally:
            self.coming = set()
            self._announce()
        self._thaw(self._in_doubt)
        self._in_doubt.clear()

    async def _close(self, shards: Iterable[int]) -> None:
        gone = list(shards)
        if gone:
            self._closing += 1
            try:
                self.owned.close(gone)
                await self._tenant.closed(gone)
            finally:
                self._closing -= 1

    def _thaw(self, shards: Iterable[int]) -> None:
        self.owned.thaw(shards)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
