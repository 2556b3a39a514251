"""Sparkplug messages to readings, presence and rebirths: sessions of edge nodes and their devices."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recording_router import RecordingRouter

from sensorium.actors.messages import ACCEPTED, DeadLetter, Outcome, Patch, PresenceSaid, Refusal
from sensorium.ingest.pipeline import Pipeline
from sensorium.ingest.sparkplug import session
from sensorium.ingest.sparkplug.adapter import SparkplugAdapter
from sensorium.ingest.sparkplug.address import Address, Naming, address_of, subscriptions
from sensorium.ingest.sparkplug.datatypes import DataType
from sensorium.ingest.sparkplug.encode import encode
from sensorium.ingest.sparkplug.payload import DataSet, Metric, Payload, Template
from sensorium.ingest.sparkplug.values import values

NOW_MS = 1_704_110_460_000
NODE = Address("plant", "line1")
REBIRTH = Metric("Node Control/Rebirth", datatype=DataType.BOOLEAN, raw=False)


def bd_seq(number: int) -> Metric:
    return Metric("bdSeq", datatype=DataType.UINT64, raw=number)


def temperature(value: float | None, **changes: Any) -> Metric:
    return Metric("Oven/Temperature", 3, DataType.DOUBLE, raw=value, **changes)


class World:
    def __init__(self, naming: Naming | None = None) -> None:
        self.router = RecordingRouter()
        self.asked: list[Address] = []
        self.outcomes: list[Outcome] = []
        self.adapter = SparkplugAdapter(
            Pipeline(self.router, source="sparkplug"), self.router, naming or Naming(), self.asked.append
        )
        self.now_ms = NOW_MS

    def say(
        self,
        kind: str,
        *metrics: Metric,
        seq: int | None = None,
        time_ms: int | None = NOW_MS,
        redelivered: bool = False,
    ) -> None:
        device = "/oven" if kind.startswith("D") else ""
        self.raw(f"spBv1.0/plant/{kind}/line1{device}", encode(Payload(time_ms, metrics, seq)), redelivered)

    def raw(self, topic: str, payload: bytes, redelivered: bool = False) -> None:
        self.adapter.take(
            topic,
            payload,
            self.now_ms,
            1,
            lambda _, outcome: self.outcomes.append(outcome),
            None,
            redelivered=redelivered,
        )

    def readings(self) -> list[tuple[str, int, dict[str, Any]]]:
        read = [
            (r.device_id, r.time_ms, dict(zip(r.names, r.values, strict=True))) for r in self.router.readings
        ]
        self.router.readings.clear()
        return read

    def messages(self, kind: type) -> list[Any]:
        found = [message for message in self.router.messages if isinstance(message, kind)]
        self.router.messages = [m for m in self.router.messages if not isinstance(m, kind)]
        return found

    def letters(self) -> list[str]:
        return [letter.reason for letter in self.messages(DeadLetter)]

    def begin(self, number: int = 1) -> None:
        self.say("NBIRTH", bd_seq(number), REBIRTH, Metric("load", 1, DataType.INT32, raw=-5), seq=0)
        self.say(
            "DBIRTH",
            temperature(20.0, properties={"engUnit": "Cel"}),
            Metric("on", 4, DataType.BOOLEAN),
            seq=1,
        )


def test_births_are_readings_presence_and_what_metadata_says() -> None:
    world = World()
    world.begin()
    assert world.readings() == [
        ("plant:line1", NOW_MS, {"bdSeq": 1.0, "load": -5.0}),
        ("plant:line1:oven", NOW_MS, {"Oven/Temperature": 20.0}),
    ]
    assert world.messages(PresenceSaid) == [
        PresenceSaid("plant:line1", True),
        PresenceSaid("plant:line1:oven", True),
    ]
    route = {"group": "plant", "node": "line1"}
    assert [patch.metadata for patch in world.messages(Patch)] == [
        {"sparkplug": route},
        {"sparkplug": {**route, "device": "oven", "units": {"Oven/Temperature": "Cel"}}},
    ]
    assert not world.outcomes
    world.router.commit()
    assert world.outcomes == [ACCEPTED, ACCEPTED]
    assert world.asked == []


def test_an_edge_node_without_metrics_is_heard_of() -> None:
    world = World()
    world.say("NBIRTH", bd_seq(4), REBIRTH, seq=0)
    assert world.readings() == [("plant:line1", NOW_MS, {"bdSeq": 4.0})]
    world.say("NDEATH", bd_seq(4))
    assert world.readings() == []


def test_metadata_is_told_once_unless_the_device_was_not_there() -> None:
    world = World()
    world.begin()
    world.router.commit(*[Refusal("not_found", "no such device")] * 6)
    world.messages(Patch)
    world.begin()
    assert len(world.messages(Patch)) == 2
    world.router.commit()
    world.begin()
    assert world.messages(Patch) == []


def test_data_may_go_by_alias() -> None:
    world = World()
    world.begin()
    world.readings()
    world.say("DDATA", Metric(alias=3, raw=21.5, time_ms=NOW_MS - 5), seq=2)
    world.say("NDATA", Metric(alias=1, raw=2**32 - 1), seq=3)
    assert world.readings() == [
        ("plant:line1:oven", NOW_MS - 5, {"Oven/Temperature": 21.5}),
        ("plant:line1", NOW_MS, {"load": -1.0}),
    ]
    assert world.asked == []


def test_metrics_of_other_times_are_readings_of_their_own() -> None:
    world = World()
    world.begin()
    world.readings()
    past = [temperature(float(n), time_ms=NOW_MS - n, is_historical=True) for n in (3, 2)]
    world.say("DDATA", *past, temperature(1.0), temperature(0.0), seq=2)
    assert [(time_ms - NOW_MS, read["Oven/Temperature"]) for _, time_ms, read in world.readings()] == [
        (-3, 3.0),
        (-2, 2.0),
        (0, 1.0),
        (0, 0.0),
    ]


def test_null_bad_and_stale_values_are_none() -> None:
    world = World()
    world.begin()
    world.readings()
    world.say("DDATA", temperature(None, is_null=True), seq=2)
    assert world.readings() == []
    assert world.outcomes == [ACCEPTED]
    for seq, quality in enumerate((0, 500), 3):
        world.say("DDATA", temperature(9.0, properties={"Quality": quality}), seq=seq)
        assert [read for *_, read in world.readings()] == [{"Oven/Temperature.quality": float(quality)}]
    world.say("DDATA", temperature(9.0, properties={"Quality": 192}), seq=5)
    assert [read for *_, read in world.readings()] == [
        {"Oven/Temperature.quality": 192.0, "Oven/Temperature": 9.0}
    ]


def test_a_gap_asks_for_one_rebirth_and_loses_no_data() -> None:
    world = World()
    world.begin()
    world.readings()
    world.say("DDATA", temperature(1.0), seq=3)
    world.say("DDATA", temperature(2.0), seq=4)
    assert [read["Oven/Temperature"] for *_, read in world.readings()] == [1.0, 2.0]
    assert world.asked == [NODE]
    world.begin()
    world.say("DDATA", temperature(2.0), seq=2)
    assert world.asked == [NODE]


def test_sequence_numbers_begin_again_after_255() -> None:
    world = World()
    world.begin()
    for number in range(2, 600):
        world.say("DDATA", temperature(1.0), seq=number % 256)
    assert world.asked == []


def test_a_repetition_by_the_broker_is_no_gap() -> None:
    world = World()
    world.begin()
    world.say("DDATA", temperature(1.0), seq=2)
    world.say("DDATA", temperature(1.0), seq=2, redelivered=True)
    world.say("DDATA", temperature(1.0), seq=3)
    assert world.asked == []


def test_it_is_asked_again_only_after_a_while() -> None:
    world = World()
    for wait_ms in (0, session.REBIRTH_WAIT_MS, 2 * session.REBIRTH_WAIT_MS, 4 * session.REBIRTH_WAIT_MS):
        asked = len(world.asked)
        world.now_ms += wait_ms - 1 if wait_ms else 0
        if wait_ms:
            world.say("NDATA", Metric(alias=1, raw=1), seq=9)
            assert len(world.asked) == asked
            world.now_ms += 1
        world.say("NDATA", Metric(alias=1, raw=1), seq=10)
        assert len(world.asked) == asked + 1


def test_what_no_birth_explains_is_a_dead_letter_and_a_rebirth() -> None:
    world = World()
    world.say("DDATA", Metric(alias=3, raw=1.0), seq=8)
    assert world.letters() == ["unknown_metric"]
    assert world.asked == [NODE]
    # What says its own name and type needs no birth.
    world.say("DDATA", temperature(7.0), seq=9)
    assert [read for *_, read in world.readings()] == [{"Oven/Temperature": 7.0}]


def test_an_alias_that_the_birth_did_not_name_asks_too() -> None:
    world = World()
    world.begin()
    world.say("DDATA", Metric(alias=77, raw=1.0), seq=2)
    assert world.letters() == ["unknown_metric"]
    assert world.asked == [NODE]


def test_the_death_of_a_node_takes_its_devices_with_it() -> None:
    world = World()
    world.begin()
    world.messages(PresenceSaid)
    world.say("NDEATH", bd_seq(1))
    assert world.messages(PresenceSaid) == [
        PresenceSaid("plant:line1:oven", False),
        PresenceSaid("plant:line1", False),
    ]


def test_the_death_of_a_session_that_was_replaced_is_not_that_of_the_node() -> None:
    world = World()
    world.begin(1)
    world.begin(2)
    world.messages(PresenceSaid)
    world.say("NDEATH", bd_seq(1))
    assert world.messages(PresenceSaid) == []
    assert world.adapter.statistics()["stale_deaths"] == 1
    world.say("NDEATH", bd_seq(2))
    assert len(world.messages(PresenceSaid)) == 2


def test_a_new_session_ends_the_devices_of_the_one_before() -> None:
    world = World()
    world.begin(1)
    world.messages(PresenceSaid)
    world.say("NBIRTH", bd_seq(2), seq=0)
    assert PresenceSaid("plant:line1:oven", False) in world.messages(PresenceSaid)
    world.say("DDATA", Metric(alias=3, raw=1.0), seq=1)
    assert world.letters() == ["unknown_metric"]


def test_a_rebirth_ends_nobody() -> None:
    world = World()
    world.begin(1)
    world.messages(PresenceSaid)
    world.begin(1)
    assert all(said.online for said in world.messages(PresenceSaid))


def test_a_device_dies_alone() -> None:
    world = World()
    world.begin()
    world.messages(PresenceSaid)
    world.say("DDEATH", seq=2)
    assert world.messages(PresenceSaid) == [PresenceSaid("plant:line1:oven", False)]
    world.say("NDATA", Metric(alias=1, raw=1), seq=3)
    assert world.asked == []


def test_large_births_become_several_readings() -> None:
    world = World()
    world.say("NBIRTH", *(Metric(f"m{n}", n, DataType.INT32, raw=n) for n in range(600)), seq=0)
    assert [len(read) for *_, read in world.readings()] == [256, 256, 88]


@pytest.mark.parametrize(
    ("metric", "read"),
    [
        (
            Metric(datatype=DataType.DATASET, raw=DataSet(("a", "b"), ((1, None), (True, "x")))),
            {"m.0.a": 1.0, "m.1.a": True, "m.1.b": "x"},
        ),
        (
            Metric(
                datatype=DataType.TEMPLATE,
                raw=Template((Metric("rpm", datatype=DataType.INT8, raw=255),), {"size": 3}),
            ),
            {"m/rpm": -1.0, "m/size": 3.0},
        ),
        (Metric(datatype=DataType.TEMPLATE, raw=Template((), {"size": 3}, is_definition=True)), {}),
        (Metric(datatype=DataType.BYTES, raw=b"\1\2"), {"m": "AQI="}),
        (Metric(datatype=DataType.FILE, raw=bytes(4000)), {}),
        (Metric(datatype=DataType.UINT8_ARRAY, raw=b"\1\2"), {"m.0": 1.0, "m.1": 2.0}),
        (Metric(datatype=DataType.DOUBLE, raw=float("nan")), {}),
    ],
)
def test_compound_values_become_several(metric: Metric, read: dict[str, Any]) -> None:
    assert metric.datatype is not None
    assert dict(values("m", metric.datatype, metric)) == read


def test_ids_are_made_as_configured() -> None:
    naming = Naming(node="{node}", device="{device}@{node}")
    assert naming.id_of(Address("g", "n")) == "n"
    assert naming.id_of(Address("g", "{device}", "d")) == "d@{device}"
    world = World(naming)
    world.begin()
    assert [device_id for device_id, *_ in world.readings()] == ["line1", "oven@line1"]


@pytest.mark.parametrize(
    "topic",
    [
        "spBv1.0/plant/NDATA/line1/x",
        "spBv1.0/plant/DDATA/line1",
        "spBv1.0/plant/NCMD/line1",
        "a/b",
        "spBv1.0//NDATA/n",
    ],
)
def test_other_topics_are_dead_letters(topic: str) -> None:
    world = World()
    world.raw(topic, b"")
    assert world.letters() == ["bad_topic"]


def test_groups_are_subscribed_to_by_kind() -> None:
    assert len(subscriptions(())) == 6
    assert "spBv1.0/plant/DDATA/+/+" in subscriptions(("plant",))


@given(st.sampled_from(["NBIRTH", "NDATA", "NDEATH", "DBIRTH", "DDATA", "DDEATH"]), st.binary(max_size=40))
def test_noise_is_answered_once(kind: str, noise: bytes) -> None:
    world = World()
    world.begin()
    device = "/oven" if kind.startswith("D") else ""
    world.raw(f"spBv1.0/plant/{kind}/line1{device}", noise)
    world.router.commit()
    assert len(world.outcomes) == 3


def test_who_was_there_before_is_asked_and_dies_with_its_node() -> None:
    world = World()
    known = [Address("plant", "line1", "oven"), NODE, Address("plant", "line1", "pump")]
    world.adapter.remember(known, NOW_MS)
    assert world.asked == [NODE]
    world.say("DDATA", Metric(alias=3, raw=1.0), seq=8)
    assert world.letters() == ["unknown_metric"]
    assert world.asked == [NODE]
    world.say("NDEATH", bd_seq(1))
    assert world.messages(PresenceSaid) == [
        PresenceSaid("plant:line1:oven", False),
        PresenceSaid("plant:line1:pump", False),
        PresenceSaid("plant:line1", False),
    ]


@pytest.mark.parametrize(
    ("route", "address"),
    [
        ({"group": "g", "node": "n", "units": {}}, Address("g", "n")),
        ({"group": "g", "node": "n", "device": "d"}, Address("g", "n", "d")),
        ({"group": "g"}, None),
        ({"group": "g", "node": 1}, None),
        ({"group": "g", "node": "#"}, None),
    ],
)
def test_addresses_are_read_from_metadata(route: dict[str, Any], address: Address | None) -> None:
    assert address_of(route) == address
