"""A device's registration, its answers to questions, and its connectivity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.merge_patch import merge_patch
from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    DeadLetter,
    Decommission,
    DeviceInfo,
    GetDevice,
    GetLatest,
    GetWindow,
    Location,
    Patch,
    RefreshRules,
    Refusal,
    Register,
)
from sensorium.actors.profile import Profile, WindowSpec
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver, around_of

PLACE = Location(latitude=52.5, longitude=13.4, address="Hall 3")


def info_of(outcome) -> DeviceInfo:
    assert isinstance(outcome, Answer)
    assert isinstance(outcome.value, DeviceInfo)
    return outcome.value


def test_register_answers_and_stores_what_was_said():
    d = Driver(register=False)
    info = info_of(d.send(Register(DEVICE_ID, TYPE, PLACE, {"floor": 3})))
    assert info == DeviceInfo(DEVICE_ID, TYPE, "active", PLACE, {"floor": 3}, T0_MS, T0_MS)
    (row,) = d.log.registrations
    assert (row.device_id, row.status, row.metadata) == (DEVICE_ID, "active", {"floor": 3})
    assert [e.kind for e in d.log.events] == ["registered"]


def test_registering_twice_is_a_conflict():
    outcome = Driver().send(Register(DEVICE_ID, "other"))
    assert isinstance(outcome, Refusal)
    assert (outcome.code, outcome.dead_lettered) == ("conflict", False)


@pytest.mark.parametrize(
    "message",
    [
        Patch(DEVICE_ID),
        Decommission(DEVICE_ID),
        GetDevice(DEVICE_ID),
        GetLatest(DEVICE_ID),
        GetWindow(DEVICE_ID, "t"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_an_unregistered_device_is_not_found(message):
    outcome = Driver(register=False).send(message)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "not_found"


class TestPatch:
    def test_keeps_what_is_none(self):
        d = Driver(register=False)
        d.send(Register(DEVICE_ID, TYPE, PLACE, {"floor": 3, "unit": "°C"}))
        d.now_ms += 5
        info = info_of(d.send(Patch(DEVICE_ID, metadata={"floor": None, "room": "a"})))
        assert info == DeviceInfo(
            DEVICE_ID, TYPE, "active", PLACE, {"unit": "°C", "room": "a"}, T0_MS, T0_MS + 5
        )
        assert d.log.registrations[-1].metadata == {"unit": "°C", "room": "a"}
        assert d.log.registrations[0].metadata == {"floor": 3, "unit": "°C"}, "earlier rows must not change"
        assert d.log.events[-1].kind == "updated"

    def test_replaces_location_and_type(self):
        d = Driver()
        info = info_of(d.send(Patch(DEVICE_ID, "tank", PLACE)))
        assert (info.device_type, info.location) == ("tank", PLACE)

    def test_a_new_type_brings_its_windows_and_keeps_those_that_stay(self):
        short, long = WindowSpec(60.0, 10.0), WindowSpec(3600.0, 60.0)
        d = Driver(around_of(profile=Profile(windows=(short, WindowSpec()))))
        d.around.profiles.by_type["tank"] = Profile(windows=(WindowSpec(), long))
        d.read({"t": 1.0}, 0)
        d.send(Patch(DEVICE_ID, "tank"))
        assert d.device.window("t", 60.0) is None
        assert d.device.window("t").count == 1
        fresh = d.device.window("t", 3600.0)
        assert (fresh.count, fresh.end_ms - fresh.start_ms) == (0, 3_600_000)
        assert fresh.start_ms <= T0_MS < fresh.end_ms

    # The examples of RFC 7396, appendix A, whose target and patch are objects.
    @pytest.mark.parametrize(
        ("target", "patch", "result"),
        [
            ({"a": "b"}, {"a": "c"}, {"a": "c"}),
            ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
            ({"a": "b"}, {"a": None}, {}),
            ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
            ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ],
    )
    def test_merges_metadata_as_the_rfc_shows(self, target, patch, result):
        d = Driver(register=False)
        d.send(Register(DEVICE_ID, TYPE, None, target))
        assert info_of(d.send(Patch(DEVICE_ID, metadata=patch))).metadata == result

    @given(
        *[
            st.dictionaries(
                st.sampled_from("abc"),
                st.recursive(
                    st.none() | st.integers() | st.lists(st.integers(), max_size=2),
                    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
                    max_leaves=6,
                ),
            )
        ]
        * 2
    )
    def test_a_second_time_changes_nothing(self, target, patch):
        once = merge_patch(target, patch)
        assert merge_patch(once, patch) == once


class TestDecommission:
    def test_refuses_readings_and_keeps_what_was(self):
        d = Driver()
        d.read({"t": 1.0}, 0)
        assert d.send(Decommission(DEVICE_ID)) is ACCEPTED
        outcome = d.read({"t": 2.0}, 1)
        assert isinstance(outcome, Refusal)
        assert (outcome.code, outcome.dead_lettered) == ("decommissioned", True)
        assert info_of(d.send(GetDevice(DEVICE_ID))).status == "decommissioned"
        assert d.latest == {"t": 1.0}

    def test_twice_is_as_once(self):
        d = Driver()
        d.send(Decommission(DEVICE_ID))
        events = len(d.log.events)
        assert d.send(Decommission(DEVICE_ID)) is ACCEPTED
        assert len(d.log.events) == events

    def test_patch_is_a_conflict(self):
        d = Driver()
        d.send(Decommission(DEVICE_ID))
        outcome = d.send(Patch(DEVICE_ID, metadata={"a": 1}))
        assert isinstance(outcome, Refusal)
        assert outcome.code == "conflict"

    def test_registering_again_revives_it_with_its_memory(self):
        d = Driver()
        d.read({"t": 1.0}, 0, key=1)
        d.send(Decommission(DEVICE_ID))
        d.now_ms += 1000
        info = info_of(d.send(Register(DEVICE_ID, "tank")))
        assert (info.status, info.device_type, info.registered_ms) == ("active", "tank", T0_MS)
        assert d.read({"t": 1.0}, 0, key=1).__class__.__name__ == "Duplicate"
        assert d.read({"t": 2.0}, 1) is ACCEPTED


class TestQuestions:
    def test_latest(self):
        d = Driver()
        d.read({"t": 1.5, "on": True, "mode": "eco"}, 7)
        outcome = d.send(GetLatest(DEVICE_ID))
        assert isinstance(outcome, Answer)
        assert outcome.value.device_type == TYPE
        assert {n: (v.value, v.time_ms) for n, v in outcome.value.metrics.items()} == {
            "t": (1.5, T0_MS + 7),
            "on": (True, T0_MS + 7),
            "mode": ("eco", T0_MS + 7),
        }

    def test_window(self):
        d = Driver(around_of(profile=Profile(windows=(WindowSpec(), WindowSpec(60.0, 20.0)))))
        for time_ms, value in ((0, 4.0), (60_000, 1.0), (61_000, 2.0)):
            d.read({"t": value}, time_ms)
        default = d.send(GetWindow(DEVICE_ID, "t"))
        short = d.send(GetWindow(DEVICE_ID, "t", 60.0))
        assert isinstance(default, Answer)
        assert isinstance(short, Answer)
        assert (default.value.count, default.value.sum, default.value.max) == (3, 7.0, 4.0)
        assert (short.value.count, short.value.first, short.value.last) == (2, 1.0, 2.0)
        assert short.value.stddev == pytest.approx(0.5)
        assert short.value.end_ms - short.value.start_ms == 60_000

    def test_window_that_has_run_empty(self):
        d = Driver()
        d.read({"t": 1.0}, 0)
        d.read({"h": 1.0}, 3_600_000)
        outcome = d.send(GetWindow(DEVICE_ID, "t"))
        assert isinstance(outcome, Answer)
        assert (outcome.value.count, outcome.value.mean, outcome.value.last) == (0, None, None)

    @pytest.mark.parametrize(("metric", "length_s"), [("nothing", None), ("t", 61.0), ("mode", None)])
    def test_window_that_there_is_not(self, metric, length_s):
        d = Driver()
        d.read({"t": 1.0, "mode": "eco"}, 0)
        outcome = d.send(GetWindow(DEVICE_ID, metric, length_s))
        assert isinstance(outcome, Refusal)
        assert outcome.code == "not_found"

    def test_connectivity(self):
        d = Driver(around_of(profile=Profile(offline_after_s=10.0)))

        def seen():
            info = info_of(d.send(GetDevice(DEVICE_ID)))
            return info.connectivity, info.last_seen_ms

        assert seen() == ("never_seen", None)
        d.read({"t": 1.0}, -86_400_000)  # an old timestamp: what counts is when it came
        assert seen() == ("online", T0_MS)
        d.now_ms += 10_000
        assert seen() == ("online", T0_MS)
        d.now_ms += 1
        assert seen() == ("offline", T0_MS)
        d.read({"t": 1.0}, 0, received_ms=T0_MS - 5)  # received before, run later
        assert seen() == ("offline", T0_MS)

    def test_asking_changes_nothing(self):
        d = Driver()
        d.read({"t": 1.0}, 0)
        events, head = len(d.log.events), d.device.shard.head
        for message in (GetDevice(DEVICE_ID), GetLatest(DEVICE_ID), GetWindow(DEVICE_ID, "t")):
            d.send(message)
        assert (len(d.log.events), d.device.shard.head) == (events, head)


def test_a_dead_letter_passes_through():
    d = Driver(register=False)
    letter = DeadLetter("", "mqtt", "devices/+/x", "malformed_json", "not JSON", b"{", 1, T0_MS)
    assert d.send(letter) is ACCEPTED
    assert d.log.dead_letters == [letter]


def test_refreshing_the_rules_of_no_device_is_nothing():
    assert Driver(register=False).send(RefreshRules(DEVICE_ID)) is ACCEPTED
