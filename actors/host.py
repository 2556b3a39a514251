"""A DeviceHost: many devices in one process, one turn at a time each, one commit for all that waits.

A plain class that knows nothing of Ray; `runtime` makes a Ray actor of it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from sensorium.actors.activations import ActivationSettings
from sensorium.actors.cloning import CLONE_CHUNK, Clones, clone
from sensorium.actors.command_waiters import CommandWaiters, encoder, wait_decoder
from sensorium.actors.compartment import TURNS, Compartment, shared_out
from sensorium.actors.conditions import validate
from sensorium.actors.device import Surroundings
from sensorium.actors.errors import Fenced, InvalidMessage, Moved, Unavailable, refused
from sensorium.actors.figures import add_up
from sensorium.actors.isolation import isolated_in
from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    BatchReply,
    Message,
    Outcome,
    Reading,
    Refusal,
    SendCommand,
    batch_decoder,
)
from sensorium.actors.models.info import ActiveModel
from sensorium.actors.origin import Origin, asked_by
from sensorium.actors.passivation import Correction
from sensorium.actors.past import Past
from sensorium.actors.placement import database_of, shard_of
from sensorium.actors.ports import Filter, HostPorts, HostPortsFactory
from sensorium.actors.profile import Profiles
from sensorium.actors.records import Command, StoredDevice
from sensorium.actors.rulebook import RuleBook
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.turns import Names, Work
from sensorium.actors.view import DeviceView

if TYPE_CHECKING:
    from sensorium.actors.models.book import ModelBook

MAP_CHUNK = 100
"""Devices that a mapped function sees before waiting messages get their turn."""

WORST_OF_ALL: Final = ("lease_age_s", "timers_lag_s", "log_down_s")
"""Statistics of which the largest of any database counts."""

T = TypeVar("T")
_logger = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host is told at its start. `auto_register_as`: see `Surroundings`.

    `local_calls`: whether senders on its machine may reach it by a socket of its own (`actors.local_calls`).
    """

    profiles: Profiles = field(default_factory=Profiles)
    auto_register_as: str | None = None
    activation: ActivationSettings = field(default_factory=ActivationSettings)
    local_calls: bool = True


