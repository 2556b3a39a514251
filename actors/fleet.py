"""The notebook's door: `connect()` gives a Fleet, whose devices are called like Ray actors.

Every `.remote(…)` returns an ObjectRef; everything else here blocks until it has its answer.
"""

import secrets
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import ray
from ray.exceptions import RayActorError

from sensorium.actors.audit import Asked
from sensorium.actors.backtest import BacktestResult
from sensorium.actors.errors import DeviceNotFound, Fenced, Moved, Unavailable
from sensorium.actors.messages import (
    ChangeTwin,
    Decommission,
    DeviceInfo,
    GetDevice,
    GetLatest,
    GetTwin,
    GetWindow,
    Location,
    Message,
    Patch,
    Reading,
    Register,
    SendCommand,
    Value,
)
from sensorium.actors.origin import this_user
from sensorium.actors.past import Past
from sensorium.actors.placement import SHARDS
from sensorium.actors.ports import Filter
from sensorium.actors.router import Table
from sensorium.actors.rules import Rule, RuleSpec
from sensorium.actors.runtime import NAMESPACE, find_coordinator, join_ray
from sensorium.actors.turns import Names
from sensorium.actors.view import DeviceView
from sensorium.actors.written_rules import rule_spec

if TYPE_CHECKING:
    from sensorium.actors.backtesting import Progress
    from sensorium.actors.fork import Fork

WAY: Final = "notebook"
T = TypeVar("T")

TABLE_FRESH_S: Final = 2.0
RETRIES: Final = 20
RETRY_S: Final = 0.5
_MILLISECOND: Final = timedelta(milliseconds=1)


def connect(address: str | None = "auto", namespace: str = NAMESPACE) -> "Fleet":
    """Connect to a running platform.

    Args:
        address: of the Ray cluster; "auto" finds the one on this machine. An existing connection is used.

    Raises:
        ConnectionError: there is no such cluster, or no platform runs in the namespace.
    """
    if not ray.is_initialized():
        join_ray(address, namespace)
    try:
        return Fleet(namespace)
    except ValueError as error:
        raise ConnectionError(
            f"no Sensorium runs in namespace {namespace!r} of this Ray cluster; start one with `sensorium up`"
        ) from error


