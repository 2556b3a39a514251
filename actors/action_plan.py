"""From what happened to an alarm to the messages that go out about it, or do not, and why. Pure.

The same happening gives the same deliveries with the same ids, however often it is planned.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sensorium.actors.actions import (
    Action,
    CommandAction,
    Rate,
    Transition,
    actions_of,
)
from sensorium.actors.records import Alarm
from sensorium.actors.rules import RuleSpec

PENDING: Final = "PENDING"
SENDING: Final = "SENDING"
DELIVERED: Final = "DELIVERED"
DEAD: Final = "DEAD"
SUPPRESSED: Final = "SUPPRESSED"
COLLAPSED: Final = "COLLAPSED"
STATES: Final = (PENDING, SENDING, DELIVERED, DEAD, SUPPRESSED, COLLAPSED)
STORM: Final = "storm"
"""The transition of a message that tells of many alarms at once."""

REMEMBERED: Final = 1_000
"""Moments of one kind that are remembered: as many as a `Rate` can count."""
MAX_KEYS: Final = 100_000
"""Kinds of moments that are remembered; beyond it, the ones used least lately are forgotten."""


class Happening(NamedTuple):
    """A transition of an alarm, as it stands at `offset` of its shard; `alarm` is as it was then."""

    shard: int
    offset: int
    time_ms: int
    committed_ms: int
    transition: Transition
    alarm: Alarm


class Delivery(NamedTuple):
    """One message to one target, as it is stored.

    Attributes:
        delivery_id: by which receivers recognise a repetition.
        place: of the action in the rule.
        due_ms: not before then. `created_ms` is when what it tells of was committed.
        summary_id: of a collapsed one, the delivery that tells of it with others.
        content: the message; of a summary what is known before.
    """

    delivery_id: str
    state: str
    queue: str
    kind: str
    place: str
    rule_id: str
    rule_version: int
    alarm_id: str
    device_id: str
    transition: str
    created_ms: int
    due_ms: int
    reason: str | None
    summary_id: str | None
    action: Action
    content: dict[str, Any]


class Recent:
    """When what was told, and raised, lately: bounded, and filled from the log's own record at first."""

    def __init__(self) -> None:
        self._moments: OrderedDict[tuple[str, ...], deque[int]] = OrderedDict()

    def note(self, moment_ms: int, *key: str) -> None:
        """It happened then. Moments of a key come in order."""
        moments = self._moments.get(key)
        if moments is None:
            if len(self._moments) >= MAX_KEYS:
                self._moments.popitem(last=False)
            moments = self._moments[key] = deque(maxlen=REMEMBERED)
        else:
            self._moments.move_to_end(key)
        moments.append(moment_ms)

    def full(self, rate: Rate, now_ms: int, *key: str) -> bool:
        """Whether one more would be more than the rate allows."""
        moments = self._moments.get(key, ())
        return len(moments) >= rate.count and moments[-rate.count] > now_ms - rate.within_ms

    def since(self, moment_ms: int, *key: str) -> bool:
        """Whether it happened after that moment."""
        moments = self._moments.get(key)
        return moments is not None and moments[-1] > moment_ms


def plan(
    happening: Happening,
    spec: RuleSpec,
    recent: Recent,
    untold: Collection[str] = (),
    quiet: Callable[[Happening], str | None] = lambda _: None,
) -> list[Delivery]:
    """What is sent because of it.

    Args:
        spec: the version of the rule that raised the alarm.
        recent: what was told before; it is told of this.
        untold: ids of those deliveries about the raise of alarms that were suppressed or collapsed.
        quiet: why nothing shall be told now, such as a maintenance window; None: no reason.
    """
    alarm, transition, now_ms = happening.alarm, happening.transition, happening.committed_ms
    wanted = [(p, a) for p, a in actions_of(spec, alarm.severity) if transition in a.on]
    stormy = False
    if transition is Transition.RAISED:
        storm = spec.limits.storm
        stormy = storm is not None and recent.full(storm, now_ms, STORM, alarm.rule_id)
        recent.note(now_ms, STORM, alarm.rule_id)
    if not wanted:
        return []
    ending = transition in (Transition.CLEARED, Transition.ACKNOWLEDGED)
    why = quiet(happening) or _shelved(alarm, now_ms)
    if not ending:
        why = why or _limited(spec, recent, happening)
    deliveries = []
    told = False
    for place, action in wanted:
        collapses = stormy and why is None and not isinstance(action, CommandAction)
        if ending and Transition.RAISED in action.on and raise_id(alarm.alarm_id, place) in untold:
            continue  # what was not told has no end to tell
        delivery = _delivery(happening, place, action)
        if why is not None and not (ending and Transition.RAISED in action.on):
            deliveries.append(delivery._replace(state=SUPPRESSED, reason=why))
        elif collapses:
            assert spec.limits.storm is not None
            summary = _summary(delivery, alarm, spec.limits.storm, now_ms)
            deliveries.append(
                delivery._replace(
                    state=COLLAPSED, reason="told with others of a storm", summary_id=summary.delivery_id
                )
            )
            deliveries.append(summary)
        else:
            told = True
            deliveries.append(delivery)
    if told and not ending:
        recent.note(now_ms, "rule", alarm.rule_id)
        recent.note(now_ms, "device", alarm.rule_id, alarm.device_id)
        recent.note(now_ms, "repeat", alarm.rule_id, alarm.device_id, transition.value)
    return deliveries


