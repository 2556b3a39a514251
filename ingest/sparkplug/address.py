"""Where a Sparkplug message comes from or goes to: topics of the namespace `spBv1.0`, and our device ids."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sensorium.ingest.errors import Reason, Undecodable

NAMESPACE: Final = "spBv1.0"
FROM_NODES: Final = ("NBIRTH", "NDATA", "NDEATH")
FROM_DEVICES: Final = ("DBIRTH", "DDATA", "DDEATH")


class Address(NamedTuple):
    """An edge node, or a device behind it."""

    group: str
    node: str
    device: str | None = None

    @property
    def of_node(self) -> "Address":
        """The edge node itself."""
        return Address(self.group, self.node)

    @property
    def command_topic(self) -> str:
        """Where it is told something."""
        if self.device is None:
            return f"{NAMESPACE}/{self.group}/NCMD/{self.node}"
        return f"{NAMESPACE}/{self.group}/DCMD/{self.node}/{self.device}"


class Naming(msgspec.Struct, frozen=True):
    """How device ids are made; `{group}`, `{node}` and `{device}` stand for the parts of the topic."""

    node: str = "{group}:{node}"
    device: str = "{group}:{node}:{device}"

    def id_of(self, address: Address) -> str:
        """The device id of an edge node or device."""
        pattern = self.node if address.device is None else self.device
        for name, part in (("group", address.group), ("node", address.node), ("device", address.device)):
            pattern = pattern.replace(f"{{{name}}}", _quoted(part or ""))
        return pattern.replace("\0", "{")


def _quoted(part: str) -> str:
    # A brace in a part must not begin a placeholder of the next one.
    return part.replace("{", "\0")


def subscriptions(groups: tuple[str, ...]) -> tuple[str, ...]:
    """The filters of what edge nodes and devices say; without groups, of all of them."""
    return tuple(
        topic
        for group in groups or ("+",)
        for topic in (
            *(f"{NAMESPACE}/{group}/{kind}/+" for kind in FROM_NODES),
            *(f"{NAMESPACE}/{group}/{kind}/+/+" for kind in FROM_DEVICES),
        )
    )


def parse(topic: str) -> tuple[str, Address]:
    """Kind and sender of a message. Raises `Undecodable`."""
    levels = topic.split("/")
    of_device = len(levels) == 5
    if (
        len(levels) not in (4, 5)
        or levels[0] != NAMESPACE
        or levels[2] not in (FROM_DEVICES if of_device else FROM_NODES)
        or not all(levels)
    ):
        raise Undecodable(Reason.BAD_TOPIC, f"not a topic of an edge node or its devices: {topic[:200]!r}")
    return levels[2], Address(levels[1], levels[3], levels[4] if of_device else None)


def address_of(route: Mapping[str, Any]) -> Address | None:
    """The address in a device's metadata; None where there is none that could be in a topic."""
    levels = [route.get(name) for name in ("group", "node", "device")]
    group, node, device = (
        level if type(level) is str and level and not set(level) & set("/+#\0") else None for level in levels
    )
    return None if group is None or node is None else Address(group, node, device)