class Fleet:
    """All devices of a running platform."""

    def __init__(self, namespace: str = NAMESPACE) -> None:
        self.namespace = namespace
        self._coordinator = find_coordinator(namespace)
        self._table: Table | None = None
        self._table_at_s = 0.0
        self.rules = Rules(self)

    def register(
        self,
        device_id: str,
        device_type: str = "generic",
        *,
        location: Location | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> DeviceInfo:
        """Create a device. Raises `DeviceConflict` when it exists already."""
        where = msgspec.convert(location, Location) if isinstance(location, Mapping) else location
        info: DeviceInfo = self._call(Register(device_id, device_type, where, dict(metadata or {})))
        return info

    def device(self, device_id: str) -> "DeviceRef":
        """A handle on a device. It need not exist yet."""
        return DeviceRef(self, device_id)

    def select(
        self,
        type: str | None = None,  # noqa: A002 the notebook reads best as fleet.select(type=…)
        *,
        status: str | None = "active",
        metadata: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
    ) -> "Selection":
        """The devices for which everything given holds; `metadata` must be contained in the device's."""
        return Selection(self, Filter(type, status, dict(metadata or {}), ids))

    def statistics(self) -> dict[str, Any]:
        """What the hosts and services say of themselves."""
        result: dict[str, Any] = _get(self._coordinator.call.remote("statistics"))
        return result

    def scale(self, hosts: int, timeout_s: float = 120.0) -> None:
        """Have this many hosts from now on; returns when each has its shards.

        Raises:
            InvalidMessage: the number is out of range.
            Unavailable: it is not done in time; it goes on all the same.
        """
        _get(self._coordinator.call.remote("scale", hosts))
        self._await_balance(timeout_s)

    def drain(self, node: str, timeout_s: float = 120.0) -> None:
        """Have no hosts on a node of the Ray cluster any more: they hand over to others first.

        Where it is the only node, they stay. Raises as `scale`.
        """
        _get(self._coordinator.call.remote("drain", node))
        self._await_balance(timeout_s)

    def undrain(self, node: str) -> None:
        """Hosts may be on that node again."""
        _get(self._coordinator.call.remote("undrain", node))

    def _await_balance(self, timeout_s: float) -> None:
        self._table = None
        if not _get(self._coordinator.call.remote("balanced", timeout_s)):
            raise Unavailable(f"hosts and shards are not in their places after {timeout_s:g} s")

    def table(self) -> Table:
        """The routing table, at most `TABLE_FRESH_S` old."""
        now_s = time.monotonic()
        if self._table is None or now_s - self._table_at_s > TABLE_FRESH_S:
            table: Table = _get(self._coordinator.call.remote("table"))
            self._table, self._table_at_s = table, now_s
        return self._table

    def ask(self, message: Message, names: Names = ()) -> "ray.ObjectRef[Any]":
        """A message's turn, as an ObjectRef of the answer."""
        table = self.table()
        host = _address(table, table.host_of(message.device_id))
        ref: ray.ObjectRef[Any] = host.call.remote("answer", attributed(message), names)
        return ref

    def now_ms(self) -> int:
        """The clock that readings without a time of their own go by, milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000

    def fork(self, select: "Selection", name: str) -> "Fork":
        """A sandbox with copies of the chosen devices; see `fork.Fork`. Close it, or use it in a `with`.

        Raises:
            ForkExists: there is one of the name.
            InvalidMessage: more than `fork.MAX_DEVICES` are chosen, or the name is no name.
            LookupError: none is chosen.
        """
        from sensorium.actors.fork import open_fork

        return open_fork(self, select.which, name)

    def backtest(
        self,
        rule: RuleSpec | Mapping[str, Any],
        since: datetime | timedelta,
        select: "Selection | None" = None,
        *,
        until: datetime | None = None,
        replaces: str | None = None,
        on_progress: Callable[["Progress"], None] | None = None,
    ) -> "BacktestResult":
        """What a draft rule would have raised over stored history. Blocks; touches no device.

        Args:
            rule: the draft, as for `rules.create`; it is not stored.
            since: from when on, or how long ago, by event time; `until`: up to when, or now.
            select: among which devices; None: all that its scope, or the present rule's, covers.
            replaces: the id of the rule to compare with, judged by the same replay.
            on_progress: called now and then.

        Raises:
            InvalidMessage: the rule can never work, or there is more past than a backtest takes.
            RuleNotFound, NoHistory: there is no such rule, no such device, or no reading in the range.
        """
        from sensorium.actors.backtesting import Asked, backtest

        until_ms = self.now_ms() if until is None else _ms(until)
        since_ms = until_ms - since // _MILLISECOND if isinstance(since, timedelta) else _ms(since)
        which = Filter() if select is None else select.which
        result: BacktestResult | None = None
        for step in backtest(self, Asked(_spec(rule), since_ms, until_ms, replaces, which)):
            if isinstance(step, BacktestResult):
                result = step
            elif on_progress is not None:
                on_progress(step)
        assert result is not None
        return result

    def past(self) -> Past:
        """What it takes to relive devices; see `Past`."""
        past: Past = retried(self, lambda: _get(self.hosts()[0].call.remote("past")))
        return past

    def hosts(self) -> list[Any]:
        """The actor handles of the hosts."""
        return list(self.table().addresses.values())

    def on_hosts(self, method: str, *args: Any) -> list[Any]:
        """A host's method called for all shards, at each host with its own as last argument: the references.

        A host that has lost one of them meanwhile raises `Moved`, so that none is left out while they move.
        """
        table = self.table()
        shards: dict[str, list[int]] = {}
        used = {*range(SHARDS), *table.homes.values()}
        for shard, host in enumerate(table.hosts):
            if shard in used:
                shards.setdefault(host, []).append(shard)
        known = sorted(table.homes.values())
        parts = [(_address(table, host), own) for host, own in shards.items()]
        return [address.call.remote(method, *args, own, known) for address, own in parts]

    def _call(self, message: Message) -> Any:
        return retried(self, lambda: _get(self.ask(message)))


class RemoteMethod:
    """A device's method; call it with `.remote(…)`, as with any Ray actor."""

    def __init__(self, submit: Callable[..., "ray.ObjectRef[Any]"]) -> None:
        self._submit = submit
        self.__doc__ = submit.__doc__

    def remote(self, *args: Any, **kwargs: Any) -> "ray.ObjectRef[Any]":
        """Call it; the ObjectRef raises what the device refuses."""
        return self._submit(*args, **kwargs)


class DeviceRef:
    """A device by its id. Each public attribute but `id` is a `RemoteMethod`."""

    def __init__(self, fleet: Fleet, device_id: str) -> None:
        self.id = device_id
        self._fleet = fleet
        self.info = RemoteMethod(self._info)
        self.latest = RemoteMethod(self._latest)
        self.window = RemoteMethod(self._window)
        self.rules = RemoteMethod(self._rules)
        self.send = RemoteMethod(self._send)
        self.command = RemoteMethod(self._command)
        self.twin = RemoteMethod(self._twin)
        self.desire = RemoteMethod(self._desire)
        self.patch = RemoteMethod(self._patch)
        self.decommission = RemoteMethod(self._decommission)

    def _info(self) -> "ray.ObjectRef[DeviceInfo]":
        """`info.remote()`: a `DeviceInfo`."""
        return self._fleet.ask(GetDevice(self.id))

    def _latest(self) -> "ray.ObjectRef[Any]":
        """`latest.remote()`: a `Latest`."""
        return self._fleet.ask(GetLatest(self.id))

    def _window(self, metric: str, length_s: float | None = None) -> "ray.ObjectRef[Any]":
        """`window.remote(metric, length_s=None)`: a `WindowInfo`."""
        return self._fleet.ask(GetWindow(self.id, metric, length_s))

    def _rules(self) -> "ray.ObjectRef[Any]":
        """`rules.remote()`: the rules that watch the device, each with the alarm it holds or None."""
        table = self._fleet.table()
        ref: ray.ObjectRef[Any] = _address(table, table.host_of(self.id)).call.remote("rules_of", self.id)
        return ref

    def _send(self, metrics: Mapping[str, Value], time_ms: int | None = None) -> "ray.ObjectRef[Any]":
        """`send.remote({metric: value}, time_ms=None)`: a reading, as if the device had sent it."""
        now_ms = self._fleet.now_ms()
        values: list[Value] = [float(v) if type(v) is int else v for v in metrics.values()]
        at_ms = now_ms if time_ms is None else time_ms
        key = zlib.crc32(msgspec.json.encode(dict(metrics))) if time_ms is not None else time.time_ns()
        return self._fleet.ask(Reading(self.id, at_ms, now_ms, key, 0, values), tuple(metrics))

    def _command(
        self,
        command: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 30.0,
        expires_s: float = 86_400.0,
        retries: int = 0,
        wait_s: float = 0.0,
    ) -> "ray.ObjectRef[Any]":
        """`command.remote(name, parameters, wait_s=…)`: a `Command`, ended if that took less than `wait_s`.

        The times are seconds: in which the device must answer once it was told; after which it is not told
        any more.
        """
        now_ms = time.time_ns() // 1_000_000
        message = SendCommand(
            *(self.id, f"{now_ms:012x}{secrets.token_hex(10)}", command, dict(parameters or {})),
            *(round(timeout_s * 1000), now_ms + round(expires_s * 1000), retries),
            origin=this_user(WAY),
        )
        table = self._fleet.table()
        host = _address(table, table.host_of(self.id))
        ref: ray.ObjectRef[Any] = host.call.remote("command", message, wait_s)
        return ref

    def _twin(self) -> "ray.ObjectRef[Any]":
        """`twin.remote()`: a `TwinInfo`: what is desired of the device and what it reports."""
        return self._fleet.ask(GetTwin(self.id))

    def _desire(
        self,
        patch: Mapping[str, Any],
        *,
        replace: bool = False,
        version: int | None = None,
        by: str = "notebook",
    ) -> "ray.ObjectRef[Any]":
        """`desire.remote(patch, replace=False, version=None)`: the changed `TwinInfo`.

        A JSON merge patch of what is desired, or with `replace` all of it. With `version` it raises
        `PreconditionFailed` unless that is the present one.
        """
        matching = None if version is None else [f"d{version}"]
        return self._fleet.ask(ChangeTwin(self.id, dict(patch), None, by, replace, matching))

    def _patch(
        self,
        device_type: str | None = None,
        location: Location | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> "ray.ObjectRef[DeviceInfo]":
        """`patch.remote(device_type=, location=, metadata=)`: the changed `DeviceInfo`."""
        return self._fleet.ask(Patch(self.id, device_type, location, metadata))

    def _decommission(self) -> "ray.ObjectRef[None]":
        """`decommission.remote()`: retire the device; its history stays."""
        return self._fleet.ask(Decommission(self.id))

    def __repr__(self) -> str:
        return f"<DeviceRef {self.id}>"


class Selection:
    """Devices chosen by a filter; the choice is made anew at each call."""

    def __init__(self, fleet: Fleet, which: Filter) -> None:
        self._fleet = fleet
        self.which = which

    def map(self, function: Callable[[DeviceView], T]) -> dict[str, T]:
        """Run a function beside each device's state, in its host, and gather what it returns by device id.

        Raises:
            ExceptionGroup: the function raised for some devices; each exception notes its device.
        """
        results: dict[str, T] = {}
        errors: list[Exception] = []
        fleet = self._fleet
        for part in retried(fleet, lambda: _get(fleet.on_hosts("map", self.which, function))):
            for device_id, value in part.items():
                if isinstance(value, Exception):
                    value.add_note(f"device {device_id}")
                    errors.append(value)
                else:
                    results[device_id] = value
        if errors:
            raise ExceptionGroup(f"the function failed for {len(errors)} devices", errors)
        return dict(sorted(results.items()))

    def ids(self) -> list[str]:
        """The devices' ids, sorted."""
        return list(self.map(_id_of))

    def __len__(self) -> int:
        return len(self.ids())


class Rules:
    """The fleet's alerting rules."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def list(self) -> list[Rule]:
        """All rules."""
        rules: list[Rule] = self._call("rules")
        return rules

    def create(self, spec: RuleSpec | Mapping[str, Any]) -> Rule:
        """Store a rule, given as a `RuleSpec` or as the JSON object that the HTTP API takes."""
        rule: Rule = self._call("create_rule", _spec(spec), this_user(WAY))
        return rule

    def replace(self, rule_id: str, spec: RuleSpec | Mapping[str, Any]) -> Rule:
        """Put another spec in a rule's place. Raises LookupError when there is no such rule."""
        rule: Rule | None = self._call("replace_rule", rule_id, _spec(spec), this_user(WAY))
        if rule is None:
            raise LookupError(f"no rule {rule_id}")
        return rule

    def delete(self, rule_id: str) -> None:
        """Delete a rule; its alarms are cleared. Raises LookupError when there is no such rule."""
        if not self._call("delete_rule", rule_id, this_user(WAY)):
            raise LookupError(f"no rule {rule_id}")

    def _call(self, method: str, *args: Any) -> Any:
        return retried(self._fleet, lambda: _get(self._fleet.hosts()[0].call.remote(method, *args)))


def retried(fleet: Fleet, call: Callable[[], T]) -> T:
    """The result of a blocking call, tried again with a fresh table while a host is being replaced."""
    for attempt in range(RETRIES):
        try:
            return call()
        except (RayActorError, Fenced) as error:
            fleet._table = None
            if attempt == RETRIES - 1:
                raise Unavailable(f"the host does not come back: {error}") from error
            time.sleep(RETRY_S)
    raise AssertionError("unreachable")


def attributed(message: Message) -> Message:
    """The message with who asks, where it is one that changes something."""
    if isinstance(message, Asked) and message.origin is None:
        return msgspec.structs.replace(message, origin=this_user(WAY))
    return message


def _address(table: Table, host: str) -> Any:
    """What the host is reached with. Raises `Moved` while another takes its place."""
    try:
        return table.addresses[host]
    except KeyError:
        raise Moved(f"{host} is being replaced") from None


def _get(refs: Any) -> Any:
    return ray.get(refs)


def _spec(spec: RuleSpec | Mapping[str, Any]) -> RuleSpec:
    return rule_spec(spec) if isinstance(spec, Mapping) else spec


def _ms(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; say which, such as datetime.now(UTC)")
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MILLISECOND


def _id_of(view: DeviceView) -> str:
    return view.id


__all__ = ["DeviceNotFound", "DeviceRef", "Fleet", "Rules", "Selection", "connect"]
