"""The turn that has a device forget all that it has measured and done. The log forgets it after that."""

from typing import Any

from sensorium.actors.commands import Commands
from sensorium.actors.device import NEVER_MS, Device, Surroundings
from sensorium.actors.messages import Answer, EraseData, Outcome, Refusal
from sensorium.actors.metrics import EMPTY
from sensorium.actors.records import Commit, ErasureRow
from sensorium.actors.recovery import take_snapshot
from sensorium.actors.twin import Twin
from sensorium.actors.watch import Watch

EVENT = "erased"
"""The event whose place in the shard divides what is erased from what stays."""


def erase(device: Device, message: EraseData, now_ms: int, around: Surroundings, effects: Commit) -> Outcome:
    """Begin anew, as a device that has only been registered; with `registration`, as one that has not.

    What it remembers to recognise redelivered messages by stays: hashes and times. What earlier turns of the
    same commit would write of the device is taken back, but for the log's rows, which go like older ones.
    """
    if device.registration is None:
        return Refusal("not_found", f"no device {device.id} is registered")
    written: tuple[list[Any], ...] = (
        *(effects.registrations, effects.alarms, effects.alarm_notes, effects.timers, effects.commands),
        *(effects.presences, effects.twins, effects.dead_letters, effects.anomalies),
    )
    for rows in written:
        rows[:] = [row for row in rows if row.device_id != device.id]
    body = {"device_id": device.id, "job_id": message.job_id, "registration": message.registration}
    device.event(EVENT, now_ms, body, effects)
    offset = device.shard.head
    device.metrics, device.latest, device.latest_ms = EMPTY, [], []
    device.newest_ms = device.last_seen_ms = NEVER_MS
    device.windows, device.detection = (), None
    device.watch, device.commands, device.twin = Watch(), Commands(), Twin()
    device.forget_arrangement()
    kept = None if message.registration else device.registration
    device.registration = kept
    effects.erasures.append(
        ErasureRow(
            *(message.job_id, device.id, device.shard.number, offset, now_ms),
            *(message.registration, message.origin, take_snapshot(device)),
        )
    )
    if kept is not None:
        # Written again: an earlier turn of the commit may have changed it.
        effects.registrations.append(kept)
        device.furnish(around)
        device.refresh(around, now_ms, effects)
    return Answer({"job_id": message.job_id})
