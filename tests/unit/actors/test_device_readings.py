"""What a device does with readings: order, duplicates, lateness, growth and refusals."""

import msgspec
import pytest

from sensorium.actors.messages import (
    ACCEPTED,
    DEAD_LETTER_PAYLOAD_BYTES,
    DUPLICATE,
    Decommission,
    GetDevice,
    Reading,
    Refusal,
)
from sensorium.actors.metrics import metric_set
from sensorium.actors.profile import Profile
from sensorium.actors.records import Commit
from sensorium.actors.seen import REMEMBERED
from tests.unit.actors.driving import DEVICE_ID, LATE, REDELIVERED, T0_MS, TYPE, Driver, around_of


def refusal_code(outcome):
    assert isinstance(outcome, Refusal)
    return outcome.code


def test_a_reading_becomes_a_row_in_the_shards_order():
    d = Driver(head=41)
    assert d.read({"temperature": 23.5, "door": True}, 5, key=7) is ACCEPTED
    assert [e.offset for e in d.log.events] == [42]
    (row,) = d.log.readings
    assert row == (
        d.device.shard.number,
        43,
        d.device.key,
        T0_MS + 5,
        7,
        0,
        metric_set(("temperature", "door"), "nb"),
        [23.5, True],
    )
    assert d.latest == {"temperature": 23.5, "door": True}


class TestDuplicates:
    def test_of_the_memory(self):
        d = Driver()
        d.read({"t": 1.0}, 0, key=1)
        assert d.read({"t": 1.0}, 0, key=1) is DUPLICATE
        assert len(d.log.readings) == 1

    def test_same_time_with_another_key_is_none(self):
        d = Driver()
        d.read({"t": 1.0}, 0, key=1)
        assert d.read({"t": 2.0}, 0, key=2) is ACCEPTED
        assert d.latest == {"t": 2.0}

    def test_same_key_at_another_time_is_none(self):
        d = Driver()
        for time_ms in (0, 10, 5):
            assert d.read({"t": 1.0}, time_ms, key=1) is ACCEPTED

    def test_older_than_the_memory_is_asked_of_the_log(self):
        d = Driver()
        for n in range(REMEMBERED + 1):
            d.read({"t": float(n)}, n, key=n)
        forgotten = Reading(DEVICE_ID, T0_MS, T0_MS, 0, 0, [0.0])
        assert d.device.must_ask(forgotten)
        assert d.read({"t": 0.0}, 0, key=0) is DUPLICATE
        assert d.read({"t": 0.0}, 0, key=-1) is ACCEPTED

    def test_what_the_memory_reaches_is_not_asked(self):
        d = Driver()
        for n in range(REMEMBERED):
            d.read({"t": float(n)}, n, key=n)
        for n in range(REMEMBERED):
            assert not d.device.must_ask(Reading(DEVICE_ID, T0_MS + n, T0_MS, n, 0, [0.0]))
            assert d.read({"t": float(n)}, n, key=n) is DUPLICATE

    def test_redelivered_is_known_by_its_key_alone(self):
        d = Driver()
        d.read({"t": 1.0}, 0, key=1)
        again = Reading(DEVICE_ID, T0_MS + 900, T0_MS, 1, 0, [1.0], REDELIVERED)
        assert not d.device.must_ask(again)
        assert d.read({"t": 1.0}, 900, key=1, flags=REDELIVERED) is DUPLICATE

    def test_redelivered_beyond_the_memory_is_asked_without_a_time(self):
        d = Driver()
        for n in range(REMEMBERED + 1):
            d.read({"t": float(n)}, n, key=n)
        again = Reading(DEVICE_ID, T0_MS + 900, T0_MS, 0, 0, [1.0], REDELIVERED)
        assert d.device.must_ask(again)
        assert d.device.identity(again) == (d.device.key, None, 0)
        assert d.read({"t": 0.0}, 900, key=0, flags=REDELIVERED) is DUPLICATE
        assert d.read({"t": 0.0}, 900, key=77, flags=REDELIVERED) is ACCEPTED
        assert d.log.readings[-1].flags == REDELIVERED

    def test_a_duplicate_changes_nothing_at_all(self):
        d = Driver()
        d.read({"t": 1.0}, 0, key=1)
        d.now_ms += 60_000
        d.read({"t": 1.0}, 0, key=1)
        assert d.device.info(d.now_ms, d.around).last_seen_ms == T0_MS


