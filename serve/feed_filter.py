"""What a subscriber of the live feed wants to hear of. Decides by values alone; reads nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sensorium.actors.messages import Quality
from sensorium.actors.rules import Severity
from sensorium.serve.problems import FieldError, Problem, invalid_parameter
from sensorium.storage.live_log import Change

READINGS: Final = "readings"
ALARMS: Final = "alarms"
ANOMALIES: Final = "anomalies"
COMMANDS: Final = "commands"
PRESENCE: Final = "presence"
DEVICES: Final = "devices"
TWINS: Final = "twins"
TOPICS: Final = (READINGS, ALARMS, ANOMALIES, COMMANDS, PRESENCE, DEVICES, TWINS)
MAX_NAMES: Final = 1_000
"""Devices, types or metrics that one filter names."""
MAX_NAME_CHARS: Final = 128
PARAMETERS: Final = ("topics", "device_id", "device_type", "metric", "severity", "quality")

ANOMALY: Final = "anomaly"
_SEVERITIES: Final = frozenset(severity.value for severity in Severity)
_PRESENCES: Final = frozenset(("online", "offline"))
_REGISTRATIONS: Final = frozenset(("registered", "updated", "decommissioned"))


@dataclass(frozen=True, slots=True)
class FeedFilter:
    """All that is given must hold; an empty set lets everything through.

    `metrics` is about readings, which are cut to these, alarms and anomalies; `severities` about the latter,
    `qualities` about readings.
    """

    topics: frozenset[str] = frozenset(TOPICS)
    device_ids: frozenset[str] = frozenset()
    device_types: frozenset[str] = frozenset()
    metrics: frozenset[str] = frozenset()
    severities: frozenset[str] = frozenset()
    qualities: frozenset[str] = frozenset()

    def takes_device(self, device_id: str, device_type: str) -> bool:
        """Whether it is about this device."""
        return (not self.device_ids or device_id in self.device_ids) and (
            not self.device_types or device_type in self.device_types
        )


def topic_of(change: Change) -> str | None:
    """The topic of a change; None for what the feed does not tell."""
    kind = change.kind
    if kind is None:
        return READINGS
    if kind.startswith("alarm_"):
        return ALARMS
    if kind == ANOMALY or kind.startswith(f"{ANOMALY}_"):
        return ANOMALIES
    if kind.startswith("command_"):
        return COMMANDS
    if kind.startswith("twin_"):
        return TWINS
    if kind in _PRESENCES:
        return PRESENCE
    return DEVICES if kind in _REGISTRATIONS else None


def read_filter(parameters: Mapping[str, str]) -> FeedFilter:
    """The filter of query parameters, each a list with commas between; others are not looked at.

    Raises:
        Problem: 422, a list is empty, too long, or names a topic or severity that there is not.
    """
    names = {parameter: _names(parameter, parameters.get(parameter)) for parameter in PARAMETERS}
    topics, severities = names["topics"], names["severity"]
    if unknown := topics - frozenset(TOPICS):
        raise invalid_parameter("topics", f"{min(unknown)!r} is none of {', '.join(TOPICS)}")
    if unknown := severities - _SEVERITIES:
        raise invalid_parameter("severity", f"{min(unknown)!r} is none of {', '.join(Severity)}")
    if unknown := names["quality"] - frozenset(Quality):
        raise invalid_parameter("quality", f"{min(unknown)!r} is none of {', '.join(Quality)}")
    return FeedFilter(
        topics or frozenset(TOPICS),
        *(names["device_id"], names["device_type"], names["metric"], severities, names["quality"]),
    )


def check_known(parameters: Mapping[str, str], *more: str) -> None:
    """Raises a `Problem` (422) that names the parameters which the feed does not know."""
    known = (*PARAMETERS, *more)
    errors = [FieldError("unknown parameter", parameter=name) for name in parameters if name not in known]
    if errors:
        names = ", ".join(str(error.parameter) for error in errors)
        raise Problem(422, "invalid", f"{names}: unknown parameter; known: {', '.join(known)}", errors=errors)


def _names(parameter: str, text: str | None) -> frozenset[str]:
    if text is None:
        return frozenset()
    names = frozenset(name.strip() for name in text.split(","))
    if len(names) > MAX_NAMES or any(not 1 <= len(name) <= MAX_NAME_CHARS or "\0" in name for name in names):
        raise invalid_parameter(
            parameter, f"1 to {MAX_NAMES} names of 1 to {MAX_NAME_CHARS} characters, with commas between"
        )
    return names
