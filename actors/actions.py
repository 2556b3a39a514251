"""What a rule has done about its alarms: the actions, how often, and what they say. Not who does it. Pure."""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.tokens import MAX_CHARACTERS

if TYPE_CHECKING:
    from sensorium.actors.records import Alarm
    from sensorium.actors.rules import RuleSpec

MAX_PARAMETERS_BYTES: Final = 8_192
"""Of a command's parameters as JSON: a rule stands in the memory of every host."""

FIELDS: Final = (
    "alarm_id",
    "detail",
    "device_id",
    "device_type",
    "metric",
    "rule_id",
    "rule_name",
    "severity",
    "state",
    "transition",
    "value",
)
"""What a template may name in braces."""

_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_NO_TOPIC: Final = re.compile(r"[/+#\x00]")


class Transition(StrEnum):
    """What happened to an alarm."""

    RAISED = "raised"
    CHANGED = "changed"
    ESCALATED = "escalated"
    CLEARED = "cleared"
    ACKNOWLEDGED = "acknowledged"


TransitionSet = Annotated[tuple[Transition, ...], Meta(min_length=1, max_length=5)]
TargetName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
Template = Annotated[str, Meta(min_length=1, max_length=4_000)]
Mailbox = Annotated[str, Meta(max_length=254, pattern=r"^[^@\s<>,;:\x00-\x1f]+@[^@\s<>,;:\x00-\x1f]+$")]
BOTH_ENDS: Final = (Transition.RAISED, Transition.CLEARED)


class _Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    on: TransitionSet = BOTH_ENDS


class WebhookAction(_Action, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="webhook"):
    """POST the message to a webhook, which is known by its name. See `storage.webhooks`."""

    target: TargetName

    @property
    def queue(self) -> str:
        """What is sent one after the other, and fails together."""
        return f"webhook:{self.target}"


