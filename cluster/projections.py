"""`sensorium projections`: what is fed from the log, how far each is, and steering it, over the HTTP API."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from rich.table import Table

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import ConfigError

BEGINNING: Final = "beginning"


async def listed(url: str, transport: httpx.AsyncBaseTransport | None = None) -> list[dict[str, Any]]:
    """All that have ever run, by name. Raises `PlatformUnreachable`."""
    async with PlatformApi(url, transport) as api:
        return await api.projections()


async def steered(
    url: str,
    name: str,
    what: str,
    to_ms: int | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> dict[str, Any]:
    """How the projection stands after it was asked to "pause", "resume" or "rewind".

    Raises `PlatformUnreachable`, also when there is no such projection or it cannot be rewound.
    """
    async with PlatformApi(url, transport) as api:
        return await api.steer_projection(name, what, to_ms)


def rewind_to_ms(text: str) -> int:
    """A commit time: `beginning`, or ISO 8601, which is UTC when it names no offset.

    Raises:
        ConfigError: it is neither.
    """
    if text == BEGINNING:
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--to: {text!r} is neither a time such as 2026-01-31T12:00 nor {BEGINNING}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, int(moment.timestamp() * 1000))


def table(items: Sequence[dict[str, Any]], now_s: float | None = None) -> Table:
    """A line each, for people."""
    rows = Table("projection", "state", "behind", "read up to")
    moment_s = time.time() if now_s is None else now_s
    for item in items:
        state = "rewinding" if item["rewinding"] else item["state"]
        age_s = max(0.0, moment_s - item["read_from_ms"] / 1000)
        read_up_to = datetime.fromtimestamp(item["read_from_ms"] / 1000, UTC)
        rows.add_row(
            item["name"],
            state,
            f"{item['lag_entries']:,} entries",
            f"{read_up_to:%Y-%m-%d %H:%M:%S} UTC ({age_s:,.0f} s ago)",
        )
    return rows
