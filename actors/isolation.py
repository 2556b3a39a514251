"""Devices with a process of their own: its name, and what brings each to where it is wanted. Pure.

Such a device has a dedicated shard, and the host that is its process owns that shard and nothing else. It
gets there in two steps. The host of the shard that the device has by its key gives it a dedicated one, of
which it is the owner too; and then that shard is handed over like any other. The way back is the same,
backwards. So each step changes one thing, and whatever breaks off in between is a state that the next look
goes on from.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final, NamedTuple

from sensorium.actors.placement import dedicated_shards, shard_of

DEFAULT_MAX_ISOLATED: Final = 6
"""Devices with a process of their own: each takes some 60 MB, and up to seven connections to the database."""

_PREFIX: Final = "device:"


def process_of(device_id: str) -> str:
    """The name of the device's own process: of the host, and of the Ray actor."""
    return _PREFIX + device_id


def isolated_in(host: str) -> str | None:
    """Whose own process the host of that name is; None for one with many devices."""
    return host.removeprefix(_PREFIX) if host.startswith(_PREFIX) else None


class Rehome(NamedTuple):
    """The host is to give the device that shard. `epochs` are of the one it has and of that one."""

    host: str
    device_id: str
    to: int
    epochs: Mapping[int, int]


class IsolationPlan(NamedTuple):
    """What is to be done next: by host what to claim, as (giver, receiver, shard) what to hand over.

    `crowded` are the devices for which there is no dedicated shard left.
    """

    claims: dict[str, list[int]]
    moves: list[tuple[str, str, int]]
    rehomes: list[Rehome]
    crowded: list[str]


def plan_isolation(
    owners: Sequence[tuple[str | None, int]],
    homes: Mapping[str, int],
    wanted: Iterable[str],
    serving: Set[str],
    coming: Set[str],
    databases: int = 1,
) -> IsolationPlan:
    """The next step of every device that is not where it is wanted.

    Args:
        owners: by shard the name of the serving host that owns it, and the epoch.
        homes: the dedicated shards by device.
        wanted: the devices that are to have a process of their own.
        serving: the hosts that serve and stay.
        coming: hosts that will serve in a moment: what is nobody's is left to them.
        databases: over how many the log is spread; a device stays in its own.
    """
    plan = IsolationPlan({}, [], [], [])
    wishes = set(wanted)
    touched: set[int] = set()

    def rehome(host: str, device_id: str, left: int, to: int) -> None:
        # Each changes the epochs of both shards, so a shard has its turn once.
        if not touched & {left, to}:
            touched.update((left, to))
            epochs = {left: owners[left][1], to: owners[to][1]}
            plan.rehomes.append(Rehome(host, device_id, to, epochs))

    for device_id, shard in homes.items():
        own, base = process_of(device_id), shard_of(device_id)
        owner = owners[shard][0]
        target = own if device_id in wishes and own in serving else owners[base][0]
        if target is None or (owner is None and device_id in wishes and own in coming):
            continue
        if owner is None:
            plan.claims.setdefault(target, []).append(shard)
        elif owner != target:
            plan.moves.append((owner, target, shard))
        elif device_id not in wishes:
            rehome(owner, device_id, shard, base)
    used = set(homes.values())
    for device_id in sorted(wishes - homes.keys()):
        base = shard_of(device_id)
        host = owners[base][0]
        free = (shard for shard in dedicated_shards(base, databases) if shard not in used)
        if host is None or process_of(device_id) not in serving:
            continue
        to = next(free, None)
        if to is None:
            plan.crowded.append(device_id)
        elif base not in touched:
            used.add(to)
            rehome(host, device_id, base, to)
    return plan
