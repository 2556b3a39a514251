"""The commands of one device: in which order it is told, and how each ends, once. Pure.

A command waits (QUEUED) until no other is on its way, is claimed by whoever tells the device (SENT), may be
confirmed (DELIVERED), and ends. Only one is SENT at a time, which keeps the order; those that are DELIVERED
run beside each other. What is SENT may have reached the device: it is told again only if `retries` allow it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sensorium.actors.downlinks import route_of
from sensorium.actors.messages import (
    ACCEPTED,
    DEAD_LETTER_PAYLOAD_BYTES,
    DUPLICATE,
    Answer,
    CancelCommand,
    ClaimCommand,
    CommandReply,
    CommandUndelivered,
    Content,
    DeadLetter,
    Outcome,
    Refusal,
    SendCommand,
    Telling,
)
from sensorium.actors.records import (
    OPEN_STATES,
    Command,
    CommandState,
    CommandStep,
    Commit,
    PresenceRow,
    Timer,
    TimerRow,
)

if TYPE_CHECKING:
    from sensorium.actors.device import Device

MAX_OPEN: Final = 100
"""Open commands of a device; a further one is refused."""

REMEMBERED: Final = 32
"""Ended commands that a device still recognises; whoever sends commands anew after longer asks the store."""

UNREACHED_WAIT_MS: Final = 60_000
"""After nobody listened, the device is tried again in so long, or as soon as it is heard of."""

TIMER: Final = "commands"
"""The one timer for all commands of a device."""

QUEUED, SENT, DELIVERED = CommandState.QUEUED, CommandState.SENT, CommandState.DELIVERED
_LATE: Final = frozenset((CommandState.TIMED_OUT, CommandState.EXPIRED, CommandState.CANCELLED))
_ENDS: Final = {"succeeded": CommandState.SUCCEEDED, "failed": CommandState.FAILED}


class Commands:
    """The open commands of one device, and what it must remember to tell it each once.

    Attributes:
        open: by id, in order.
        said: what the device or its last will said last of its presence.
        downlink: by which protocol the device is told; see `downlinks`.
        listening: whether an uplink of the device makes a difference.
    """

    __slots__ = ("_ended", "downlink", "listening", "open", "said", "timer")

    def __init__(self) -> None:
        self.open: dict[str, Command] = {}
        self.said: PresenceRow | None = None
        self.downlink = "mqtt"
        self.listening = False
        self.timer: Timer | None = None
        self._ended: dict[str, CommandState] = {}

    @classmethod
    def restore(
        cls, commands: Iterable[Command], presence: PresenceRow | None, timer: Timer | None
    ) -> "Commands":
        """As the log has them."""
        restored = cls()
        for command in commands:
            if command.state in OPEN_STATES:
                restored.open[command.command_id] = command
            else:
                restored._remember(command)
        restored.said = presence
        restored.timer = timer
        restored._listen()
        return restored

    @property
    def online(self) -> bool | None:
        """Whether the device says that it is there; None: it has never said."""
        return None if self.said is None else self.said.online

    # --- what people ask --------------------------------------------------------------------------------

    def send(self, device: "Device", message: SendCommand, now_ms: int, effects: Commit) -> Outcome:
        """A new command, or one that is there already."""
        known = self.open.get(message.command_id)
        if known is not None:
            if (known.command, known.parameters) != (message.command, message.parameters):
                return Refusal("conflict", f"command {message.command_id} is another one")
            return Answer(known)
        if message.command_id in self._ended:
            return DUPLICATE
        if len(self.open) >= MAX_OPEN:
            return Refusal("overloaded", f"device {device.id} has {MAX_OPEN} open commands")
        if message.expires_ms <= now_ms:
            return Refusal("invalid", "the command has expired before it was sent")
        command = Command(
            *(message.command_id, device.id, message.command, message.parameters, QUEUED),
            *(now_ms, now_ms, message.timeout_ms, message.expires_ms),
            # The offset of its event, but above those of another shard that it comes behind.
            number=max([device.shard.head, *(one.number for one in self.open.values())]) + 1,
            retries=message.retries,
            job_id=message.job_id,
        )
        self._step(device, command, QUEUED, now_ms, effects)
        self._advance(device, now_ms, effects)
        return Answer(self.open[command.command_id])

    def cancel(self, device: "Device", message: CancelCommand, now_ms: int, effects: Commit) -> Outcome:
        """End an open command."""
        command = self.open.get(message.command_id)
        if command is None:
            if message.command_id in self._ended:
                return Refusal("conflict", f"command {message.command_id} has ended already")
            return Refusal("not_found", f"no open command {message.command_id} of device {device.id}")
        told = "cancelled" if command.attempt == 0 else "cancelled; the device had been told"
        ended = self._step(device, command, CommandState.CANCELLED, now_ms, effects, told)
        self._advance(device, now_ms, effects)
        return Answer(ended)

    def end_all(self, device: "Device", reason: str, now_ms: int, effects: Commit) -> None:
        """Cancel whatever is open."""
        for command in list(self.open.values()):
            self._step(device, command, CommandState.CANCELLED, now_ms, effects, reason)

    # --- telling the device -----------------------------------------------------------------------------

    def claim(self, device: "Device", message: ClaimCommand, now_ms: int, effects: Commit) -> Outcome:
        """Leave to tell the device now."""
        command = self.open.get(message.command_id)
        if command is None or not command.ready or command.attempt + 1 != message.attempt:
            return Refusal("conflict", f"command {message.command_id} is not to be sent")
        if message.downlink not in (None, self.downlink):
            return Refusal("conflict", f"device {device.id} is told by {self.downlink}")
        if now_ms >= command.expires_ms:
            self._expire(device, command, now_ms, effects)
            self._advance(device, now_ms, effects)
            return Answer(None)
        return Answer(self._tell(device, command, now_ms, effects))

    def take(self, device: "Device", now_ms: int, effects: Commit) -> Outcome:
        """What the device shall do, for one that asks: what it was told and has not answered, or the next."""
        self.heard(device, now_ms, effects)
        if not any(command.state is SENT for command in self.open.values()):
            for command in [c for c in self.open.values() if c.state is QUEUED]:
                if now_ms < command.expires_ms:
                    self._tell(device, command, now_ms, effects)
                    break
                self._expire(device, command, now_ms, effects)
            self._advance(device, now_ms, effects)
        return Answer([_telling(device, command) for command in self.open.values() if command.state is SENT])

    def undelivered(
        self, device: "Device", message: CommandUndelivered, now_ms: int, effects: Commit
    ) -> Outcome:
        """The attempt did not reach the device: it does not count."""
        command = self.open.get(message.command_id)
        if command is None or command.state is not SENT or command.attempt != message.attempt:
            return ACCEPTED
        if message.final:
            self._step(device, command, CommandState.FAILED, now_ms, effects, message.reason)
        else:
            back = msgspec.structs.replace(
                command, attempt=command.attempt - 1, due_ms=now_ms + UNREACHED_WAIT_MS
            )
            self._step(device, back, QUEUED, now_ms, effects, message.reason)
        self._advance(device, now_ms, effects)
        return ACCEPTED

    def redirect(self, device: "Device", downlink: str, now_ms: int, effects: Commit) -> None:
        """From now on the device is told by another protocol; so is what waits."""
        if downlink != self.downlink:
            self.downlink = downlink
            self._advance(device, now_ms, effects)

    # --- hearing from the device ------------------------------------------------------------------------

    def reply(self, device: "Device", message: CommandReply, now_ms: int, effects: Commit) -> Outcome:
        """The device answers. Whatever it says, the next command gets its turn."""
        command = self.open.get(message.command_id)
        if command is None or (command.state is QUEUED and command.attempt == 0):
            return self._unexpected(device, message, effects)
        end = _ENDS.get(message.status)
        if end is not None:
            ended = msgspec.structs.replace(command, result=message.result)
            self._step(device, ended, end, now_ms, effects, message.reason)
        elif command.state is DELIVERED:
            return DUPLICATE
        else:
            delivered = msgspec.structs.replace(command, due_ms=now_ms + command.timeout_ms)
            self._step(device, delivered, DELIVERED, now_ms, effects, message.reason)
        self._advance(device, now_ms, effects)
        return ACCEPTED

    def heard(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """The device sent something: it is there, so what waits for it need not wait longer."""
        if self.online is False:
            self._set_online(device, True, now_ms, effects)
        for command in list(self.open.values()):
            if command.state is QUEUED and command.due_ms is not None:
                self._put(command, now_ms, effects, due_ms=None)
        self._advance(device, now_ms, effects)

    def presence(self, device: "Device", online: bool, now_ms: int, effects: Commit) -> None:
        """The device says that it came, or its last will that it went."""
        if online:
            if self.online is None:
                self._set_online(device, True, now_ms, effects)
            self.heard(device, now_ms, effects)
        elif self.online is not False:
            self._set_online(device, False, now_ms, effects)
            self._advance(device, now_ms, effects)

    def fire(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """The timer is due: end or repeat what is out of time."""
        for command in list(self.open.values()):
            if command.state is QUEUED:
                if now_ms >= command.expires_ms:
                    self._expire(device, command, now_ms, effects)
            elif command.due_ms is not None and now_ms >= command.due_ms:
                reason = f"no answer within {command.timeout_ms / 1000:g} s"
                if command.state is SENT and command.attempt <= command.retries:
                    again = msgspec.structs.replace(command, due_ms=None)
                    self._step(device, again, QUEUED, now_ms, effects, reason)
                else:
                    self._step(device, command, CommandState.TIMED_OUT, now_ms, effects, reason)
        self._advance(device, now_ms, effects)

    # --- leaves -----------------------------------------------------------------------------------------

    def _advance(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """Make the first that waits ready if it may be told now, and set the timer to what is due next."""
        free = self.online is not False
        for command in list(self.open.values()):
            if command.state is QUEUED:
                due_ms = None if command.due_ms is None or now_ms >= command.due_ms else command.due_ms
                ready = free and due_ms is None
                now = (ready, due_ms, self.downlink)
                if (command.ready, command.due_ms, command.downlink) != now:
                    self._put(command, now_ms, effects, ready=ready, due_ms=due_ms, downlink=self.downlink)
                free = False
            elif command.state is SENT:
                free = False
        self._listen()
        self._arm(device, now_ms, effects)

    def _listen(self) -> None:
        waiting = [command for command in self.open.values() if command.state is QUEUED]
        self.listening = self.online is False or any(command.due_ms is not None for command in waiting)

    def _arm(self, device: "Device", now_ms: int, effects: Commit) -> None:
        """A timer that is early does no harm, so it is set only when it would be late."""
        due_ms = min(map(_due_ms, self.open.values()), default=None)
        timer = self.timer
        over = timer is not None and timer.due_ms <= now_ms
        if due_ms is None:
            if not over:
                return
            self.timer = None
        elif timer is None or over or due_ms < timer.due_ms:
            self.timer = Timer(max(due_ms, now_ms + 1), now_ms)
        else:
            return
        due = None if self.timer is None else self.timer.due_ms
        effects.timers.append(TimerRow(device.shard.number, device.id, TIMER, due, now_ms))

    def _put(self, command: Command, now_ms: int, effects: Commit, **changes: Any) -> None:
        changed = msgspec.structs.replace(command, updated_ms=now_ms, **changes)
        self.open[command.command_id] = changed
        effects.commands.append(changed)

    def _tell(self, device: "Device", command: Command, now_ms: int, effects: Commit) -> Telling:
        sent = msgspec.structs.replace(
            command, attempt=command.attempt + 1, due_ms=now_ms + command.timeout_ms
        )
        telling = _telling(device, self._step(device, sent, SENT, now_ms, effects))
        self._arm(device, now_ms, effects)
        return telling

    def _expire(self, device: "Device", command: Command, now_ms: int, effects: Commit) -> None:
        why = "expired" if command.attempt == 0 else "expired before it could be sent again"
        self._step(device, command, CommandState.EXPIRED, now_ms, effects, why)

    def _step(
        self,
        device: "Device",
        command: Command,
        state: CommandState,
        now_ms: int,
        effects: Commit,
        reason: str | None = None,
    ) -> Command:
        step = CommandStep(state, now_ms, command.attempt, reason)
        ended = state not in OPEN_STATES
        command = msgspec.structs.replace(
            command,
            state=state,
            updated_ms=now_ms,
            ready=False,
            due_ms=None if ended else command.due_ms,
            reason=reason,
            steps=(*command.steps, step),
        )
        if ended:
            self.open.pop(command.command_id, None)
            self._remember(command)
        else:
            self.open[command.command_id] = command
        effects.commands.append(command)
        body = {"command_id": command.command_id, "command": command.command, "attempt": command.attempt}
        device.event(f"command_{state.lower()}", now_ms, {**body, "reason": reason}, effects)
        return command

    def _remember(self, command: Command) -> None:
        self._ended[command.command_id] = command.state
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _set_online(self, device: "Device", online: bool, now_ms: int, effects: Commit) -> None:
        self.said = PresenceRow(device.id, online, now_ms)
        effects.presences.append(self.said)
        device.event("online" if online else "offline", now_ms, {}, effects)

    def _unexpected(self, device: "Device", message: CommandReply, effects: Commit) -> Outcome:
        state = self._ended.get(message.command_id)
        if state is not None and state not in _LATE:
            return DUPLICATE
        if not message.certain:
            return ACCEPTED
        if state is None:
            refusal = Refusal(
                "unknown_command", f"no open command {message.command_id} of device {device.id}", True
            )
        else:
            refusal = Refusal("late_reply", f"command {message.command_id} was {state} already", True)
        said: dict[str, Any] = {
            "status": message.status,
            "result": message.result,
            "reason": message.reason,
        }
        payload = msgspec.json.encode(said)
        effects.dead_letters.append(
            DeadLetter(
                device.id,
                "device",
                f"devices/{device.id}/commands/{message.command_id}/response",
                refusal.code,
                refusal.detail,
                payload[:DEAD_LETTER_PAYLOAD_BYTES],
                len(payload),
                message.received_ms,
                Content.OTHER,
            )
        )
        return refusal


def _due_ms(command: Command) -> int:
    if command.state is QUEUED:
        return command.expires_ms if command.due_ms is None else min(command.expires_ms, command.due_ms)
    return command.expires_ms if command.due_ms is None else command.due_ms


def _telling(device: "Device", command: Command) -> Telling:
    metadata = {} if device.registration is None else device.registration.metadata
    return Telling(
        *(command.command_id, command.command, command.parameters, command.attempt, command.expires_ms),
        route=route_of(device.commands.downlink, metadata),
    )
