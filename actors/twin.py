"""The twin of one device: what people want of it, what it says of itself, and when it is told. Pure.

Both are documents with versions (`twin_documents`). What is desired and not reported so, the delta, is told
by the device's downlink: when it changes, and when the device comes back. Always the newest, at least once.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sensorium.actors.downlinks import BY_METADATA, route_of
from sensorium.actors.messages import (
    ACCEPTED,
    Answer,
    ChangeTwin,
    Outcome,
    Refusal,
    TwinTelling,
)
from sensorium.actors.records import Commit, Timer, TimerRow, TwinState
from sensorium.actors.twin_documents import (
    NOTHING,
    Document,
    DocumentChange,
    DocumentRefused,
    delta,
    patched,
)

if TYPE_CHECKING:
    from sensorium.actors.device import Device

TIMER: Final = "twin"

TWIN: Final = ""
"""In place of a command's id, where it says what a device is to be told: its twin."""

TELLS_TWINS: Final = frozenset(("mqtt", "coap", *BY_METADATA))
"""Downlinks by which a device can be told."""

FIRST_WAIT_MS: Final = 60_000
MAX_WAIT_MS: Final = 3_600_000
"""Between two tellings of one delta to a device that does not report it so; each wait is twice the last."""


_NOTHING_LEFT: Final[dict[str, Any]] = {}
"""Shared by the many devices without a delta; never written to."""


class TwinInfo(msgspec.Struct, frozen=True):
    """A device's twin, for people.

    Attributes:
        delta: what is desired and not reported so; null: what is desired no longer and still reported.
        told_version: the newest version of what is desired that the device was told.
    """

    device_id: str
    desired: Document
    reported: Document
    delta: dict[str, Any] = {}
    told_version: int = 0

    @property
    def tags(self) -> tuple[str, str, str]:
        """What names this state of the whole, of `desired` and of `reported`, as an entity tag does."""
        return tags(self.desired, self.reported)