class TestLateness:
    def test_within_the_bound_corrects_the_window_and_not_the_latest(self):
        d = Driver()
        d.read({"t": 10.0}, 240_000)
        assert d.read({"t": 20.0}, 0) is ACCEPTED
        assert d.latest == {"t": 10.0}
        window = d.device.window("t")
        assert (window.count, window.mean, window.first, window.last) == (2, 15.0, 20.0, 10.0)
        assert d.log.readings[-1].flags == 0

    def test_the_bound_itself_is_not_late(self):
        d = Driver()
        d.read({"t": 10.0}, 300_000)
        d.read({"t": 20.0}, 0)
        assert d.log.readings[-1].flags == 0

    def test_beyond_the_bound_is_stored_and_flagged_only(self):
        d = Driver()
        d.read({"t": 10.0}, 300_001)
        assert d.read({"t": 20.0, "new": 1.0}, 0, flags=REDELIVERED) is ACCEPTED
        assert d.log.readings[-1].flags == LATE | REDELIVERED
        assert d.latest == {"t": 10.0}
        assert d.device.window("t").count == 1

    def test_latest_is_kept_by_metric(self):
        d = Driver()
        d.read({"t": 1.0, "h": 50.0}, 1000)
        d.read({"h": 60.0}, 3000)
        d.read({"t": 2.0, "h": 55.0}, 2000)
        newest = d.device.newest_values()
        assert {n: (v.value, v.time_ms - T0_MS) for n, v in newest.metrics.items()} == {
            "t": (2.0, 2000),
            "h": (60.0, 3000),
        }

    def test_of_equal_times_the_last_to_come_is_latest(self):
        d = Driver()
        d.read({"t": 1.0}, 0)
        d.read({"t": 2.0}, 0)
        assert d.latest == {"t": 2.0}


class TestMetrics:
    def test_the_set_grows_at_its_end_and_rows_carry_the_set_of_their_time(self):
        d = Driver()
        d.read({"a": 1.0, "b": 2.0}, 0)
        d.read({"c": "on", "b": 3.0}, 1)
        d.read({"b": 4.0, "a": 5.0, "c": "off"}, 2)
        assert [r.metric_set.names for r in d.log.readings] == [("a", "b"), ("a", "b", "c"), ("a", "b", "c")]
        assert [list(r.values) for r in d.log.readings] == [[1.0, 2.0], [None, 3.0, "on"], [5.0, 4.0, "off"]]

    def test_rows_are_not_changed_by_later_readings(self):
        d = Driver()
        for time_ms, metrics in enumerate(
            [{"a": 1.0}, {"b": 2.0}, {"a": 3.0}, {"a": 4.0, "b": 5.0}, {"b": 6.0}]
        ):
            d.read(metrics, time_ms)
        assert [list(r.values) for r in d.log.readings] == [
            [1.0],
            [None, 2.0],
            [3.0, None],
            [4.0, 5.0],
            [None, 6.0],
        ]

    @pytest.mark.parametrize(
        ("first", "then", "words"),
        [
            (1.0, True, "metric m has always been a number and is now true or false"),
            (1.0, "one", "metric m has always been a number and is now text"),
            (True, 1.0, "metric m has always been true or false and is now a number"),
            ("on", False, "metric m has always been text and is now true or false"),
        ],
    )
    @pytest.mark.parametrize("beside", [{}, {"new": 1.0}])
    def test_a_changed_kind_is_refused(self, first, then, words, beside):
        d = Driver()
        d.read({"m": first}, 0)
        outcome = d.read({"m": then, **beside}, 1)
        assert outcome == Refusal("wrong_type", words, dead_lettered=True)
        assert d.read({"m": first}, 2) is ACCEPTED

    def test_a_changed_kind_is_refused_on_the_quick_path_too(self):
        d = Driver()
        names = ("a", "b")
        for n, values in enumerate([[1.0, 2.0], [1.0, True], [3.0, 4.0]]):
            reading = Reading(DEVICE_ID, T0_MS + n, T0_MS, n, 0, values)
            d.device.read(reading, names, T0_MS, d.around, d.log)
        assert [r.values for r in d.log.readings] == [[1.0, 2.0], [3.0, 4.0]]
        assert [letter.reason for letter in d.log.dead_letters] == ["wrong_type"]

    def test_too_many_are_refused_and_the_old_ones_still_work(self):
        d = Driver(around_of(profile=Profile(max_metrics=2)))
        d.read({"a": 1.0}, 0)
        assert refusal_code(d.read({"b": 1.0, "c": 1.0}, 1)) == "too_many_metrics"
        assert d.read({"b": 1.0}, 2) is ACCEPTED
        assert refusal_code(d.read({"c": 1.0}, 3)) == "too_many_metrics"
        assert d.latest == {"a": 1.0, "b": 1.0}

    def test_names_that_repeat_are_one_metric(self):
        d = Driver()
        reading = Reading(DEVICE_ID, T0_MS, T0_MS, 1, 0, [1.0, 2.0])
        assert d.device.read(reading, ("a", "a"), T0_MS, d.around, Commit()) is ACCEPTED
        assert d.latest == {"a": 2.0}
        clash = Reading(DEVICE_ID, T0_MS, T0_MS, 2, 0, [1.0, "x"])
        assert refusal_code(d.device.read(clash, ("b", "b"), T0_MS, d.around, Commit())) == "wrong_type"

    def test_a_reading_without_metrics_is_a_sign_of_life(self):
        d = Driver()
        d.read({"a": 1.0}, 0)
        assert d.read({}, 1) is ACCEPTED
        assert d.latest == {"a": 1.0}
        assert d.read({"a": 2.0}, 2) is ACCEPTED
        assert d.latest == {"a": 2.0}

    def test_a_first_reading_without_metrics(self):
        d = Driver()
        assert d.read({}, 0) is ACCEPTED
        assert d.read({"a": 2.0}, 1) is ACCEPTED
        assert d.latest == {"a": 2.0}


