"""What subscribers of the live feed are sent: encoded once, for however many want the same."""

from functools import cached_property
from typing import Any, Final

import msgspec

from sensorium.actors.messages import Quality
from sensorium.serve.feed_filter import ALARMS, ANOMALIES, ANOMALY, COMMANDS, PRESENCE, READINGS, TWINS
from sensorium.storage.live_log import Change

encode: Final = msgspec.json.Encoder().encode

KEEPALIVE: Final = b": keepalive\n"


class Frame:
    """A message to a subscriber: one of WebSocket, one event of Server-Sent Events.

    Attributes:
        kind: "snapshot", "changes", "gap" or "cursor".
        cursor: resume from here once it has been handled.
        body: the JSON object.
        items: how many changes it holds.
    """

    def __init__(self, kind: str, cursor: str, body: bytes, items: int = 0) -> None:
        self.kind = kind
        self.cursor = cursor
        self.body = body
        self.items = items

    @cached_property
    def text(self) -> str:
        """For a text message of a WebSocket."""
        return self.body.decode()

    @cached_property
    def event(self) -> bytes:
        """For an event stream (HTML standard, 9.2.6)."""
        if self.kind == "cursor":
            return KEEPALIVE + b"id: %s\n\n" % self.cursor.encode()
        # What was missed is not behind whoever was told of it, so a gap moves no cursor.
        moved = b"" if self.kind == "gap" else b"id: %s\n" % self.cursor.encode()
        return b"%sevent: %s\ndata: %s\n\n" % (moved, self.kind.encode(), self.body)


def changes_frame(cursor: str, items: list[bytes]) -> Frame:
    """Changes in the order of their commits."""
    head = b'{"type":"changes","cursor":"%s","items":[' % cursor.encode()
    return Frame("changes", cursor, b"%s%s]}" % (head, b",".join(items)), len(items))


def gap_frame(cursor: str, dropped: int) -> Frame:
    """What is behind `cursor` was left out, up to the frame that follows; resume from it to have it."""
    body = encode({"type": "gap", "cursor": cursor, "dropped": dropped})
    return Frame("gap", cursor, body)


def cursor_frame(cursor: str) -> Frame:
    """A sign of life: nothing has happened up to `cursor`."""
    return Frame("cursor", cursor, encode({"type": "cursor", "cursor": cursor}))


def snapshot_frame(cursor: str, parts: dict[str, Any]) -> Frame:
    """How things stand at `cursor`, or a little after."""
    return Frame("snapshot", cursor, encode({"type": "snapshot", "cursor": cursor, **parts}))


def item(change: Change, topic: str, metrics: frozenset[str] = frozenset()) -> bytes | None:
    """The change as JSON; None if it is a reading without any of `metrics`.

    `id` is the same for every subscriber and after every resumption.
    """
    shown: dict[str, Any] = {
        "topic": topic,
        "id": f"{change.shard}-{change.offset}",
        "device_id": change.device_id,
        "device_type": change.device_type,
        "time_ms": change.time_ms,
        "committed_ms": change.committed_ms,
    }
    kind, body = change.kind, change.body
    if topic == READINGS:
        values = change.values or {}
        if metrics:
            values = {name: value for name, value in values.items() if name in metrics}
            if not values:
                return None
        shown["values"] = values
        if change.late:
            shown["late"] = True
        if change.quality is Quality.SUSPECT:
            shown["quality"] = change.quality
    elif topic == ALARMS:
        assert kind is not None
        shown |= {"event": kind.removeprefix("alarm_"), "alarm": body}
    elif topic == ANOMALIES:
        assert kind is not None
        shown |= {"event": kind.removeprefix(ANOMALY).removeprefix("_") or "started", "anomaly": body}
    elif topic == COMMANDS:
        assert kind is not None
        shown |= {"event": kind.removeprefix("command_"), **body}
    elif topic == PRESENCE:
        shown["online"] = kind == "online"
    elif topic == TWINS:
        assert kind is not None
        # The way back is the log's affair.
        twin = {name: body[name] for name in ("version", "by", "patch")}
        shown |= {"event": kind.removeprefix("twin_"), "twin": twin}
    else:
        shown |= {"event": kind, "device": body}
    return encode(shown)
