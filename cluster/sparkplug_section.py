"""The section `sparkplug` of the configuration: edge nodes that speak Sparkplug B, and how they are named."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from sensorium.cluster.sections import Id, Section
from sensorium.ingest.sparkplug.address import Naming

_PLACEHOLDER = re.compile(r"\{(.*?)\}")


def _naming(pattern: str, needed: str, known: frozenset[str]) -> str:
    named = _PLACEHOLDER.findall(pattern)
    if unknown := sorted(set(named) - known):
        raise ValueError(f"no placeholder {{{unknown[0]}}}; there are {', '.join(sorted(known))}")
    if needed not in named:
        raise ValueError(f"must hold {{{needed}}}, else all have one id")
    if any(character in pattern for character in "/+#"):
        raise ValueError("device ids have no /, + and #")
    return pattern


def _node(pattern: str) -> str:
    return _naming(pattern, "node", frozenset({"group", "node"}))


def _device(pattern: str) -> str:
    return _naming(pattern, "device", frozenset({"group", "node", "device"}))


_Group = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/+#]+$")]
_Pattern = Annotated[str, Field(min_length=1, max_length=128)]


class Sparkplug(Section):
    """Sparkplug B at the broker."""

    enabled: bool = False
    """Whether edge nodes are listened to, and asked for rebirths."""
    groups: Annotated[list[_Group], Field(max_length=100)] = Field(default_factory=list)
    """Whose edge nodes; without, those of all groups."""
    node_id: Annotated[_Pattern, AfterValidator(_node)] = Naming().node
    """The device id of an edge node; `{group}` and `{node}` stand for the levels of its topic."""
    device_id: Annotated[_Pattern, AfterValidator(_device)] = Naming().device
    """That of a device behind it. What is left out of the pattern must not be needed to tell them apart."""
    host_id: Id | None = None
    """Given, `spBv1.0/STATE/{host_id}` says whether the platform is there; edge nodes may wait for that."""

    def naming(self) -> Naming:
        """As the adapter takes it."""
        return Naming(self.node_id, self.device_id)
