"""One log over several databases: a shard is in one of them, by a pure function of its number.

No transaction spans two. A host has a compartment for each, with a log of its own.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from sensorium.actors.placement import database_of, shard_of

T = TypeVar("T")


def database_of_device(device_id: str, databases: int) -> int:
    """The position of the database of the device's shard."""
    return database_of(shard_of(device_id), databases)


def by_database(items: Iterable[T], shard: Callable[[T], int], databases: int) -> dict[int, list[T]]:
    """The items by the position of their shard's database, in their order."""
    found: dict[int, list[T]] = {}
    for item in items:
        found.setdefault(database_of(shard(item), databases), []).append(item)
    return found
