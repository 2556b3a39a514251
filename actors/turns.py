"""Running turns: messages in order against activated devices, their effects gathered for one commit."""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from sensorium.actors.audit import Asked, handle, handle_audited
from sensorium.actors.device import Device, Surroundings
from sensorium.actors.messages import (
    ACCEPTED,
    Message,
    Outcome,
    Reading,
)
from sensorium.actors.records import Commit, Identity, ReadingRow

Names = tuple[str, ...]


class Work(NamedTuple):
    """Messages on their way to their turns. A reading's `metrics` is its place in `names`."""

    messages: Sequence[Message]
    names: Sequence[Names] = ()


class TurnFailed(Exception):
    """A turn raised what it should not: a fault of ours that this message brings out.

    `index` is the message's place among those that were run. Every device that was touched is in an unknown
    state.
    """

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.index = index


class Turns(NamedTuple):
    """What a run of turns came to, and what must be committed for it."""

    outcomes: dict[int, Outcome]
    """By the message's place among those that were run; what is not in it was plainly accepted."""
    commit: Commit
    touched: list[Device]
    """Devices whose state changed, each once."""


def cut(works: Sequence[Work], start: int, stop: int) -> list[Work]:
    """The messages from place `start` to `stop` (not included), counted over all of `works`."""
    parts = []
    for messages, names in works:
        part = messages[max(start, 0) : max(stop, 0)]
        if part:
            parts.append(Work(part, names))
        start -= len(messages)
        stop -= len(messages)
    return parts


def lookups(works: Sequence[Work], devices: Mapping[str, Device]) -> list[Identity]:
    """The readings of which only the log can tell whether they are duplicates."""
    found = []
    for messages, _ in works:
        for message in messages:
            if type(message) is Reading:
                device = devices[message.device_id]
                if (message.time_ms <= device.newest_ms or message.flags) and device.must_ask(message):
                    found.append(device.identity(message))
    return found


def run(
    works: Sequence[Work],
    devices: Mapping[str, Device],
    around: Surroundings,
    now_ms: int,
    known: Set[Identity],
) -> Turns:
    """Run the turns of `works` in order.

    Args:
        devices: every device that `works` name, activated.
        known: what the log answered to `lookups`.

    Raises:
        TurnFailed: discard every device that `works` name.
    """
    commit = Commit()
    rows = commit.readings
    outcomes: dict[int, Outcome] = {}
    touched: dict[Device, None] = {}
    index = -1
    try:
        for messages, names in works:
            for message in messages:
                index += 1
                device = devices[message.device_id]
                if type(message) is Reading:
                    again = (
                        (message.time_ms <= device.newest_ms or message.flags != 0)
                        and device.must_ask(message)
                        and (device.identity(message) in known or _among(rows, device.identity(message)))
                    )
                    outcome = device.read(message, names[message.metrics], now_ms, around, commit, again)
                    if outcome is ACCEPTED:
                        touched[device] = None
                        device.turns += 1
                        continue
                elif isinstance(message, Asked) and message.origin is not None:
                    outcome = handle_audited(device, message, now_ms, around, commit)
                else:
                    outcome = handle(device, message, now_ms, around, commit)
                if outcome is not ACCEPTED:
                    outcomes[index] = outcome
    except Exception as error:  # whatever the fault is, it must cost this message only
        raise TurnFailed(index, error) from error
    return Turns(outcomes, commit, list(touched))


def _among(rows: Sequence[ReadingRow], identity: Identity) -> bool:
    """Whether this run stored the reading already; asked only where the device's memory does not reach."""
    device, time_ms, key = identity
    return any(
        row.key == key and row.device == device and time_ms in (None, row.time_ms) for row in reversed(rows)
    )
