"""History from InfluxDB: answers in annotated CSV as its manual shows them; and a real one, where named.

`SENSORIUM_TEST_INFLUXDB_URL`, `…_TOKEN` and `…_ORG` name the real one; the test makes a bucket there.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from faulty_influx import FaultyInflux
from storage_rows import NOON_MS, reading

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.placement import device_key
from sensorium.storage.archive import ArchivedPoint, ArchivedRow, Question
from sensorium.storage.influx_archive import InfluxArchive
from sensorium.storage.influx_client import connected, ensure_bucket
from sensorium.storage.influx_lines import line, point_ns
from sensorium.storage.influx_settings import InfluxSettings
from sensorium.storage.known_devices import KnownDevice
from sensorium.storage.projection import LogEntry, SinkUnavailable

REAL_URL = os.environ.get("SENSORIUM_TEST_INFLUXDB_URL")

POINTS = """\
#datatype,string,long,dateTime:RFC3339,string,string,double,long
#group,false,false,false,true,true,false,false
#default,_result,,,,,,
,result,table,_time,_field,device_id,_value,ns
,,0,2024-01-01T12:00:00.000000007Z,t,d,20.5,1704110400000000007
,,0,2024-01-01T12:00:01.000000008Z,t,d,21.5,1704110401000000008

#datatype,string,long,dateTime:RFC3339,string,string,boolean,long
#group,false,false,false,true,true,false,false
#default,_result,,,,,,
,result,table,_time,_field,device_id,_value,ns
,,1,2024-01-01T12:00:00.000000007Z,metric_quality,d,true,1704110400000000007

#datatype,string,long,dateTime:RFC3339,string,string,string,long
#group,false,false,false,true,true,false,false
#default,_result,,,,,,
,result,table,_time,_field,device_id,_value,ns
,,2,2024-01-01T12:00:01.000000008Z,mode,d,"eco, ""2"" x",1704110401000000008

"""
QUALITIES = """\
#datatype,string,long,dateTime:RFC3339,string,string,long,long
#group,false,false,false,true,true,false,false
#default,_result,,,,,,
,result,table,_time,_field,device_id,_value,ns
,,0,2024-01-01T12:00:01.000000008Z,quality,d,1,1704110401000000008

"""
MEANS = """\
#datatype,string,long,dateTime:RFC3339,string,string,string,double
#group,false,false,false,true,true,true,false
#default,numbers.sum,,,,,,
,result,table,_time,_field,device_id,sensor_type,_value
,,0,2024-01-01T12:30:00Z,t,d,pump,42.5
,,0,2024-01-01T13:00:00Z,t,d,pump,7

#datatype,string,long,dateTime:RFC3339,string,string,string,long
#group,false,false,false,true,true,true,false
#default,numbers.count,,,,,,
,result,table,_time,_field,device_id,sensor_type,_value
,,0,2024-01-01T12:30:00Z,t,d,pump,2
,,0,2024-01-01T13:00:00Z,t,d,pump,1

