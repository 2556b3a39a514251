"""A device as a whole, for people: the same of one that lives and of one that was rebuilt as it was."""

import msgspec

from sensorium.actors.device import Device
from sensorium.actors.messages import LatestValue, WindowInfo
from sensorium.actors.metrics import NUMBER
from sensorium.actors.records import Alarm, Command, Registration
from sensorium.actors.twin_documents import NOTHING, Document


class WholeWindow(msgspec.Struct, frozen=True):
    """A rolling window: its length, and the aggregates of each number in it."""

    length_s: float
    metrics: dict[str, WindowInfo]


class WholeDevice(msgspec.Struct, frozen=True):
    """What a device is at one time.

    Attributes:
        metrics: the newest value of each, by event time.
        windows: those of its profile and its rules.
        alarms: the active ones, in order of their ids.
        commands: the open ones, in order of their numbers.
        online: whether it said that it is there; None when it said neither.
    """

    registration: Registration
    metrics: dict[str, LatestValue]
    windows: list[WholeWindow]
    alarms: list[Alarm]
    desired: Document
    reported: Document
    commands: list[Command]
    online: bool | None


def whole(device: Device) -> WholeDevice:
    """The device as it is; it must be registered."""
    assert device.registration is not None
    latest = device.newest_values()
    assert latest is not None
    windows = []
    for window in device.windows:
        length_s = window.spec.length_s
        found = {
            name: info
            for name, kind in zip(device.metrics.names, device.metrics.kinds, strict=True)
            # What came too late for any window is not looked for when a past state is rebuilt.
            if kind == NUMBER and (info := device.window(name, length_s)) is not None and info.count
        }
        windows.append(WholeWindow(length_s, found))
    state = device.twin.state
    return WholeDevice(
        device.registration,
        latest.metrics,
        sorted(windows, key=lambda window: window.length_s),
        sorted(device.alarms.values(), key=lambda alarm: alarm.alarm_id),
        NOTHING if state is None else state.desired,
        NOTHING if state is None else state.reported,
        sorted(device.commands.open.values(), key=lambda command: command.number),
        device.commands.online,
    )