class MqttAction(_Action, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mqtt"):
    """Publish the message at the platform's broker. `topic` is a template."""

    topic: Annotated[str, Meta(min_length=1, max_length=512)] = "alarms/{device_id}/{rule_id}"
    qos: Annotated[int, Meta(ge=0, le=1)] = 1
    retain: bool = False

    @property
    def queue(self) -> str:
        """See `WebhookAction.queue`."""
        return "mqtt"


class KafkaAction(_Action, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kafka"):
    """Produce the message to a topic of the platform's Kafka, the device's id as key."""

    topic: Annotated[str, Meta(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9_.-]+$")]

    @property
    def queue(self) -> str:
        """See `WebhookAction.queue`."""
        return "kafka"


class EmailAction(_Action, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="email"):
    """Mail it. `subject` and `body` are templates."""

    to: Annotated[tuple[Mailbox, ...], Meta(min_length=1, max_length=20)]
    subject: Annotated[str, Meta(min_length=1, max_length=200)] = (
        "[{severity}] {rule_name}: {device_id} {transition}"
    )
    body: Template = (
        "{rule_name} on {device_id}: {transition}.\n{metric} = {value} ({detail})\nAlarm {alarm_id}\n"
    )

    @property
    def queue(self) -> str:
        """See `WebhookAction.queue`."""
        return "email"


class CommandAction(_Action, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="command"):
    """Have the alarm's device, or another one, do something. What it does is a command as any other."""

    command: Annotated[str, Meta(min_length=1, max_length=128)]
    parameters: dict[str, Any] = {}
    device_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    timeout_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 30.0
    expires_s: Annotated[float, Meta(ge=1, le=30 * 86_400)] = 3_600.0
    retries: Annotated[int, Meta(ge=0, le=10)] = 0
    on: TransitionSet = (Transition.RAISED,)

    @property
    def queue(self) -> str:
        """See `WebhookAction.queue`."""
        return "command"


class DeriveAction(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="derive", tag_field="type"
):
    """Have a metric of its own worked out by a formula, at each reading for which the rule's condition holds.

    It is stored with the reading, as if the device had sent it; one that the device does send stays as sent.
    """

    metric: Annotated[str, Meta(min_length=1, max_length=128)]
    formula: Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]


Action = WebhookAction | MqttAction | KafkaAction | EmailAction | CommandAction
"""What is told of an alarm, after it is committed."""

Actions = Annotated[tuple[Action | DeriveAction, ...], Meta(max_length=8)]


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many within so many seconds."""

    count: Annotated[int, Meta(ge=1, le=1_000)]
    within_s: Annotated[float, Meta(ge=1, le=604_800)]

    @property
    def within_ms(self) -> int:
        """In milliseconds."""
        return round(self.within_s * 1000)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of what happens is told. Each transition of an alarm counts once, whatever its actions.

    Attributes:
        per_rule, per_device: what is more than this is not told. The end of what was told always is.
        repeat_s: what happened to the same device in this way was told so shortly before: not again.
        storm: more alarms of the rule than these are told together, in one message when the time is over.
            Commands are given all the same. None: there are no storms.
    """

    per_rule: Rate | None = None
    per_device: Rate | None = None
    repeat_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0
    storm: Rate | None = Rate(20, 60)


def actions_of(spec: "RuleSpec", severity: str) -> Iterator[tuple[str, Action]]:
    """What is told of an alarm of this severity, each action with its place in the rule."""
    for number, action in enumerate(spec.actions):
        if not isinstance(action, DeriveAction):
            yield f"actions[{number}]", action
    for position, level in enumerate(spec.levels):
        if level.severity == severity:
            for number, action in enumerate(level.actions):
                if not isinstance(action, DeriveAction):
                    yield f"levels[{position}].actions[{number}]", action


def all_actions(spec: "RuleSpec") -> Iterator[tuple[str, Action | DeriveAction]]:
    """Every action that the rule names, with its place in it."""
    for number, action in enumerate(spec.actions):
        yield f"actions[{number}]", action
    for position, level in enumerate(spec.levels):
        for number, action in enumerate(level.actions):
            yield f"levels[{position}].actions[{number}]", action


def validate_actions(spec: "RuleSpec") -> None:
    """Check what the types cannot say.

    Raises:
        InvalidMessage: an action can never work; the text says which field and why.
    """
    for place, action in all_actions(spec):
        match action:
            case MqttAction(topic=topic):
                _check_template(f"{place}.topic", topic)
                fixed = _FIELD.sub("x", topic)
                if any(c in fixed for c in "+#\0") or fixed.startswith("$"):
                    raise InvalidMessage(f"{place}.topic: nothing can be published to {topic}")
                if fixed.startswith("devices/"):
                    raise InvalidMessage(f"{place}.topic: devices/… is what devices say and are told")
            case EmailAction(subject=subject, body=body):
                _check_template(f"{place}.subject", subject)
                _check_template(f"{place}.body", body)
                if not subject.isprintable():
                    raise InvalidMessage(f"{place}.subject: is one line of text")
            case CommandAction(parameters=parameters, command=command, device_id=device_id):
                if not command.isprintable() or not (device_id or "x").isprintable():
                    raise InvalidMessage(f"{place}.command: holds characters that cannot be printed")
                size = len(msgspec.json.encode(parameters))
                if size > MAX_PARAMETERS_BYTES:
                    raise InvalidMessage(
                        f"{place}.parameters: {size} bytes as JSON; at most {MAX_PARAMETERS_BYTES}"
                    )
            case DeriveAction() if place.startswith("levels"):
                raise InvalidMessage(f"{place}.type: metrics are derived by the rule, not by a level")
            case _:
                pass


def filled(template: str, fields: Mapping[str, Any], *, topic: bool = False) -> str:
    """The template with its fields; in a topic, what would part levels or match others becomes `_`."""

    def put(match: re.Match[str]) -> str:
        text = str(fields.get(match[1], ""))
        return _NO_TOPIC.sub("_", text) if topic else text

    return _FIELD.sub(put, template)


def fields_of(alarm: "Alarm", transition: Transition) -> dict[str, Any]:
    """What a template is filled with, by `FIELDS`."""
    value = alarm.end_value if transition is Transition.CLEARED else alarm.value
    shown = msgspec.structs.asdict(alarm) | {"transition": transition.value, "value": value}
    return {name: "" if shown[name] is None else shown[name] for name in FIELDS}


def _check_template(place: str, template: str) -> None:
    for name in _FIELD.findall(template):
        if name not in FIELDS:
            raise InvalidMessage(f"{place}: no field {{{name}}}; there are {', '.join(FIELDS)}")
