"""How long a device was there: from what it said of coming and going, or else from when it sent. Pure."""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

MAX_OUTAGES: Final = 1_000


class Outage(msgspec.Struct, frozen=True):
    """Away from `start_ms`; `end_ms` is null while it still is."""

    start_ms: int
    end_ms: int | None
    duration_s: float


class Uptime(msgspec.Struct, frozen=True):
    """Shares and times of a range. Null where nothing is known, as before the device first said anything.

    `known_s` is how much of the range is known; `uptime` the share of that in which the device was there.
    `between_failures_s` is the time it was there by the number of outages, `to_repair_s` that of an ended
    outage, both on average.
    """

    by: Literal["presence", "readings"]
    uptime: float | None
    known_s: float
    online_s: float
    outages: int
    longest_outage_s: float | None
    between_failures_s: float | None
    to_repair_s: float | None
    history: list[Outage]
    """The outages that touch the range, newest first; the newest `MAX_OUTAGES` of them."""


def from_presence(
    changes: Sequence[tuple[int, bool]], before: bool | None, start_ms: int, end_ms: int
) -> Uptime:
    """By what the device said.

    Args:
        changes: (time, whether it came) in order, from `start_ms` up to `end_ms`.
        before: how it was at `start_ms`; None: nobody knows.
    """
    spans: list[tuple[int, int, bool]] = []
    state, since_ms = before, start_ms
    for time_ms, online in changes:
        if state is not None and time_ms > since_ms:
            spans.append((since_ms, time_ms, state))
        state, since_ms = online, time_ms
    if state is not None and end_ms > since_ms:
        spans.append((since_ms, end_ms, state))
    return _told("presence", spans, end_ms)


def from_buckets(busy_ms: Sequence[int], width_ms: int, start_ms: int, end_ms: int) -> Uptime:
    """By the intervals of `width_ms` in which it sent; known from the first of them on.

    Args:
        busy_ms: their starts, in order.
    """
    spans: list[tuple[int, int, bool]] = []
    at_ms = None
    for begin_ms in busy_ms:
        if at_ms is not None and begin_ms > at_ms:
            spans.append((at_ms, begin_ms, False))
        spans.append((max(begin_ms, start_ms), min(begin_ms + width_ms, end_ms), True))
        at_ms = begin_ms + width_ms
    if at_ms is not None and at_ms < end_ms:
        spans.append((at_ms, end_ms, False))
    return _told("readings", spans, end_ms)


def _told(by: Literal["presence", "readings"], spans: list[tuple[int, int, bool]], end_ms: int) -> Uptime:
    joined: list[tuple[int, int, bool]] = []
    for span in spans:
        if joined and joined[-1][2] == span[2] and joined[-1][1] == span[0]:
            joined[-1] = (joined[-1][0], span[1], span[2])
        elif span[1] > span[0]:
            joined.append(span)
    known_ms = sum(end - start for start, end, _ in joined)
    online_ms = sum(end - start for start, end, there in joined if there)
    away = [(start, end) for start, end, there in joined if not there]
    ended = [(end - start) / 1000.0 for start, end in away if end < end_ms]
    return Uptime(
        by=by,
        uptime=online_ms / known_ms if known_ms else None,
        known_s=known_ms / 1000.0,
        online_s=online_ms / 1000.0,
        outages=len(away),
        longest_outage_s=max(((end - start) / 1000.0 for start, end in away), default=None),
        between_failures_s=online_ms / 1000.0 / len(away) if away else None,
        to_repair_s=sum(ended) / len(ended) if ended else None,
        history=[
            Outage(start, end if end < end_ms else None, (end - start) / 1000.0)
            for start, end in away[: -MAX_OUTAGES - 1 : -1]
        ],
    )
