"""The command `sensorium projections` against the API's answers."""

from typing import Any

import httpx
import pytest
from rich.console import Console

from sensorium.cluster.errors import ConfigError, PlatformUnreachable
from sensorium.cluster.projections import listed, rewind_to_ms, steered, table

ITEM = {
    "name": "kafka",
    "state": "running",
    "read_from_ms": 1_704_110_400_000,
    "rewinding": False,
    "lag_entries": 12_345,
}


def answering(status: int, body: Any) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json=body)

    return httpx.MockTransport(answer), asked


def shown(items: list[dict[str, Any]]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table(items, now_s=1_704_110_460.0))
    return captured.get()


async def test_they_are_listed_with_their_lag() -> None:
    transport, asked = answering(200, {"items": [ITEM]})
    items = await listed("http://p", transport)
    assert (asked[0].method, asked[0].url.path) == ("GET", "/api/projections")
    text = shown(items)
    for part in ("kafka", "running", "12,345 entries", "2024-01-01 12:00:00 UTC (60 s ago)"):
        assert part in text
    assert "rewinding" in shown([ITEM | {"rewinding": True}])


async def test_they_are_steered() -> None:
    transport, asked = answering(202, ITEM)
    assert await steered("http://p", "a/b", "rewind", 5, transport) == ITEM
    await steered("http://p", "kafka", "pause", None, transport)
    assert [request.url.raw_path for request in asked] == [
        b"/api/projections/a%2Fb/rewind?to_ms=5",
        b"/api/projections/kafka/pause",
    ]


async def test_a_refusal_is_told() -> None:
    transport, _ = answering(404, {"title": "Not found", "detail": "no projection kafka has ever run"})
    with pytest.raises(PlatformUnreachable, match="404 no projection kafka has ever run"):
        await steered("http://p", "kafka", "pause", None, transport)


def test_where_to_rewind_to() -> None:
    assert rewind_to_ms("beginning") == 0
    assert rewind_to_ms("2024-01-01T12:00") == 1_704_110_400_000
    assert rewind_to_ms("2024-01-01T13:00+01:00") == 1_704_110_400_000
    with pytest.raises(ConfigError, match="--to: 'noon' is neither"):
        rewind_to_ms("noon")
