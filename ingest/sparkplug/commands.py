"""Commands to edge nodes and their devices: NCMD and DCMD, and how it shows that they were carried out."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from sensorium.actors.messages import CommandReply, Outcome, Telling, TwinTelling
from sensorium.ingest.dispatch import Untold
from sensorium.ingest.errors import Disconnected, Undecodable
from sensorium.ingest.pipeline import Router
from sensorium.ingest.sparkplug.address import Address, address_of
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import Metric, Payload, decode, typed
from sensorium.ingest.sparkplug.session import Definitions

REBIRTH_METRIC: Final = Metric("Node Control/Rebirth", datatype=DataType.BOOLEAN, raw=True)

MAX_AWAITED: Final = 10_000
"""Devices whose report is waited for; of one beyond it, the command ends by its timeout."""

Send = Callable[[Address, tuple[Metric, ...]], Awaitable[None]]
"""Publishes a command; raises `Disconnected` when there is no connection."""


class SparkplugCarrier:
    """Tells by `write`, whose parameters are values by metric, and by `rebirth`.

    Sparkplug has no answers. A write has succeeded when the device reports the values that were written, a
    rebirth when the birth comes; whoever reports nothing lets the command time out.
    """

    def __init__(
        self,
        router: Router,
        ready: Callable[[], Awaitable[None]],
        send: Send,
        definitions: Callable[[Address], Definitions | None],
        ask_rebirth: Callable[[Address], None],
        clock_ms: Callable[[], int],
    ) -> None:
        self._router = router
        self._ready = ready
        self._send = send
        self._definitions = definitions
        self._ask_rebirth = ask_rebirth
        self._clock_ms = clock_ms
        self._awaited: OrderedDict[Address, _Awaited] = OrderedDict()

    async def ready(self) -> None:
        """Return once connected."""
        await self._ready()

    async def tell(self, device_id: str, telling: Telling) -> None:
        """Publish; see `Carrier.tell`."""
        address = address_of(telling.route or {})
        if address is None:
            raise Untold("its metadata does not say under sparkplug what its group and node are", final=True)
        match telling.command:
            case "rebirth":
                metrics: tuple[Metric, ...] = (REBIRTH_METRIC,)
                # It is the edge node that is told, and whose birth all others follow.
                to, wanted = address.of_node, {}
            case "write":
                to, metrics = address, self._written(address, telling.parameters)
                wanted = _as_reported(metrics)
            case other:
                raise Untold(
                    f"by Sparkplug there are write and rebirth, not {other[:60]!r}: "
                    'write has the values by metric as its parameters, {"Motor/Speed": 1500}',
                    final=True,
                )
        self._awaited[address] = _Awaited(device_id, telling.command_id, wanted)
        self._awaited.move_to_end(address)
        if len(self._awaited) > MAX_AWAITED:
            self._awaited.popitem(last=False)
        try:
            await self._send(to, metrics)
        except Disconnected as error:
            self._awaited.pop(address, None)
            raise Untold(str(error), final=False, count="unreached") from None

    async def tell_twin(self, device_id: str, telling: TwinTelling) -> None:
        """Write the metrics that are desired by their names; see `TwinCarrier.tell_twin`.

        What the device says of them then is its report. Other fields it cannot be told.
        """
        address = address_of(telling.route or {})
        if address is None:
            raise Untold("its metadata does not say under sparkplug what its group and node are", final=True)
        known = self._known(address)
        wanted = {
            name: value
            for name, value in telling.delta.items()
            if name in known.by_name and isinstance(value, bool | int | float | str)
        }
        if not wanted:
            raise Untold("its birth names none of the fields that are desired", final=True)
        try:
            await self._send(address, self._written(address, wanted))
        except Disconnected as error:
            raise Untold(str(error), final=False, count="unreached") from None

    def reported(self, address: Address, values: dict[str, Any]) -> None:
        """What an edge node or device has said of its metrics, by their types."""
        awaited = self._awaited.get(address)
        if awaited is None or not awaited.wanted:
            return
        for name, value in values.items():
            if name in awaited.wanted and awaited.wanted[name] == value:
                del awaited.wanted[name]
        if not awaited.wanted:
            self._succeeded(address)

    def born(self, address: Address) -> None:
        """An edge node or device was born."""
        awaited = self._awaited.get(address)
        if awaited is not None and not awaited.wanted:
            self._succeeded(address)

    # --- leaves -----------------------------------------------------------------------------------------

    def _written(self, address: Address, parameters: dict[str, Any]) -> tuple[Metric, ...]:
        if not parameters:
            raise Untold("nothing to write: the parameters are the values by metric", final=True)
        known = self._known(address)
        metrics = []
        for name, value in parameters.items():
            definition = known.by_name.get(name)
            if definition is None:
                raise Untold(f"its birth names no metric {name[:60]!r}", final=True)
            metrics.append(Metric(name, datatype=definition.datatype, time_ms=self._clock_ms(), raw=value))
        try:
            encode(Payload(metrics=tuple(metrics)))
        except Undecodable as error:
            raise Untold(error.detail, final=True) from None
        return tuple(metrics)

    def _known(self, address: Address) -> Definitions:
        known = self._definitions(address)
        if known is None:
            self._ask_rebirth(address.of_node)
            raise Untold("its birth is not known yet; it was asked for", final=False, count="unreached")
        return known

    def _succeeded(self, address: Address) -> None:
        awaited = self._awaited.pop(address)
        said = CommandReply(awaited.device_id, awaited.command_id, "succeeded", self._clock_ms())
        self._router.message(said, _nothing, None)


class _Awaited(NamedTuple):
    """The command that a device was told last: only one is under way, what came before has ended."""

    device_id: str
    command_id: str
    wanted: dict[str, Any]
    """Values that were not reported yet; of a rebirth there are none."""


def _as_reported(metrics: tuple[Metric, ...]) -> dict[str, Any]:
    """The values as their types keep them: a Float has fewer digits than what was asked for."""
    sent = decode(encode(Payload(metrics=metrics))).metrics
    return {m.name: typed(m.datatype, m.raw) for m in sent if m.name is not None and m.datatype is not None}


def _nothing(_: Any, __: Outcome) -> None:
    return None
