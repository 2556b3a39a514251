"""What the runtime needs from the outside, as Protocols. `storage` implements them; so does `testing`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sensorium.actors.models.info import ActiveModel
from sensorium.actors.records import Commit, EventRow, Identity, Snapshot, StoredDevice, TimerRow
from sensorium.actors.rules import Rule, RuleSpec

if TYPE_CHECKING:
    from sensorium.actors.past import StoredPastFactory


class Held(NamedTuple):
    """A shard as its owner holds it, which is so for as long as the epoch lasts.

    `head` is its newest offset, when the owner before has told it. `homes` has the dedicated shards of
    devices: of those that would be in this shard by their key, and of the one whose dedicated shard this is.
    """

    epoch: int
    head: int | None = None
    homes: Mapping[str, int] = {}


class Rehoming(NamedTuple):
    """A device goes from one shard of its host to another, either of which is a dedicated one.

    Attributes:
        epochs: of both shards, as they are before; both go up.
        heads: their newest offsets, as they are after.
        event: the first row in the new shard.
        snapshot: all that the device is, as of that row.
    """

    device_id: str
    left: int
    to: int
    epochs: Mapping[int, int]
    heads: Mapping[int, int]
    event: EventRow
    snapshot: Snapshot


class Log(Protocol):
    """The one truth, as one incarnation of a host sees it.

    Not safe for two commits at once; `load`, `seen` and `save` may run beside a commit.
    Every call raises `LogUnavailable` when the database cannot be reached or breaks off.
    """

    async def open(self, shards: Sequence[int]) -> dict[int, int]:
        """The newest offset of each shard (0 for one without rows)."""
        ...

    async def held(self) -> dict[int, Held]:
        """The shards that this incarnation owns, by number; renews its lease.

        What is called later sees what was called earlier: no `hand_over` of it is under way in between.
        Raises `Fenced` like `commit`.
        """
        ...

    async def claim(self, shards: Sequence[int]) -> dict[int, Held]:
        """Own those of the shards that nobody may own any more; returns all that is held. Raises `Fenced`."""
        ...

    async def hand_over(self, held: Mapping[int, Held], to: int) -> dict[int, int]:
        """Give shards to another incarnation, if that is alive; returns those that went, with the new epochs.

        `held` says the epoch, and the newest offset where it is known. Every commit of this incarnation has
        ended when it takes effect. Raises `Fenced` like `commit`.
        """
        ...

    async def rehome(self, move: Rehoming) -> dict[int, Held]:
        """Give a device another shard; returns all that is held.

        The dedicated shard is nobody's before or after it. Every commit of this incarnation has ended when it
        takes effect. Raises `Moved` where something is not as `move` says, and `Fenced` like `commit`.
        """
        ...

    async def commit(self, commit: Commit) -> None:
        """Make all of it durable, or nothing.

        Raises:
            Moved: a shard of `commit.epochs` is at another epoch by now; nothing was written.
            Fenced: this incarnation may not commit any more; nothing was written.
            InvalidMessage: the database refused a value; nothing was written.
            LogUnavailable: perhaps written, perhaps not: discard memory and load again.
        """
        ...

    async def load(self, device_ids: Sequence[str]) -> list[StoredDevice]:
        """What is known of each device, in the order asked for."""
        ...

    async def seen(self, identities: Sequence[Identity]) -> set[Identity]:
        """Those of `identities` whose reading is in the log already.

        One without a time is looked for among the readings that were committed in the last hour.
        """
        ...

    async def timers(self, shards: Sequence[int], before_ms: int, limit: int) -> list[TimerRow]:
        """The timers of these shards that are due before a time, soonest first, at most `limit`."""
        ...

    async def save(self, snapshots: Sequence[Snapshot], heads: Mapping[int, int]) -> None:
        """Store snapshots and shard heads, written behind. An older one never replaces a newer one.

        Raises `Fenced` like `commit`.
        """
        ...

    async def close(self) -> None:
        """Give back the connections."""
        ...


class RuleSource(Protocol):
    """Where the hosts get the rules from."""

    async def load(self) -> list[Rule]:
        """All rules, switched on or off."""
        ...

    def changes(self) -> AsyncIterator[None]:
        """Yields soon after each change, and whenever changes may have been missed."""
        ...


class RuleStore(RuleSource, Protocol):
    """The rules, to be changed too. Specs are taken as valid (see `conditions.validate`)."""

    async def create(self, spec: RuleSpec, by: str = "") -> Rule:
        """Store a new rule. `by` says who wants it.

        Raises `InvalidMessage` if a metric would be derived from itself (see `conditions.recursion`).
        """
        ...

    async def replace(self, rule_id: str, spec: RuleSpec, by: str = "") -> Rule | None:
        """The rule's next version; None when there is no such rule. Raises as `create`."""
        ...

    async def delete(self, rule_id: str) -> bool:
        """Whether there was such a rule."""
        ...


