"""`sensorium audit`: who changed what, by the HTTP API, and the check of that log, at the databases."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
from rich.table import Table

from sensorium.actors.errors import SensoriumError
from sensorium.actors.origin import this_user
from sensorium.actors.schema import Schema
from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.config import Config
from sensorium.cluster.databases import databases
from sensorium.cluster.errors import ClusterError
from sensorium.storage.audit_chain import AuditLog, Verdict, note_if_other
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.embedded import EmbeddedFailed


class AuditUnreadable(ClusterError):
    """The audit log cannot be checked; the message says why and what to do."""


async def listed(
    url: str, wanted: Mapping[str, str], transport: httpx.AsyncBaseTransport | None = None
) -> list[dict[str, Any]]:
    """The newest entries for which all holds that is wanted. Raises `PlatformUnreachable`."""
    async with PlatformApi(url, transport) as api:
        return await api.audit(wanted)


def verified(config: Config, since_hash: str | None) -> Verdict:
    """What a check of the platform's audit log comes to; it may be running. Raises `ClusterError`."""
    try:
        with databases(config, fresh=False) as dsns:
            return asyncio.run(_verified(dsns, since_hash))
    except (SensoriumError, EmbeddedFailed) as error:
        raise AuditUnreadable(str(error)) from error


async def _verified(dsns: Sequence[str], since_hash: str | None) -> Verdict:
    async with AsyncExitStack() as stack:
        pools = []
        for dsn in dsns:
            pools.append(await open_pool(dsn, 2, "sensorium-audit"))
            stack.push_async_callback(close_pool, pools[-1])
        return await AuditLog(pools).verify(since_hash)


async def note_configuration(dsn: str, config: Config) -> None:
    """Keep in the audit log that profiles or retention are others than at the start before."""
    await note_if_other(dsn, "configuration.change", "configuration", noted(config), this_user("platform"))


def noted(config: Config) -> dict[str, Any]:
    """What the audit log has of a configuration, as JSON can hold it."""
    return {
        "profiles": msgspec.to_builtins(config.device_profiles, enc_hook=_of_schema),
        "retention": config.storage.retention.model_dump(mode="json"),
        "retention_of_types": {
            name: own
            for name, section in sorted(config.profiles.items())
            if (own := section.retention.model_dump(exclude_none=True))
        },
    }


def _of_schema(value: Any) -> Any:
    if isinstance(value, Schema):
        return {"metrics": value.metrics, "unknown": value.unknown}
    raise NotImplementedError(f"a {type(value).__name__} in a profile")


def told(verdict: Verdict) -> list[str]:
    """The verdict in lines; faults first."""
    lines = [f"entry {fault.number}: {fault.detail}" for fault in verdict.faults]
    end = f"the newest is {verdict.number}, {verdict.hash}" if verdict.number else "there is none yet"
    faults = "all as they were written" if not lines else f"{len(lines)} faults"
    return [*lines, f"{verdict.checked:,} entries checked, {faults}; {end}"]


def table(items: Sequence[dict[str, Any]]) -> Table:
    """A line each, for people."""
    rows = Table("number", "when", "who", "what", "of", "by way of")
    for item in items:
        moment = datetime.fromtimestamp(item["at_ms"] / 1000, UTC)
        who = f"{item['by']} ({item['client']})" if item["by"] else item["client"]
        number = str(item["number"])
        rows.add_row(number, f"{moment:%Y-%m-%d %H:%M:%S}", who, item["what"], item["thing"], item["way"])
    return rows
