"""Running turns: messages in order against activated devices, their effects gathered for one commit."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sensorium.actors.device import Device, Surroundings
from sensorium.actors.messages import (
    ACCEPTED,
    Accepted,
    Batch,
    Message,
    Outcome,
    Reading,
)
from sensorium.actors.records import Commit, Identity, ReadingRow

Names = tuple[str, ...]


class Work(NamedTuple):
    """A message on its way to its turn. `names` go with a reading's values and are () otherwise."""

    message: Message
    names: Names


class TurnFailed(Exception):
    """A turn raised what it should not: a fault of ours that this message brings out.

    `index` is the message's place among those that were run. Every device that was touched is in an unknown
    state.
    """

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.index = index


class Turns(NamedTuple):
    """What a run of turns came to: one outcome for each message, and what must be committed for it."""

    outcomes: list[Outcome]
    commit: Commit
    touched: list[Device]
    """Devices whose state changed, each once."""


def unpack(batch: Batch, intern: Callable[[Names], Names]) -> list[Work]:
    """The batch's messages with the names of their readings.

    Args:
        intern: gives one tuple object for equal tuples, which makes turns of readings alike cheaper.

    Raises:
        IndexError: a reading refers to names that the batch does not carry.
    """
    names = [intern(n) for n in batch.metrics]
    return [Work(m, names[m.metrics] if type(m) is Reading else ()) for m in batch.messages]


def lookups(work: Sequence[Work], devices: Mapping[str, Device]) -> list[Identity]:
    """The readings of which only the log can tell whether they are duplicates."""
    found = []
    for message, _ in work:
        if type(message) is Reading:
            device = devices[message.device_id]
            if (message.time_ms <= device.newest_ms or message.flags) and device.must_ask(message):
                found.append(device.identity(message))
    return found


def run(
    work: Sequence[Work],
    devices: Mapping[str, Device],
    around: Surroundings,
    now_ms: int,
    known: set[Identity],
) -> Turns:
    """Run the turns of `work` in order.

    Args:
        devices: every device that `work` names, activated.
        known: what the log answered to `lookups`.

    Raises:
        TurnFailed: discard every device that `work` names.
    """
    commit = Commit()
    rows = commit.readings
    outcomes: list[Outcome] = []
    touched: dict[str, Device] = {}
    for index, (message, names) in enumerate(work):
        device = devices[message.device_id]
        try:
            if type(message) is Reading:
                stored = len(rows)
                again = (
                    (message.time_ms <= device.newest_ms or message.flags != 0)
                    and device.must_ask(message)
                    and (device.identity(message) in known or _among(rows, device.identity(message)))
                )
                outcome = device.read(message, names, now_ms, around, commit, again)
                if len(rows) != stored:
                    touched[device.id] = device
                    device.turns += 1
            else:
                outcome = device.handle(message, now_ms, around, commit)
        except Exception as error:  # whatever the fault is, it must cost this message only
            raise TurnFailed(index, error) from error
        outcomes.append(outcome)
    return Turns(outcomes, commit, list(touched.values()))


def _among(rows: Sequence[ReadingRow], identity: Identity) -> bool:
    """Whether this run stored the reading already; asked only where the device's memory does not reach."""
    device, time_ms, key = identity
    return any(
        row.key == key and row.device == device and time_ms in (None, row.time_ms) for row in reversed(rows)
    )


def sparse(outcomes: Sequence[Outcome]) -> dict[int, Outcome]:
    """The outcomes that are not plainly `Accepted`, by index."""
    return {i: o for i, o in enumerate(outcomes) if o is not ACCEPTED and type(o) is not Accepted}
