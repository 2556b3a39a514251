"""A metric's values to the figures of buckets, in Python; `_fold.c` does the same faster."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any

from sensorium.actors import sketch

Folded = tuple[Any, ...]
"""A bucket's start, the first and the last time in it (ms), total, squares, least, most, first, last, how
many values, their sketch, and the first and the last text. Numbers have no texts, texts have only these."""


def fold(
    times_ms: Sequence[int], numbers: Sequence[float], slot: int, row_width: int, bucket_ms: int
) -> list[Folded]:
    """The buckets of the values that stand at `slot` in rows of `row_width` numbers, in order of time.

    The rows are in the order of the log. Of equally old first values the earlier row counts, of last ones the
    later. NaN is an absent value.

    Args:
        times_ms: of each row, signed integers of 64 bits; `numbers` are doubles.

    Raises:
        ValueError: there are not so many numbers as the rows should have.
    """
    if len(times_ms) * row_width != len(numbers) or not 0 <= slot < row_width or bucket_ms <= 0:
        raise ValueError("times and numbers do not fit each other")
    values = zip(times_ms, numbers[slot::row_width], strict=True)
    there = ((time_ms, value) for time_ms, value in values if value == value)
    return [_figures(start_ms, *found) for start_ms, found in _bucketed(there, bucket_ms)]


def fold_texts(times_ms: Sequence[int], texts: Sequence[str | None], bucket_ms: int) -> list[Folded]:
    """The same of texts; None is an absent one."""
    there = ((t, text) for t, text in zip(times_ms, texts, strict=True) if text is not None)
    return [
        (start_ms, min(times), max(times), *[None] * 6, len(said), None, *_ends(times, said))
        for start_ms, (times, said) in _bucketed(there, bucket_ms)
    ]


def _bucketed(
    values: Iterable[tuple[int, Any]], bucket_ms: int
) -> list[tuple[int, tuple[list[int], list[Any]]]]:
    buckets: dict[int, tuple[list[int], list[Any]]] = {}
    for time_ms, value in values:
        start_ms = time_ms - time_ms % bucket_ms
        there = buckets.get(start_ms)
        if there is None:
            there = buckets[start_ms] = ([], [])
        there[0].append(time_ms)
        there[1].append(value)
    return sorted(buckets.items())


def _figures(start_ms: int, times_ms: list[int], values: list[float]) -> Folded:
    if len(values) == 1:
        # Where a device sends less than once a bucket.
        [time_ms], [value] = times_ms, values
        packed = sketch.encode({sketch.bin_of(value): 1})
        ends = (value, value, value, value, 1, packed, None, None)
        return (start_ms, time_ms, time_ms, 0.0 + value, 0.0 + value * value, *ends)
    bins: sketch.Bins = {}
    sketch.merge(bins, sketch.bins_of(values))
    return (
        *(start_ms, min(times_ms), max(times_ms)),
        # From left to right, which `sum` is not bound to.
        reduce(add, values, 0.0),
        reduce(add, [value * value for value in values], 0.0),
        *(min(values), max(values), *_ends(times_ms, values), len(values)),
        *(sketch.encode(bins), None, None),
    )


def _ends(times_ms: list[int], values: list[Any]) -> tuple[Any, Any]:
    """The first of the earliest time and the last of the latest."""
    latest = max(times_ms)
    index = len(times_ms) - 1
    while times_ms[index] != latest:
        index -= 1
    return values[times_ms.index(min(times_ms))], values[index]