class Filter(NamedTuple):
    """Which devices: all that is given must hold; `metadata` must be contained in the device's."""

    device_type: str | None = None
    status: str | None = "active"
    metadata: Mapping[str, Any] = {}
    device_ids: Sequence[str] | None = None


class Registry(Protocol):
    """The read side of registrations."""

    async def select(self, which: Filter, shards: Sequence[int] | None = None) -> list[str]:
        """Ids of the devices that match and whose shard is among `shards` (None: any), in order of id."""
        ...


class ModelStore(Protocol):
    """The models at work, for hosts."""

    async def load(self) -> Sequence[ActiveModel]:
        """All of them. Raises `LogUnavailable`."""
        ...

    def changes(self) -> AsyncIterator[None]:
        """Yields whenever they may have changed; until closed."""
        ...


class HostPorts(NamedTuple):
    """What a host is given by its factory, opened; `close` gives all of it back.

    `logs` has the log of each database, by its position (see `placement.database_of`).
    """

    logs: Sequence[Log]
    rules: RuleStore
    registry: Registry
    close: Callable[[], Awaitable[None]]
    open_past: "StoredPastFactory | None" = None
    """The way to the past, for those who relive it; None: there is none."""
    models: ModelStore | None = None
    """None: no model is ever at work."""


HostPortsFactory = Callable[[int], Awaitable[HostPorts]]
"""From the host's incarnation to its ports. Must pickle: it travels to the host's process."""


class Member(NamedTuple):
    """An incarnation that may commit."""

    incarnation: int
    host: str
    node: str
    weight: float


class Wanted(NamedTuple):
    """What people have asked of the runtime: so many hosts (None: as configured), and none on these nodes."""

    hosts: int | None = None
    drained: Sequence[str] = ()


class Members(NamedTuple):
    """Who may commit, who owns which shard, and what is wanted.

    `owners` has for each shard the incarnation, None when nobody who is alive owns it, and the epoch.
    `homes` has the dedicated shards by device.
    `claimable_in_s` is the time until the last of the shards without owner may be claimed.
    """

    alive: Sequence[Member]
    owners: Sequence[tuple[int | None, int]]
    claimable_in_s: float
    wanted: Wanted = Wanted()
    homes: Mapping[str, int] = {}
    databases: int = 1
    """Over how many the log is spread."""
    away: Sequence[int] = ()
    """The positions of those that do not answer; what is in them is as it was seen last, if at all."""


class Isolated(NamedTuple):
    """A device that is to have a process of its own."""

    device_id: str
    device_type: str


class Membership(Protocol):
    """Who may commit, and for which shards. Every call raises `LogUnavailable` as those of `Log` do.

    Of a log over several databases, it does so while the main one is away. What is asked of another one that
    is away is done when that answers again, before anybody is given shards in it.
    """

    async def term(self) -> int:
        """A number higher than any it has given before, for a coordinator to tell its time from others'."""
        ...

    async def join(self, host: str, node: str = "", weight: float = 1.0) -> int:
        """A new incarnation for this host name, alive; every earlier one of the name is fenced first."""
        ...

    async def fence(self, incarnation: int, dead: bool = False) -> None:
        """No commit of this incarnation succeeds after this returns.

        Its shards may be claimed once its lease is over, at once if it is `dead` and cannot answer anybody.
        """
        ...

    async def take(self, epochs: Mapping[int, int]) -> None:
        """Take shards from owners that do not hand them over: those that are still at these epochs.

        No commit for them succeeds after this returns. They may be claimed once the owner's lease is over.
        """
        ...

    async def want(self, wanted: Wanted) -> None:
        """Keep what is wanted for the coordinators to come."""
        ...

    async def read(self) -> Members:
        """All of it as of one moment."""
        ...

    async def isolated(self, by_type: Mapping[str, bool], otherwise: bool, limit: int) -> list[Isolated]:
        """Active devices that are to have a process of their own, at most `limit`.

        It goes by the device, then by its type, then by `otherwise`. Those that have a dedicated shard come
        first, then those of which it was said themselves, each in order of their ids.
        """
        ...

    async def close(self) -> None:
        """Give back the connections."""
        ...


MembershipFactory = Callable[[], Awaitable[Membership]]
"""Opens the membership. Must pickle."""
