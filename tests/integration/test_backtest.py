"""Draft rules on what the running platform has stored: over HTTP, through its proxy, and from a notebook."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from log_audit import LogAudit

from sensorium.actors.backtesting import Progress
from sensorium.actors.errors import InvalidMessage, NoHistory, RuleNotFound
from sensorium.actors.fleet import Fleet

pytestmark = pytest.mark.ray

TYPE = "backtested"
IDS = [f"backtested-{n}" for n in range(12)]
MINUTES = 300
END_MS = time.time_ns() // 60_000_000_000 * 60_000
START_MS = END_MS - MINUTES * 60_000
SCOPE = {"device_type": TYPE}


def hot(limit: float, **more: Any) -> dict[str, Any]:
    condition = {"type": "threshold", "metric": "a", "operator": ">", "value": limit}
    return {"name": f"above {limit}", "condition": condition, "scope": SCOPE, **more}


@pytest.fixture(scope="module")
async def history(api: httpx.AsyncClient) -> int:
    """Every device is at 10 for one minute in ten, at 20 for one in a hundred; how many readings that are."""
    for device_id in IDS:
        response = await api.post("/api/devices", json={"device_id": device_id, "device_type": TYPE})
        assert response.status_code == 201
        readings = [
            {
                "a": 20 if n % 100 == 99 else 10 if n % 10 == 9 else 1,
                "b": n,
                "timestamp": START_MS + n * 60_000,
            }
            for n in range(MINUTES)
        ]
        response = await api.post(f"/api/devices/{device_id}/data", json=readings)
        assert response.status_code in (200, 201), response.text
    return len(IDS) * MINUTES


async def test_over_http_beside_the_present_rule(
    api: httpx.AsyncClient, history: int, log: LogAudit, fleet: Fleet
) -> None:
    present = (await api.post("/api/analytics/rules", json=hot(15, enabled=False))).json()["rule_id"]
    await api.put(f"/api/analytics/rules/{present}", json=hot(15))
    before = await log.counts()
    body = {"rule": hot(5), "since": START_MS, "until": END_MS, "replaces": present}
    try:
        response = await api.post(
            "/api/analytics/rules/backtest", json=body, headers={"Accept": "application/x-ndjson"}
        )
        assert response.status_code == 200, response.text
        lines = [msgspec.json.decode(line) for line in response.content.splitlines()]
        assert {line["type"] for line in lines[:-1]} == {"progress"}
        assert lines[0]["devices_done"] == 0
        result = lines[-1]
        assert (result["type"], result["readings"], result["devices"]) == ("result", history, len(IDS))
        assert result["draft"] == {"alarms": 30 * 12, "active_s": 30 * 12 * 60.0, "devices": 12}
        assert result["present"] == {"alarms": 3 * 12, "active_s": 3 * 12 * 60.0, "devices": 12}
        assert (result["new"], result["gone"], result["stays"]) == (27 * 12, 0, 3 * 12)
        assert [outcome["device_id"] for outcome in result["by_device"]] == sorted(IDS)
        plain = await api.post("/api/analytics/rules/backtest", json=body)
        assert plain.json() == result
        for change, status in [({"replaces": "nobody"}, 404), ({"since": "400d"}, 422)]:
            problem = await api.post("/api/analytics/rules/backtest", json={**body, **change})
            assert (problem.status_code, problem.json()["status"]) == (status, status)
        after = await log.counts()
        # Those of other tests' devices end meanwhile.
        assert after.pop("timers") <= before.pop("timers")
        assert {**after, "rules": 0} == {**before, "rules": 0}
    finally:
        await api.delete(f"/api/analytics/rules/{present}")


def test_from_a_notebook(fleet: Fleet, history: int) -> None:
    steps: list[Progress] = []
    chosen = fleet.select(ids=IDS[:5])
    until = datetime.fromtimestamp(END_MS / 1000, UTC)
    rule = hot(5, for_s=60)
    result = fleet.backtest(rule, timedelta(minutes=MINUTES), chosen, until=until, on_progress=steps.append)
    assert (result.readings, result.present, result.draft.alarms) == (5 * MINUTES, None, 0)
    result = fleet.backtest(
        {"name": "windowed", "expression": "avg(a, '10m') > 2.5"}, until - timedelta(hours=2), chosen
    )
    assert result.draft.alarms >= 5
    assert steps[0].devices_done == 0
    assert steps[-1].devices_done == 5


def test_what_cannot_be_tried(fleet: Fleet, history: int) -> None:
    day = timedelta(days=1)
    with pytest.raises(RuleNotFound, match=r"^no rule nobody$"):
        fleet.backtest(hot(5), day, replaces="nobody")
    with pytest.raises(NoHistory, match="no reading"):
        fleet.backtest(hot(5), datetime(2001, 1, 1, tzinfo=UTC), until=datetime(2001, 1, 2, tzinfo=UTC))
    with pytest.raises(InvalidMessage, match=r"^since: "):
        fleet.backtest(hot(5), 1000 * day)
    with pytest.raises(ValueError, match="no time zone"):
        fleet.backtest(hot(5), datetime(2001, 1, 1))