"""


@pytest.fixture
async def influx() -> AsyncIterator[FaultyInflux]:
    async with FaultyInflux() as server:
        yield server


async def test_points_are_put_together_from_their_fields(influx: FaultyInflux) -> None:
    influx.results.extend([POINTS, QUALITIES])
    async with aclosing_archive(InfluxSettings(url=influx.url)) as archive:
        found = await archive.points("d", 0, point_ns(NOON_MS + 9_000, 0), None, 10, False)
    assert found == [
        ArchivedPoint(1_704_110_400_000_000_007, {"t": 20.5, "quality": True}, 0),
        ArchivedPoint(1_704_110_401_000_000_008, {"t": 21.5, "mode": 'eco, "2" x'}, 1),
    ]
    assert "stop: 2024-01-01T12:00:01.000000009Z" in influx.queries[1]


async def test_figures_of_an_interval_are_put_together(influx: FaultyInflux) -> None:
    influx.results.append(MEANS)
    question = Question("d", None, ["t"], "mean", 3_600_000_000_000)
    async with aclosing_archive(InfluxSettings(url=influx.url)) as archive:
        found = await archive.aggregate(question, NOON_MS + 1_800_000, NOON_MS + 7_200_000)
    # The first window begins with the range, its interval at the full hour.
    assert found == [
        ArchivedRow("d", NOON_MS, NOON_MS, NOON_MS, "t", "n", n=2, total=42.5),
        ArchivedRow("d", NOON_MS + 3_600_000, *[NOON_MS + 3_600_000] * 2, "t", "n", n=1, total=7.0),
    ]


async def test_what_is_too_much_or_refused_is_told(
    influx: FaultyInflux, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.storage.influx_archive.MAX_ROWS", 2)
    influx.results.extend([POINTS, 400, 503])
    async with aclosing_archive(InfluxSettings(url=influx.url)) as archive:
        with pytest.raises(InvalidMessage, match="more than 2 values"):
            await archive.points("d", 0, 1, None, 10, False)
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="InfluxDB refuses a query"):
                await archive.points("d", 0, 1, None, 10, False)


def aclosing_archive(settings: InfluxSettings) -> "aclosing[_Closing]":
    return aclosing(_Closing(settings))


class _Closing(InfluxArchive):
    async def aclose(self) -> None:
        await self.close()


@pytest.mark.skipif(
    REAL_URL is None, reason="needs a real InfluxDB 2: set SENSORIUM_TEST_INFLUXDB_URL and _TOKEN"
)
async def test_a_real_influxdb_answers_what_was_written() -> None:
    settings = InfluxSettings(
        url=REAL_URL or "",
        org=os.environ.get("SENSORIUM_TEST_INFLUXDB_ORG", "sensorium"),
        bucket=f"sensorium-test-{uuid.uuid4().hex}",
        token=os.environ.get("SENSORIUM_TEST_INFLUXDB_TOKEN"),
    )
    device = KnownDevice('d"${x}', "pump", None)
    lines, expected = [], []
    for n in range(1, 301):
        values = {"t": n / 2, "door": n % 2 == 0, "mode": "ab"[n % 2]}
        row = reading("d", n, NOON_MS + n // 2 * 1000, **values)
        flags = int(n == 7)
        lines.append(
            line(
                LogEntry(
                    *(row.shard, n, device_key("d"), row.time_ms, 1, flags, row.metric_set.id),
                    *([n / 2, float(n % 2 == 0)], ["ab"[n % 2]], None, None, 0),
                ),
                device,
                row.metric_set,
            )
        )
        expected.append(ArchivedPoint(point_ns(row.time_ms, n), values, flags))
    async with connected(settings) as client, aclosing_archive(settings) as archive:
        await ensure_bucket(client, settings)
        await client.write_api().write(settings.bucket, settings.org, b"\n".join(lines), "ns")
        name = device.device_id
        end_ns = point_ns(NOON_MS + 10_000_000, 0)
        async with asyncio.timeout(20):
            assert await archive.points(name, 0, end_ns, None, 10_000, False) == expected
            assert await archive.points(name, 0, end_ns, None, 5, True) == expected[:-6:-1]
            [only] = await archive.points(name, 0, end_ns, ["mode"], 1, False)
            assert only.values == {"mode": "b"}
            end_ms = NOON_MS + 10_000_000
            for every_ns in (None, 60_000_000_000):
                for aggregation in ("mean", "min", "max", "sum", "count", "first", "last", "p95"):
                    question = Question(name, None, None, aggregation, every_ns)
                    assert await archive.aggregate(question, NOON_MS, end_ms)
            total = await archive.aggregate(Question(name, None, ["t"], "sum", None), NOON_MS, end_ms)
            assert sum(row.total or 0.0 for row in total) == sum(n / 2 for n in range(1, 301))