class DeviceHost:
    """Owns shards and the devices in them, for one incarnation: those that the database says are its own.

    Call `start` first and `stop` last; both by the owner. All else may overlap. `shards` are claimed at the
    start, as far as nobody else owns them.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        shards: Sequence[int],
        open_ports: HostPortsFactory,
        settings: HostSettings,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.local_calls = settings.local_calls
        self._claimed = list(shards)
        self._open_ports = open_ports
        self._settings = settings
        self._clock_ms = clock_ms
        own = name if isolated_in(name) is not None else None
        self._around = Surroundings(settings.profiles, RuleBook(), settings.auto_register_as, process=own)
        self._names: dict[Names, Names] = {}
        self._waiters = CommandWaiters()
        self._compartments: list[Compartment] = []
        """One for each database of the log, by its position."""
        self._models: Sequence[ActiveModel] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._turns: list[asyncio.Task[None]] = []
        """Those of the tasks that end by themselves."""

    # --- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ports, the rules and the shards. Raises `LogUnavailable` without the first database."""
        self._ports: HostPorts = await self._open_ports(self.incarnation)
        self._compartments = self._made()
        rules = await self._ports.rules.load()
        self._around = replace(self._around, rules=RuleBook(rules))
        await self._take_models()
        main, *others = self._compartments
        await main.holdings.refresh()
        for compartment in others:
            compartment.holdings.look()
        if self._claimed:
            await self.claim(self._claimed)
        for compartment in self._compartments:
            for name, job in compartment.jobs().items():
                task = asyncio.create_task(job, name=f"{self.name} {name}")
                (self._turns if name == TURNS else self._tasks).append(task)
        self._tasks += [
            *self._turns,
            asyncio.create_task(self._watch_rules(), name=f"{self.name} rules"),
            asyncio.create_task(self._watch_models(), name=f"{self.name} models"),
        ]

    def _made(self) -> list[Compartment]:
        logs = self._ports.logs
        made: list[Compartment] = []
        correction = Correction(lambda: sum(one.activations.estimated_bytes for one in made))
        for log in logs:
            compartment = Compartment(
                self.name,
                log,
                self._ports.registry,
                shared_out(self._settings.activation, len(logs)),
                correction,
                lambda: self._around,
                self._clock_ms,
                self._waiters,
            )
            made.append(compartment)
        return made

    async def stop(self) -> None:
        """Finish what waits, save every unsaved device, give back the ports.

        Raises `LogUnavailable` for a database that is away, when all of the others have been done.
        """
        if self._tasks:
            for compartment in self._compartments:
                compartment.stop()
            for task in self._tasks:
                if task not in self._turns:
                    task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = []
            try:
                await _all(compartment.save_all() for compartment in self._compartments)
            finally:
                await self._ports.close()

    async def ping(self) -> list[float]:
        """Proof of life: by database the seconds since the lease was renewed.

        Raises `Fenced` once it may not commit.
        """
        if any(compartment.holdings.fenced for compartment in self._compartments):
            raise Fenced(f"{self.name} lost its shards")
        return [compartment.holdings.lease_age_s for compartment in self._compartments]

    # --- shards -----------------------------------------------------------------------------------------

    @property
    def _shards(self) -> list[int]:
        return sorted(shard for one in self._compartments for shard in one.holdings.owned.epochs)

    def _of(self, device_id: str) -> Compartment:
        """The compartment of the device's database."""
        if len(self._compartments) == 1:
            return self._compartments[0]
        return self._compartments[database_of(shard_of(device_id), len(self._compartments))]

    def _by_compartment(self, shards: Iterable[int]) -> list[tuple[Compartment, list[int]]]:
        parts: list[list[int]] = [[] for _ in self._compartments]
        for shard in shards:
            parts[database_of(shard, len(parts))].append(shard)
        return [(one, part) for one, part in zip(self._compartments, parts, strict=True) if part]

    async def refresh(self) -> None:
        """Look at once at what the databases say this host owns. See `Holdings.refresh`."""
        await _all(compartment.holdings.refresh() for compartment in self._compartments)

    async def claim(self, shards: Sequence[int]) -> dict[int, int]:
        """Own those of the shards that are free. See `Holdings.claim`."""
        return _merged(await _all(one.holdings.claim(part) for one, part in self._by_compartment(shards)))

    async def hand_over(self, epochs: Mapping[int, int], to: int) -> dict[int, int]:
        """Give shards to another incarnation. See `Holdings.hand_over`.

        Those of each database go by themselves: when it raises, some may have gone.
        """
        parts = self._by_compartment(epochs)
        return _merged(
            await _all(one.holdings.hand_over({s: epochs[s] for s in part}, to) for one, part in parts)
        )

    async def rehome(self, device_id: str, to: int, epochs: Mapping[int, int]) -> None:
        """Give a device a shard of its own, or have it back in that of its key. See `Holdings.rehome`."""
        await self._of(device_id).holdings.rehome(device_id, to, epochs)

    # --- calls ------------------------------------------------------------------------------------------

    async def deliver(self, data: bytes) -> bytes:
        """Run an encoded `Batch`; answers an encoded `BatchReply` once everything in it is committed.

        Raises:
            LogUnavailable: nothing can be said of the batch; deliver it again.
            Fenced: this host has lost its shards; ask for the routing table.
            Overloaded: too many senders wait.
            InvalidMessage: the bytes are no batch, or it comes after the sender's next one.
        """
        try:
            batch = batch_decoder.decode(data)
            names = [self._intern(n) for n in batch.names()]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"not a batch: {error}") from error
        if not all(type(m) is not Reading or m.metrics < len(names) for m in batch.messages):
            raise InvalidMessage("not a batch: a reading refers to metrics that it does not carry")
        compartment = self._of(batch.messages[0].device_id) if batch.messages else self._compartments[0]
        compartment.in_turn(batch.sender, batch.sequence)
        outcomes, moved = await compartment.delivery.run(Work(batch.messages, names))
        return _encode(BatchReply(batch.sequence, outcomes, moved))

    async def ask(self, message: Message, names: Names = ()) -> Outcome:
        """One message's turn, for a caller with this host's handle. Raises as `deliver`, and `Moved`."""
        outcomes, moved = await self._of(message.device_id).delivery.run(Work([message], [names]))
        if moved:
            raise Moved(f"{message.device_id} is not hosted by {self.name}; ask for the routing table")
        return outcomes.get(0, ACCEPTED)

    async def answer(self, message: Message, names: Names = ()) -> Any:
        """Like `ask`, but gives the answer's value and raises refusals as `Refused`."""
        outcome = await self.ask(message, names)
        if isinstance(outcome, Refusal):
            raise refused(outcome.code, outcome.detail)
        return outcome.value if isinstance(outcome, Answer) else None

    async def command(self, message: SendCommand, wait_s: float) -> Command | None:
        """Have a device do something: the command as it ended within `wait_s`, or as it stands.

        None: it has ended before. Raises like `answer`.
        """
        with self._waiters.expecting(message.command_id) as ended:
            command: Command | None = await self.answer(message)
            if command is not None and wait_s > 0:
                try:
                    async with asyncio.timeout(wait_s):
                        return await ended
                except TimeoutError:
                    pass
            return command

    async def ended(self, data: bytes) -> bytes:
        """A command as it is committed once it has ended, within so many seconds; nothing where it has not.

        `data` is for `wait_decoder`. Of commands that are waited for so the database gives no notice.
        """
        try:
            command_id, wait_s = wait_decoder.decode(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidMessage(f"nothing to wait for: {error}") from error
        with self._waiters.expecting(command_id) as ended:
            try:
                async with asyncio.timeout(wait_s):
                    return encoder.encode(await ended)
            except TimeoutError:
                return b""

    async def map(
        self,
        which: Filter,
        function: Callable[[DeviceView], Any],
        shards: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Run a function beside the state of each matching device of these shards, by default this host's.

        `known` are the dedicated shards that are asked elsewhere: a device with another raises `Moved`.

        Returns:
            By device id what the function returned, or the exception that it raised.

        Raises:
            Moved: one of the shards is not this host's, or no longer; ask for the routing table.
            LeaseOver: this host cannot tell.
        """
        results: dict[str, Any] = {}
        for compartment, asked in self._by_compartment(self._shards if shards is None else shards):
            results |= await self._map(compartment, which, function, asked, known)
        return results

    async def _map(
        self,
        compartment: Compartment,
        which: Filter,
        function: Callable[[DeviceView], Any],
        asked: Sequence[int],
        known: Sequence[int] | None,
    ) -> dict[str, Any]:
        holdings, activations = compartment.holdings, compartment.activations
        holdings.check_homes(asked, known)
        ids = await self._ports.registry.select(which, asked)
        results: dict[str, Any] = {}
        for start in range(0, len(ids), MAP_CHUNK):
            chunk = ids[start : start + MAP_CHUNK]
            await compartment.passivation.room()
            async with compartment.ahead:
                await activations.ensure(chunk, self._around, scan=True)
                holdings.epochs(asked)
                holdings.check_lease()
                for device_id in chunk:
                    view = DeviceView(activations.devices[device_id], self._around, self._clock_ms())
                    try:
                        results[device_id] = function(view)
                    except Exception as error:  # the caller's code: its errors are the caller's to see
                        results[device_id] = error
        holdings.epochs(asked)
        holdings.check_homes(asked, known)
        return results

    async def clone(
        self,
        which: Filter,
        limit: int,
        shards: Sequence[int] | None = None,
        known: Sequence[int] | None = None,
    ) -> Clones:
        """Copies of the matching devices of these shards, by default this host's. `known`: as for `map`.

        Raises:
            InvalidMessage: there are more than `limit`.
            Moved, LeaseOver: as `map`.
        """
        parts = self._by_compartment(self._shards if shards is None else shards)
        found: list[list[str]] = []
        for compartment, asked in parts:
            compartment.holdings.check_homes(asked, known)
            found.append(await self._ports.registry.select(which, asked))
        if (count := sum(map(len, found))) > limit:
            raise InvalidMessage(f"{self.name} alone has {count} such devices, above the limit of {limit}")
        devices: list[StoredDevice] = []
        for (compartment, asked), ids in zip(parts, found, strict=True):
            holdings, active = compartment.holdings, compartment.activations.devices
            for start in range(0, len(ids), CLONE_CHUNK):
                async with compartment.ahead:
                    devices += await clone(ids[start : start + CLONE_CHUNK], active, compartment.log)
                    holdings.epochs(asked)
                    holdings.check_lease()
            holdings.epochs(asked)
            holdings.check_homes(asked, known)
        return Clones(devices, self._around.profiles, list(self._around.rules.rules.values()))

    def past(self) -> Past:
        """What it takes to relive devices elsewhere. Raises `InvalidMessage` where no past is kept."""
        if self._ports.open_past is None:
            raise InvalidMessage("no past is kept here, so nothing can be relived")
        return Past(self._ports.open_past, self._around.profiles)

    async def rules_of(self, device_id: str) -> list[dict[str, Any]]:
        """The rules that watch a device, each with the alarm it holds there or None."""
        compartment = self._of(device_id)
        async with compartment.ahead:
            await compartment.activations.ensure([device_id], self._around)
            compartment.holdings.check_lease()
            device = compartment.activations.devices[device_id]
            rules = device.covering(self._around)
            return [{"rule": rule, "alarm": device.alarms.get(rule.rule_id)} for rule in rules]

    async def rules(self) -> list[Rule]:
        """All rules."""
        return await self._ports.rules.load()

    async def create_rule(self, spec: RuleSpec, origin: Origin | None = None) -> Rule:
        """Store a new rule. Raises `InvalidMessage` for one that can never work."""
        validate(spec)
        with asked_by(origin):
            return await self._ports.rules.create(spec, _name(origin))

    async def replace_rule(self, rule_id: str, spec: RuleSpec, origin: Origin | None = None) -> Rule | None:
        """The rule's next version; None when there is no such rule."""
        validate(spec)
        with asked_by(origin):
            return await self._ports.rules.replace(rule_id, spec, _name(origin))

    async def delete_rule(self, rule_id: str, origin: Origin | None = None) -> bool:
        """Whether there was such a rule."""
        with asked_by(origin):
            return await self._ports.rules.delete(rule_id)

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and gauges, by name."""
        parts = [compartment.statistics() for compartment in self._compartments]
        return {
            "name": self.name,
            "incarnation": self.incarnation,
            **add_up(parts),
            **{name: max(part[name] for part in parts) for name in WORST_OF_ALL},
            "databases_down": [n for n, part in enumerate(parts, 1) if part["log_down_s"] > 0.0],
            "rules": len(self._around.rules.rules),
            **({} if self._around.models is None else self._around.models.statistics()),
        }

    def _intern(self, names: Names) -> Names:
        return self._names.setdefault(names, names) if len(self._names) < 65_536 else names

    # --- rules and models -------------------------------------------------------------------------------

    async def _watch_rules(self) -> None:
        async for _ in self._ports.rules.changes():
            try:
                rules = await self._ports.rules.load()
            except Unavailable:
                continue  # `changes` yields again once the database is back
            self._around = replace(self._around, rules=RuleBook(rules))
            for compartment in self._compartments:
                compartment.rules_changed()

    async def _watch_models(self) -> None:
        if self._ports.models is not None:
            async for _ in self._ports.models.changes():
                try:
                    await self._take_models()
                except Unavailable:
                    continue  # `changes` yields again once the database is back

    async def _take_models(self) -> None:
        """Have those judge that the database says; while there never was one, nothing of them is imported."""
        if self._ports.models is None:
            return
        active = await self._ports.models.load()
        if active != self._models:
            book = await asyncio.to_thread(_book, active)
            self._models = active
            self._around = replace(self._around, models=book)
            for label, fault in book.broken.items():
                _logger.error("%s: the model %s cannot judge here: %s", self.name, label, fault)


def _name(origin: Origin | None) -> str:
    return "" if origin is None else origin.by


def _book(active: Sequence[ActiveModel]) -> "ModelBook":
    # numpy is imported for models only.
    from sensorium.actors.models.book import ModelBook

    return ModelBook(active)


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All results, once all have ended; else what the first of them has raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _merged(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    return {key: value for part in parts for key, value in part.items()}
