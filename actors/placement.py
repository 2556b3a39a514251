"""Which shard a device belongs to and which host a shard belongs to: pure arithmetic, no state."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

SHARDS = 1024
"""Fixed for the life of a log: offsets and cursors are kept by shard."""


@lru_cache(maxsize=262_144)
def device_key(device_id: str) -> int:
    """The device's signed 64-bit key: the first eight bytes of BLAKE2b over its id.

    The key is what the log stores, so nothing has to be allocated before the first write. Two ids share
    one with probability n²/2⁶⁵ (3e-8 for a million devices); the registry's unique index refuses the second.
    """
    return int.from_bytes(blake2b(device_id.encode(), digest_size=8).digest(), "big", signed=True)


def shard_of(device_id: str) -> int:
    """The shard, in [0, SHARDS), that owns the device."""
    return device_key(device_id) % SHARDS


def shard_of_key(key: int) -> int:
    """The shard of a device by its key."""
    return key % SHARDS


def place(weights: Mapping[str, float]) -> list[str]:
    """The host of each shard by weighted rendezvous hashing.

    Args:
        weights: the weight (> 0) of each host by name.

    Returns:
        A list of SHARDS host names, indexed by shard. A host that joins takes about its share from the
        others and no shard moves between two that stay.

    Raises:
        ValueError: there is no host, or a weight is not positive.

    Source: J. Resch, "New Hashing Algorithms for Data Storage" (weighted rendezvous), SDC 2015.
    """
    if not weights or any(w <= 0 for w in weights.values()):
        raise ValueError("placement needs at least one host, each with a weight above zero")
    return [
        max(weights, key=lambda host: (_score(host, shard, weights[host]), host)) for shard in range(SHARDS)
    ]


@lru_cache(maxsize=65_536)
def _score(host: str, shard: int, weight: float) -> float:
    digest = blake2b(f"{host}/{shard}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -weight / math.log(uniform)


class Node(NamedTuple):
    """A machine that lives. `hosts` is how many it is meant for, None where it does not say."""

    node_id: str
    hosts: int | None = None
    draining: bool = False


def choose_node(nodes: Sequence[Node], counts: Mapping[str, int]) -> str:
    """The node with the fewest of what is counted by node, for what it is meant for; "" where there is none.

    A node that is meant for nothing takes some when there is no other.
    """
    meant = [node for node in nodes if node.hosts != 0] or nodes
    load = {node.node_id: (counts.get(node.node_id, 0) / (node.hosts or 1), node.node_id) for node in meant}
    return min(load, key=lambda node_id: load[node_id]) if load else ""


class Plan(NamedTuple):
    """What makes an assignment of shards the one wanted: by (giver, receiver) what to hand over, and by host
    what it has to claim because nobody owns it."""

    claims: dict[str, list[int]]
    moves: dict[tuple[str, str], list[int]]


def plan(owners: Sequence[str | None], weights: Mapping[str, float]) -> Plan:
    """How shards get from their present owners (None: nobody) to the hosts that `place` chooses for them.

    No shard moves whose owner is the chosen one, so a join or a leave moves only that host's share.
    """
    claims: dict[str, list[int]] = {}
    moves: dict[tuple[str, str], list[int]] = {}
    for shard, (owner, wanted) in enumerate(zip(owners, place(weights), strict=True)):
        if owner is None:
            claims.setdefault(wanted, []).append(shard)
        elif owner != wanted:
            moves.setdefault((owner, wanted), []).append(shard)
    return Plan(claims, moves)
