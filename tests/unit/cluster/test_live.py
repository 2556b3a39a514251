"""The live table and the status: figures from pages, and how they are shown."""

import asyncio
import io

import pytest
from rich.console import Console

from sensorium.cluster import live, status
from sensorium.cluster.errors import PlatformUnreachable
from sensorium.cluster.live import ActiveAlarm, Counters, LiveFigures, counters, figures, plain, quantile_s
from sensorium.cluster.run_directory import RunState
from sensorium.serve.metrics_page import render


def page(committed: int, latency: list[int], hosts: int = 2) -> str:
    """A metrics page as the API renders it."""
    each = [
        {
            "name": f"host-{n}",
            "readings_committed": committed // hosts,
            "readings_duplicate": 3,
            "devices_active": 100,
            "shards_owned": 512,
            "dead_letters": {"malformed_json": 2, "too_large": 1},
            "alarms_raised": {"critical": 1},
            "projection_lag": {"webhooks": 4},
            "ingest_to_commit": {"counts": latency, "sum_s": 1.0},
        }
        for n in range(hosts)
    ]
    return render({"hosts": each, "services": []}).decode()


NONE = [0] * 15
ALARMS = [
    ActiveAlarm("critical", "tank-level-0001", "Tank level falls", "d", 1_790_000_003_000),
    ActiveAlarm("major", "climate-0002", "Room temperature [outside] 5 to 40 °C", "d", 1_790_000_001_000),
    ActiveAlarm("major", "climate-0001", "Room temperature", "d", 1_790_000_002_000),
]


def test_counters_add_up_over_hosts() -> None:
    assert counters(page(5000, NONE), 7.0) == Counters(
        7.0,
        committed=5000,
        duplicates=6,
        dead_letters=6,
        devices_active=200,
        hosts=2,
        latency=counters(page(0, NONE), 0.0).latency,
    )
    assert counters("", 1.0) == Counters(1.0)


def test_figures_are_of_the_time_between_two_looks() -> None:
    slow = [0] * 13 + [50, 0]
    fast = [0, 0, 0, 0, 100] + [0] * 10
    before = counters(page(1000, slow), 10.0)
    now = counters(page(5000, [a + b for a, b in zip(slow, fast, strict=True)]), 12.0)
    shown = figures(before, now, ALARMS)
    assert shown.messages_per_s == 2000
    assert shown.p50_s == pytest.approx(0.0175)  # half way between 10 and 25 ms
    assert shown.p99_s is not None
    assert 0.0175 < shown.p99_s <= 0.025
    assert shown.alarms_by_severity == {"critical": 1, "major": 2}
    assert [a.device_id for a in shown.latest_alarms] == ["tank-level-0001", "climate-0001", "climate-0002"]


def test_a_restarted_host_gives_no_negative_rate_and_no_latency() -> None:
    shown = figures(counters(page(5000, [9] * 15), 1.0), counters(page(10, NONE), 2.0), [])
    assert shown.messages_per_s == 0
    assert shown.p50_s is None


@pytest.mark.parametrize(
    ("cumulative", "q", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0, float("inf"): 0}, 0.5, None),
        ({1.0: 10, 2.0: 20, float("inf"): 20}, 0.5, 1.0),
        ({1.0: 10, 2.0: 20, float("inf"): 20}, 0.75, 1.5),
        ({1.0: 0, 2.0: 0, float("inf"): 5}, 0.99, 2.0),
    ],
)
def test_quantiles(cumulative: dict[float, float], q: float, expected: float | None) -> None:
    assert quantile_s(cumulative, q) == expected


def test_the_plain_line_says_it_all() -> None:
    shown = figures(counters(page(0, NONE), 1.0), counters(page(3000, NONE), 2.0), ALARMS, capped=True)
    assert plain(shown) == (
        "3,000 msg/s · 3,000 committed · 200 devices · 3+ active (1 critical, 2 major) · "
        "commit p50 –, p99 – · 6 dead letters · 2 hosts"
    )


