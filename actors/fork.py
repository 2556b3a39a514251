"""`fleet.fork(…)`: devices copied into a sandbox of their own, to be played with and thrown away.

One Ray actor a fork, in a namespace of its own: it dies with whoever opened it.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import ray

from sensorium.actors.alarm_matching import Comparison, match
from sensorium.actors.errors import ForkExists, InvalidMessage
from sensorium.actors.fleet import Fleet, Rules, retried
from sensorium.actors.messages import Value
from sensorium.actors.placement import ALL_SHARDS
from sensorium.actors.ports import Filter
from sensorium.actors.records import Alarm
from sensorium.actors.router import Table
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.runtime import remote_class
from sensorium.actors.sandbox import MAX_DEVICES, Ingested, Row, Sandbox

REPLAY_BATCH: Final = 2_000
"""Rows that travel at a time; one batch is in flight."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OPTIONS: Final[dict[str, Any]] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}


class Fork(Fleet):
    """A fleet of copies. Whatever a `Fleet` does, it does to them: the real devices never hear of it.

    Its clock goes by event time: it starts at the moment of the fork and moves on with what is ingested and
    by `advance`; timers (`for_s`, no data) fire by it. It keeps no history: a reading that is older than what
    a device remembers is not recognised as a duplicate.
    """

    def __init__(self, name: str, namespace: str, actor: Any) -> None:
        self.name = name
        self.namespace = namespace
        self.rules = Rules(self)
        self._actor = actor
        # One host for every shard, for as long as the fork is open.
        self._table = Table(0, [name] * ALL_SHARDS, {name: actor})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table(self) -> Table:
        """The routing table."""
        if self._table is None:
            raise LookupError(f"the fork {self.name!r} is closed, or its process has died")
        return self._table

    def now_ms(self) -> int:
        """The fork's clock, milliseconds since 1970 UTC."""
        now_ms: int = self._do("now_ms")
        return now_ms

    def statistics(self) -> dict[str, Any]:
        """What the sandbox counts."""
        result: dict[str, Any] = self._do("statistics")
        return result

    def create_rule(self, spec: RuleSpec | Mapping[str, Any]) -> Rule:
        """A rule that only the fork has; short for `rules.create`."""
        return self.rules.create(spec)

    def ingest(self, device_id: str, metrics: Mapping[str, Value], time_ms: int | None = None) -> Ingested:
        """A reading by hand, at an event time of choice or at the fork's present moment."""
        at_ms = self.now_ms() if time_ms is None else time_ms
        result: Ingested = self._do("ingest", [(device_id, at_ms, dict(metrics))])
        return result

    def replay(self, recording: Iterable[Row], speed: float = 0.0, start_ms: int | None = None) -> Ingested:
        """Take in many readings, in the order given.

        Args:
            recording: (device id, event time in ms, values by metric), such as the simulator's `rows`.
            speed: times real time; 0: as fast as it goes.
            start_ms: when the first of them happens, the others as much later as they were; None: at
                their own times. Rules judge no reading that is older than its device's newest.
        """
        done = Ingested()
        batch: list[Row] = []
        shift_ms = 0
        first_ms: int | None = None
        began_s = time.monotonic()
        for device_id, time_ms, metrics in recording:
            if first_ms is None:
                first_ms = time_ms
                shift_ms = 0 if start_ms is None else start_ms - time_ms
            wait_s = 0.0
            if speed:
                wait_s = (time_ms - first_ms) / 1000.0 / speed - (time.monotonic() - began_s)
            if batch and (wait_s > 0 or len(batch) >= REPLAY_BATCH):
                done += self._do("ingest", batch)
                batch = []
            if wait_s > 0:
                time.sleep(wait_s)
            batch.append((device_id, time_ms + shift_ms, metrics))
        return done + self._do("ingest", batch) if batch else done

    def advance(self, seconds: float = 0.0, *, to_ms: int | None = None) -> int:
        """Let time pass without readings, or up to a moment; returns the clock. It never goes back."""
        target_ms = self.now_ms() + round(seconds * 1000) if to_ms is None else to_ms
        now_ms: int = self._do("advance", target_ms)
        return now_ms

    def alarms(self) -> list[Alarm]:
        """All alarms by their start, those that stood when it was forked included."""
        alarms: list[Alarm] = self._do("alarms")
        return alarms

    def compare(self, other: "Fork | Sequence[Alarm]") -> Comparison:
        """This fork's alarms beside another's, or beside a list, such as the real ones of `/api/alarms`."""
        theirs = other.alarms() if isinstance(other, Fork) else other
        matched = match(theirs, self.alarms())
        return Comparison(matched.new, matched.gone, [(mine, their) for their, mine in matched.stays])

    def close(self) -> None:
        """Throw it away. It may be called again."""
        if self._table is not None:
            self._table = None
            ray.kill(self._actor)

    def _do(self, method: str, *args: Any) -> Any:
        self.table()
        return ray.get(self._actor.call.remote(method, *args))

    def __repr__(self) -> str:
        return f"<Fork {self.name}>"


def open_fork(fleet: Fleet, which: Filter, name: str) -> Fork:
    """See `Fleet.fork`."""
    if not _NAME.fullmatch(name):
        raise InvalidMessage(
            f"{name!r} is no name for a fork: up to 64 letters, digits, and . _ - after the first"
        )
    namespace = fleet.namespace if isinstance(fleet, Fork) else f"{fleet.namespace}.forks"
    options = {**_OPTIONS, "name": f"fork:{name}", "namespace": namespace}
    try:
        actor = remote_class(Sandbox).options(**options).remote(name, fleet.now_ms())
    except (ValueError, AssertionError) as error:
        # The assertion is Ray's: when whoever opened it has ended, its class is forgotten before its name.
        raise ForkExists(f"a fork {name!r} is open; close it, or take another name") from error
    fork = Fork(name, namespace, actor)
    try:
        # The copies go from the hosts to the sandbox; this process only passes their references on.
        def load() -> Any:
            return ray.get(actor.call.remote("load", *fleet.on_hosts("clone", which, MAX_DEVICES)))

        if not retried(fleet, load):
            raise LookupError("no device matches the selection, so there is nothing to fork")
    except BaseException:
        fork.close()
        raise
    return fork
