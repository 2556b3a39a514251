"""Ids that devices give their messages: what is one, and what it makes of the keys of readings."""

import json
from typing import Any

import pytest
from tests.recording_router import RecordingRouter, Routed

from sensorium.actors.messages import ReadingFlag
from sensorium.ingest.decode import TelemetryDecoder
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.message_ids import Identified, identified
from sensorium.ingest.mqtt_wire import Properties
from sensorium.ingest.pipeline import Pipeline

NOW_MS = 1_795_459_094_744
decode = TelemetryDecoder().decode


def of(content: Any, properties: Properties | None = None, device_id: str = "d") -> Identified:
    return identified(device_id, decode(json.dumps(content).encode(), NOW_MS), properties)


def prop(*values: str) -> Properties:
    return {"user_property": [("other", "x"), *(("message_id", value) for value in values)]}


def test_an_id_is_no_metric() -> None:
    said = of({"message_id": "m-1", "t": 1, "timestamp": NOW_MS})
    assert said.readings == [(NOW_MS, ("t",), [1.0], True)]
    assert said.identity is not None
    assert -(2**63) <= said.identity < 2**63


def test_the_same_id_is_the_same_message_of_one_device() -> None:
    assert of({"message_id": 7, "t": 1}).identity == of({"message_id": 7, "t": 2}).identity
    assert of({"message_id": "7", "t": 1}).identity == of({"t": 1}, prop("7")).identity
    assert of({"message_id": 7, "t": 1}).identity != of({"message_id": 8, "t": 1}).identity
    assert of({"message_id": 7, "t": 1}).identity != of({"message_id": 7, "t": 1}, device_id="e").identity


def test_without_an_id_there_is_none() -> None:
    assert of({"t": 1}) == Identified([(NOW_MS, ("t",), [1.0], False)], None)
    assert of({"t": 1}, prop()).identity is None
    assert of({"text": 'a "message_id"'}).identity is None


def test_an_array_has_one_of_its_own_or_one_each() -> None:
    each = [{"message_id": n, "t": n} for n in range(2)]
    assert [reading[1] for reading in of(each).readings] == [("t",), ("t",)]
    assert of(each).identity not in (None, of(each[:1]).identity)
    assert of([{"t": 1}, {"t": 2}], prop("a")).identity is not None
    with pytest.raises(Undecodable, match="some have none"):
        of([{"message_id": 1, "t": 1}, {"t": 2}])


@pytest.mark.parametrize("wrong", ["", "x" * 257, True, 1.5, 2.0**53 + 2])
def test_what_cannot_be_an_id_is_refused(wrong: Any) -> None:
    with pytest.raises(Undecodable, match="message_id is a text"):
        of({"message_id": wrong, "t": 1})
    with pytest.raises(Undecodable, match="no metric besides"):
        of({"message_id": 1})


def test_a_repetition_has_the_key_of_the_first_whenever_it_comes() -> None:
    keys = set()
    for content, redelivery in (({"message_id": 7, "t": 1}, 1), ({"t": 1, "message_id": 7, "u": 2}, 2)):
        router = RecordingRouter()
        said = of(content)
        Pipeline(router).telemetry(
            *("t", "d", json.dumps(content).encode(), NOW_MS + redelivery),
            *(None if said.identity is None else said.identity % 2**64, lambda _, __: None, 0),
            decode=lambda _, __, said=said: said.readings,  # type: ignore[misc]
            identity=said.identity,
            known_again=True,
        )
        reading: Routed
        [reading] = router.readings
        keys.add(reading.key)
        assert reading.flags == ReadingFlag.REDELIVERED
    assert len(keys) == 1
