"""The coordinator: keeps hosts and services running, has the hosts share the shards, says who owns what.

A plain class over a `Launcher`; `runtime` makes a Ray actor of it. It decides nothing that the database does
not hold: who may commit and who owns which shard stands there, and hosts change it by transactions of theirs.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sensorium.actors.errors import (
    Fenced,
    InvalidMessage,
    IsolationLimit,
    LeaseOver,
    SensoriumError,
    Unavailable,
)
from sensorium.actors.host import DeviceHost, HostSettings
from sensorium.actors.isolation import (
    DEFAULT_MAX_ISOLATED,
    IsolationPlan,
    Rehome,
    isolated_in,
    plan_isolation,
    process_of,
)
from sensorium.actors.lease import LEASE_S
from sensorium.actors.placement import (
    ALL_SHARDS,
    SHARDS,
    Node,
    choose_node,
    database_of,
    plan,
    shard_of,
)
from sensorium.actors.ports import HostPortsFactory, Members, Membership, MembershipFactory, Wanted
from sensorium.actors.profile import PROCESS, ProcessNeeds
from sensorium.actors.router import HostGone, Table
from sensorium.actors.supervision import (
    PING_TIMEOUT_S,
    RETRY_S,
    Kept,
    Launcher,
    Process,
    Spare,
    brought_up,
    others_noticed,
    stopped,
    watched,
)

_log = logging.getLogger(__name__)
T = TypeVar("T")

NEWER_TABLE_WAIT_S: Final = 2.0
BALANCE_EVERY_S: Final = 2.0
"""How often the assignment and the machines are looked at when nothing has happened."""

HAND_OVER_SHARDS: Final = 64
"""Shards that are frozen together: few, so that the pause is short."""

HAND_OVER_TIMEOUT_S: Final = 20.0
CALL_TIMEOUT_S: Final = 5.0
TAKE_AFTER: Final = 3
"""Hand-overs in a row that a host may fail before its shards are taken from it."""

CUT_OFF_S: Final = 1.5
"""For how long a host's lease in a database may be over, while that answers us, before it is replaced."""

HEAD_START_S: Final = 5.0
"""How long whatever else was lost waits for the first service, which the devices' messages come in by: a
process that starts takes seconds of a core, and many would make each other late."""

MAX_HOSTS: Final = 1024

TABLES_A_TERM: Final = 1 << 40
"""More than a coordinator ever makes: the table of a later coordinator is a later table."""

COMING_S: Final = 10.0
"""For how long an isolated device waits for its own process before it is served by a host with others."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service to keep running beside the hosts, such as an ingestor.

    `make(*args)` gives an object with `async start()`, `async ping()`, `statistics()` and `async stop()`.
    Before it has started it does nothing, and `ping` raises.
    """

    name: str
    make: Callable[..., Any]
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """What a runtime consists of: its hosts by number, what they are given, and its services.

    The number holds where the machines do not say how many they are meant for, until `scale` says another.
    """

    hosts: int
    open_ports: HostPortsFactory
    open_membership: MembershipFactory
    settings: HostSettings
    services: Sequence[ServiceSpec] = ()
    """The first is the one that devices' messages come in by: on several machines it has a spare process."""
    max_isolated: int = DEFAULT_MAX_ISOLATED
    """Devices that have a process of their own at most; the others that want one stay in hosts."""


@dataclass(slots=True)
class _Host:
    """A host from its launch to its end."""

    name: str
    node: str
    weight: float = 1.0
    incarnation: int = 0
    process: Process | None = None
    serving: bool = False
    leaving: bool = False
    """It gives its shards away and is stopped then."""
    failures: int = 0
    """Hand-overs in a row that it could not do."""
    device: str | None = None
    """Whose own process it is."""
    needs: ProcessNeeds | None = None
    """What that claims; None where it was adopted."""
    launched_s: float = 0.0
    task: asyncio.Task[None] | None = None


class _Urgent(Exception):
    """Shards have to be claimed: what else is under way cannot be waited for."""


