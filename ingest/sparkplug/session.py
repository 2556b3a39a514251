"""What is known of one edge node between its birth and its death: names, types, order, devices. Pure.

Eclipse Sparkplug 3.0, chapters 4 and 5. It is memory only: what is not known is asked for by a rebirth.
"""

from typing import Final, NamedTuple

from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.payload import Metric, Payload

REBIRTH_WAIT_MS: Final = 10_000
"""Before an edge node is asked a second time; every further time it is twice as long …"""
MAX_REBIRTH_WAIT_MS: Final = 640_000
"""… up to this."""
_SEQUENCES: Final = 256
BD_SEQ: Final = "bdSeq"


class Definition(NamedTuple):
    """What a birth says of a metric."""

    name: str
    datatype: DataType
    unit: str | None = None


class Definitions:
    """The metrics of one birth, by name and by alias."""

    __slots__ = ("_by_alias", "by_name")

    def __init__(self, metrics: tuple[Metric, ...] = (), units: dict[str, str] | None = None) -> None:
        self.by_name: dict[str, Definition] = {}
        self._by_alias: dict[int, Definition] = {}
        for metric in metrics:
            if metric.name is None or metric.datatype is None:
                raise Undecodable(Reason.UNKNOWN_METRIC, "a birth must name each metric and its type")
            definition = Definition(metric.name, metric.datatype, (units or {}).get(metric.name))
            self.by_name[metric.name] = definition
            if metric.alias is not None:
                self._by_alias[metric.alias] = definition

    def of(self, metric: Metric) -> Definition:
        """Name and type of a metric. Raises `Undecodable` when neither it nor the birth says them."""
        if metric.name is not None:
            known = self.by_name.get(metric.name)
            if metric.datatype is not None:
                return Definition(metric.name, metric.datatype, None if known is None else known.unit)
            what = f"the type of {metric.name[:60]!r}"
        else:
            known = None if metric.alias is None else self._by_alias.get(metric.alias)
            what = f"the alias {metric.alias}"
        if known is None:
            raise Undecodable(Reason.UNKNOWN_METRIC, f"no birth that is known says {what}; one was asked for")
        return known


class EdgeNode:
    """One edge node's session.

    Attributes:
        alive: between birth and death; None when neither was seen.
        devices: the definitions of each device that was born in this session.
    """

    def __init__(self) -> None:
        self.alive: bool | None = None
        self.own = Definitions()
        self.devices: dict[str, Definitions] = {}
        self._bd_seq: int | None = None
        self._next: int | None = None
        self._stale = False
        self._ask_again_ms = 0
        self._wait_ms = REBIRTH_WAIT_MS

    def born(self, payload: Payload, definitions: Definitions) -> list[str]:
        """A birth of the node. Returns the devices of an earlier session, which ended unseen."""
        bd_seq = bd_seq_of(payload)
        gone: list[str] = []
        if bd_seq is None or bd_seq != self._bd_seq:
            gone, self.devices = list(self.devices), {}
        self._bd_seq = bd_seq
        self.alive = True
        self.own = definitions
        self._stale = False
        self._wait_ms = REBIRTH_WAIT_MS
        self._ask_again_ms = 0
        self._next = None if payload.seq is None else (payload.seq + 1) % _SEQUENCES
        return gone

    def died(self, payload: Payload) -> list[str] | None:
        """A death of the node. Returns its devices; None when it is that of a session which was replaced."""
        bd_seq = bd_seq_of(payload)
        if self.alive and None not in (bd_seq, self._bd_seq) and bd_seq != self._bd_seq:
            return None
        gone, self.devices = list(self.devices), {}
        self.alive = False
        self._next = None
        return gone

    def follow(self, seq: int | None, *, redelivered: bool) -> bool:
        """Take note of a message's sequence number; whether it is the one that was due."""
        if self.alive is not True:
            # Its death was a last will that came late, or its birth came before us.
            self._stale = True
            return False
        if seq is None or seq == self._next:
            self._next = None if self._next is None else (self._next + 1) % _SEQUENCES
            return True
        if not redelivered:
            self._stale = True
            self._next = (seq + 1) % _SEQUENCES
        return redelivered

    def device_of(self, device: str) -> Definitions:
        """The definitions of a device; empty ones, and the session is not whole, when it was not born."""
        known = self.devices.get(device)
        if known is None:
            self._stale = True
            return Definitions()
        return known

    def missed(self) -> None:
        """Something was said that no birth explains."""
        self._stale = True

    def asks(self, now_ms: int) -> bool:
        """Whether a rebirth is to be asked for now; counts as asked."""
        if not self._stale or now_ms < self._ask_again_ms:
            return False
        self._ask_again_ms = now_ms + self._wait_ms
        self._wait_ms = min(2 * self._wait_ms, MAX_REBIRTH_WAIT_MS)
        return True


def bd_seq_of(payload: Payload) -> int | None:
    """The number that a death has in common with its birth."""
    for metric in payload.metrics:
        if metric.name == BD_SEQ and type(metric.raw) is int:
            return metric.raw
    return None