class Twin:
    """Both documents of one device, and what it was told.

    Attributes:
        state: None while nobody has written either.
        listening: whether an uplink of the device makes a difference.
    """

    __slots__ = ("_delta", "listening", "state", "timer")

    def __init__(self, state: TwinState | None = None, timer: Timer | None = None) -> None:
        """Also as the log has them."""
        self.state = state
        self.timer = timer
        self._delta = _NOTHING_LEFT
        if state is not None:
            self._delta = delta(state.desired, state.reported)
        self._listen()

    @property
    def desired(self) -> Document:
        """What people want of the device."""
        return NOTHING if self.state is None else self.state.desired

    @property
    def reported(self) -> Document:
        """What the device says of itself."""
        return NOTHING if self.state is None else self.state.reported

    @property
    def versions(self) -> tuple[int, int]:
        """Of what is desired and of what is reported."""
        return self.desired.version, self.reported.version

    def info(self, device_id: str) -> TwinInfo:
        """All of it, for people."""
        told = 0 if self.state is None else self.state.told_version
        return TwinInfo(device_id, self.desired, self.reported, self._delta, told)

    # --- who writes -------------------------------------------------------------------------------------

    def change(self, device: "Device", message: ChangeTwin, now_ms: int, effects: Commit) -> Outcome:
        """Write either document or both, or refuse both."""
        present = tags(self.desired, self.reported)
        if message.matching is not None and not set(message.matching) & set(present):
            return Refusal("precondition_failed", f"the twin of {device.id} has changed: read it again")
        written: dict[str, tuple[Document, DocumentChange]] = {}
        for part, patch in (("desired", message.desired), ("reported", message.reported)):
            if patch is None:
                continue
            before = self.desired if part == "desired" else self.reported
            try:
                after = patched(
                    *(before, patch, now_ms, message.by),
                    replace=message.replace,
                    remember_removed=part == "desired",
                )
            except DocumentRefused as error:
                return Refusal("twin_too_large", f"{part}: {error}")
            if after is not None:
                written[part] = after
        for part, (_, change) in written.items():
            device.event(f"twin_{part}", now_ms, change, effects)
        if written:
            self._write(device, {part: document for part, (document, _) in written.items()})
        # An empty report asks what there is to do.
        asks = message.reported == {} and bool(self._delta)
        if "desired" in written or asks:
            self._due(device, now_ms, effects)
        elif written:
            self._settle(device, now_ms, effects)
        return Answer(self.info(device.id))

    def _write(self, device: "Device", documents: dict[str, Document]) -> None:
        state = self.state or TwinState(device.id, NOTHING, NOTHING)
        self.state = msgspec.structs.replace(state, **documents)
        self._delta = delta(self.state.desired, self.state.reported)

    # --- telling the device -----------------------------------------------------------------------------

    def claim(self, device: "Device") -> Outcome:
        """What is to be told now, for who tells it: always the newest."""
        desired = self.desired
        if self.state is None or not self.state.ready:
            return Answer(None)
        metadata = {} if device.registration is None else device.registration.metadata
        route = route_of(device.commands.downlink, metadata)
        return Answer(TwinTelling(desired.version, self._delta, desired.changed_ms, route))

    def told(self, device: "Device", version: int, now_ms: int, effects: Commit) -> Outcome:
        """It was told that version; perhaps not for the first time."""
        state = self.state
        if state is None or version > state.desired.version:
            return ACCEPTED
        newest = version == state.desired.version
        told_version = max(version, state.told_version)
        if not newest and told_version == state.told_version:
            return ACCEPTED
        self.state = msgspec.structs.replace(state, told_version=told_version)
        if newest:
            self._wait(device, now_ms, effects, again=False)
        else:
            self._settle(device, now_ms, effects)
        return ACCEPTED

    def untold(self, device: "Device", version: int, final: bool, now_ms: int, effects: Commit) -> Outcome:
        """It was certainly not told. `final`: another try is worth it only once something has changed."""
        state = self.state
        if state is not None and state.ready and version == state.desired.version:
            self._wait(device, now_ms, effects, again=not final)
        return ACCEPTED

    def take(self, device: "Device", now_ms: int, effects: Commit) -> Outcome:
        """The device asks what it has yet to do; nothing is an answer, too."""
        state, desired = self.state, self.desired
        if self._delta and state is not None and (state.ready or state.told_version != desired.version):
            self.told(device, desired.version, now_ms, effects)
        return Answer(TwinTelling(desired.version, self._delta, desired.changed_ms))

    # --- hearing from the device ------------------------------------------------------------------------

    def heard(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """The device sent something: what it has not taken it is told again, when that is due."""
        state = self.state
        waits = state is not None and bool(self._delta) and not state.ready
        if waits and state is not None and (state.due_ms is None or now_ms >= state.due_ms):
            self._ready(device, now_ms, effects)

    def metered(
        self, device: "Device", names: Sequence[str], values: Sequence[Any], now_ms: int, effects: Commit
    ) -> bool:
        """A reading of a device that reports by its metrics only: what is as desired counts as reported.

        Returns whether that changed anything.
        """
        state, left = self.state, self._delta
        if state is None or device.commands.downlink not in BY_METADATA:
            return False
        reported = self.reported
        taken = {
            name: left[name]
            for name, value in zip(names, values, strict=True)
            if name in left and _as_desired(left[name], value)
        }
        if taken:
            by = device.commands.downlink
            self.change(device, ChangeTwin(device.id, reported=taken, by=by), now_ms, effects)
        return self.reported is not reported

    def presence(self, device: "Device", online: bool, now_ms: int, effects: Commit) -> None:
        """The device says that it came, or its last will that it went."""
        if self.state is None or not self._delta:
            return
        if online:
            self._due(device, now_ms, effects)
        else:
            self._settle(device, now_ms, effects)

    def fire(self, device: "Device", due_ms: int, now_ms: int, effects: Commit) -> None:
        """The timer is due: nobody had listened, so try again."""
        if self.timer is None or self.timer.due_ms != due_ms:
            return
        self.timer = None
        effects.timers.append(TimerRow(device.shard.number, device.id, TIMER, None, now_ms))
        if self.state is not None and self._delta:
            self._ready(device, now_ms, effects)

    def surrounded(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """The device is told by another protocol from now on, or no longer, or again."""
        if self._delta:
            self._due(device, now_ms, effects)

    def end(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """The device is told nothing any more. Both documents stay."""
        state = self.state
        if state is not None:
            self._put(device, state, now_ms, effects, ready=False, due_ms=None)
            self._arm(device, None, now_ms, effects)
            self.listening = False

    # --- leaves -----------------------------------------------------------------------------------------

    def _due(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """From the first attempt on: what is to be told is new, or the device is back."""
        assert self.state is not None
        self.state = msgspec.structs.replace(self.state, tries=0)
        self._ready(device, now_ms, effects)

    def _ready(self, device: "Device", now_ms: int, effects: Commit) -> None:
        state = self.state
        assert state is not None
        can = bool(self._delta) and device.commands.online is not False
        ready = can and device.commands.downlink in TELLS_TWINS
        self._put(device, state, now_ms, effects, ready=ready, due_ms=None)
        self._arm(device, None, now_ms, effects)

    def _settle(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """What was to be told may be no longer."""
        state = self.state
        assert state is not None
        still = bool(self._delta) and device.commands.online is not False
        self._put(device, state, now_ms, effects, ready=state.ready and still)
        if not still:
            self._arm(device, None, now_ms, effects)

    def _wait(self, device: "Device", now_ms: int, effects: Commit, *, again: bool) -> None:
        """Tell it no more for a while, if there is anything left of it; `again` by ourselves after that."""
        state = self.state
        assert state is not None
        due_ms = None
        if self._delta:
            due_ms = now_ms + min(FIRST_WAIT_MS << min(state.tries, 16), MAX_WAIT_MS)
        self._put(device, state, now_ms, effects, ready=False, due_ms=due_ms, tries=state.tries + 1)
        self._arm(device, due_ms if again else None, now_ms, effects)

    def _put(self, device: "Device", state: TwinState, now_ms: int, effects: Commit, **changes: Any) -> None:
        self.state = msgspec.structs.replace(state, downlink=device.commands.downlink, **changes)
        effects.twins.append(self.state)
        self._listen()

    def _arm(self, device: "Device", due_ms: int | None, now_ms: int, effects: Commit) -> None:
        if due_ms is None and self.timer is None:
            return
        self.timer = None if due_ms is None else Timer(due_ms, now_ms)
        effects.timers.append(TimerRow(device.shard.number, device.id, TIMER, due_ms, now_ms))

    def _listen(self) -> None:
        state = self.state
        waits = state is not None and (not state.ready or state.downlink in BY_METADATA)
        self.listening = waits and bool(self._delta)


def _as_desired(wanted: Any, metric: Any) -> bool:
    """Whether a metric has that value, but for the digits that a float of four bytes does not keep."""
    if type(wanted) in (int, float) and type(metric) in (int, float):
        return math.isclose(wanted, metric, rel_tol=1e-6)
    return type(wanted) is type(metric) and bool(wanted == metric)


def tags(desired: Document, reported: Document) -> tuple[str, str, str]:
    """See `TwinInfo.tags`."""
    d, r = desired.version, reported.version
    return f"{d}.{r}", f"d{d}", f"r{r}"