def told_before(recent: Recent, rows: Iterable[tuple[str, str, str, int, bool]]) -> None:
    """Fill `recent` from what is stored: rule, device, transition, moment, whether it was told; in order."""
    for rule_id, device_id, transition, moment_ms, told in rows:
        if transition == Transition.RAISED:
            recent.note(moment_ms, STORM, rule_id)
        if told and transition not in (Transition.CLEARED, Transition.ACKNOWLEDGED):
            recent.note(moment_ms, "rule", rule_id)
            recent.note(moment_ms, "device", rule_id, device_id)
            recent.note(moment_ms, "repeat", rule_id, device_id, transition)


def raise_id(alarm_id: str, place: str) -> str:
    """The id of the delivery about the raise of an alarm."""
    return _id(alarm_id, Transition.RAISED.value, place)


def delivery_id(happening: Happening, place: str) -> str:
    """The id: an alarm is raised and cleared once, the rest may happen to it often."""
    name = happening.transition.value
    if happening.transition not in (Transition.RAISED, Transition.CLEARED):
        name = f"{name} {happening.shard} {happening.offset}"
    return _id(happening.alarm.alarm_id, name, place)


def _id(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _shelved(alarm: Alarm, now_ms: int) -> str | None:
    until_ms = alarm.shelved_until_ms
    return "the alarm is shelved" if until_ms is not None and until_ms > now_ms else None


def _limited(spec: RuleSpec, recent: Recent, happening: Happening) -> str | None:
    limits, alarm, now_ms = spec.limits, happening.alarm, happening.committed_ms
    if limits.per_rule is not None and recent.full(limits.per_rule, now_ms, "rule", alarm.rule_id):
        return f"more than {_words(limits.per_rule)} of the rule"
    device = (alarm.rule_id, alarm.device_id)
    if limits.per_device is not None and recent.full(limits.per_device, now_ms, "device", *device):
        return f"more than {_words(limits.per_device)} of the device"
    since_ms = now_ms - round(limits.repeat_s * 1000)
    if limits.repeat_s and recent.since(since_ms, "repeat", *device, happening.transition.value):
        return f"the same was told less than {limits.repeat_s:g} s before"
    return None


def _words(rate: Rate) -> str:
    return f"{rate.count} in {rate.within_s:g} s"


def _delivery(happening: Happening, place: str, action: Action) -> Delivery:
    alarm = happening.alarm
    name = delivery_id(happening, place)
    return Delivery(
        name,
        PENDING,
        action.queue,
        action.queue.partition(":")[0],
        place,
        alarm.rule_id,
        alarm.rule_version,
        alarm.alarm_id,
        alarm.device_id,
        happening.transition.value,
        happening.committed_ms,
        happening.committed_ms,
        None,
        None,
        action,
        {
            "id": name,
            "transition": happening.transition.value,
            "time_ms": happening.time_ms,
            "alarm": alarm,
        },
    )


def _summary(of: Delivery, alarm: Alarm, storm: Rate, now_ms: int) -> Delivery:
    """The one message about what collapses now: due when its share of the storm is over."""
    number = now_ms // storm.within_ms
    name = _id(STORM, alarm.rule_id, of.place, f"{storm.within_ms} {number}")
    end_ms = (number + 1) * storm.within_ms
    content = {
        "id": name,
        "transition": STORM,
        "time_ms": end_ms,
        "rule_id": alarm.rule_id,
        "rule_name": alarm.rule_name,
        "severity": alarm.severity,
    }
    return of._replace(
        delivery_id=name,
        alarm_id="",
        device_id="",
        transition=STORM,
        due_ms=end_ms,
        content=content,
    )
