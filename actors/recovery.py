"""How a device's state becomes a snapshot, and a device is built again from what the log holds."""

from collections.abc import Iterator
from contextlib import suppress

import msgspec

from sensorium.actors.commands import TIMER as COMMANDS_TIMER
from sensorium.actors.commands import Commands
from sensorium.actors.detection import WatcherState, restored
from sensorium.actors.device import NEVER_MS, Device, Shard, Surroundings
from sensorium.actors.messages import ReadingFlag, Value
from sensorium.actors.metrics import metric_set
from sensorium.actors.modelled import Modelled, ModelMemory
from sensorium.actors.profile import WindowSpec
from sensorium.actors.records import Snapshot, StoredDevice, TailReading
from sensorium.actors.seen import Seen
from sensorium.actors.twin import TIMER as TWIN_TIMER
from sensorium.actors.twin import Twin
from sensorium.actors.windows import Window


class _State(msgspec.Struct, array_like=True):
    """A snapshot's contents. New fields go to the end, with a default."""

    newest_ms: int
    last_seen_ms: int
    names: tuple[str, ...]
    kinds: str
    latest: list[Value | None]
    latest_ms: list[int]
    windows: list[tuple[float, float, int | None, list[bytes | None]]]
    seen: tuple[bytes, bytes, int, int]
    watchers: list[WatcherState] = []
    tallies: dict[str, tuple[int, int, int, int]] = {}
    """By alarm id."""
    models: list[ModelMemory] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_State).decode


def take_snapshot(device: Device) -> Snapshot:
    """The device's state as of its shard's present offset."""
    state = _State(
        device.newest_ms,
        device.last_seen_ms,
        device.metrics.names,
        device.metrics.kinds,
        device.latest,
        device.latest_ms,
        [(w.spec.length_s, w.spec.slide_s, w.newest, w.dump()) for w in device.windows],
        device.seen.dump(),
        [] if device.detection is None else device.detection.dump(),
        {device.alarms[rule_id].alarm_id: t.dump() for rule_id, t in device.watch.tallies.items()},
        [] if device.modelled is None else device.modelled.dump(),
    )
    replay_from_ms = None if device.newest_ms == NEVER_MS else device.newest_ms - device.lateness_ms
    return Snapshot(device.key, device.shard.number, device.shard.head, replay_from_ms, _encode(state))


def activate(stored: StoredDevice, shard: Shard, around: Surroundings) -> Device:
    """The device as the log knows it: its snapshot and, on top, the readings after it. Emits nothing."""
    device = Device(stored.device_id, shard)
    device.registration = stored.registration
    device.watch.restore(stored.alarms)
    own = (COMMANDS_TIMER, TWIN_TIMER)
    device.watch.timers = {name: timer for name, timer in stored.timers.items() if name not in own}
    device.twin = Twin(stored.twin, stored.timers.get(TWIN_TIMER))
    device.commands = Commands.restore(stored.commands, stored.presence, stored.timers.get(COMMANDS_TIMER))
    if stored.snapshot is not None:
        _restore(device, stored.snapshot)
    if stored.registration is not None:
        device.furnish(around)
    for row in stored.tail:
        _replay(device, row, around)
    if stored.tail and around.models is not None and stored.registration is not None:
        if device.modelled is None and stored.registration.device_type in around.models.by_type:
            device.modelled = Modelled()
        if device.modelled is not None:
            device.modelled.missed = stored.tail
    return device


def as_stored(device: Device) -> StoredDevice:
    """The device as the log would hand it out once it is saved; what `activate` is given. Changes nothing."""
    timers = dict(device.watch.timers)
    if device.commands.timer is not None:
        timers[COMMANDS_TIMER] = device.commands.timer
    if device.twin.timer is not None:
        timers[TWIN_TIMER] = device.twin.timer
    return StoredDevice(
        device.id,
        device.registration,
        take_snapshot(device),
        [],
        list(device.watch.alarms.values()),
        timers,
        list(device.commands.open.values()),
        device.commands.said,
        device.twin.state,
    )


def _restore(device: Device, snapshot: Snapshot) -> None:
    state = _decode(snapshot.state)
    device.newest_ms = state.newest_ms
    device.last_seen_ms = state.last_seen_ms
    device.metrics = metric_set(state.names, state.kinds)
    device.latest = state.latest
    device.latest_ms = state.latest_ms
    device.seen = Seen.restore(state.seen)
    if snapshot.replay_from_ms is not None:
        # Older readings that came after the snapshot are not replayed, so the memory lacks them.
        device.seen.floor_ms = max(device.seen.floor_ms, snapshot.replay_from_ms - 1)
    for rule_id, alarm in device.alarms.items():
        if alarm.alarm_id in state.tallies:
            device.watch.tallies[rule_id].restore(state.tallies[alarm.alarm_id])
    device.windows = tuple(_windows(state))
    device.detection = restored(state.watchers, device.metrics)
    if state.models:
        device.modelled = Modelled(state.models)


def _windows(state: _State) -> Iterator[Window]:
    """Those of the snapshot. One that was saved in another form than today's begins empty instead."""
    for length_s, slide_s, newest, cells in state.windows:
        with suppress(ValueError):
            yield Window.restore(WindowSpec(length_s, slide_s), newest, cells)


def _replay(device: Device, row: TailReading, around: Surroundings) -> None:
    present = {n: v for n, v in zip(row.metric_set.names, row.values, strict=True) if v is not None}
    grown = device.metrics.grown(tuple(present), list(present.values()))
    if grown is not device.metrics:
        device.adopt(grown)
        if device.registration is not None:
            device.fit_detection(around.rules)
    values: list[Value | None] = [None] * len(device.metrics.names)
    for name, value in present.items():
        values[device.metrics.index[name]] = value
    # Its own time stands for the time of receipt, which the log does not keep.
    device.remember(row.time_ms, row.key, received_ms=row.time_ms)
    if not row.flags & ReadingFlag.LATE:
        if device.detection is not None and row.time_ms >= device.newest_ms:
            device.detection.judge(device, values, row.time_ms, None)
        if device.alarms and row.time_ms >= device.newest_ms:
            device.watch.recount(device, around.rules, values, row.time_ms)
        device.fold(values, row.time_ms)
