"""A draft rule tried on the past over HTTP."""

from typing import Any

import msgspec
import pytest

from sensorium.actors.backtest import MAX_DAYS, BacktestResult
from sensorium.actors.errors import LogUnavailable
from sensorium.serve import examples
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, NOW_MS, World

URL = "/api/analytics/rules/backtest"
WARM = {"type": "threshold", "metric": "temperature", "operator": ">", "value": 30}


def draft(**more: Any) -> dict[str, Any]:
    return {"rule": {"name": "draft", "condition": WARM}, "since": AT_MS - 600_000, "until": AT_MS, **more}


async def fill(platform: World) -> None:
    await platform.registered()
    for minute, value in enumerate([20, 31, 32, 20, 35, 20, 33]):
        await platform.send({"temperature": value, "timestamp": AT_MS - 600_000 + minute * 60_000})


async def test_the_answer_says_what_would_be_new_and_gone(platform: World) -> None:
    await fill(platform)
    looser = {"name": "present", "condition": {**WARM, "value": 34}, "enabled": True}
    rule_id = (await platform.http.post("/api/analytics/rules", json=looser)).json()["rule_id"]
    stored = dict(platform.store.alarms), platform.store.commits
    response = await platform.http.post(URL, json=draft(replaces=rule_id))
    assert response.status_code == 200, response.text
    result = msgspec.convert(response.json(), BacktestResult)
    assert (result.readings, result.devices) == (7, 1)
    assert (result.new, result.gone, result.stays) == (2, 0, 1)
    assert result.present is not None
    assert (result.draft.alarms, result.draft.active_s) == (3, 120 + 60 + 240)
    assert [(a.change, a.value, a.start_ms - AT_MS) for a in result.alarms] == [
        ("new", 31.0, -540_000),
        ("stays", 35.0, -360_000),
        ("new", 33.0, -240_000),
    ]
    assert result.alarms[-1].end_ms is None
    assert (dict(platform.store.alarms), platform.store.commits) == stored, "nothing was told to anyone"
    assert len((await platform.http.get("/api/analytics/rules")).json()["items"]) == 1


async def test_a_stream_says_how_far_it_is(platform: World) -> None:
    await fill(platform)
    response = await platform.http.post(URL, json=draft(), headers={"Accept": "application/x-ndjson"})
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    lines = [msgspec.json.decode(line) for line in response.content.splitlines()]
    assert [line["type"] for line in lines] == ["progress", "progress", "result"]
    assert (lines[0]["devices_done"], lines[1]["devices_done"], lines[1]["readings"]) == (0, 1, 7)
    assert lines[2] == (await platform.http.post(URL, json=draft())).json()


async def test_a_failure_on_the_way_is_the_last_line(platform: World) -> None:
    await fill(platform)
    platform.backtests.failure = LogUnavailable("the database is gone")
    response = await platform.http.post(URL, json=draft(), headers={"Accept": "application/x-ndjson"})
    last = msgspec.json.decode(response.content.splitlines()[-1])
    assert (last["type"], last["problem"]["code"], last["problem"]["status"]) == (
        "problem",
        "unavailable",
        503,
    )
    assert_problem(await platform.http.post(URL, json=draft()), 503, "unavailable")


@pytest.mark.parametrize("example", examples.BACKTESTS.values(), ids=list(examples.BACKTESTS))
async def test_the_examples_are_taken(platform: World, example: dict[str, Any]) -> None:
    await fill(platform)
    response = await platform.http.post(URL, json=example)
    assert response.status_code == 200, response.text
    assert response.json().keys() == examples.BACKTEST.keys()
    msgspec.convert(examples.BACKTEST, BacktestResult)


@pytest.mark.parametrize(
    ("change", "status", "code", "pointer"),
    [
        ({"replaces": "nobody"}, 404, "not_found", None),
        ({"since": NOW_MS, "until": NOW_MS}, 422, "invalid", "#/since"),
        ({"since": f"{MAX_DAYS + 1}d"}, 422, "invalid", "#/since"),
        ({"since": "soon"}, 422, "invalid", "#/since"),
        ({"until": "2024-13-01"}, 422, "invalid", "#/until"),
        ({"select": {"device_type": "pump"}}, 422, "no_history", None),
        ({"select": {"type": "pump"}}, 422, "invalid", "#/select"),
        ({"since": "2020-01-01", "until": "2020-02-01"}, 422, "no_history", None),
        (
            {"rule": {"name": "x", "condition": {**WARM, "value": True}}},
            422,
            "invalid",
            "#/rule/condition/operator",
        ),
        ({"rule": {"name": "", "condition": WARM}}, 422, "invalid", "#/rule/name"),
        ({"rule": {"name": "x", "expression": "temperature >"}}, 422, "invalid", "#/rule/expression"),
        ({"rules": []}, 422, "invalid", "#"),
    ],
)
async def test_what_cannot_be_tried_is_told(
    platform: World, change: dict[str, Any], status: int, code: str, pointer: str | None
) -> None:
    await fill(platform)
    document = assert_problem(await platform.http.post(URL, json=draft(**change)), status, code)
    if pointer is not None:
        assert document["errors"][0]["pointer"] == pointer
