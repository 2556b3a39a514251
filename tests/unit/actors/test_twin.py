"""The twin of a device: its documents, what the device is told of them, and when."""

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.footprint import footprint_bytes
from sensorium.actors.merge_patch import difference, merge_patch, same
from sensorium.actors.messages import (
    Answer,
    ChangeTwin,
    ClaimTwin,
    Decommission,
    GetTwin,
    Patch,
    PresenceSaid,
    Refusal,
    Register,
    TakeTwin,
    TwinTelling,
    TwinTold,
    TwinUntold,
)
from sensorium.actors.twin import FIRST_WAIT_MS, MAX_WAIT_MS, TwinInfo
from sensorium.actors.twin_documents import (
    MAX_REMOVED,
    NOTHING,
    Document,
    FieldWritten,
    delta,
    patched,
    pointers,
    remaining,
    undone,
)
from tests.unit.actors.driving import DEVICE_ID, T0_MS, TYPE, Driver

leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, "a", "b"])
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc/~"), inner, max_size=3),
    max_leaves=8,
)
patches = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


def desire(driver: Driver, **values: Any) -> TwinInfo:
    outcome = driver.send(ChangeTwin(DEVICE_ID, desired=values, by="test"))
    assert isinstance(outcome, Answer)
    info: TwinInfo = outcome.value
    return info


def report(driver: Driver, **values: Any) -> None:
    assert isinstance(driver.send(ChangeTwin(DEVICE_ID, reported=values, by="mqtt")), Answer)


def claimed(driver: Driver) -> tuple[int, dict[str, Any]] | None:
    outcome = driver.send(ClaimTwin(DEVICE_ID))
    assert isinstance(outcome, Answer)
    return None if outcome.value is None else (outcome.value.version, outcome.value.delta)


def ready(driver: Driver) -> bool:
    state = driver.device.twin.state
    assert state == driver.log.twins[-1]
    assert state is not None
    return state.ready


@given(st.lists(st.tuples(patches, st.booleans()), max_size=6))
def test_every_change_can_be_undone_and_patches_mean_what_rfc_7396_says(
    steps: list[tuple[dict[str, Any], bool]],
) -> None:
    document, way = NOTHING, []
    for n, (patch, replace) in enumerate(steps):
        expected = merge_patch({} if replace else document.values, patch)
        result = patched(document, patch, n, str(n), replace=replace)
        if result is None:
            assert same(document.values, expected)
            continue
        after, change = result
        assert same(after.values, expected)
        assert same(merge_patch(document.values, change.patch), after.values)
        assert set(after.fields) == set(pointers(after.values))
        assert all(after.fields[p].by == str(n) for p in pointers(patch) if p in after.fields)
        way.append((document, change))
        document = after
    for before, change in reversed(way):
        document = undone(document, change)
        assert (document, same(document.values, before.values)) == (before, True)