class Coordinator:
    """One for a runtime. It may be killed and made anew: `start` goes on with the hosts and services that it
    finds alive. They serve meanwhile.
    """

    def __init__(self, spec: RuntimeSpec, launcher: Launcher) -> None:
        self._spec = spec
        self._launcher = launcher
        self._membership: Membership | None = None
        self._hosts: dict[str, _Host] = {}
        self._services: dict[str, Kept] = {}
        self._service_nodes: dict[str, str] = {}
        """Where each was launched, as far as this coordinator has done it."""
        self._spare = Spare(self._launch_spare)
        self._tasks: list[asyncio.Task[None]] = []
        self._replaced: Counter[str] = Counter()
        self._moves: Counter[str] = Counter()
        self._wish = Wanted()
        self._members = Members((), [(None, 0)] * ALL_SHARDS, 0.0)
        self._isolated: dict[str, ProcessNeeds] = {}
        """The devices that are to have a process of their own."""
        self._isolation = IsolationPlan({}, [], [], [])
        self._beyond = False
        """Whether there are more of them than `max_isolated`."""
        self._term = 0
        self._table = Table(-1, (), {})
        self._said: tuple[object, ...] = ()
        """What the table tells: with anything new it is a later one, since routers ask for those only."""
        self._complete = False
        self._balanced = False
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        """Set when a host is lost."""
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start hosts, then services; returns when all are up. Does nothing when they were started."""
        async with self._starting:
            if self._membership is None:
                self._membership = await _until_available(self._spec.open_membership)
                self._term = await _until_available(self._membership.term)
                await self._adopt(self._membership)
                found = bool(self._hosts)
                await _until_available(self._learn_isolated)
                self._fit()
                if not found:
                    # Each gets its share from the beginning, instead of one all and the others theirs
                    # from it. One that is lost already is not waited for: balancing replaces it.
                    hosts = [host for host in self._hosts.values() if host.device is None]
                    await self._until(
                        lambda: all(h.serving or self._hosts.get(h.name) is not h for h in hosts)
                    )
                self._tasks.append(asyncio.create_task(self._balance(), name="balance the shards"))
                await self._until(lambda: self._complete)
                for spec in self._spec.services:
                    if spec.name not in self._services:
                        self._keep(self._kept(spec))
                await asyncio.gather(*(kept.up.wait() for kept in self._services.values()))

    async def stop(self) -> None:
        """Stop services, then hosts, each flushing what it has; ends what does not stop in time."""
        async with self._starting:
            tasks = [*self._tasks, *(h.task for h in self._hosts.values() if h.task is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.clear()
            self._spare.end()
            services = [(s.name, s.process) for s in self._services.values() if s.process is not None]
            await asyncio.gather(*(stopped(name, process) for name, process in services))
            hosts = [host for host in self._hosts.values() if host.process is not None]
            for host in hosts:
                if host.process is not None and not host.serving:
                    host.process.kill()  # it holds nothing, and may wait for room that nobody has
            await asyncio.gather(*(stopped(h.name, h.process) for h in hosts if h.process and h.serving))
            membership, self._membership = self._membership, None
            if membership is not None:
                try:
                    await asyncio.gather(*(membership.fence(h.incarnation, True) for h in hosts))
                except Unavailable as error:
                    _log.warning("the hosts have stopped, but the database does not know: %s", error)
                await membership.close()
            self._services.clear()
            self._hosts.clear()

    async def table(self, newer_than: int | None = None) -> Table:
        """See `router.Transport.table`. Without `newer_than`, waits until every shard has an owner."""
        if newer_than is None:
            await self._until(lambda: self._complete)
        else:
            try:
                async with asyncio.timeout(NEWER_TABLE_WAIT_S):
                    await self._until(lambda: self._complete and self._table.version > newer_than)
            except TimeoutError:
                await self._until(lambda: self._table.version >= 0)
        return self._table

    async def rebalance(self) -> None:
        """Look at hosts, machines and shards now."""
        self._wake.set()

    async def scale(self, hosts: int) -> None:
        """Have this many hosts from now on; a coordinator that is made anew remembers it.

        Those that go hand over first. Wait for it with `balanced`.

        Raises:
            InvalidMessage: it is not 1 to `MAX_HOSTS`.
        """
        if not 1 <= hosts <= MAX_HOSTS:
            raise InvalidMessage(f"a runtime has 1 to {MAX_HOSTS} hosts, not {hosts}")
        await self._want(self._wish._replace(hosts=hosts))

    async def drain(self, node: str) -> None:
        """Have no hosts on that node from now on: those there hand over to others first.

        Wait for it with `balanced`. Where there is no other node, they stay.
        """
        await self._want(self._wish._replace(drained=sorted({*self._wish.drained, node})))

    async def undrain(self, node: str) -> None:
        """Hosts may be on that node again."""
        await self._want(self._wish._replace(drained=[n for n in self._wish.drained if n != node]))

    async def balanced(self, timeout_s: float = 60.0) -> bool:
        """Wait until there are as many hosts as wanted, where they are wanted, each with its shards."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: self._balanced)
        except TimeoutError:
            return False
        return True

    async def statistics(self) -> dict[str, Any]:
        """`{"hosts": [...], "services": [...], "replaced": {name: count}}`; what is down is left out."""
        hosts = [host for host in self._hosts.values() if host.serving and host.process is not None]
        services = [kept for kept in self._services.values() if kept.process is not None]
        asked = [*((h.name, h.process) for h in hosts), *((s.name, s.process) for s in services)]
        answers = await asyncio.gather(*(self._statistics_of(process) for _, process in asked))
        found = [answer for answer in answers if answer is not None]
        # What one device lacks is no matter of the platform's: `isolated` tells of it.
        silent = [
            name
            for (name, _), answer in zip(asked, answers, strict=True)
            if answer is None and isolated_in(name) is None
        ]
        names = {host.name for host in hosts}
        leaving = {host.name for host in hosts if host.leaving}
        expected = {*self._expected(), *(spec.name for spec in self._spec.services)}
        replaced = self._replaced + Counter({s.name: s.replaced for s in self._services.values()})
        return {
            "version": self._table.version,
            "hosts": [
                {**a, "leaving": a["name"] in leaving, "device": isolated_in(a["name"])}
                for a in found
                if a.get("name") in names
            ],
            "services": [a for a in found if a.get("name") not in names],
            "down": sorted({*silent, *(expected - {name for name, _ in asked})}),
            "replaced": dict(replaced),
            "moves": dict(self._moves),
            "balanced": self._balanced,
            "databases_away": [position + 1 for position in self._members.away],
            "hosts_wanted": self._wanted(),
            "isolated": self._isolated_now(),
            "isolated_beyond": self._beyond,
            "max_isolated": self._spec.max_isolated,
            "drained": list(self._wish.drained),
        }

    # --- hosts ------------------------------------------------------------------------------------------

    async def _adopt(self, membership: Membership) -> None:
        """Go on with what a coordinator before this one has left alive, and end the rest."""
        members = self._members = await _until_available(membership.read)
        living = dict(self._launcher.living())
        answers = dict(
            zip(living, await asyncio.gather(*(_answers(p) for p in living.values())), strict=True)
        )
        for member in members.alive:
            device = isolated_in(member.host)
            name = member.host if device is not None else f"{member.host}.{member.incarnation}"
            if answers.get(name) == member.incarnation:
                host = _Host(member.host, member.node, member.weight, member.incarnation, living.pop(name))
                host.device = device
                self._add(host)
            else:
                await _until_available(lambda i=member.incarnation: membership.fence(i))  # type: ignore[misc]
        for spec in self._spec.services:
            names = (spec.name, _spare_name(spec))  # a spare that does not serve yet answers no ping
            ours = [n for n in living if n.partition(".")[0] in names and answers[n] is not None]
            for name in ours[:1]:
                self._keep(self._kept(spec, living.pop(name)))
        for process in living.values():
            process.kill()
        if self._hosts:
            self._wish = members.wanted
        elif members.wanted != Wanted():
            # It was of a platform that is gone.
            await _until_available(lambda: membership.want(Wanted()))

    async def _want(self, wanted: Wanted) -> None:
        if self._membership is None:
            raise Unavailable("the runtime has not been started yet")
        await self._membership.want(wanted)
        self._wish = wanted
        self._stir()

    def _wanted(self) -> int:
        if self._wish.hosts is not None:
            return self._wish.hosts
        room = [node.hosts for node in self._usable_nodes() if node.hosts is not None]
        return max(1, sum(room)) if room else self._spec.hosts

    def _usable_nodes(self) -> list[Node]:
        nodes = self._launcher.nodes()
        return [n for n in nodes if not n.draining and n.node_id not in self._wish.drained]

    def _expected(self) -> list[str]:
        """The hosts that there should be: those that stay, and names for those that lack."""
        staying = [h for h in self._hosts.values() if not h.leaving and h.device is None]
        # Those that serve for sure first: neither one that cannot be brought up nor one that may be lost with
        # its node must replace them.
        staying.sort(key=lambda h: (not self._answers(h.node), not h.serving, _number(h.name)))
        names = [host.name for host in staying]
        free = (name for n in range(MAX_HOSTS * 2) if (name := f"host-{n}") not in self._hosts)
        wanted = self._wanted()
        return [*names, *(next(free) for _ in range(wanted - len(names)))][:wanted]

    def _fit(self) -> None:
        """Launch hosts that lack, and have those leave that are too many or on a node that is to be empty."""
        nodes = self._launcher.nodes()
        usable = {node.node_id for node in self._usable_nodes()}
        if usable:
            for host in self._hosts.values():
                host.leaving = host.leaving or (host.node in {n.node_id for n in nodes} - usable)
        self._fit_isolated()
        expected = self._expected()
        for host in [host for host in self._hosts.values() if host.device is None]:
            # One whose node does not answer is lost, or stays: pings tell in a moment.
            host.leaving = host.leaving or (host.name not in expected and self._answers(host.node))
        for name in expected:
            if name not in self._hosts:
                counts = Counter(host.node for host in self._hosts.values() if not host.leaving)
                self._add(_Host(name, choose_node(self._usable_nodes(), counts)))

    def _fit_isolated(self) -> None:
        members = self._members
        for host in [host for host in self._hosts.values() if host.device is not None]:
            if database_of(shard_of(host.device or ""), members.databases) in members.away:
                continue  # perhaps nobody has told us that it is wanted
            needs = self._isolated.get(host.device or "")
            if host.needs is None:
                host.needs = needs
            host.leaving = host.leaving or needs is None or needs != host.needs
        for device_id, needs in self._isolated.items():
            name = process_of(device_id)
            if name not in self._hosts:
                counts = Counter(host.node for host in self._hosts.values() if not host.leaving)
                node = "" if needs else choose_node(self._usable_nodes(), counts)
                self._add(_Host(name, node, device=device_id, needs=needs))

    def _add(self, host: _Host) -> None:
        self._hosts[host.name] = host
        host.launched_s = asyncio.get_running_loop().time()
        host.task = asyncio.create_task(self._live(host), name=f"keep {host.name}")

    async def _live(self, host: _Host) -> None:
        if host.process is None:
            await brought_up(host.name, lambda: self._launch(host), lambda: self._answers(host.node))
        assert host.process is not None
        assert self._membership is not None or host.incarnation
        if not host.node:
            # Ray has chosen it.
            host.node = (await self._statistics_of(host.process) or {}).get("node", "")
        host.serving = True
        self._stir()
        since_s: list[float] = []

        async def look(lease_ages_s: Sequence[float]) -> None:
            """Raises when the host alone is cut off from a database."""
            over = {n for n, age_s in enumerate(lease_ages_s) if age_s >= LEASE_S}
            if over and self._membership is not None:
                over -= {*(await self._membership.read()).away}
            if not over:
                since_s.clear()
            else:
                since_s.append(asyncio.get_running_loop().time())
                if since_s[-1] - since_s[0] >= CUT_OFF_S:
                    raise LeaseOver("it has no contact with a database, which we have")

        while isinstance(error := await watched(host.process, look), Unavailable) and not isinstance(
            error, Fenced
        ):
            since_s.clear()  # the database does not answer us either
            await asyncio.sleep(RETRY_S)
        _log.warning("%s is lost (%s); replacing it", host.name, error)
        await self._lose(host, dead=type(error) is Fenced or (isinstance(error, HostGone) and error.dead))

    async def _launch(self, host: _Host) -> Process:
        assert self._membership is not None
        if host.name in self._replaced and any(other.serving for other in self._hosts.values()):
            await self._after_the_first()
        usable = self._usable_nodes()
        if host.needs:
            host.node = ""
        elif host.node not in {node.node_id for node in usable}:
            host.node = choose_node(usable, Counter(h.node for h in self._hosts.values() if h is not host))
        host.incarnation = await self._membership.join(host.name, host.node, host.weight)
        host.process = self._launcher.launch(
            f"{host.name}.{host.incarnation}" if host.device is None else host.name,
            host.node,
            DeviceHost,
            host.name,
            host.incarnation,
            (),
            self._spec.open_ports,
            self._spec.settings,
            needs=host.needs or None,
        )
        return host.process

    async def _lose(self, host: _Host, dead: bool) -> None:
        host.serving = False
        self._complete = self._balanced = False
        self._urgent.set()
        assert host.process is not None
        host.process.kill()
        if not host.leaving:
            self._replaced[host.name] += 1
        assert self._membership is not None
        membership = self._membership
        await _until_available(lambda: membership.fence(host.incarnation, dead))
        del self._hosts[host.name]
        self._stir()

    # --- shards -----------------------------------------------------------------------------------------

    async def _balance(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._learn_isolated()
                self._fit()
                wait_s = await self._round()
                await self._fit_spare()
            except Unavailable as error:
                _log.warning("the shards cannot be looked at: %s", error)
                wait_s = RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> float:
        """One look, and what follows from it; returns after how long the next one is due."""
        self._urgent.clear()
        await self._look()
        staying = [h for h in self._hosts.values() if h.serving and not h.leaving]
        takers = {h.name: h.weight for h in staying if h.device is None}
        if not takers:
            return BALANCE_EVERY_S
        todo = plan(self._owners()[:SHARDS], takers)
        self._isolation = self._plan_isolation()
        claims: dict[str, list[int]] = {}
        for name, shards in [*todo.claims.items(), *self._isolation.claims.items()]:
            claims.setdefault(name, []).extend(self._within_reach(shards))
        if any(claims.values()):
            with suppress(_Urgent):
                await self._unless_urgent(
                    self._claim_all([(self._hosts[n], s) for n, s in claims.items() if s])
                )
            await self._look()
            owners = self._owners()
            if any(owners[s] is None for shards in claims.values() for s in self._within_reach(shards)):
                return min(BALANCE_EVERY_S, max(RETRY_S / 10, self._members.claimable_in_s))
            return 0.0
        steps = [*(m[2] for m in self._isolation.moves), *(r.to for r in self._isolation.rehomes)]
        to_isolate = bool(self._within_reach(steps))
        if to_isolate and await self._isolate():
            return 0.0
        moves = {pair: near for pair, far in todo.moves.items() if (near := self._within_reach(far))}
        if moves:
            for (giver, receiver), shards in moves.items():
                if not await self._move(giver, receiver, shards):
                    return RETRY_S
            return 0.0
        for host in [host for host in self._hosts.values() if host.leaving and host.serving]:
            await self._retire(host)
        await self._give_up()
        # An own process for which there is no room may take for ever.
        hosts = [host for host in self._hosts.values() if host.device is None or host.serving]
        settled = all(h.serving and not h.leaving for h in hosts) and not steps and not self._members.away
        # What was asked for since the round began, it has not seen.
        self._balanced = settled and self._complete and not self._wake.is_set()
        self._announce()
        return RETRY_S if to_isolate else BALANCE_EVERY_S

    async def _look(self) -> None:
        assert self._membership is not None
        self._members = await self._membership.read()
        owners = self._owners()
        unowned = self._within_reach([s for s, owner in enumerate(owners[:SHARDS]) if owner is None])
        was_complete, self._complete = self._complete, not unowned
        if self._complete and not was_complete and self._replaced:
            _log.warning("every shard has an owner again")
        known = list(self._table.hosts or [""] * ALL_SHARDS)
        known[SHARDS:] = [""] * (ALL_SHARDS - SHARDS)
        homes = dict(self._members.homes)
        for device_id, shard in homes.items():
            known[shard] = process_of(device_id)
        hosts = [known[shard] if owner is None else owner for shard, owner in enumerate(owners)]
        addresses = {h.name: h.process.address for h in self._hosts.values() if h.serving and h.process}
        # Of a database that is away, a coordinator before this one may have known more.
        version = max(self._table.version, self._term * TABLES_A_TERM)
        incarnations = {name: self._hosts[name].incarnation for name in addresses}
        said = (sum(epoch for _, epoch in self._members.owners), hosts, homes, incarnations)
        if said != self._said:
            self._said, version = said, version + 1
        self._table = Table(version, hosts, addresses, homes, self._members.databases)
        self._announce()

    def _within_reach(self, shards: Sequence[int]) -> list[int]:
        """Those of the shards whose database is not away."""
        members = self._members
        return [s for s in shards if database_of(s, members.databases) not in members.away]

    def _owners(self) -> list[str | None]:
        """By shard the serving host that owns it."""
        names = {host.incarnation: host.name for host in self._hosts.values() if host.serving}
        return [None if owner is None else names.get(owner) for owner, _ in self._members.owners]

    async def _claim_all(self, claims: Sequence[tuple[_Host, Sequence[int]]]) -> None:
        await asyncio.gather(*(self._claim(host, shards) for host, shards in claims))

    async def _claim(self, host: _Host, shards: Sequence[int]) -> None:
        assert host.process is not None
        try:
            # It goes on by itself when that is not enough; the next look tells.
            await host.process.call("claim", shards, timeout_s=CALL_TIMEOUT_S)
            self._moves["claimed"] += len(shards)
        except Exception as error:  # a fault of the host's comes as any error: the others go on
            _log.warning("%s could not claim %d shards: %s", host.name, len(shards), error)

    async def _move(self, giver: str, receiver: str, shards: Sequence[int]) -> bool:
        """Have shards handed over, some of a database at a time; whether all of them went."""
        parts = [
            [s for s in shards if database_of(s, self._members.databases) == position]
            for position in range(self._members.databases)
        ]
        for chunk in [
            part[start : start + HAND_OVER_SHARDS]
            for part in parts
            for start in range(0, len(part), HAND_OVER_SHARDS)
        ]:
            from_host, to_host = self._hosts.get(giver), self._hosts.get(receiver)
            if from_host is None or to_host is None or not (from_host.serving and to_host.serving):
                return False
            if not self._complete or not await self._hand_over(from_host, to_host, chunk):
                return False
        return True

    async def _hand_over(self, giver: _Host, receiver: _Host, shards: Sequence[int]) -> bool:
        assert giver.process is not None
        assert receiver.process is not None
        assert self._membership is not None
        epochs = {shard: self._members.owners[shard][1] for shard in shards}
        try:
            call = giver.process.call(
                "hand_over", epochs, receiver.incarnation, timeout_s=HAND_OVER_TIMEOUT_S
            )
            went = await self._unless_urgent(call)
            giver.failures = 0
            self._moves["handed_over"] += len(went)
        except _Urgent:
            return False
        except Exception as error:  # a fault of the host's comes as any error: the others go on
            giver.failures += 1
            _log.warning("%s could not hand over to %s: %s", giver.name, receiver.name, error)
            if giver.failures >= TAKE_AFTER:
                giver.failures = 0
                self._moves["taken"] += len(epochs)
                await self._membership.take(epochs)
            return False
        try:
            await self._unless_urgent(receiver.process.call("refresh", timeout_s=CALL_TIMEOUT_S))
        except _Urgent:
            return False
        except Exception as error:  # it looks by itself every second
            _log.warning("%s will open its new shards later: %s", receiver.name, error)
        await self._look()
        return len(went) == len(shards)

    async def _unless_urgent(self, step: Awaitable[T]) -> T:
        """The step's result. Raises `_Urgent` once shards lack an owner, and leaves the step alone."""
        was_complete = self._complete
        asked, lost = asyncio.ensure_future(step), asyncio.ensure_future(self._urgent.wait())
        try:
            while not self._urgent.is_set() and self._complete >= was_complete:
                await asyncio.wait(
                    {asked, lost}, return_when=asyncio.FIRST_COMPLETED, timeout=BALANCE_EVERY_S
                )
                if asked.done():
                    return asked.result()
                if was_complete:
                    with suppress(Unavailable):
                        await self._look()
            raise _Urgent
        finally:
            asked.cancel()
            lost.cancel()

    async def _retire(self, host: _Host) -> None:
        """Stop a host that owns nothing any more."""
        if host.name in self._owners():
            return
        assert host.task is not None
        assert host.process is not None
        host.task.cancel()
        await asyncio.gather(host.task, return_exceptions=True)
        if host.name in self._hosts:
            host.serving = False
            with suppress(_Urgent):
                await self._unless_urgent(stopped(host.name, host.process))
            await self._lose(host, dead=True)

    # --- isolated devices -------------------------------------------------------------------------------

    async def _learn_isolated(self) -> None:
        """Which devices are to have a process of their own, and what it needs."""
        assert self._membership is not None
        profiles, most = self._spec.settings.profiles, self._spec.max_isolated
        by_type = {name: profile.isolation == PROCESS for name, profile in profiles.by_type.items()}
        otherwise = profiles.default.isolation == PROCESS
        found = await self._membership.isolated(by_type, otherwise, most + 1)
        beyond = len(found) > most
        if beyond and not self._beyond:
            _log.warning("more than %d devices want a process of their own; the others wait", most)
        self._beyond = beyond
        self._isolated = {
            one.device_id: profiles.of(one.device_type).isolation_resources for one in found[:most]
        }

    async def room_for(self, device_id: str) -> None:
        """Raises `IsolationLimit` unless the device has, or may have, a process of its own."""
        if self._membership is None:
            raise Unavailable("the runtime has not been started yet")
        await self._learn_isolated()
        most = self._spec.max_isolated
        if device_id not in self._isolated and len(self._isolated) >= most:
            raise IsolationLimit(
                f"{most} devices have a process of their own, as many as may (cluster.max_isolated_devices)"
                if most
                else "no device may have a process of its own here (cluster.max_isolated_devices is 0)"
            )

    def _plan_isolation(self) -> IsolationPlan:
        now_s = asyncio.get_running_loop().time()
        hosts = self._hosts.values()
        owners = [
            (name, epoch) for name, (_, epoch) in zip(self._owners(), self._members.owners, strict=True)
        ]
        plan = plan_isolation(
            owners,
            self._members.homes,
            self._isolated,
            {host.name for host in hosts if host.serving and not host.leaving},
            {host.name for host in hosts if not host.serving and now_s - host.launched_s < COMING_S},
            self._members.databases,
        )
        if set(plan.crowded) - set(self._isolation.crowded):
            _log.warning("no dedicated shard is left in the database of %s", ", ".join(plan.crowded))
        return plan

    async def _isolate(self) -> bool:
        """Take the steps of the plan; whether all of them worked."""
        worked = True
        for giver, receiver, shard in self._isolation.moves:
            if self._within_reach([shard]):
                worked = await self._move(giver, receiver, [shard]) and worked
        for step in self._isolation.rehomes:
            if self._within_reach([step.to]):
                worked = await self._rehome(step) and worked
        await self._look()
        return worked

    async def _rehome(self, step: Rehome) -> bool:
        host = self._hosts.get(step.host)
        if host is None or host.process is None or not host.serving or not self._complete:
            return False
        call = host.process.call(
            "rehome", step.device_id, step.to, step.epochs, timeout_s=HAND_OVER_TIMEOUT_S
        )
        try:
            await self._unless_urgent(call)
        except _Urgent:
            return False
        except Exception as error:  # a fault of the host's comes as any error: the others go on
            _log.warning("%s could not give %s another shard: %s", host.name, step.device_id, error)
            return False
        self._moves["isolated" if step.to >= SHARDS else "shared"] += 1
        return True

    async def _give_up(self) -> None:
        """End processes of their own that are not wanted any more and have never come up, and members that
        joined without our hearing of it and whose names nobody bears now."""
        assert self._membership is not None
        for host in [h for h in self._hosts.values() if h.device is not None and h.leaving and not h.serving]:
            assert host.task is not None
            host.task.cancel()
            await asyncio.gather(host.task, return_exceptions=True)
            if host.serving or self._hosts.get(host.name) is not host:
                continue
            if host.process is not None:
                host.process.kill()
            if host.incarnation:
                await self._membership.fence(host.incarnation, True)
            del self._hosts[host.name]
            self._stir()
        for member in self._members.alive:
            if member.host not in self._hosts:
                await self._membership.fence(member.incarnation)

    def _isolated_now(self) -> list[dict[str, Any]]:
        """Each device that has or is to have a process of its own, and where it is."""
        owners, homes = self._owners(), self._members.homes
        found = []
        for device_id in sorted({*self._isolated, *homes}):
            own = self._hosts.get(process_of(device_id))
            owner = owners[homes[device_id]] if device_id in homes else None
            if device_id not in self._isolated:
                state = "returning"
            elif own is not None and owner == own.name:
                state = "own"
            elif device_id in self._isolation.crowded:
                state = "crowded"
            else:
                state = "moving" if own is not None and own.serving else "starting"
            found.append({"device_id": device_id, "process": process_of(device_id), "state": state})
        return found

    # --- the rest ---------------------------------------------------------------------------------------

    def _stir(self) -> None:
        self._balanced = False
        self._wake.set()
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _answers(self, node: str) -> bool:
        """Whether it is there to launch on; where there is no choice of nodes, it is."""
        return not node or node in {there.node_id for there in self._launcher.nodes()}

    def _kept(self, spec: ServiceSpec, process: Process | None = None) -> Kept:
        there = lambda: self._answers(self._service_nodes.get(spec.name, ""))  # noqa: E731
        return Kept(spec.name, self._service_launch(spec), there, process)

    def _service_launch(self, spec: ServiceSpec) -> Callable[[], Awaitable[Process]]:
        async def launch() -> Process:
            if spec is not self._spec.services[0] and self._services[spec.name].replaced:
                await self._after_the_first()
            if spec is self._spec.services[0] and (spare := self._take_spare()):
                self._service_nodes[spec.name], process = spare
                return process
            others = Counter(node for other, node in self._service_nodes.items() if other != spec.name)
            node = self._service_nodes[spec.name] = choose_node(self._usable_nodes(), others)
            name = f"{spec.name}.{time.monotonic_ns()}"
            return self._launcher.launch(name, node, spec.make, *spec.args)

        return launch

    def _take_spare(self) -> tuple[str, Process] | None:
        return self._spare.take({node.node_id for node in self._usable_nodes()})

    def _launch_spare(self, node: str) -> Process:
        spec = self._spec.services[0]
        return self._launcher.launch(
            f"{_spare_name(spec)}.{time.monotonic_ns()}", node, spec.make, *spec.args
        )

    async def _fit_spare(self) -> None:
        """Have a spare of the first service on another machine, once nothing more urgent is to be started."""
        services = self._services
        if not services or not self._balanced or not all(kept.up.is_set() for kept in services.values()):
            return
        first = self._spec.services[0].name
        if not self._service_nodes.get(first):
            told = await self._statistics_of(services[first].process) or {}
            self._service_nodes[first] = told.get("node", "")
        if here := self._service_nodes[first]:
            self._spare.fit([node for node in self._usable_nodes() if node.node_id != here])

    async def _after_the_first(self) -> None:
        first = self._services.get(self._spec.services[0].name) if self._spec.services else None
        if first is not None:
            await others_noticed()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEAD_START_S):
                    await first.up.wait()

    def _keep(self, kept: Kept) -> None:
        self._services[kept.name] = kept
        self._tasks.append(asyncio.create_task(kept.run(), name=f"keep {kept.name}"))

    async def _statistics_of(self, process: Process | None) -> dict[str, Any] | None:
        if process is None:
            return None
        try:
            answer: dict[str, Any] = await process.call("statistics", timeout_s=PING_TIMEOUT_S)
        except (HostGone, SensoriumError):
            return None
        return answer


def _spare_name(spec: ServiceSpec) -> str:
    return f"spare-{spec.name}"


def _number(name: str) -> int:
    return int(name.partition("-")[2])


async def _answers(process: Process) -> int | None:
    """The incarnation of what is alive, 0 where it is no host; None when it is dead or silent."""
    try:
        await process.call("ping", timeout_s=PING_TIMEOUT_S)
        statistics = await process.call("statistics", timeout_s=PING_TIMEOUT_S)
    except Exception:  # whatever is wrong with it: it is not gone on with
        return None
    return int(statistics.get("incarnation", 0))


async def _until_available(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except Unavailable as error:
            _log.warning("the database is not there yet: %s", error)
            await asyncio.sleep(RETRY_S)
