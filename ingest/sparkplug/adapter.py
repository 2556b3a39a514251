"""From Sparkplug messages to committed readings and presence. Not a transport: it is handed messages."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

from sensorium.actors.messages import ACCEPTED, Content, Message, Outcome, PresenceSaid, Refusal, Value
from sensorium.actors.units import MAX_UNIT_CHARS
from sensorium.ingest.decode import Bounds, Telemetry, TelemetryDecoder
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.pipeline import Done, Pipeline, Router, is_device_id
from sensorium.ingest.routes import Routes
from sensorium.ingest.sparkplug import payload as payloads
from sensorium.ingest.sparkplug.address import Address, Naming, parse
from sensorium.ingest.sparkplug.payload import Payload
from sensorium.ingest.sparkplug.session import Definitions, EdgeNode
from sensorium.ingest.sparkplug.values import is_control, unit_of, values

KNOWN_NODES: Final = 10_000
"""Edge nodes whose birth is remembered; of one that is forgotten a rebirth is asked for."""
MAX_UNITS: Final = 200
"""Units of one device in its metadata."""
ROUTE: Final = "sparkplug"
"""The key of a device's metadata under which its topic and the units of its metrics stand."""

AskRebirth = Callable[[Address], None]
Reported = Callable[[Address, dict[str, Any]], None]


class SparkplugAdapter:
    """Follows edge nodes and hands on what they and their devices say.

    Args:
        ask_rebirth: called with an edge node that must say anew what its metrics are; must not block.
        reported: called with the values of an edge node or device, by metric, as their types are.
        born: called with an edge node or device that was born.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        router: Router,
        naming: Naming,
        ask_rebirth: AskRebirth,
        bounds: Bounds | None = None,
        *,
        reported: Reported = lambda _, __: None,
        born: AskRebirth = lambda _: None,
    ) -> None:
        self._reported = reported
        self._born = born
        self._pipeline = pipeline
        self._router = router
        self._naming = naming
        self._ask_rebirth = ask_rebirth
        self._telemetry = TelemetryDecoder(bounds)
        self._nodes: OrderedDict[Address, EdgeNode] = OrderedDict()
        self._routes = Routes(router, ROUTE)
        self._counts: Counter[str] = Counter()

    def take(
        self,
        topic: str,
        payload: bytes,
        received_ms: int,
        redelivery: int | None,
        done: Done,
        token: Any,
        *,
        redelivered: bool = False,
    ) -> None:
        """Take a message; `done(token, outcome)` follows once all that it says is committed."""
        device_id = ""
        try:
            kind, address = parse(topic)
            device_id = self._naming.id_of(address)
            if not is_device_id(device_id):
                raise Undecodable(Reason.BAD_DEVICE_ID, f"the topic makes the device id {device_id[:200]!r}")
            if len(payload) > self._telemetry.bounds.max_payload_bytes:
                raise Undecodable(Reason.TOO_LARGE, f"{len(payload)} bytes")
            said = payloads.decode(payload)
            node = self._node(address.of_node)
            try:
                messages, readings, route = self._said(
                    kind, address, device_id, node, said, received_ms, redelivered
                )
            finally:
                if node.asks(received_ms):
                    self._counts["rebirths_asked"] += 1
                    self._ask_rebirth(address.of_node)
        except Undecodable as error:
            self._pipeline.refuse(
                topic, device_id, payload, received_ms, error, done, token, Content.SPARKPLUG
            )
            return
        self._counts[kind] += 1
        together = _Together(len(messages) + bool(readings), done)
        if not messages and not readings:
            done(token, ACCEPTED)
        for message in messages:
            self._router.message(message, together.done, token)
        if readings:
            self._pipeline.telemetry(
                topic,
                device_id,
                payload,
                received_ms,
                redelivery,
                together.done,
                token,
                redelivered=redelivered,
                decode=lambda _, __: readings,
                content=Content.SPARKPLUG,
            )
        if route is not None:
            self._routes.tell(device_id, route)

    def remember(self, addresses: Iterable[Address], now_ms: int) -> None:
        """Edge nodes and devices that were there before: their births are not known, and are asked for."""
        for address in addresses:
            node = self._node(address.of_node)
            if address.device is not None and address.device not in node.devices:
                node.devices[address.device] = Definitions()
            node.missed()
        for address, node in self._nodes.items():
            if node.asks(now_ms):
                self._ask_rebirth(address)

    def definitions(self, address: Address) -> Definitions | None:
        """What the birth of an edge node or device has said; None when it is not known."""
        node = self._nodes.get(address.of_node)
        if node is None or node.alive is not True:
            return None
        return node.own if address.device is None else node.devices.get(address.device)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start: messages by kind, rebirths asked for, deaths of replaced sessions."""
        return {**self._counts, "edge_nodes": len(self._nodes)}

    # --- what a message says ----------------------------------------------------------------------------

    def _node(self, address: Address) -> EdgeNode:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = EdgeNode()
            if len(self._nodes) > KNOWN_NODES:
                self._nodes.popitem(last=False)
        else:
            self._nodes.move_to_end(address)
        return node

    def _said(
        self,
        kind: str,
        address: Address,
        device_id: str,
        node: EdgeNode,
        said: Payload,
        received_ms: int,
        redelivered: bool,
    ) -> tuple[list[Message], list[Telemetry], dict[str, Any] | None]:
        match kind:
            case "NBIRTH":
                born = definitions_of(said)
                readings = self._readings(address, said, born, received_ms)
                gone = self._presences(address, node.born(said, born), online=False)
                self._born(address)
                return [*gone, PresenceSaid(device_id, True)], readings, _route(address, born)
            case "NDEATH":
                devices = node.died(said)
                if devices is None:
                    self._counts["stale_deaths"] += 1
                    return [], [], None
                gone = self._presences(address, devices, online=False)
                return [*gone, PresenceSaid(device_id, False)], [], None
        if not node.follow(said.seq, redelivered=redelivered):
            self._counts["gaps"] += 1
        device = address.device
        if device is None:
            return [], self._data(address, node, node.own, said, received_ms), None
        match kind:
            case "DBIRTH":
                born = definitions_of(said)
                readings = self._readings(address, said, born, received_ms)
                node.devices[device] = born
                self._born(address)
                return [PresenceSaid(device_id, True)], readings, _route(address, born)
            case "DDEATH":
                node.devices.pop(device, None)
                return [PresenceSaid(device_id, False)], [], None
            case _:
                return [], self._data(address, node, node.device_of(device), said, received_ms), None

    def _data(
        self, address: Address, node: EdgeNode, definitions: Definitions, said: Payload, received_ms: int
    ) -> list[Telemetry]:
        try:
            return self._readings(address, said, definitions, received_ms)
        except Undecodable as error:
            if error.reason is Reason.UNKNOWN_METRIC:
                node.missed()
            raise

    def _readings(
        self, address: Address, said: Payload, definitions: Definitions, received_ms: int
    ) -> list[Telemetry]:
        reported: dict[str, Any] = {}
        readings = readings_of(said, definitions, self._telemetry, received_ms, reported)
        self._reported(address, reported)
        return readings

    def _presences(self, address: Address, devices: Iterable[str], *, online: bool) -> list[Message]:
        ids = (self._naming.id_of(Address(address.group, address.node, device)) for device in devices)
        return [PresenceSaid(device_id, online) for device_id in ids if is_device_id(device_id)]


