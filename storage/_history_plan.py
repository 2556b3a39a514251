"""Which part of an asked range is read from which level: a pure function of the range and what there is."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sensorium.storage.rollup import LEVELS, Level

RAW: Final = "raw"
ALWAYS_MS: Final = 253_402_300_799_000
NEVER_MS: Final = -62_135_596_800_000


class Segment(NamedTuple):
    """Event times from `start_ms` up to `end_ms`, read from a level; None: from the readings."""

    level: Level | None
    start_ms: int
    end_ms: int


def segments(
    start_ms: int | None, end_ms: int | None, interval_ms: int | None, kept_from: Mapping[str, int]
) -> list[Segment]:
    """Segments that cover the range once, each of the coarsest level whose buckets fit into it exactly.

    A level fits when the interval is a whole number of its buckets (any is without an interval), and where
    retention has kept it: from `kept_from`, by table, on.
    """
    fitting = [level for level in LEVELS if interval_ms is None or interval_ms % level.width_ms == 0]
    start = NEVER_MS if start_ms is None else start_ms
    end = ALWAYS_MS if end_ms is None else end_ms
    return [s for s in _cover(fitting, start, end, kept_from) if s.start_ms < s.end_ms]


def _cover(
    levels: Sequence[Level], start_ms: int, end_ms: int, kept_from: Mapping[str, int]
) -> list[Segment]:
    if start_ms >= end_ms:
        return []
    if not levels:
        return [Segment(None, start_ms, end_ms)]
    *finer, level = levels
    width_ms = level.width_ms
    inner_start = max(-(-start_ms // width_ms) * width_ms, kept_from.get(level.table, NEVER_MS))
    inner_end = end_ms // width_ms * width_ms
    if inner_start >= inner_end:
        return _cover(finer, start_ms, end_ms, kept_from)
    return [
        *_cover(finer, start_ms, inner_start, kept_from),
        Segment(level, inner_start, inner_end),
        *_cover(finer, inner_end, end_ms, kept_from),
    ]