class TestUnregistered:
    def test_is_dead_lettered_with_what_came(self):
        d = Driver(register=False)
        d.now_ms += 9
        assert refusal_code(d.read({"t": 1.5, "on": True}, 5, key=3)) == "unregistered"
        (letter,) = d.log.dead_letters
        assert (letter.device_id, letter.reason, letter.received_ms) == (DEVICE_ID, "unregistered", T0_MS + 9)
        assert msgspec.json.decode(letter.payload) == {"timestamp": T0_MS + 5, "t": 1.5, "on": True}
        assert letter.size_bytes == len(letter.payload)

    def test_a_long_payload_is_cut_and_its_size_kept(self):
        d = Driver(register=False)
        d.read({"t": "x" * 10_000}, 0)
        (letter,) = d.log.dead_letters
        assert len(letter.payload) == DEAD_LETTER_PAYLOAD_BYTES
        assert letter.size_bytes > 10_000

    def test_is_registered_at_its_first_reading_where_that_is_allowed(self):
        d = Driver(around_of(auto=TYPE), register=False)
        assert d.read({"t": 1.0}, 0) is ACCEPTED
        assert [(r.device_id, r.device_type) for r in d.log.registrations] == [(DEVICE_ID, TYPE)]
        assert [e.kind for e in d.log.events] == ["registered"]
        d.read({"t": 2.0}, 1)
        assert len(d.log.registrations) == 1

    def test_a_reading_that_is_refused_registers_nothing(self):
        d = Driver(around_of(auto=TYPE, profile=Profile(max_metrics=1)), register=False)
        assert refusal_code(d.read({"a": 1.0, "b": 1.0}, 0)) == "too_many_metrics"
        assert refusal_code(d.send(GetDevice(DEVICE_ID))) == "not_found"

    def test_a_decommissioned_device_is_not_registered_again_by_a_reading(self):
        d = Driver(around_of(auto=TYPE))
        d.send(Decommission(DEVICE_ID))
        assert refusal_code(d.read({"t": 1.0}, 0)) == "decommissioned"


def test_a_reading_has_a_turn_of_its_own():
    d = Driver()
    with pytest.raises(TypeError, match=r"Device\.read"):
        d.send(Reading(DEVICE_ID, T0_MS, T0_MS, 1, 0, []))
