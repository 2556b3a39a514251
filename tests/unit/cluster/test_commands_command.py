"""`sensorium commands`: what is asked of the API, and how it ends."""

from typing import Any

import httpx
import pytest
from rich.console import Console
from shell import sensorium

from sensorium.cluster import commanding
from sensorium.cluster.commanding import CommandsFailed, described, parameters, selection, send
from sensorium.cluster.errors import ConfigError


def job(**more: Any) -> dict[str, Any]:
    counts = {"pending": 0, "given": 2, "refused": 0, "cancelled": 0, "failures": [], "finished": True}
    return {"job_id": "7f", "total": 2, "commands": {"SUCCEEDED": 2}, **counts, **more}


class Api:
    """Answers with these, one after another, and keeps what was asked."""

    def __init__(self, *jobs: dict[str, Any]) -> None:
        self.jobs = list(jobs)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return httpx.Response(202 if request.method == "POST" else 200, json=self.jobs.pop(0))


def test_what_is_selected_and_with_what_parameters() -> None:
    terms = ["type=climate", "metadata.site=a", "metadata.at.floor=3", "id=x=y", "id=z"]
    assert selection(terms) == {
        "device_type": "climate",
        "metadata": {"site": "a", "at": {"floor": 3}},
        "device_ids": ["x=y", "z"],
    }
    assert parameters(["n=10", 'a={"b": [1]}', "t=warm up", "e="]) == {
        "n": 10,
        "a": {"b": [1]},
        "t": "warm up",
        "e": "",
    }


@pytest.mark.parametrize("term", ["climate", "type=", "metadata.=a", "metadata.a..b=1", "site=a"])
def test_a_bad_term_is_told(term: str) -> None:
    with pytest.raises(ConfigError, match="say type="):
        selection([term])
    done = sensorium("commands", "send", "open", "--select", term)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


async def test_it_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commanding, "LOOK_EVERY_S", 0)
    under_way = job(pending=1, commands={"SENT": 1}, finished=False)
    api = Api(under_way, under_way, job())
    console = Console(quiet=True)
    transport = httpx.MockTransport(api)
    assert await send("http://x", {"command": "open"}, console, wait=True, transport=transport) == "7f"
    assert [r.url.path for r in api.asked] == ["/api/commands/bulk", *["/api/commands/bulk/7f"] * 2]
    assert b"idempotency_key" in api.asked[0].content
    assert described(under_way) == "1 pending, 1 sent"


async def test_failures_are_told() -> None:
    failures = [{"device_id": "d", "state": "FAILED", "reason": "stuck"}]
    transport = httpx.MockTransport(Api(job(commands={"FAILED": 1, "SUCCEEDED": 1}, failures=failures)))
    with pytest.raises(CommandsFailed, match="of 2 devices: 1 failed, 1 succeeded\n  d: FAILED stuck"):
        await send("http://x", {}, Console(quiet=True), wait=True, transport=transport)
