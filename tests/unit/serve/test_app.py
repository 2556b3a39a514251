"""What holds for every endpoint: problem documents, bounds, the document, health and figures."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sensorium.serve import bulk_models, examples
from sensorium.serve.pages import VALUES
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World, world

PATHS = {
    "/api/audit": {"get"},
    "/api/erasures": {"get"},
    "/api/devices/{device_id}/state": {"get"},
    "/api/erasures/{job_id}": {"get"},
    "/api/audit/head": {"get"},
    "/api/devices": {"get", "post"},
    "/api/devices/{device_id}": {"get", "patch", "delete"},
    "/api/devices/{device_id}/data": {"delete", "get", "post"},
    "/api/devices/{device_id}/data/latest": {"get"},
    "/api/analytics/devices/{device_id}/anomalies": {"get"},
    "/api/analytics/devices/{device_id}/quality": {"get"},
    "/api/analytics/devices/{device_id}/uptime": {"get"},
    "/api/analytics/devices/{device_id}/trends": {"get"},
    "/api/analytics/fleet": {"get"},
    "/api/analytics/savings": {"get"},
    "/api/analytics/devices/{device_id}/energy": {"get"},
    "/api/analytics/devices/{device_id}/maintenance": {"get"},
    "/api/analytics/models": {"get"},
    "/api/export/readings": {"get"},
    "/api/dead-letters/{letter_id}": {"get", "delete"},
    "/api/dead-letters/{letter_id}/replay": {"post"},
    "/api/dead-letters/replay": {"post"},
    "/api/data": {"post"},
    "/api/lorawan/tts/{application}": {"post"},
    "/api/devices/{device_id}/series": {"get"},
    "/api/devices/{device_id}/commands": {"get", "post"},
    "/api/devices/{device_id}/commands/{command_id}": {"get", "delete"},
    "/api/commands": {"get"},
    "/api/devices/{device_id}/window/{metric}": {"get"},
    "/api/devices/{device_id}/connections": {"get"},
    "/api/devices/{device_id}/events": {"get"},
    **{
        path: methods
        for kind in ("commands", "twins")
        for path, methods in {
            f"/api/{kind}/bulk": {"get", "post"},
            f"/api/{kind}/bulk/{{job_id}}": {"get", "delete"},
            f"/api/{kind}/bulk/{{job_id}}/devices": {"get"},
        }.items()
    },
    "/api/devices/{device_id}/twin": {"get", "patch", "put"},
    "/api/devices/{device_id}/twin/changes": {"get"},
    "/api/devices/{device_id}/twin/desired": {"get", "patch", "put"},
    "/api/devices/{device_id}/twin/reported": {"get", "patch", "put"},
    "/api/analytics/aggregated": {"get"},
    "/api/analytics/rules": {"get", "post"},
    "/api/analytics/rules/backtest": {"post"},
    "/api/analytics/rules/{rule_id}": {"get", "put", "delete"},
    "/api/alarms": {"get"},
    "/api/alarms/{alarm_id}/life": {"get"},
    "/api/alarms/{alarm_id}/why": {"get"},
    **{
        f"/api/alarms/{{alarm_id}}/{action}": {"post"}
        for action in ("ack", "unack", "assign", "comment", "shelve", "unshelve")
    },
    "/api/alarms/{alarm_id}": {"get"},
    "/api/live": {"get"},
    "/api/dead-letters": {"get"},
    "/api/profiles": {"get"},
    "/api/profiles/{device_type}": {"get"},
    "/api/projections": {"get"},
    "/api/projections/{name}/pause": {"post"},
    "/api/projections/{name}/resume": {"post"},
    "/api/projections/{name}/rewind": {"post"},
    "/api/storage": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
    "/api/nodes": {"get"},
    "/api/nodes/{node_id}/drain": {"post"},
    "/api/nodes/{node_id}/undrain": {"post"},
    "/api/hosts": {"get"},
    "/api/hosts/scale": {"post"},
}


async def document(platform: World) -> dict[str, Any]:
    found: dict[str, Any] = (await platform.http.get("/openapi.json")).json()
    return found


async def test_the_document_names_every_endpoint_with_examples(platform: World) -> None:
    api = await document(platform)
    assert {path: set(methods) for path, methods in api["paths"].items()} == PATHS
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            success = {code: r for code, r in operation["responses"].items() if code.startswith("2")}
            assert success, where
            for code, response in success.items():
                content = response.get("content", {}).get("application/json", {})
                shown = "example" in content or "examples" in content
                other = path in ("/metrics", "/api/live", "/api/export/readings")
                assert code == "204" or other or shown, where
            if path.startswith("/api"):
                assert {"422", "429", "503"} <= set(operation["responses"]), where
            if "requestBody" in operation:
                assert {"413", "415"} <= set(operation["responses"]), where
                assert operation["requestBody"]["content"]["application/json"]["examples"], where
    assert (await platform.http.get("/docs")).status_code == 200


async def test_every_reference_of_the_document_leads_somewhere(platform: World) -> None:
    api = await document(platform)
    schemas = api["components"]["schemas"]
    text = json.dumps(api)
    referred = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert referred <= set(schemas)
    assert "HTTPValidationError" not in schemas


async def test_the_documents_conditions_are_those_that_are_read(platform: World) -> None:
    schemas = (await document(platform))["components"]["schemas"]
    discriminator = schemas["RuleSpec"]["properties"]["condition"]["discriminator"]
    assert discriminator["propertyName"] == "type"
    kinds = {"threshold", "range", "rate_of_change", "z_score", "window", "change", "geofence", "anomaly"}
    kinds |= {"schedule", "no_data", "all", "any", "not", "formula", "always"}
    assert set(discriminator["mapping"]) == kinds
    assert schemas["RuleSpec"]["additionalProperties"] is False


def test_the_examples_of_answers_are_what_is_answered() -> None:
    types = {kind.__name__: kind for kind in (*VALUES, *bulk_models.VALUES)}
    for name, example in {
        "DeviceInfo": examples.DEVICE,
        "DevicePage": examples.DEVICES,
        "Latest": examples.LATEST,
        "TwinInfo": examples.TWIN,
        "BulkStatus": examples.BULK_STATUS,
        "BulkJobPage": examples.BULK_PAGE,
        "BulkDevicePage": examples.BULK_DEVICES,
        "TwinChangePage": examples.TWIN_CHANGE_PAGE,
        "Document": examples.TWIN_DOCUMENT,
        "WindowInfo": examples.WINDOW,
        "ReadingPage": examples.READINGS,
        "AggregatePage": examples.AGGREGATES,
        "TypeAggregate": examples.TYPE_AGGREGATE,
        "GroupedAggregate": examples.GROUPED_AGGREGATE,
        "Series": examples.SERIES,
        "Replayed": examples.REPLAYED,
        "ReplayedLetters": examples.REPLAYED_LETTERS,
        "Rule": examples.RULE,
        "AlarmPage": examples.ALARMS,
        "DeadLetterPage": examples.DEAD_LETTERS,
        "IngestResult": examples.INGESTED,
        "Command": examples.COMMAND,
        "CommandPage": examples.COMMAND_PAGE,
        "ConnectionPage": examples.CONNECTIONS,
        "EventPage": examples.EVENTS,
    }.items():
        value = msgspec.convert(example, types[name], strict=True)
        assert set(msgspec.to_builtins(value)) == set(example), name


async def test_wrong_paths_methods_and_parameters_are_problems(platform: World) -> None:
    assert_problem(await platform.http.get("/api/nothing"), 404, "not_found")
    assert_problem(await platform.http.get("/api/devices/"), 404, "not_found")
    wrong = await platform.http.put("/api/alarms")
    assert_problem(wrong, 405, "method_not_allowed")
    assert wrong.headers["Allow"] == "GET"
    wrong = await platform.http.put("/api/devices/d")
    assert wrong.headers["Allow"] == "DELETE, GET, PATCH", "of all routes with this path"
    wrong = await platform.http.get("/api/dead-letters/replay")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    for path, methods in PATHS.items():
        for method in methods:
            names = {"device_id": "d", "metric": "m", "rule_id": "r", "alarm_id": "a", "name": "p"}
            names |= {"device_type": "t", "application": "app"}
            url = path.format(**names, command_id="c", letter_id=1, node_id="0", job_id="0") + "?surprise=1"
            refused = await platform.http.request(method, url)
            problem = assert_problem(refused, 422, "invalid")
            assert any(error.get("parameter") == "surprise" for error in problem["errors"]), (method, path)


async def test_a_misspelt_parameter_is_guessed(platform: World) -> None:
    problem = assert_problem(await platform.http.get("/api/alarms?serverity=info"), 422, "invalid")
    assert "did you mean severity?" in problem["detail"]


async def test_bodies_that_are_no_json(platform: World) -> None:
    url = "/api/devices"
    form = await platform.http.post(url, data={"device_id": "a"})
    assert_problem(form, 415, "unsupported_media_type")
    for content in (b"{", b"", b'{"device_id": NaN}', b"[" * 100_000, b"\xff"):
        assert_problem(await platform.http.post(url, content=content), 422, "malformed_json")
    assert_problem(await platform.http.post(url, content=b"[]"), 422, "invalid")


async def test_a_body_beyond_the_bound_is_refused_announced_or_not() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    async with world(max_body_bytes=2000) as platform:
        url = "/api/devices"
        assert_problem(await platform.http.post(url, content=b"x" * 2001), 413, "body_too_large")
        chunked = await platform.http.post(
            url, content=chunks(), headers={"Content-Type": "application/json"}
        )
        assert_problem(chunked, 413, "body_too_large")
        fits = json.dumps({"device_id": "a", "device_type": "t", "metadata": {"x": "y" * 1900}})
        assert (await platform.http.post(url, content=fits)).status_code == 201


async def test_beyond_the_bound_of_requests_there_is_429_but_not_for_operators() -> None:
    async with world(max_requests=2, timeout_s=0.3) as platform:
        await platform.registered()
        platform.store.down = True
        waiting = [
            asyncio.create_task(platform.send({"t": 1.0, "timestamp": AT_MS + number})) for number in range(3)
        ]
        statuses = sorted([(await response).status_code for response in waiting])
        assert statuses == [429, 503, 503]
        assert (await platform.http.get("/healthz")).status_code == 200
        platform.store.down = False
        assert (await platform.http.get("/api/alarms")).status_code == 200


async def test_readiness_names_what_is_missing(platform: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.serve.health.FRESH_S", 0.0)
    ready = await platform.http.get("/readyz")
    assert ready.json() == {"status": "ok", "checks": {"database": "ok"}}
    platform.store.down = True
    problem = assert_problem(await platform.http.get("/readyz"), 503, "unavailable")
    assert problem["errors"] == [{"detail": "the database cannot be reached", "parameter": "database"}]
    assert (await platform.http.get("/healthz")).json() == {"status": "ok"}
    assert_problem(await platform.http.get("/api/devices/d/data"), 503, "unavailable")


async def test_the_figures_are_the_hosts(platform: World) -> None:
    await platform.registered()
    await platform.send({"temperature": 1.0, "timestamp": AT_MS})
    await platform.send({"temperature": 1.0, "timestamp": AT_MS})
    await platform.http.post("/api/devices/sensor-001/data", content=b"{")
    page = await platform.http.get("/metrics")
    assert page.headers["Content-Type"].startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
    host = ("host", "host-0")
    assert samples["sensorium_readings_committed_total", (host,)] == 1
    assert samples["sensorium_readings_duplicate_total", (host,)] == 1
    assert samples["sensorium_dead_letters_total", (host, ("reason", "malformed_json"))] == 1
    assert samples["sensorium_devices_active", (host,)] == 1
    assert samples["sensorium_activations_total", (host,)] == 1
    assert samples["sensorium_shards_owned", (host,)] == 1024
    observed = samples["sensorium_ingest_to_commit_seconds_count", (host,)]
    assert observed == samples["sensorium_ingest_to_commit_seconds_bucket", (host, ("le", "+Inf"))] >= 1
    assert samples["sensorium_up", (("process", "mqtt"),)] == 0
    assert samples["sensorium_replacements_total", (("process", "host-0"),)] == 2
