"""Where devices behind other systems are found, as their metadata has it; see `actors.downlinks`."""

from typing import Any, Final

from sensorium.actors.ports import Filter
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.registry import PgRegistry

MAX_ROUTES: Final = 100_000
"""Devices that are read at most; the rest is known when it is heard of."""
_PAGE: Final = 1_000


async def routes(dsn: str, downlink: str) -> list[dict[str, Any]]:
    """Of the active devices of one database that are told by a protocol, in order of their ids.

    Raises:
        LogUnavailable: the database does not answer.
    """
    pool = await open_pool(dsn, 1, f"sensorium-{downlink}")
    try:
        registry, found, after = PgRegistry(pool), list[dict[str, Any]](), None
        while len(found) < MAX_ROUTES:
            page = await registry.page(Filter(metadata={downlink: {}}), after, _PAGE)
            found += [registration.metadata[downlink] for registration in page.items]
            after = page.next
            if after is None:
                break
        return found[:MAX_ROUTES]
    finally:
        await close_pool(pool)
