"""Which shard a device belongs to and which host a shard belongs to: pure arithmetic, no state."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

SHARDS = 1024
"""Fixed for the life of a log: offsets and cursors are kept by shard."""

DEDICATED_SHARDS = 256
"""Further shards, with the numbers from `SHARDS` on, for one isolated device each while it is isolated."""

ALL_SHARDS = SHARDS + DEDICATED_SHARDS


@lru_cache(maxsize=262_144)
def device_key(device_id: str) -> int:
    """The device's signed 64-bit key: the first eight bytes of BLAKE2b over its id.

    The key is what the log stores, so nothing has to be allocated before the first write. Two ids share
    one with probability n²/2⁶⁵ (3e-8 for a million devices); the registry's unique index refuses the second.
    """
    return int.from_bytes(blake2b(device_id.encode(), digest_size=8).digest(), "big", signed=True)


def shard_of(device_id: str) -> int:
    """The shard, in [0, SHARDS), that owns the device unless it has a dedicated one."""
    return device_key(device_id) % SHARDS


def shard_of_key(key: int) -> int:
    """The shard of a device by its key."""
    return key % SHARDS


def database_of(shard: int, databases: int) -> int:
    """The position of the shard's database: each has a range of neighbouring shards, all about equally many.

    Twice as many databases cut each range into two. Dedicated shards are cut in the same way.
    """
    if shard >= SHARDS:
        return (shard - SHARDS) * databases // DEDICATED_SHARDS
    return shard * databases // SHARDS


def dedicated_shards(shard: int, databases: int = 1) -> range:
    """The dedicated shards in the database of that shard."""
    position = database_of(shard, databases)
    first, end = (-(-n * DEDICATED_SHARDS // databases) for n in (position, position + 1))
    return range(SHARDS + first, SHARDS + end)


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
    """How shards get from their present owners (None: nobody) to a share for each host that is its weight's.

    As few move as make the shares exact, to within one shard: for a host that joins its own share, of one
    that leaves (an owner without a weight) what it had. Which ones, rendezvous hashing says: a host keeps
    those that `place` would give it, and each of the others goes to the best of those that have room.

    Raises:
        ValueError: as `place`.
    """
    wanted = place(weights)
    owned: dict[str, list[int]] = {host: [] for host in weights}
    free: list[int] = []
    for shard, owner in enumerate(owners):
        owned.get(owner or "", free).append(shard)
    room = _shares(weights, {host: len(shards) for host, shards in owned.items()})
    for host, shards in owned.items():
        excess = len(shards) - room[host]
        if excess > 0:
            shards.sort(key=lambda s, h=host: (wanted[s] == h, _score(h, s, weights[h])))  # type: ignore[misc]
            free += shards[:excess]
        room[host] = max(0, -excess)
    claims: dict[str, list[int]] = {}
    moves: dict[tuple[str, str], list[int]] = {}
    for shard in sorted(free):
        takers = [host for host, places in room.items() if places]
        taker = max(takers, key=lambda host, s=shard: (_score(host, s, weights[host]), host))  # type: ignore[misc]
        room[taker] -= 1
        giver = owners[shard]
        if giver is None:
            claims.setdefault(taker, []).append(shard)
        else:
            moves.setdefault((giver, taker), []).append(shard)
    return Plan(claims, moves)


def _shares(weights: Mapping[str, float], present: Mapping[str, int]) -> dict[str, int]:
    """How many shards each host should have; what does not divide goes to those that have the most."""
    total = sum(weights.values())
    exact = {host: SHARDS * weight / total for host, weight in weights.items()}
    shares = {host: math.floor(share) for host, share in exact.items()}
    order = sorted(weights, key=lambda host: (min(present[host] - shares[host], 1), exact[host] % 1, host))
    for host in order[len(order) - (SHARDS - sum(shares.values())) :]:
        shares[host] += 1
    return shares
