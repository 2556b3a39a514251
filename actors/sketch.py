"""A mergeable quantile sketch, DDSketch, of a fixed relative error. No histogram: bins grow with the value.

Masson, Rim, Lee: "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees",
PVLDB 12(12), 2019. Merging is adding the counts of equal bins, so the order of merging does not matter.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from math import ceil, log
from struct import Struct
from struct import error as struct_error
from sys import float_info
from typing import Final

from sensorium.actors.errors import InvalidMessage

RELATIVE_ERROR: Final = 0.01
GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
LOG_GAMMA: Final = log(GAMMA)
BIAS: Final = 40_000
"""Added to the exponent of a bin: above the greatest one of a float, so that bins sort as their values do."""

MAX_BINS: Final = 2_048
"""Seventeen orders of magnitude of one sign. Beyond it the lowest bins become one, and lose the guarantee."""

Bins = dict[int, int]
"""Counts by bin. Bin 0 holds the zeros; that of a negative value is the negated bin of its absolute value."""

_WIDTHS: Final = "BHIQ"
_LIMITS: Final = (1 << 8, 1 << 16, 1 << 32, 1 << 64)
_HEADER: Final = Struct("<Bi")
_ONE_BIN: Final = Struct("<BiB")
_structs: dict[tuple[int, int, int], Struct] = {}


def bin_of(value: float) -> int:
    """The bin of a finite value."""
    if value > 0.0:
        return ceil(log(value) / LOG_GAMMA) + BIAS
    return -(ceil(log(-value) / LOG_GAMMA) + BIAS) if value < 0.0 else 0


def bins_of(values: Iterable[float]) -> Bins:
    """The bins of finite values."""
    bins: Bins = {}
    for value in values:
        key = bin_of(value)
        bins[key] = bins.get(key, 0) + 1
    return bins


def merge(into: Bins, other: Mapping[int, int]) -> None:
    """Add the counts of `other`."""
    get = into.get
    for key, count in other.items():
        into[key] = get(key, 0) + count
    if len(into) > MAX_BINS:
        _collapse(into)


def _collapse(bins: Bins) -> None:
    lowest = sorted(bins)[: len(bins) - MAX_BINS + 1]
    bins[lowest[-1]] = sum(bins.pop(key) for key in lowest)


def quantile(bins: Mapping[int, int], q: float) -> float:
    """The value of rank `q` (0 to 1) among those folded in, within `RELATIVE_ERROR` of it.

    Raises:
        ValueError: there are none.
    """
    rank = q * (sum(bins.values()) - 1)
    below = 0
    for key in sorted(bins):
        below += bins[key]
        if below > rank:
            return _value_of(key)
    raise ValueError("a sketch without values has no quantiles")


def _value_of(key: int) -> float:
    if key == 0:
        return 0.0
    # The point of the bin that is equally far from both of its ends, relatively.
    magnitude = min(float(GAMMA ** (abs(key) - BIAS - 1)) * (2 * GAMMA / (1 + GAMMA)), float_info.max)
    return magnitude if key > 0 else -magnitude


def encode(bins: Mapping[int, int]) -> bytes:
    """Bytes for `decode`: the lowest bin, steps to the next ones and counts, each as narrow as they allow."""
    if not bins:
        return b""
    if len(bins) == 1:
        [(lowest, count)] = bins.items()
        if count < _LIMITS[0]:
            return _ONE_BIN.pack(0, lowest, count)
    keys = sorted(bins)
    steps = [b - a for a, b in pairwise(keys)]
    counts = [bins[key] for key in keys]
    step_width, count_width = _width(max(steps, default=0)), _width(max(counts))
    packed = _packing(len(keys), step_width, count_width).pack(*steps, *counts)
    return _HEADER.pack(step_width << 4 | count_width, keys[0]) + packed


def decode(data: bytes) -> Bins:
    """The bins of `encode`.

    Raises:
        InvalidMessage: the bytes are not of that form.
    """
    if not data:
        return {}
    try:
        widths, lowest = _HEADER.unpack_from(data)
        step_width, count_width = widths >> 4, widths & 15
        size = (1 << step_width) + (1 << count_width)
        number, rest = divmod(len(data) - _HEADER.size + (1 << step_width), size)
        if rest or number < 1 or step_width > 3 or count_width > 3:
            raise InvalidMessage("a quantile sketch is cut off")
        numbers = _packing(number, step_width, count_width).unpack_from(data, _HEADER.size)
    except struct_error as error:
        raise InvalidMessage(f"a quantile sketch is cut off: {error}") from error
    return dict(zip(accumulate(numbers[: number - 1], initial=lowest), numbers[number - 1 :], strict=True))


def _width(largest: int) -> int:
    return next(width for width, limit in enumerate(_LIMITS) if largest < limit)


def _packing(number: int, step_width: int, count_width: int) -> Struct:
    key = (number, step_width, count_width)
    found = _structs.get(key)
    if found is None:
        if len(_structs) > 4 * MAX_BINS:
            _structs.clear()
        found = Struct(f"<{number - 1}{_WIDTHS[step_width]}{number}{_WIDTHS[count_width]}")
        _structs[key] = found
    return found
