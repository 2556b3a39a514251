"""`sensorium commands`: have many devices of a running platform do something, and watch it being done."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sensorium.actors.merge_patch import merge_patch
from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import ClusterError, ConfigError

LOOK_EVERY_S: Final = 0.5
LISTED_FAILURES: Final = 10
_METADATA: Final = "metadata."


class CommandsFailed(ClusterError):
    """Not every device did it; the message says how many, and where to look."""


def selection(terms: Sequence[str]) -> dict[str, Any]:
    """What the API takes, of terms such as `type=climate`, `metadata.site=a` and `id=sensor-001`.

    Raises:
        ConfigError: a term says nothing of the kind, or the type is given twice.
    """
    chosen: dict[str, Any] = {}
    for term in terms:
        name, equals, value = term.partition("=")
        if not equals or not value:
            raise ConfigError(f"--select {term}: say type=…, metadata.KEY=… or id=…")
        if name == "type" and "device_type" not in chosen:
            chosen["device_type"] = value
        elif name == "id":
            chosen.setdefault("device_ids", []).append(value)
        elif name.startswith(_METADATA) and all(steps := name.removeprefix(_METADATA).split(".")):
            nested: Any = _value(value)
            for step in reversed(steps):
                nested = {step: nested}
            chosen["metadata"] = merge_patch(chosen.get("metadata", {}), nested)
        else:
            raise ConfigError(f"--select {term}: say type=… (once), metadata.KEY=… or id=…")
    return chosen


def parameters(terms: Sequence[str]) -> dict[str, Any]:
    """Of terms such as `seconds=10`, whose values are JSON where they are, and text otherwise."""
    found = {}
    for term in terms:
        name, equals, value = term.partition("=")
        if not equals or not name:
            raise ConfigError(f"--parameter {term}: say NAME=VALUE")
        found[name] = _value(value)
    return found


async def send(
    url: str,
    command: Mapping[str, Any],
    console: Console,
    *,
    wait: bool,
    transport: httpx.AsyncBaseTransport | None = None,
) -> str:
    """Give the job in and, with `wait`, follow it to its end; its id.

    Raises:
        PlatformUnreachable: the platform does not answer, or refuses. What was given in goes on.
        CommandsFailed: it has ended, and not everywhere well.
    """
    async with PlatformApi(url, transport) as api:
        # The request may be repeated, the job is not.
        job = await api.bulk_command({**command, "idempotency_key": secrets.token_hex(16)})
        if wait:
            job = await _followed(api, job, console)
            _check(job)
        return str(job["job_id"])


async def follow(url: str, job_id: str, console: Console) -> None:
    """Watch a job to its end. Raises as `send`."""
    async with PlatformApi(url) as api:
        _check(await _followed(api, await api.bulk_job(job_id), console))


async def cancel(url: str, job_id: str) -> None:
    """Have nobody else do it. Raises PlatformUnreachable."""
    async with PlatformApi(url) as api:
        await api.cancel_bulk_job(job_id)


async def _followed(api: PlatformApi, job: dict[str, Any], console: Console) -> dict[str, Any]:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=job["total"])
        while not job["finished"]:
            bar.update(task, completed=job["total"] - _open(job), description=described(job))
            await asyncio.sleep(LOOK_EVERY_S)
            job = await api.bulk_job(job["job_id"])
    return job


def described(job: Mapping[str, Any]) -> str:
    """How many devices are where, in a line."""
    counts = {name: job[name] for name in ("pending", "refused", "cancelled")}
    counts |= {state.lower(): n for state, n in job["commands"].items()}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def _open(job: Mapping[str, Any]) -> int:
    commands: Mapping[str, int] = job["commands"]
    waiting = sum(commands.get(state, 0) for state in ("QUEUED", "SENT", "DELIVERED"))
    return int(job["pending"]) + waiting


def _check(job: Mapping[str, Any]) -> None:
    if job["commands"].get("SUCCEEDED", 0) < job["total"]:
        listed = job["failures"][:LISTED_FAILURES]
        first = "".join(f"\n  {f['device_id']}: {f['state']} {f['reason'] or ''}" for f in listed)
        raise CommandsFailed(f"of {job['total']} devices: {described(job)}{first}")


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
