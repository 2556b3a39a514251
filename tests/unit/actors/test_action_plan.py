"""What is told of an alarm, and what is not: limits, storms, and the end of what was never told."""

from typing import Any

import msgspec
import pytest

from sensorium.actors import action_plan
from sensorium.actors.action_plan import (
    COLLAPSED,
    PENDING,
    STORM,
    SUPPRESSED,
    Delivery,
    Happening,
    Recent,
    plan,
)
from sensorium.actors.actions import Transition, filled
from sensorium.actors.conditions import validate
from sensorium.actors.errors import InvalidMessage
from sensorium.actors.records import Alarm
from sensorium.actors.rules import RuleSpec

NOON_MS = 1_704_110_400_000


def rule(*actions: dict[str, Any], **more: Any) -> RuleSpec:
    spec = {
        "name": "hot",
        "condition": {"type": "threshold", "metric": "t", "operator": ">", "value": 1},
        "actions": actions or ({"type": "webhook", "target": "pager"},),
        **more,
    }
    return msgspec.convert(spec, RuleSpec)


def happened(
    number: int = 1, what: str = "raised", device: str = "d", at_s: float = 0, **alarm: Any
) -> Happening:
    at_ms = NOON_MS + round(at_s * 1000)
    fields: dict[str, Any] = {
        "alarm_id": f"a{number}",
        "device_id": device,
        "device_type": "pump",
        "rule_id": "r1",
        "rule_name": "hot",
        "rule_version": 1,
        "severity": "warning",
        "state": "ACTIVE",
        "metric": "t",
        "value": 2.0,
        "detail": "t > 1",
        "start_ms": at_ms,
    }
    return Happening(0, number, at_ms, at_ms, Transition(what), Alarm(**(fields | alarm)))


def states(deliveries: list[Delivery]) -> list[str]:
    return [delivery.state for delivery in deliveries]


def test_each_action_that_waits_for_the_transition_is_a_delivery() -> None:
    spec = rule({"type": "webhook", "target": "pager"}, {"type": "command", "command": "fan"})
    raised = plan(happened(), spec, Recent())
    assert [(d.queue, d.place) for d in raised] == [
        ("webhook:pager", "actions[0]"),
        ("command", "actions[1]"),
    ]
    cleared = plan(happened(what="cleared"), spec, Recent())
    assert [d.queue for d in cleared] == ["webhook:pager"]
    assert plan(happened(what="changed"), spec, Recent()) == []


def test_the_same_happening_has_the_same_ids_and_no_two_share_one() -> None:
    spec = rule({"type": "mqtt", "on": ["raised", "changed"]}, {"type": "mqtt", "on": ["raised", "changed"]})
    once, again = plan(happened(), spec, Recent()), plan(happened(), spec, Recent())
    assert [d.delivery_id for d in once] == [d.delivery_id for d in again]
    others = [plan(happened(n, "changed"), spec, Recent()) for n in (1, 2)] + [once]
    ids = {d.delivery_id for found in others for d in found}
    assert len(ids) == 6


def test_a_level_has_actions_of_its_own() -> None:
    level = {
        "severity": "critical",
        "condition": {"type": "threshold", "metric": "t", "operator": ">", "value": 9},
        "actions": [{"type": "email", "to": ["ada@example.com"]}],
    }
    spec = rule(levels=[level])
    assert [d.kind for d in plan(happened(), spec, Recent())] == ["webhook"]
    assert [d.kind for d in plan(happened(severity="critical"), spec, Recent())] == ["webhook", "email"]


def test_what_is_more_than_the_limits_is_kept_back_with_its_reason() -> None:
    spec = rule(limits={"per_device": {"count": 2, "within_s": 60}})
    recent = Recent()
    found = [plan(happened(n, at_s=n), spec, recent)[0] for n in range(3)]
    assert states(found) == [PENDING, PENDING, SUPPRESSED]
    assert found[2].reason == "more than 2 in 60 s of the device"
    assert states(plan(happened(4, device="other", at_s=3), spec, recent)) == [PENDING]
    assert states(plan(happened(5, at_s=61), spec, recent)) == [PENDING]


def test_the_limit_of_a_rule_counts_over_its_devices() -> None:
    spec = rule(limits={"per_rule": {"count": 1, "within_s": 60}})
    recent = Recent()
    assert states(plan(happened(1), spec, recent)) == [PENDING]
    assert states(plan(happened(2, device="other"), spec, recent)) == [SUPPRESSED]


