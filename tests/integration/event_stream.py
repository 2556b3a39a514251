"""Server-sent events as curl prints them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

DEADLINE_S: Final = 15.0


@asynccontextmanager
async def curl(url: str, *options: str) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """The events that curl prints, unbuffered."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", *options, url, stdout=asyncio.subprocess.PIPE, limit=1 << 22
    )
    assert process.stdout is not None
    lines = process.stdout

    async def events() -> AsyncIterator[dict[str, str]]:
        found: dict[str, str] = {}
        async for line in lines:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                found[name] = value
            elif "data" in found:
                yield found
                found = {}

    try:
        yield events()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def values_of(stream: AsyncIterator[dict[str, str]], metric: str, count: int) -> list[Any]:
    """Of the next `count` readings; the last id is the last event's."""
    found: list[Any] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            event = await anext(stream)
            if event["event"] == "changes":
                items = msgspec.json.decode(event["data"])["items"]
                found += [item["values"][metric] for item in items if item["topic"] == "readings"]
    return found
