"""Exports: every reading once, in each format, and clear refusals. Read back by the formats' own readers."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from sensorium.serve.export import EXPORTS_AT_ONCE, PAGE
from tests.unit.serve.problem import assert_problem
from tests.unit.serve.world import AT_MS, World, world

MINUTE_MS = 60_000


@pytest.fixture
async def filled() -> AsyncIterator[World]:
    """Two devices of a type; what is a number of the one is text of the other."""
    async with world() as it:
        await it.registered("a", metadata={"site": "north"})
        await it.registered("b")
        for n in range(3):
            at = {"timestamp": AT_MS + n * MINUTE_MS}
            await it.send({"temperature": 20.5 + n, "door": n == 1, "code": n, **at}, "a")
            await it.send({"code": 'x,"y"\nü', **at}, "b")
        yield it


async def exported(it: World, **parameters: Any) -> tuple[bytes, Any]:
    response = await it.http.get("/api/export/readings", params=parameters)
    assert response.status_code == 200, response.text
    return response.content, response.headers


async def test_ndjson_is_a_line_each(filled: World) -> None:
    body, headers = await exported(filled)
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["device_id"] for line in lines] == ["a"] * 3 + ["b"] * 3
    assert lines[1] == {
        "device_id": "a",
        "time_ms": AT_MS + MINUTE_MS,
        "values": {"temperature": 21.5, "door": True, "code": 1.0},
        "late": False,
        "quality": "good",
    }
    assert headers["content-type"] == "application/x-ndjson"
    assert headers["content-disposition"] == 'attachment; filename="readings-all.ndjson"'


async def test_csv_has_a_column_for_each_metric(filled: World) -> None:
    body, _ = await exported(filled, format="csv", type="temperature")
    rows = list(csv.DictReader(io.StringIO(body.decode(), newline="")))
    assert list(rows[0]) == ["device_id", "time", "late", "quality", "code", "door", "temperature"]
    assert rows[1] == {
        "device_id": "a",
        "time": "2024-01-01T12:01:00.000Z",
        "late": "false",
        "quality": "good",
        "code": "1.0",
        "door": "true",
        "temperature": "21.5",
    }
    assert rows[3] | {"time": ""} == {
        "device_id": "b",
        "time": "",
        "late": "false",
        "quality": "good",
        "code": 'x,"y"\nü',
        "door": "",
        "temperature": "",
    }


async def test_parquet_keeps_the_types(filled: World) -> None:
    body, _ = await exported(filled, format="parquet", device_id="a")
    table = pyarrow.parquet.read_table(io.BytesIO(body))
    assert [str(field.type) for field in table.schema] == [
        *("string", "timestamp[ms, tz=UTC]", "bool", "string", "double", "bool", "double")
    ]
    moment = datetime(2024, 1, 1, 12, tzinfo=UTC)
    assert table.column("time").to_pylist() == [moment + timedelta(minutes=n) for n in range(3)]
    assert table.column("temperature").to_pylist() == [20.5, 21.5, 22.5]
    assert table.column("door").to_pylist() == [False, True, False]


async def test_a_metric_of_two_kinds_is_text_in_parquet(filled: World) -> None:
    body, _ = await exported(filled, format="parquet", metrics="code,unheard-of")
    table = pyarrow.parquet.read_table(io.BytesIO(body))
    assert table.column("code").to_pylist() == ["0.0", "1.0", "2.0", *['x,"y"\nü'] * 3]
    assert table.column("unheard-of").to_pylist() == [None] * 6


@pytest.mark.parametrize("how", ["ndjson", "csv", "parquet"])
async def test_of_nothing_there_is_a_file_all_the_same(how: str, filled: World) -> None:
    body, _ = await exported(filled, format=how, type="none")
    if how == "parquet":
        assert pyarrow.parquet.read_table(io.BytesIO(body)).num_rows == 0
    else:
        assert body == (b"device_id,time,late,quality\r\n" if how == "csv" else b"")


async def test_selection(filled: World) -> None:
    def devices(body: bytes) -> list[str]:
        return [json.loads(line)["device_id"] for line in body.splitlines()]

    assert devices((await exported(filled, **{"metadata.site": "north"}))[0]) == ["a"] * 3
    narrowed = {"start": AT_MS + MINUTE_MS, "end": AT_MS + 2 * MINUTE_MS}
    assert devices((await exported(filled, **narrowed))[0]) == ["a", "b"]
    await filled.http.delete("/api/devices/a")
    assert devices((await exported(filled, status="active"))[0]) == ["b"] * 3
    assert devices((await exported(filled))[0]) == ["a"] * 3 + ["b"] * 3


@pytest.mark.parametrize(
    ("parameters", "status", "said"),
    [
        ({"format": "xlsx"}, 422, "format"),
        ({"device_id": "nobody"}, 404, "no device nobody"),
        ({"device_id": "a", "type": "temperature"}, 422, "leave type and status away"),
        ({"start": "2024-01-02", "end": "2024-01-01"}, 422, "later than start"),
        ({"metric": "code"}, 422, "did you mean metrics"),
    ],
)
async def test_mistakes_are_told(filled: World, parameters: dict[str, str], status: int, said: str) -> None:
    response = await filled.http.get("/api/export/readings", params=parameters)
    told = assert_problem(response, status, "not_found" if status == 404 else "invalid")
    assert said in json.dumps(told)


async def test_pages_are_read_as_they_are_taken(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one page: nothing is lost or doubled at their seams."""
    monkeypatch.setattr("sensorium.serve.export.PAGE", 2)
    assert PAGE > 2
    for how in ("ndjson", "csv", "parquet"):
        body, _ = await exported(filled, format=how, device_id="a")
        rows = (
            pyarrow.parquet.read_table(io.BytesIO(body)).num_rows
            if how == "parquet"
            else body.count(b"\n") - (how == "csv")
        )
        assert rows == 3


async def exported_or_refused(it: World) -> httpx.Response:
    return await it.http.get("/api/export/readings", params={"device_id": "a"})


async def test_exports_leave_room_for_others(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    read = filled.read.readings

    async def slow(*asked: Any) -> Any:
        await go_on.wait()
        return await read(*asked)

    monkeypatch.setattr(filled.read, "readings", slow)
    running = [asyncio.create_task(exported_or_refused(filled)) for _ in range(EXPORTS_AT_ONCE)]
    async with asyncio.timeout(10):
        # Until all of them have begun one more gets through as well, and waits with them.
        while True:
            more = asyncio.create_task(exported_or_refused(filled))
            done, _ = await asyncio.wait({more}, timeout=0.05)
            if done:
                break
            running.append(more)
    assert_problem(more.result(), 429, "overloaded")
    go_on.set()
    await asyncio.gather(*running)
    # Their places are free again, also after one that failed on the way.
    monkeypatch.setattr(filled.read, "readings", read)
    for _ in range(EXPORTS_AT_ONCE + 1):
        await exported(filled, device_id="a")