def test_the_same_is_not_repeated() -> None:
    spec = rule(limits={"repeat_s": 60})
    recent = Recent()
    assert states(plan(happened(1), spec, recent)) == [PENDING]
    assert states(plan(happened(2, at_s=59), spec, recent)) == [SUPPRESSED]
    assert states(plan(happened(3, at_s=60), spec, recent)) == [PENDING]


def test_the_end_of_what_was_told_is_told_whatever_the_limits() -> None:
    spec = rule(limits={"per_device": {"count": 1, "within_s": 60}})
    recent = Recent()
    plan(happened(1), spec, recent)
    assert states(plan(happened(1, "cleared", at_s=1), spec, recent)) == [PENDING]


def test_what_was_not_told_has_no_end_to_tell() -> None:
    spec = rule(
        {"type": "webhook", "target": "pager"}, {"type": "mqtt", "on": ["cleared"]}, limits={"repeat_s": 60}
    )
    recent = Recent()
    plan(happened(1), spec, recent)
    kept_back = plan(happened(2, at_s=1), spec, recent)
    untold = {delivery.delivery_id for delivery in kept_back}
    assert states(kept_back) == [SUPPRESSED]
    ended = plan(happened(2, "cleared", at_s=2), spec, recent, untold)
    assert [d.queue for d in ended] == ["mqtt"]


def test_a_storm_is_one_message_and_commands_are_given_all_the_same() -> None:
    spec = rule(
        {"type": "webhook", "target": "pager"},
        {"type": "command", "command": "fan"},
        limits={"storm": {"count": 2, "within_s": 60}},
    )
    recent = Recent()
    found = [plan(happened(n, device=f"d{n}", at_s=n), spec, recent) for n in range(5)]
    assert states(found[1]) == [PENDING, PENDING]
    for deliveries in found[2:]:
        assert [(d.state, d.kind) for d in deliveries] == [
            (COLLAPSED, "webhook"),
            (PENDING, "webhook"),
            (PENDING, "command"),
        ]
        collapsed, summary, _ = deliveries
        assert collapsed.summary_id == summary.delivery_id
        assert (summary.transition, summary.due_ms) == (STORM, NOON_MS + 60_000)
    assert len({deliveries[1].delivery_id for deliveries in found[2:]}) == 1


def test_a_storm_can_be_allowed() -> None:
    recent = Recent()
    found = [plan(happened(n), rule(limits={"storm": None}), recent)[0] for n in range(100)]
    assert states(found) == [PENDING] * 100


def test_a_shelved_alarm_and_a_quiet_time_tell_nothing() -> None:
    shelved = happened(what="escalated", shelved_until_ms=NOON_MS + 1)
    spec = rule({"type": "mqtt", "on": ["raised", "escalated"]})
    assert plan(shelved, spec, Recent())[0].reason == "the alarm is shelved"
    quiet = plan(happened(), spec, Recent(), quiet=lambda _: "works in the hall")
    assert [(d.state, d.reason) for d in quiet] == [(SUPPRESSED, "works in the hall")]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_plan, "MAX_KEYS", 3)
    recent = Recent()
    for number in range(10):
        recent.note(number, "device", str(number))
    assert [recent.since(-1, "device", str(number)) for number in (6, 7, 9)] == [False, True, True]


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ({"type": "mqtt", "topic": "a/{nonsense}"}, r"no field \{nonsense\}"),
        ({"type": "mqtt", "topic": "a/#"}, "nothing can be published"),
        ({"type": "mqtt", "topic": "devices/{device_id}/commands"}, "what devices say and are told"),
        ({"type": "email", "to": ["a@b"], "subject": "x\ny"}, "one line"),
        ({"type": "command", "command": "x", "parameters": {"a": "x" * 9_000}}, "bytes as JSON"),
    ],
)
def test_what_can_never_work_is_refused_with_its_place(action: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidMessage, match=told) as caught:
        validate(rule(action))
    assert str(caught.value).startswith("actions[0].")


def test_a_device_cannot_choose_its_topic() -> None:
    topic = filled("alarms/{device_id}/{value}", {"device_id": "../+/#", "value": "a\0b"}, topic=True)
    assert topic == "alarms/..____/a_b"
