"""Two lists of alarms beside each other: which of one stand for which of the other. Pure."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import msgspec

from sensorium.actors.records import Alarm

STILL_MS = 2**62
"""The end of an alarm that still stands."""


class Matched(NamedTuple):
    """What `match` found: `stays` are pairs (before, after) that overlap in time."""

    gone: list[Alarm]
    new: list[Alarm]
    stays: list[tuple[Alarm, Alarm]]


class Comparison(msgspec.Struct, frozen=True):
    """The alarms of two fleets. Each is in one of the lists; of a pair that stays, the one of each side.

    Attributes:
        only_mine, only_theirs: those that the other side has nothing for.
        both: pairs (mine, theirs) of the same device and rule that overlap in time.
    """

    only_mine: list[Alarm]
    only_theirs: list[Alarm]
    both: list[tuple[Alarm, Alarm]]


def by_device_and_rule(alarm: Alarm) -> Hashable:
    """The key under which alarms of two fleets are the same: one rule at one device."""
    return alarm.device_id, alarm.rule_id


def by_device(alarm: Alarm) -> Hashable:
    """The key under which alarms of two rules are compared."""
    return alarm.device_id


def match(
    before: Sequence[Alarm], after: Sequence[Alarm], key: Callable[[Alarm], Hashable] = by_device_and_rule
) -> Matched:
    """Pair the alarms of equal `key` that overlap in event time, each at most once, the earlier first."""
    waiting: dict[Hashable, list[Alarm]] = {}
    for alarm in sorted(before, key=_start):
        waiting.setdefault(key(alarm), []).append(alarm)
    new, stays, gone = [], [], []
    for alarm in sorted(after, key=_start):
        candidates = waiting.get(key(alarm), [])
        # Alarms of one rule and device do not overlap each other: what ends before this one ends before all.
        while candidates and _end_ms(candidates[0]) < alarm.start_ms:
            gone.append(candidates.pop(0))
        if candidates and candidates[0].start_ms <= _end_ms(alarm):
            stays.append((candidates.pop(0), alarm))
        else:
            new.append(alarm)
    gone += [alarm for candidates in waiting.values() for alarm in candidates]
    return Matched(sorted(gone, key=_start), new, stays)


def _start(alarm: Alarm) -> tuple[int, str]:
    return alarm.start_ms, alarm.alarm_id


def _end_ms(alarm: Alarm) -> int:
    return STILL_MS if alarm.end_ms is None else alarm.end_ms
