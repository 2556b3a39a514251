"""Replaying: order, pace, and what was sent before a bad row."""

import json

import pytest

from sensorium.cluster.errors import BadRecording
from sensorium.cluster.recording import Row
from sensorium.cluster.replay import Replay, Summary, replay


class Recorder:
    def __init__(self) -> None:
        self.bodies: list[dict[str, float]] = []
        self.topics: set[str] = set()

    async def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        self.topics.add(topic)
        self.bodies.append(json.loads(payload))


def recorded(count: int, step_s: int = 300) -> list[Row]:
    return [Row(n + 2, 1000 * step_s * n, {"t": float(n)}) for n in range(count)]


async def test_rows_go_out_in_order_with_their_own_times() -> None:
    recorder = Recorder()
    seen: list[tuple[int, int]] = []
    summary = await replay(
        recorded(500), recorder, Replay("pump-1", limit=400), lambda sent, acked: seen.append((sent, acked))
    )
    assert recorder.topics == {"devices/pump-1/telemetry"}
    assert recorder.bodies == [{"timestamp": 300_000 * n, "t": float(n)} for n in range(400)]
    assert (summary.sent, summary.acked, summary.first_ms, summary.last_ms) == (400, 400, 0, 300_000 * 399)
    assert seen[-1] == (400, 400)
    assert all(0 <= sent - acked <= 101 for sent, acked in seen)


async def test_speed_is_times_real_time() -> None:
    now_s = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    summary = await replay(
        recorded(11), Recorder(), Replay("d", speed=600.0), clock=lambda: now_s, sleep=sleep
    )
    assert summary.elapsed_s == pytest.approx(5.0)


async def test_what_came_before_a_bad_row_is_acknowledged() -> None:
    def rows():
        yield from recorded(3)
        raise BadRecording("r.csv:5: no value")

    recorder = Recorder()
    with pytest.raises(BadRecording, match=r"r\.csv:5"):
        await replay(rows(), recorder, Replay("d"))
    assert len(recorder.bodies) == 3


async def test_an_empty_recording_is_no_error() -> None:
    summary = await replay([], Recorder(), Replay("d"))
    assert (summary.sent, summary.first_ms) == (0, None)
    assert summary.told().startswith("0 sent, 0 acknowledged")


def test_the_summary_in_a_line() -> None:
    told = Summary(22_695, 22_695, 2.0, 1_386_018_900_000, 1_392_823_500_000, 1).told()
    assert told == (
        "22,695 sent, 22,695 acknowledged in 2.0 s (11,348/s), "
        "recorded 2013-12-02T21:15:00Z to 2014-02-19T15:25:00Z, 1 bad rows passed over"
    )
