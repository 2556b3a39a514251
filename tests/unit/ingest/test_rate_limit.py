"""The rate limit of devices, alone and where readings come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import DeadLetter, Refusal
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.rate_limit import RateLimit, RateLimiter

NOW_MS = 1_704_110_460_000


def test_a_burst_then_the_rate() -> None:
    limiter = RateLimiter(RateLimit(rate_per_s=2, burst=3))
    assert [limiter.wait_s("a", NOW_MS) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert limiter.wait_s("b", NOW_MS) == 0
    assert limiter.wait_s("a", NOW_MS + 499) == pytest.approx(0.001)
    assert limiter.wait_s("a", NOW_MS + 500) == 0
    assert limiter.wait_s("a", NOW_MS + 500) == 0.5
    assert [limiter.wait_s("a", NOW_MS + 10_000) for _ in range(4)] == [0, 0, 0, 0.5]
    assert limiter.refused == 5


def test_a_clock_set_back_costs_no_more_than_an_empty_bucket() -> None:
    limiter = RateLimiter(RateLimit(rate_per_s=1, burst=2))
    assert limiter.wait_s("a", NOW_MS) == 0
    assert limiter.wait_s("a", NOW_MS - 3_600_000) <= 1
    assert limiter.wait_s("a", NOW_MS - 3_599_000) == 0


def test_the_table_is_bounded() -> None:
    limiter = RateLimiter(RateLimit(rate_per_s=1, burst=1), max_devices=2)
    for device_id in "aba":
        limiter.wait_s(device_id, NOW_MS)
    assert limiter.wait_s("c", NOW_MS) == 0
    assert len(limiter) == 2
    assert limiter.wait_s("a", NOW_MS) > 0
    assert limiter.wait_s("b", NOW_MS) == 0


@given(st.floats(0.1, 1000), st.integers(1, 50), st.lists(st.integers(0, 2000), min_size=1, max_size=100))
def test_never_more_than_burst_and_rate(rate_per_s: float, burst: int, gaps_ms: list[int]) -> None:
    limiter = RateLimiter(RateLimit(rate_per_s, burst))
    now_ms, passed = NOW_MS, 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        passed += limiter.wait_s("a", now_ms) == 0
    assert passed <= burst + rate_per_s * (now_ms - NOW_MS) / 1000 + 1e-3
    assert passed >= 1


def test_what_is_over_the_limit_is_a_dead_letter() -> None:
    router = RecordingRouter()
    pipeline = Pipeline(router, limit=RateLimit(rate_per_s=1, burst=1))
    outcomes = []

    def send(redelivered: bool = False) -> None:
        pipeline.telemetry(
            "t", "d", b'{"a":1}', NOW_MS, 1, lambda _, o: outcomes.append(o), 0, redelivered=redelivered
        )

    send()
    send()
    send(redelivered=True)
    assert len(router.readings) == 2
    [letter] = router.messages
    assert isinstance(letter, DeadLetter)
    assert (letter.device_id, letter.reason) == ("d", "rate_limited")
    router.commit()
    assert [o.code for o in outcomes if isinstance(o, Refusal)] == ["rate_limited"]
    assert pipeline.statistics()["dead_letters"] == {"rate_limited": 1}