@given(patches, patches)
def test_the_delta_is_what_makes_the_reported_hold_all_that_is_desired(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    desired, reported = merge_patch({}, one), merge_patch({}, other)
    delta = remaining(desired, reported)
    assert remaining(desired, merge_patch(reported, delta)) == {}
    assert bool(delta) == bool(remaining(desired, reported))
    assert difference(desired, desired) == {}


def test_it_is_told_until_it_reports_it() -> None:
    driver = Driver()
    assert desire(driver, interval_s=10, led=True).delta == {"interval_s": 10, "led": True}
    report(driver, led=True)
    assert claimed(driver) == (1, {"interval_s": 10})
    assert claimed(driver) == (1, {"interval_s": 10}), "a claim commits nothing: who tells may end first"
    driver.send(TwinTold(DEVICE_ID, 1))
    assert claimed(driver) is None
    report(driver, interval_s=10)
    info = driver.send(GetTwin(DEVICE_ID))
    assert isinstance(info, Answer)
    assert (info.value.delta, info.value.told_version) == ({}, 1)
    assert [e.kind for e in driver.log.events if e.kind.startswith("twin")] == [
        "twin_desired",
        "twin_reported",
        "twin_reported",
    ]


def test_what_changed_while_it_was_told_is_told_too() -> None:
    driver = Driver()
    desire(driver, a=1)
    claimed(driver)
    desire(driver, a=2)
    driver.send(TwinTold(DEVICE_ID, 1))
    assert claimed(driver) == (2, {"a": 2})


def test_who_is_away_is_told_the_newest_on_return() -> None:
    driver = Driver()
    driver.send(PresenceSaid(DEVICE_ID, False))
    desire(driver, a=1)
    desire(driver, a=2, b=1)
    assert not ready(driver)
    driver = driver.recovered()
    driver.send(PresenceSaid(DEVICE_ID, True))
    assert claimed(driver) == (2, {"a": 2, "b": 1})
    driver.send(TwinTold(DEVICE_ID, 2))
    driver.send(PresenceSaid(DEVICE_ID, True))
    assert claimed(driver) == (2, {"a": 2, "b": 1}), "it came anew and has not taken it yet"
    driver.send(PresenceSaid(DEVICE_ID, False))
    assert not ready(driver)
    driver.read({"t": 1.0}, 0)
    assert ready(driver), "an uplink says that it is back, too"


def test_what_was_told_in_vain_is_told_again_when_it_is_heard_of_ever_less_often() -> None:
    driver = Driver()
    desire(driver, a=1)
    wait_ms = FIRST_WAIT_MS
    for _ in range(9):
        driver.send(TwinTold(DEVICE_ID, 1))
        assert not driver.timers
        driver.now_ms += wait_ms - 1
        driver.read({"t": 1.0}, driver.now_ms - T0_MS)
        assert not ready(driver)
        driver.now_ms += 1
        driver.read({"t": 1.0}, driver.now_ms - T0_MS)
        assert ready(driver)
        wait_ms = min(2 * wait_ms, MAX_WAIT_MS)
    report(driver)
    driver.send(TwinTold(DEVICE_ID, 1))
    report(driver)  # an empty report asks
    assert ready(driver)


def test_where_nobody_listens_it_is_tried_again_by_itself() -> None:
    driver = Driver()
    desire(driver, a=1)
    driver.send(TwinUntold(DEVICE_ID, 1))
    assert not ready(driver)
    driver = driver.recovered()
    driver.wait(FIRST_WAIT_MS / 1000)
    assert ready(driver)
    driver.send(TwinUntold(DEVICE_ID, 1, final=True))
    driver.wait(10 * MAX_WAIT_MS / 1000)
    assert not ready(driver)
    desire(driver, a=2)
    assert ready(driver)
    driver.send(TwinUntold(DEVICE_ID, 2))
    report(driver, a=2)
    assert not driver.timers, "nothing is left to be told"


def test_a_device_that_asks_is_given_it_as_often_as_it_likes() -> None:
    driver = Driver()
    driver.send(Register(DEVICE_ID, TYPE))
    assert driver.send(TakeTwin(DEVICE_ID)) == Answer(TwinTelling(0, {}, None))
    desire(driver, a=1)
    for _ in range(2):
        outcome = driver.send(TakeTwin(DEVICE_ID))
        assert isinstance(outcome, Answer)
        assert outcome.value.delta == {"a": 1}
    assert len(driver.log.twins) == 2, "asking again changes nothing"
    assert not ready(driver)


def test_who_is_behind_another_system_is_told_by_it() -> None:
    driver = Driver()
    driver.send(Patch(DEVICE_ID, metadata={"tts": {"device": "x"}}))
    desire(driver, a=1)
    assert ready(driver)
    outcome = driver.send(ClaimTwin(DEVICE_ID))
    assert isinstance(outcome, Answer)
    assert outcome.value.route == {"device": "x"}
    assert driver.log.twins[-1].downlink == "tts"
    driver.send(Patch(DEVICE_ID, metadata={"tts": None}))
    assert ready(driver)
    assert driver.log.twins[-1].downlink == "mqtt"
    driver.send(Decommission(DEVICE_ID))
    assert not ready(driver)
    refused = driver.send(ChangeTwin(DEVICE_ID, desired={"a": 2}))
    assert isinstance(refused, Refusal)
    assert driver.send(GetTwin(DEVICE_ID)) != refused


def test_who_is_behind_another_system_reports_by_its_metrics() -> None:
    driver = Driver()
    driver.send(Patch(DEVICE_ID, metadata={"sparkplug": {"group": "g", "node": "n"}}))
    desire(driver, speed=1500, limit=21.3, on=True, mode="auto", deep={"a": 1})
    driver.read({"speed": 1499.0, "on": False, "other": 3.0}, 0)
    assert driver.device.twin.reported == NOTHING, "neither is as it shall be"
    driver.read({"speed": 1500.0, "limit": 21.299999237060547, "mode": "auto"}, 1)
    assert driver.device.twin.reported.values == {"speed": 1500, "limit": 21.3, "mode": "auto"}
    assert driver.device.twin.reported.fields["/speed"].by == "sparkplug"
    assert claimed(driver) == (1, {"on": True, "deep": {"a": 1}})
    driver.send(TwinTold(DEVICE_ID, 1))
    driver.read({"on": True}, -5)
    assert "on" not in driver.device.twin.reported.values, "that was before the newest"
    driver.read({"on": True}, 2)
    assert driver.recovered().device.twin.info(DEVICE_ID).delta == {"deep": {"a": 1}}
    said = Driver()
    desire(said, speed=1500)
    said.read({"speed": 1500.0}, 0)
    assert said.device.twin.reported == NOTHING, "by MQTT it can say so itself"


def test_what_is_desired_no_longer_is_told_as_null_while_it_is_reported() -> None:
    driver = Driver()
    desire(driver, interval_s=10, display={"on": True, "text": "x"}, never=1)
    report(driver, interval_s=10, display={"on": True, "text": "x"}, own=1)
    info = desire(driver, interval_s=None, display={"on": None}, never=None)
    assert info.delta == {"interval_s": None, "display": {"on": None}}
    assert info.desired.values == {"display": {"text": "x"}}
    assert info.desired.fields["/interval_s"] == FieldWritten(driver.now_ms, "test", removed=True)
    assert claimed(driver) == (2, info.delta)
    driver = driver.recovered()
    assert claimed(driver) == (2, info.delta)
    report(driver, interval_s=None)
    assert driver.device.twin.info(DEVICE_ID).delta == {"display": {"on": None}}
    assert desire(driver, display={"on": False}).delta == {"display": {"on": False}}
    assert "/interval_s" in driver.device.twin.desired.fields
    report(driver, display={"on": False})
    assert claimed(driver) is None
    # In its place something else is desired.
    assert desire(driver, display="off").delta == {"display": "off"}
    report(driver, display="off")
    assert desire(driver, display=None).delta == {"display": None}


def test_removed_fields_are_remembered_within_a_bound() -> None:
    driver = Driver()
    names = [f"f{n:03}" for n in range(MAX_REMOVED + 20)]
    desire(driver, **dict.fromkeys(names, 1))
    for name in names:
        driver.wait(1)
        desire(driver, **{name: None})
    fields = driver.device.twin.desired.fields
    assert sorted(fields) == [f"/{name}" for name in names[20:]]
    assert all(field.removed for field in fields.values())


def test_either_both_documents_are_written_or_none() -> None:
    driver = Driver()
    refused = driver.send(ChangeTwin(DEVICE_ID, {"a": 1}, {"b": "x" * 40_000}))
    assert isinstance(refused, Refusal)
    assert refused.code == "twin_too_large"
    assert driver.device.twin.desired == Document()


@pytest.mark.parametrize("fields", [1, 400])
def test_what_it_takes_in_memory_is_counted(fields: int) -> None:
    raw = msgspec.json.encode({f"g{n}": {"text": "x" * (4_000 // fields), "n": n} for n in range(fields)})
    desire(driver := Driver(), **msgspec.json.decode(raw))
    counted = footprint_bytes(driver.device) - footprint_bytes(Driver().device)
    tracemalloc.start()
    kept = []
    for _ in range(20):
        result = patched(NOTHING, msgspec.json.decode(raw), 5, "ada")
        assert result is not None
        kept.append(result[0])
    taken = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    assert 0.5 < counted / taken < 2.0, (counted, taken)


@pytest.mark.parametrize("order", [("/c", "/c/y"), ("/c/y", "/c")])
def test_of_an_object_that_is_to_go_as_a_whole_no_part_is_named(order: tuple[str, str]) -> None:
    removed = {pointer: FieldWritten(T0_MS, "test", removed=True) for pointer in order}
    reported = Document(1, {"c": {"y": 1}, "d": 2}, {}, T0_MS)
    assert delta(Document(3, {}, removed, T0_MS), reported) == {"c": None}
