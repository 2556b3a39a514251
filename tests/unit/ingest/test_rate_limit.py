"""The rate limit of devices, alone and where readings come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import Answer, DeadLetter, GetDevice, Refusal
from sensorium.actors.profile import Profile, Profiles, RateLimit, RateLimits, Rates
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.rate_limit import (
    MAX_ASKED,
    TYPE_HOLDS_MS,
    UNKNOWN_HOLDS_MS,
    DeviceTypes,
    RateLimiter,
)

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


# --- by protocol and by device type ---------------------------------------------------------------------

SLOW, FAST = RateLimit(1, 1), RateLimit(1000, 3)


def test_a_type_takes_over_what_it_does_not_say() -> None:
    base = Rates(SLOW, {"lorawan": RateLimit(0.1, 2)})
    assert base.of("mqtt") == base.of("sparkplug") == SLOW
    assert base.of("kafka") is None
    assert base.of("lorawan") == RateLimit(0.1, 2)
    own = Rates(FAST, {"coap": SLOW}).over(base)
    assert own.of("mqtt") == own.of("lorawan") == FAST
    assert own.of("coap") == SLOW
    assert Rates().over(base) == base


def test_limits_name_the_types_that_differ() -> None:
    profiles = Profiles(
        Profile(rates=Rates(SLOW)), {"fast": Profile(rates=Rates(FAST)), "same": Profile(rates=Rates(SLOW))}
    )
    assert profiles.limits("mqtt") == RateLimits(SLOW, {"fast": FAST})
    assert profiles.limits("kafka") is None
    assert Profiles().limits("mqtt") is None


def answered(router: RecordingRouter, device_type: str) -> None:
    count = len(router.messages)
    router.commit(*[Answer({"device_type": device_type})] * count)


def test_a_device_is_held_to_the_limit_of_its_type_once_that_is_known() -> None:
    router = RecordingRouter()
    limiter = RateLimiter(RateLimits(SLOW, {"fast": FAST, "free": None}), router)
    assert [limiter.wait_s("a", NOW_MS) for _ in range(2)] == [0, 1]
    assert router.messages == [GetDevice("a")], "it is asked once"
    answered(router, "fast")
    assert [limiter.wait_s("a", NOW_MS + 2_000) for _ in range(4)] == [0, 0, 0, 0.001]
    limiter.wait_s("b", NOW_MS)
    router.commit(Answer({"device_type": "free"}))
    assert [limiter.wait_s("b", NOW_MS) for _ in range(5)] == [0] * 5
    limiter.wait_s("c", NOW_MS)
    router.commit(Answer({"device_type": "any other"}))
    assert limiter.wait_s("c", NOW_MS) == 1


def test_without_a_limit_for_all_others_only_the_type_is_limited() -> None:
    router = RecordingRouter()
    limiter = RateLimiter(RateLimits(None, {"slow": SLOW}), router)
    assert [limiter.wait_s("a", NOW_MS) for _ in range(3)] == [0, 0, 0]
    router.commit(Answer({"device_type": "slow"}))
    assert [limiter.wait_s("a", NOW_MS) for _ in range(2)] == [0, 1]


def test_types_are_asked_for_again_and_no_more_than_some_at_once() -> None:
    router = RecordingRouter()
    types = DeviceTypes(router, max_devices=300)
    assert [types.of(f"d{n}", NOW_MS) for n in range(MAX_ASKED + 1)] == [None] * (MAX_ASKED + 1)
    assert len(router.messages) == MAX_ASKED
    router.commit(*[Answer({"device_type": "t"})] * (MAX_ASKED - 1), Refusal("not_found", "no device"))
    assert types.of("d0", NOW_MS + TYPE_HOLDS_MS - 1) == "t"
    assert len(router.messages) == MAX_ASKED
    assert types.of("d0", NOW_MS + TYPE_HOLDS_MS) == "t", "until there is an answer the old one holds"
    assert types.of(f"d{MAX_ASKED - 1}", NOW_MS + UNKNOWN_HOLDS_MS) is None
    assert router.messages[MAX_ASKED:] == [GetDevice("d0"), GetDevice(f"d{MAX_ASKED - 1}")]
    for n in range(400):
        types.of(f"e{n}", NOW_MS)
    assert len(types) <= 300


def test_what_comes_late_in_a_burst_is_counted_when_it_was_sent() -> None:
    router = RecordingRouter()
    pipeline = Pipeline(router, source="kafka", limit=SLOW)
    for n in range(5):
        sent_ms = NOW_MS - 10_000 + n * 1_000
        pipeline.telemetry("t", "d", b'{"a":1}', NOW_MS, n, lambda _, __: None, 0, sent_ms=sent_ms)
    assert len(router.readings) == 5
