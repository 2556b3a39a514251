from typing import Any

import pytest
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import ACCEPTED, DUPLICATE, DeadLetter, Outcome, ReadingFlag, Refusal
from sensorium.ingest.decode import Bounds
from sensorium.ingest.pipeline import Pipeline, is_device_id

NOW_MS = 1_795_459_094_744
TIMED = b'{"a":1,"timestamp":1704110400000}'
UNTIMED = b'{"a":1}'


class Outcomes(list[tuple[Any, Outcome]]):
    def done(self, token: Any, outcome: Outcome) -> None:
        self.append((token, outcome))


@pytest.fixture
def router() -> RecordingRouter:
    return RecordingRouter()


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


def key_of(payload: bytes, redelivery: int | None = None, redelivered: bool = False) -> tuple[int, int]:
    router = RecordingRouter()
    Pipeline(router).telemetry(
        "t", "d", payload, NOW_MS, redelivery, Outcomes().done, 0, redelivered=redelivered
    )
    [reading] = router.readings
    assert -(2**63) <= reading.key < 2**63
    return reading.key, reading.flags


def test_a_reading_is_routed_and_done_after_its_commit(router: RecordingRouter, outcomes: Outcomes) -> None:
    pipeline = Pipeline(router)
    pipeline.telemetry("devices/d/telemetry", "d", TIMED, NOW_MS, 7, outcomes.done, "token")
    [reading] = router.readings
    assert reading.device_id == "d"
    assert (reading.time_ms, reading.received_ms) == (1_704_110_400_000, NOW_MS)
    assert (reading.names, reading.values, reading.flags) == (("a",), [1.0], ReadingFlag.NONE)
    assert outcomes == []
    router.commit()
    assert outcomes == [("token", ACCEPTED)]
    assert pipeline.statistics() == {"payloads": 1, "readings": 1, "dead_letters": {}}


def test_the_key_of_a_timed_reading_is_its_content() -> None:
    key, flags = key_of(TIMED, redelivery=1)
    assert (key, flags) == key_of(TIMED, redelivery=2, redelivered=True) == key_of(TIMED)
    assert flags == ReadingFlag.NONE
    assert key != key_of(TIMED.replace(b"1,", b"2,"))[0]


def test_the_key_of_an_untimed_reading_is_its_delivery() -> None:
    first, flags = key_of(UNTIMED, redelivery=1)
    again, flags_again = key_of(UNTIMED, redelivery=1, redelivered=True)
    assert first == again
    assert (flags, flags_again) == (ReadingFlag.NONE, ReadingFlag.REDELIVERED)
    assert first != key_of(UNTIMED, redelivery=2)[0]


def test_without_an_identity_every_untimed_reading_is_new(
    router: RecordingRouter, outcomes: Outcomes
) -> None:
    pipeline = Pipeline(router)
    for _ in range(1000):
        pipeline.telemetry("t", "d", UNTIMED, NOW_MS, None, outcomes.done, 0)
    assert len({reading.key for reading in router.readings}) == 1000


@pytest.mark.parametrize(
    ("committed", "outcome"),
    [
        ((ACCEPTED, ACCEPTED, ACCEPTED), ACCEPTED),
        ((DUPLICATE, ACCEPTED, DUPLICATE), ACCEPTED),
        ((DUPLICATE, DUPLICATE, DUPLICATE), DUPLICATE),
        ((DUPLICATE, Refusal("a", ""), Refusal("b", "")), Refusal("a", "")),
    ],
)
def test_an_array_is_done_once(
    router: RecordingRouter, outcomes: Outcomes, committed: tuple[Outcome, ...], outcome: Outcome
) -> None:
    Pipeline(router).telemetry("t", "d", b'[{"a":1},{"a":1},{"a":2}]', NOW_MS, 7, outcomes.done, "token")
    assert [reading.values for reading in router.readings] == [[1.0], [1.0], [2.0]]
    assert len({reading.key for reading in router.readings}) == 3
    router.commit(*committed)
    assert outcomes == [("token", outcome)]


def test_what_cannot_be_decoded_is_dead_lettered_before_it_is_done(
    router: RecordingRouter, outcomes: Outcomes
) -> None:
    pipeline = Pipeline(router, source="coap")
    payload = b"{" + b"x" * 10_000
    pipeline.telemetry("devices/\x00d/telemetry", "d", payload, NOW_MS, 7, outcomes.done, "token")
    [letter] = router.messages
    assert isinstance(letter, DeadLetter)
    assert (letter.device_id, letter.source, letter.address) == ("d", "coap", r"devices/\x00d/telemetry")
    assert (letter.reason, letter.size_bytes, letter.received_ms) == ("malformed_json", 10_001, NOW_MS)
    assert letter.payload == payload[:4096]
    assert outcomes == []
    router.commit()
    [(token, outcome)] = outcomes
    assert token == "token"
    assert isinstance(outcome, Refusal)
    assert (outcome.code, outcome.dead_lettered) == ("malformed_json", True)
    assert pipeline.statistics()["dead_letters"] == {"malformed_json": 1}
    assert not router.readings


@pytest.mark.parametrize("device_id", ["", "a" * 129, "a/b", "a+", "#", "a\0", "a\nb", "a\x7f", "\ud800"])
def test_odd_device_ids_are_dead_lettered(
    router: RecordingRouter, outcomes: Outcomes, device_id: str
) -> None:
    assert not is_device_id(device_id)
    Pipeline(router).telemetry("t", device_id, TIMED, NOW_MS, 7, outcomes.done, 0)
    [letter] = router.messages
    assert isinstance(letter, DeadLetter)
    assert (letter.device_id, letter.reason) == ("", "bad_device_id")


@pytest.mark.parametrize(
    "device_id", ["a", "sensor-001", "a" * 128, "Gerät 7", "urn:dev:mac:0024befffe804ff1"]
)
def test_ordinary_device_ids_are_taken(device_id: str) -> None:
    assert is_device_id(device_id)


def test_bounds_are_passed_on(router: RecordingRouter, outcomes: Outcomes) -> None:
    pipeline = Pipeline(router, Bounds(max_payload_bytes=5))
    pipeline.telemetry("t", "d", UNTIMED, NOW_MS, None, outcomes.done, 0)
    assert pipeline.statistics()["dead_letters"] == {"too_large": 1}


def test_an_identity_from_elsewhere_is_the_key(router: RecordingRouter, outcomes: Outcomes) -> None:
    for key in (-(2**63), -1, 0, 2**63 - 1):
        Pipeline(router).telemetry("t", "d", TIMED, NOW_MS, 1, outcomes.done, 0, identity=key)
        assert router.readings[-1].key == key