def test_the_table_shows_alarms_and_takes_names_literally() -> None:
    shown = figures(counters(page(0, NONE), 1.0), counters(page(3000, [4] * 15), 2.0), ALARMS)
    console = Console(file=io.StringIO(), width=120)
    console.print(live.table(shown, {"API": "http://127.0.0.1:8000/docs"}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in (
        "http://127.0.0.1:8000/docs",
        "3,000",
        "[outside]",
        "tank-level-0001",
        "p50",
        "14:13:23",
    ):
        assert expected in text, text


async def test_without_a_terminal_lines_come_and_trouble_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PLAIN_EVERY_S", 0.0)
    enough = asyncio.Event()
    answers: list[LiveFigures | Exception] = [
        PlatformUnreachable("http://p does not answer"),
        figures(counters(page(0, NONE), 1.0), counters(page(100, NONE), 2.0), []),
    ]

    async def source() -> LiveFigures:
        if not answers:
            enough.set()
            await asyncio.sleep(60)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    console = Console(file=io.StringIO(), width=40)
    showing = asyncio.create_task(live.show(source, console, {"MQTT": "mqtt://127.0.0.1:1883"}))
    async with asyncio.timeout(5):
        await enough.wait()
    showing.cancel()
    await asyncio.wait([showing])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split() == ["MQTT", "mqtt://127.0.0.1:1883"]
    assert lines[1] == "http://p does not answer"
    assert lines[2].startswith("100 msg/s · 100 committed")
    assert len(lines) == 3


def test_the_status_of_a_platform_that_serves() -> None:
    state = RunState(42, "0.1.0", 1, "ready", "http://h:8000", "mqtt://h", "postgresql://h/d")
    one = {"severity": "major", "device_id": "d", "rule_name": "r", "detail": "", "start_ms": 1}
    alarms = [one] * 200
    readiness = {"ready": True, "status": "ready", "checks": {"database": "ok"}}
    stored = [("readings", 2_000_000), ("events", 500_000), ("readings", 1_000_000), ("shards", 1_000)]
    sizes = "\n".join(f'sensorium_storage_bytes{{table="{name}"}} {size}' for name, size in stored)
    text = page(5000, [0, 0, 0, 0, 7] + [0] * 10) + f"# TYPE sensorium_storage_bytes gauge\n{sizes}\n"
    text += "# TYPE sensorium_storage_class_bytes gauge\n"
    for name, number, size in (("events", 1, 2e5), ("rollups_1m", 1, 1e5), ("events", 0, 7e5)):
        text += f'sensorium_storage_class_bytes{{table="{name}",retention_class="{number}"}} {size}\n'
    text += 'sensorium_storage_class_bytes{table="events",retention_class=""} 5\n'
    text += "# TYPE sensorium_disk_free_bytes gauge\nsensorium_disk_free_bytes 2e9\n"
    text += "# TYPE sensorium_disk_bytes gauge\nsensorium_disk_bytes 100e9\n"
    shown = status.of_pages(state, readiness, text, alarms)
    assert shown.storage_bytes == {"readings": 3_000_000, "events": 500_000, "shards": 1_000}
    assert shown.storage_class_bytes == {"0": 700_000, "1": 300_000}
    assert (shown.ready, shown.hosts, shown.readings_committed, shown.dead_letters) == (True, 2, 5000, 6)
    assert shown.alarms == {"major": 200}
    assert shown.alarms_capped
    assert shown.projection_lag == {"webhooks": 8}
    assert shown.latency_p50_s == pytest.approx(0.0175)
    console = Console(file=io.StringIO(), width=120)
    console.print(status.table(shown))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in (
        "ready (pid 42",
        "200 major or more",
        "p50 17.5 ms",
        "lag of webhooks",
        "3.5 MB (readings 3.0",
        "0: 0.7 MB, 1: 0.3 MB",
        "2.0 of 100.0 GB: little, and commits stop",
    ):
        assert expected in text, text


def test_the_status_of_a_platform_that_starts() -> None:
    shown = status.of_state(RunState(42, "0.1.0", 1))
    assert (shown.phase, shown.ready) == ("starting", False)
    console = Console(file=io.StringIO(), width=120)
    console.print(status.table(shown))
    assert "starting (pid 42" in console.file.getvalue()  # type: ignore[attr-defined]
