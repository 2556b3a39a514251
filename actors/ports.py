"""What the runtime needs from the outside, as Protocols. `storage` implements them; so does `testing`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sensorium.actors.records import Commit, Identity, Snapshot, StoredDevice, TimerRow
from sensorium.actors.rules import Rule, RuleSpec

if TYPE_CHECKING:
    from sensorium.actors.past import StoredPastFactory


class Log(Protocol):
    """The one truth, as one incarnation of a host sees it.

    Not safe for two commits at once; `load`, `seen` and `save` may run beside a commit.
    Every call raises `LogUnavailable` when the database cannot be reached or breaks off.
    """

    async def open(self, shards: Sequence[int]) -> dict[int, int]:
        """The newest offset of each shard (0 for one without rows)."""
        ...

    async def commit(self, commit: Commit) -> None:
        """Make all of it durable, or nothing.

        Raises:
            Fenced: this incarnation no longer owns its shards; nothing was written.
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

    async def create(self, spec: RuleSpec) -> Rule:
        """Store a new rule."""
        ...

    async def replace(self, rule_id: str, spec: RuleSpec) -> Rule | None:
        """The rule's next version; None when there is no such rule."""
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


class HostPorts(NamedTuple):
    """What a host is given by its factory, opened; `close` gives all of it back."""

    log: Log
    rules: RuleStore
    registry: Registry
    close: Callable[[], Awaitable[None]]
    open_past: "StoredPastFactory | None" = None
    """The way to the past, for those who relive it; None: there is none."""


HostPortsFactory = Callable[[int], Awaitable[HostPorts]]
"""From the host's incarnation to its ports. Must pickle: it travels to the host's process."""


class Membership(Protocol):
    """The rows of `hosts`: who may commit."""

    async def join(self, host: str) -> int:
        """A new incarnation for this host name, alive; every earlier one of the name is fenced first."""
        ...

    async def fence(self, incarnation: int) -> None:
        """No commit of this incarnation succeeds after this returns."""
        ...

    async def close(self) -> None:
        """Give back the connections."""
        ...


MembershipFactory = Callable[[], Awaitable[Membership]]
"""Opens the membership. Must pickle."""