class _Together:
    """Calls `done` once, when all that a message says is committed; with the first refusal, if any."""

    __slots__ = ("_done", "_left", "_outcome")

    def __init__(self, left: int, done: Done) -> None:
        self._left = left
        self._done = done
        self._outcome: Outcome = ACCEPTED

    def done(self, token: Any, outcome: Outcome) -> None:
        self._left -= 1
        if isinstance(outcome, Refusal) and self._outcome is ACCEPTED:
            self._outcome = outcome
        if not self._left:
            self._done(token, self._outcome)


def readings_of(
    said: Payload,
    definitions: Definitions,
    telemetry: TelemetryDecoder,
    received_ms: int,
    reported: dict[str, Any],
) -> list[Telemetry]:
    """One reading for each time that the metrics have, at most `max_metrics` of them in each.

    What they report as the newest values is put into `reported`. Raises `Undecodable`.
    """
    at_most = telemetry.bounds.max_metrics
    groups: dict[int | None, list[dict[str, Value]]] = {}
    units: dict[str, str] = {}
    for metric in said.metrics:
        name, datatype, unit = definitions.of(metric)
        if is_control(name):
            continue
        if unit is not None:
            units[name] = unit[:MAX_UNIT_CHARS]
        time_ms = said.time_ms if metric.time_ms is None else metric.time_ms
        parts = groups.setdefault(time_ms, [{}])
        for key, value in values(name, datatype, metric):
            if key in parts[-1] or len(parts[-1]) >= at_most:
                parts.append({})
            parts[-1][key] = value
            if key == name and not metric.is_historical:
                reported[name] = value
    full = [(time_ms, part) for time_ms, parts in groups.items() for part in parts if part]
    if len(full) > telemetry.bounds.max_array:
        raise Undecodable(Reason.BATCH_TOO_LONG, f"{len(full)} readings in one message")
    return [telemetry.reading(part, received_ms, time_ms, units=units) for time_ms, part in full]


def definitions_of(said: Payload) -> Definitions:
    units = {m.name: unit for m in said.metrics if m.name is not None and (unit := unit_of(m)) is not None}
    return Definitions(said.metrics, units)


def _route(address: Address, born: Definitions) -> dict[str, Any]:
    """For the metadata of what was born: its topic, and the units of its metrics."""
    units = {name: unit for name, _, unit in born.by_name.values() if unit is not None}
    return {
        "group": address.group,
        "node": address.node,
        **({} if address.device is None else {"device": address.device}),
        **({"units": dict(list(units.items())[:MAX_UNITS])} if units else {}),
    }
